"""What training needs of recordings and computes once: their codes and their fundamentals.

A cache is a folder of `.npy` files, a row a frame, named after the recordings' ids:

    codes-FINGERPRINT/ID.npy    uint16 [T, n_codebooks], the codes of that model
    pitch-HOP/ID.npy            float32 [T], the fundamental in Hz at the end of each frame of HOP
                                samples, 0 where there is none; pitch-HOP-RATE unless at 16 kHz

Files that are there already stay: a cache that was broken off goes on where it stopped.
"""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from audiovq.files import FileRefused, atomic_output
from audiovq.model import AudioVQ
from audiovq.training.data import Cut, read_part

logger = logging.getLogger("audiovq.train")

TRACKER_RATE = 16_000
"""Sample rate in Hz of the pitch tracker."""
CONFIDENT = 0.5
"""Least confidence of a frame that counts as voiced."""


def codes_folder(cache: str | Path, model: AudioVQ) -> Path:
    """Where a cache has the codes of a model."""
    return Path(cache) / f"codes-{model.fingerprint}"


def pitch_folder(cache: str | Path, hop_length: int, sample_rate: int) -> Path:
    """Where a cache has the fundamentals for a hop of so many samples."""
    rate = "" if sample_rate == TRACKER_RATE else f"-{sample_rate}"
    return Path(cache) / f"pitch-{hop_length}{rate}"


def fill_codes(model: AudioVQ, cuts: Sequence[Cut], cache: str | Path) -> None:
    """Encode the recordings that a cache does not have yet."""

    def encode(wav: np.ndarray) -> np.ndarray:
        codes = model.encode(torch.from_numpy(wav)[None, None]).indices[0]
        return codes.T.cpu().numpy().astype(np.uint16)

    rate = model.config.sample_rate
    _fill(codes_folder(cache, model), cuts, rate, encode, "encoded")


def fill_pitch(cuts: Sequence[Cut], sample_rate: int, hop_length: int, cache: str | Path) -> None:
    """Track the fundamental of the recordings that a cache does not have yet."""
    _fill(
        pitch_folder(cache, hop_length, sample_rate),
        cuts,
        sample_rate,
        lambda wav: fundamental(wav, sample_rate, hop_length),
        "tracked",
    )


def fundamental(wav: np.ndarray, sample_rate: int, hop_length: int) -> np.ndarray:
    """Fundamental [T] in Hz of samples [n], T = ceil(n / hop), at the end of each frame; 0 where
    there is none. By SwiftF0 (Nieradzik 2025), whose frames are 16 ms apart."""
    if sample_rate != TRACKER_RATE:
        wav = soxr.resample(wav, sample_rate, TRACKER_RATE)
    found = _tracker().detect(np.ascontiguousarray(wav, dtype=np.float32), TRACKER_RATE)
    n_frames = -(-len(wav) * sample_rate // (hop_length * TRACKER_RATE))
    times = np.arange(1, n_frames + 1) * hop_length / sample_rate
    after = np.clip(np.searchsorted(found.timestamps, times), 1, len(found.timestamps) - 1)
    voiced = found.confidence >= CONFIDENT
    both = voiced[after - 1] & voiced[after]
    hertz = np.exp2(np.interp(times, found.timestamps, np.log2(np.maximum(found.pitch_hz, 1.0))))
    return np.where(both, hertz, 0.0).astype(np.float32)


@lru_cache(maxsize=1)
def _tracker() -> Any:
    from swift_f0 import SwiftF0

    return SwiftF0(threads=1, spin=False)


def _fill(
    folder: Path,
    cuts: Sequence[Cut],
    sample_rate: int,
    compute: Callable[[np.ndarray], np.ndarray],
    done: str,
) -> None:
    missing = [cut for cut in cuts if not (folder / f"{cut.id}.npy").is_file()]
    if not missing:
        return
    logger.info(f"{len(missing)} recordings are {done} once; the cache is {folder}.")
    for cut in missing:
        n_samples = max(1, round(cut.duration * sample_rate))
        try:
            wav = read_part(cut.path, round(cut.start * sample_rate), n_samples, sample_rate)
        except FileRefused as error:
            logger.warning("Skipped: %s", error)  # crops skip it in the same way
            continue
        rows = compute(wav)
        with atomic_output(folder / f"{cut.id}.npy", overwrite=True) as temporary:
            np.save(temporary, rows, allow_pickle=False)
