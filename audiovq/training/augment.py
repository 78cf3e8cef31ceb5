"""What a crop may go through before the model hears it: noise, voices, rooms, filters, codecs."""

import math
from collections.abc import Callable

import numpy as np
import soxr
import torch

from audiovq.distortions import (
    band_limited,
    coloured_noise,
    decaying_response,
    has_opus,
    mix,
    reverberant,
    through_opus,
)

SHARE = 0.4
"""Of the changes, each of which comes to a crop on its own."""
LATE = 0.01
"""By how many seconds at most a crop is early or late: half a frame, so that frames lie anew."""
VOCODER_WINDOW = 512
"""Samples that a voice is moved by: 32 ms at 16 kHz."""


def augmented(
    wav: np.ndarray,
    sample_rate: int,
    random: np.random.Generator,
    other: Callable[[], np.ndarray],
) -> np.ndarray:
    """Samples [n] as another microphone might have them, in line with the original, float32 [n].

    A little early or late, in a room, with noise or another voice behind, through a filter, and
    coded: each or none.
    other: gives samples [n] of another recording.
    """
    if random.random() < SHARE:
        most = round(LATE * sample_rate)
        late = int(random.integers(-most, most + 1))
        wav = np.pad(wav, (max(0, late), max(0, -late)))[max(0, -late) :][: len(wav)]
    if random.random() < SHARE:
        rt60, direct_db = random.uniform(0.15, 0.8), random.uniform(0, 12)
        wav = reverberant(wav, decaying_response(rt60, direct_db, sample_rate, random))
    if random.random() < SHARE:
        wav = mix(wav, coloured_noise(len(wav), random.uniform(0, 2), random), _snr(random))
    elif random.random() < SHARE:
        wav = mix(wav, other(), _snr(random))
    if random.random() < SHARE / 2:
        low = random.uniform(20, 300)
        high = sample_rate / 2 * random.uniform(0.4, 0.95)
        wav = band_limited(wav, low, high, sample_rate)
    if random.random() < SHARE / 2 and has_opus() and sample_rate in OPUS_RATES:
        wav = through_opus(wav.astype(np.float32), random.uniform(8, 32), sample_rate)
    return wav.astype(np.float32)


OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""In Hz, those that Opus knows."""


def with_voice(wav: np.ndarray, semitones: float, sample_rate: int) -> np.ndarray:
    """Samples [n] whose pitch and formants are higher by `semitones`, in line with the original.

    Played faster, and stretched to what it was by a phase vocoder (Flanagan and Golden 1966).
    """
    from torchaudio.functional import phase_vocoder

    speed = 2 ** (semitones / 12)
    fast = torch.from_numpy(soxr.resample(wav, sample_rate * speed, sample_rate))
    if len(fast) < VOCODER_WINDOW:
        return wav
    hop = VOCODER_WINDOW // 4
    window = torch.hann_window(VOCODER_WINDOW)
    spectrum = torch.stft(fast, VOCODER_WINDOW, hop, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * hop, VOCODER_WINDOW // 2 + 1)[:, None]
    spectrum = phase_vocoder(spectrum, 1 / speed, advance)
    out = torch.istft(spectrum, VOCODER_WINDOW, hop, window=window).numpy()[: len(wav)]
    return np.pad(out, (0, len(wav) - len(out)))


def _snr(random: np.random.Generator) -> float:
    return random.uniform(5, 30)
