"""What units are compared with: k-means on MFCC, and the same units in an order without meaning."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from audiovq.files import FileRefused

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

N_MFCC = 13


def mfcc(wav: np.ndarray, sample_rate: int = 16_000, frame_rate: float = 50.0) -> np.ndarray:
    """MFCC with their first and second differences, float32 [T, 39], T = ceil(N / hop).

    wav: float32 [N]. Windows of 25 ms stand on the centres of the frames, at (t + 0.5) / frame_rate
    seconds, so that they line up with labels at shift 0. The recipe is that of the MFCC clusters
    of Hsu et al. 2021: 13 coefficients, no normalisation.

    Raises `ValueError` when `frame_rate` is no whole number of samples.
    """
    try:
        from librosa.feature import delta
        from librosa.feature import mfcc as librosa_mfcc
    except ImportError as error:  # pragma: no cover - librosa is a dependency
        raise FileRefused("MFCC need librosa; pip install librosa.") from error
    hop = round(sample_rate / frame_rate)
    if abs(hop * frame_rate - sample_rate) > 1e-6 * sample_rate:
        raise ValueError(
            f"{frame_rate:g} frames a second do not divide {sample_rate} Hz; give another rate."
        )
    n_fft = sample_rate // 40
    n_frames = -(-len(wav) // hop)
    left = (n_fft - hop) // 2  # windows wider than a hop begin before their frame
    right = max(0, (n_frames - 1) * hop + n_fft - left - len(wav))
    padded = np.pad(wav, (max(0, left), right))[max(0, -left) :]
    features = librosa_mfcc(
        y=padded,
        sr=sample_rate,
        n_mfcc=N_MFCC,
        n_fft=n_fft,
        hop_length=hop,
        n_mels=40,
        center=False,
    )[:, :n_frames]
    stack = [features, delta(features, mode="nearest"), delta(features, order=2, mode="nearest")]
    return np.concatenate(stack).T.astype(np.float32)


def kmeans_units(
    features: Sequence[np.ndarray],
    n_units: int,
    *,
    fit: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """Units of features [T, D]: the nearest of `n_units` k-means centroids, int64 [T] each.

    The centroids are fitted to `fit`, features [T, D] too. Without it they are fitted to the very
    features that become units, which favours this baseline: a tokenizer is measured on
    recordings that it was not fitted to.

    Raises `ValueError` when there are fewer frames than units.
    """
    clusters = fit_kmeans(features if fit is None else fit, n_units, seed=seed)
    units = clusters.predict(np.concatenate(list(features))).astype(np.int64)
    return np.split(units, np.cumsum([len(f) for f in features])[:-1])


def fit_kmeans(features: Sequence[np.ndarray], n_units: int, *, seed: int = 0) -> "MiniBatchKMeans":
    """The `n_units` centroids of features [T, D]; `predict` gives each frame its nearest one.

    Raises `ValueError` when there are fewer frames than units.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise FileRefused("k-means needs scikit-learn; pip install '.[units]'.") from error
    fitted = np.concatenate(list(features))
    if len(fitted) < n_units:
        raise ValueError(f"{len(fitted)} frames are too few for {n_units} units; give more audio.")
    return MiniBatchKMeans(
        n_units,
        n_init=3,
        batch_size=min(10_000, len(fitted)),
        max_iter=100,
        random_state=seed,
    ).fit(fitted)


def mfcc_units(
    wavs: Iterable[np.ndarray],
    n_units: int,
    *,
    fit: Iterable[np.ndarray] | None = None,
    sample_rate: int = 16_000,
    frame_rate: float = 50.0,
    seed: int = 0,
) -> list[np.ndarray]:
    """Units [T] of recordings [N] by k-means on their MFCC. See `mfcc` and `kmeans_units`."""
    features = [mfcc(wav, sample_rate, frame_rate) for wav in wavs]
    other = None if fit is None else [mfcc(wav, sample_rate, frame_rate) for wav in fit]
    return kmeans_units(features, n_units, fit=other, seed=seed)


def permuted_units(units: Sequence[np.ndarray], *, seed: int = 0) -> list[np.ndarray]:
    """The control: the same units in random order over all utterances, which tells of no phone."""
    joined = np.random.default_rng(seed).permutation(np.concatenate(list(units)))
    return np.split(joined, np.cumsum([len(u) for u in units])[:-1])
