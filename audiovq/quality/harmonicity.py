"""How much of a voice's harmonics decoded speech keeps, band by band.

A decoder that makes noise of the right spectrum where the original has harmonics sounds hoarse.
Measures of spectra and envelopes are deaf to that. Here a frame's harmonics are what repeats after
one period of the original's fundamental.
"""

import math

import numpy as np

from audiovq.hearing import SAMPLE_RATE

BANDS = ((60, 1000), (1000, 2000), (2000, 4000))
"""(lowest, highest) frequency in Hz. Above 4 kHz too few frames of real speech are harmonic."""

_HOP = 160  # 10 ms
_WINDOW = 0.04  # seconds over which a frame is compared with itself a period later
_FFT = 512
_PITCH = (60, 400)  # Hz
_GRID = 8000  # products of a band's samples a second
_HARMONIC = 0.5  # the original's share of harmonics above which a frame counts
_GATE = 40  # dB below the loud frames at which a frame is silence
_LOST = 0.01  # a band so much weaker in power than the original's is not there
_EDGE = 100  # Hz over which a band begins and ends
_MIN_FRAMES = 10
_PIECE = 20 * SAMPLE_RATE


def harmonicity(reference: np.ndarray, decoded: np.ndarray) -> tuple[float, ...]:
    """The share of the reference's harmonics that the decoded clip has, 0..1 for each of `BANDS`.

    reference, decoded: float32 [n] at 16 kHz, aligned to a few milliseconds.

    1 for the same harmonics and 0 for noise of the same envelope; half the energy of a band turned
    into noise gives 0.5. Level and phase do not matter, nor does a pitch that is off by a few
    percent; a band that is weaker than the original's by more than 20 dB counts as lost.

    Each frame of both clips is compared with itself a period of the reference later: the magnitude
    of the normalised correlation of the band's analytic signal, whose noise-only expectation is
    taken off. The period follows the pitch within the frame, so that a glide keeps the high
    harmonics in phase. Before that each clip's spectrum is divided by its mean over one fundamental
    around each frequency: otherwise a formant alone correlates with itself. The value is the root
    of the ratio of the sums of squares, over the frames in which the reference is itself harmonic
    in the band. NaN where they are fewer than ten.
    """
    n_pieces = max(1, math.ceil(len(reference) / _PIECE))
    sums = np.zeros((len(BANDS), 3))
    for ref, dec in zip(
        np.array_split(reference, n_pieces), np.array_split(decoded, n_pieces), strict=True
    ):
        if len(ref) >= 2 * _FFT and ref.any():
            sums += _piece(ref, dec)
    return tuple(
        min(1.0, math.sqrt(max(0.0, kept) / there)) if n >= _MIN_FRAMES else math.nan
        for kept, there, n in sums
    )


def _piece(ref: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Sums [bands, 3] of the decoded's and the reference's squared harmonicity, and frames."""
    n = len(ref)
    pad = _HOP - n % _HOP + 2 * _HOP  # silence, lest the end runs into the start
    ref, dec = (np.pad(x.astype(np.float32), (0, pad)) for x in (ref, dec))
    period, voiced = _pitch(ref)
    gain = float(dec @ dec) / float(ref @ ref)
    flat_ref, flat_dec = _flatten(ref, dec, gain, SAMPLE_RATE / period)
    sums = []
    for low, high in BANDS:
        there, power = _repetition(flat_ref, period, low, high)
        kept, own = _repetition(flat_dec, period, low, high)
        there = there / np.maximum(power, 1e-12)
        kept = kept / np.maximum(np.maximum(own, 0.5 * power), 1e-12)
        used = voiced & (there > _HARMONIC)
        noise = 1.5 / ((high - low) * _WINDOW)  # of a Hann window, for the square
        sums.append([(kept[used] ** 2 - noise).sum(), (there[used] ** 2 - noise).sum(), used.sum()])
    return np.array(sums)


def _pitch(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Period in samples of every 10 ms [frames], by YIN, and whether it is steady and not silent.

    de Cheveigné and Kawahara, "YIN, a fundamental frequency estimator for speech and music", JASA
    2002. Whether a frame is voiced is left to its harmonicity.
    """
    import librosa

    low = _band(wav, *BANDS[0]).real.astype(np.float32)
    low_pitch, high_pitch = _PITCH
    pitch = librosa.yin(
        low, fmin=low_pitch, fmax=high_pitch, sr=SAMPLE_RATE, frame_length=1024, hop_length=_HOP
    )
    level = _windowed(low**2, SAMPLE_RATE)
    loud = level > 10 ** (-_GATE / 10) * np.percentile(level, 95)
    steady = np.abs(np.diff(np.log(pitch))) < 0.1
    return SAMPLE_RATE / pitch, loud & np.append(steady, False) & np.append(False, steady)


def _flatten(
    ref: np.ndarray, dec: np.ndarray, gain: float, pitch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both clips [n] with a flat spectrum; where `dec` has lost its power, with a weak one.

    A mean over exactly one fundamental holds one harmonic wherever it lies, so it has no ripple.
    """
    import librosa

    spectra, means = [], []
    for wav in (ref, dec):
        spectrum = librosa.stft(wav, n_fft=_FFT, hop_length=_HOP)
        power = np.abs(spectrum.astype(np.complex128)) ** 2
        spectra.append(spectrum)
        means.append(_running_mean(power, pitch * _FFT / SAMPLE_RATE) + 1e-9 * power.mean())
    floor = _LOST * means[0]
    flat = [
        librosa.istft(spectrum / np.sqrt(power), hop_length=_HOP, n_fft=_FFT, length=len(ref))
        for spectrum, power in zip(
            spectra, (means[0] + floor, means[1] + gain * floor + 1e-30), strict=True
        )
    ]
    return flat[0], flat[1]


def _running_mean(power: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Mean of power [bins, frames] over width [frames] bins around each bin, between bins too."""
    n_bins = len(power)
    below = np.pad(np.cumsum(power, axis=0), ((1, 0), (0, 0)))
    centre = np.arange(n_bins)[:, None] + 0.5

    def integral(edge: np.ndarray) -> np.ndarray:
        whole = np.minimum(edge.astype(int), n_bins - 1)
        low, high = (np.take_along_axis(below, i, axis=0) for i in (whole, whole + 1))
        return low + (edge - whole) * (high - low)

    low = np.maximum(centre - width / 2, 0)
    high = np.minimum(centre + width / 2, n_bins)
    return (integral(high) - integral(low)) / (high - low)


def _repetition(
    wav: np.ndarray, period: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of a band with itself a period later, and the power to divide it by [frames]."""
    centre = 100 * round((low + high) / 200)  # falls on a line of any multiple of 10 ms
    band = _band(wav, low, high, centre)
    time = np.arange(0, len(wav), SAMPLE_RATE // _GRID)
    half = np.interp(time, np.arange(len(period)) * _HOP, period) / 2
    later, earlier = (
        np.interp(at, np.arange(len(band)), band, left=0, right=0)
        for at in (time + half, time - half)
    )
    turns = np.exp(4j * np.pi * centre / SAMPLE_RATE * half)
    product = _windowed(later * earlier.conj() * turns, _GRID)
    powers = [_windowed(np.abs(x) ** 2, _GRID) for x in (later, earlier)]
    return np.abs(product), np.sqrt(powers[0] * powers[1])


def _band(wav: np.ndarray, low: float, high: float, centre: int = 0) -> np.ndarray:
    """The analytic signal [n] of a band of wav [n], moved down by `centre` Hz."""
    n = len(wav)
    lines = np.fft.rfft(wav)
    frequency = np.arange(len(lines)) * SAMPLE_RATE / n
    inside = np.minimum(frequency - low, high - frequency) / _EDGE + 0.5
    lines *= np.sin(np.pi / 2 * inside.clip(0, 1))
    both = np.pad(lines, (0, n - len(lines)))
    return 2 * np.fft.ifft(np.roll(both, -centre * n // SAMPLE_RATE))


def _windowed(values: np.ndarray, rate: int) -> np.ndarray:
    """Sums of values [n] at `rate` Hz under a Hann window around every 10 ms [frames]."""
    n = int(_WINDOW * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(values, n // 2), n)
    step = _HOP * rate // SAMPLE_RATE
    return frames[::step] @ np.hanning(n + 1)[:-1]
