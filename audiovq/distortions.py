"""What befalls speech between a mouth and a tokenizer, as functions of samples.

All take and give float samples [n], in line with each other.
"""

import io
import math

import numpy as np
import soundfile


def power(wav: np.ndarray) -> float:
    """Mean square of samples [n]."""
    return float(np.mean(np.square(wav, dtype=np.float64)))


def mix(wav: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Samples [n] with noise [n] whose power is `snr_db` below theirs, both taken as a whole.

    Silence stays silence, and so does what silent noise is added to.
    """
    if not (loud := power(noise)):
        return wav
    return wav + np.sqrt(power(wav) / loud * 10 ** (-snr_db / 10)) * noise


def coloured_noise(n: int, slope: float, random: np.random.Generator) -> np.ndarray:
    """Noise [n] whose power falls by `slope` x 3 dB an octave: 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(random.standard_normal(n))
    spectrum *= np.arange(1, len(spectrum) + 1) ** (-slope / 2)
    return np.fft.irfft(spectrum, n)


def reverberant(wav: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Samples [n] through a room's response, from its direct sound on, as loud as before."""
    from scipy.signal import fftconvolve

    out = fftconvolve(wav, response)[: len(wav)]
    loud = power(out)
    return out * np.sqrt(power(wav) / loud) if loud else out


def decaying_response(
    rt60: float, direct_db: float, sample_rate: int, random: np.random.Generator
) -> np.ndarray:
    """A room's response as noise that falls by 60 dB in rt60 seconds, `direct_db` below the direct
    sound, which is its first sample (Polack 1988)."""
    n = max(2, round(rt60 * sample_rate))
    tail = random.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[0] = 0.0
    response = tail * 10 ** (-direct_db / 20) / math.sqrt(np.sum(np.square(tail)))
    response[0] = 1.0
    return response


def band_limited(wav: np.ndarray, low: float, high: float, sample_rate: int) -> np.ndarray:
    """Samples [n] between two frequencies in Hz, by a Butterworth filter that delays nothing."""
    from scipy.signal import butter, sosfilt

    sections = butter(6, (low, high), "bandpass", fs=sample_rate, output="sos")
    forwards = sosfilt(sections, wav)
    return sosfilt(sections, forwards[::-1])[::-1]  # twice, so that nothing is late


def has_opus() -> bool:
    """Whether soundfile here writes Opus at a rate that can be chosen."""
    chosen = "compression_level" in soundfile.SoundFile.__init__.__code__.co_varnames
    return "OPUS" in soundfile.available_subtypes("OGG") and chosen


def through_opus(wav: np.ndarray, kbps: float, sample_rate: int) -> np.ndarray:
    """Samples [n] coded with Opus at 6 to 256 kbit/s and decoded; needs `has_opus`."""
    # libsndfile gives 6 to 256 kbit/s to the levels from 1 to 0.
    level = 1 - (kbps - 6) / 250
    peak = max(1.0, float(np.abs(wav).max()))  # it clips what is beyond 1
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", sample_rate, 1, "OPUS", format="OGG", compression_level=level
    ) as coder:
        coder.write(wav / peak)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0] * peak
