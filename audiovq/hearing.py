"""What of a sound is heard: the scales and the floor that networks, losses and measures share."""

SAMPLE_RATE = 16_000
"""In Hz: of the sound that measures hear, and other codecs and distortions take and give."""

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Window in samples and number of mel bands of each scale of the mel distance (Kumar et al. 2023,
"High-fidelity audio compression with improved RVQGAN", at 44.1 kHz)."""

LONGEST_WINDOW = max(window for window, _ in MEL_SCALES)
"""In samples; sound must be longer than half of it."""

AUDIBLE = 2e-4
"""RMS amplitude of the noise that counts as silence, 74 dB below full scale. A logarithm is
steepest where the sound is faintest; a floor below hearing draws gradients there."""
