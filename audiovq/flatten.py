"""Codes of levels at several rates: in one order, each once.

In memory codes are [n_q, T], and the code of a level of stride s stands in each of its s frames, so
that frame t can be cut out, decoded or drawn whatever the strides are. Files and language models
have it once, at its first frame: frame by frame, and within a frame level by level. With strides
4, 2, 1 and the codes a (level 0), b c (level 1), d e f g (level 2):

    frame      0        1     2        3
    levels     a b d    e     c f      g

That is the order in which language models read SNAC's codes (Siuzdak et al. 2024): the coarse code
first, then the finer ones that lie within it. Any number of frames has it, not whole groups alone.
"""

import reprlib
from collections.abc import Sequence

import numpy as np

LARGEST_STRIDE = 32
"""Frames of a code: a file must not ask for many times its size in memory."""


def checked_strides(level_strides: Sequence[int], n_levels: int) -> tuple[int, ...]:
    """`level_strides` as a tuple, which is empty when all are 1.

    Raises `ValueError` unless they are `n_levels` whole numbers in 1 .. `LARGEST_STRIDE`, each of
    which divides the largest.
    """
    strides = tuple(level_strides)
    if not strides:
        return ()
    fits = len(strides) == n_levels and all(
        type(stride) is int and 1 <= stride <= LARGEST_STRIDE for stride in strides
    )
    if not fits or any(max(strides) % stride for stride in strides):
        raise ValueError(
            f"level_strides must be {n_levels} whole numbers in 1..{LARGEST_STRIDE}, one a level, "
            f"each a divisor of the largest, not {reprlib.repr(list(strides))}."
        )
    return () if max(strides) == 1 else strides


def count_codes(n_frames: int, strides: Sequence[int]) -> int:
    """Codes of `n_frames` frames, those that are repeated counted once."""
    return sum(-(-n_frames // stride) for stride in strides)


def codes_per_second(sample_rate: int, hop_length: int, strides: Sequence[int]) -> float:
    """Codes of a second of whole groups, exact but for the rounding of the result."""
    group = max(strides)
    return sample_rate * count_codes(group, strides) / (hop_length * group)


def compact(indices: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Codes [n_q, T] in the order of this module, each once: [`count_codes`].

    Raises `ValueError` where a code changes within its frames.
    """
    for level, stride in enumerate(strides):
        row = indices[level]
        if stride > 1 and not np.array_equal(_repeat(row[::stride], stride, len(row)), row):
            raise ValueError(
                f"codes of level {level} change within their {stride} frames; codes begin at "
                f"frames that are multiples of {stride}."
            )
    return indices.T[_first_frames(indices.shape[1], strides)]


def spread(codes: np.ndarray, n_frames: int, strides: Sequence[int]) -> np.ndarray:
    """The inverse of `compact`: [n_q, n_frames], of the type of `codes`."""
    frames = np.empty((n_frames, len(strides)), codes.dtype)
    frames[_first_frames(n_frames, strides)] = codes
    levels = [frames[::stride, level] for level, stride in enumerate(strides)]
    return join_levels(levels, n_frames, strides)


def join_levels(levels: Sequence[np.ndarray], n_frames: int, strides: Sequence[int]) -> np.ndarray:
    """Codes of each level, once each, as [n_q, n_frames]."""
    rows = [_repeat(codes, stride, n_frames) for codes, stride in zip(levels, strides, strict=True)]
    return np.stack(rows)


def flatten(indices: np.ndarray, level_strides: Sequence[int], codebook_size: int) -> np.ndarray:
    """Codes [n_q, T] as one sequence for a language model, int64 in 0 .. n_q * codebook_size - 1.

    level_strides: those of the model's config, of the first n_q levels at least; empty when all
    are 1. Code c of level l becomes l * codebook_size + c, in the order of this module.

    Raises `ValueError` for codes out of range and where a code changes within its frames.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be whole numbers [n_q, T], not {indices.dtype} {list(indices.shape)}."
        )
    if indices.size and not 0 <= indices.min() <= indices.max() < codebook_size:
        raise ValueError(f"codes must be in 0..{codebook_size - 1}.")
    strides = _of_levels(level_strides, len(indices))
    return compact(indices + codebook_size * np.arange(len(indices))[:, None], strides)


def unflatten(
    tokens: np.ndarray | Sequence[int],
    level_strides: Sequence[int],
    codebook_size: int,
    *,
    n_q: int,
    cut: bool = False,
) -> np.ndarray:
    """The inverse of `flatten`: codes int64 [n_q, T], T whole codes of the finest level.

    cut: leave out an unfinished frame at the end, as where a language model stopped.

    Raises `ValueError` for a token at a place of another level, and for an unfinished frame.
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    strides = _of_levels(level_strides, n_q)
    per_group = count_codes(max(strides), strides)
    starts = _first_frames(max(strides) * (len(tokens) // per_group + 1), strides)
    ends = starts.sum(axis=1).cumsum()  # tokens up to the end of each frame
    n_frames = int(np.searchsorted(ends, len(tokens), side="right"))
    n_whole = int(ends[n_frames - 1]) if n_frames else 0
    if n_whole < len(tokens) and not cut:
        raise ValueError(
            f"{len(tokens)} tokens end within frame {n_frames}, whose last one would be number "
            f"{ends[n_frames] - 1}; cut=True leaves that frame out."
        )
    levels = np.nonzero(starts[:n_frames])[1]
    codes = tokens[:n_whole] - codebook_size * levels
    wrong = np.flatnonzero((codes < 0) | (codes >= codebook_size))
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"token {place} is {tokens[place]}, but a code of level {levels[place]} stands there, "
            f"{codebook_size * levels[place]}..{codebook_size * (levels[place] + 1) - 1}."
        )
    return spread(codes, n_frames, strides)


def _of_levels(level_strides: Sequence[int], n_q: int) -> tuple[int, ...]:
    strides = tuple(level_strides)[:n_q]
    return checked_strides(strides, n_q) or (1,) * n_q


def _first_frames(n_frames: int, strides: Sequence[int]) -> np.ndarray:
    """Where a code of each level begins: bool [T, n_q]."""
    return np.arange(n_frames)[:, None] % np.asarray(strides) == 0


def _repeat(codes: np.ndarray, stride: int, n_frames: int) -> np.ndarray:
    return np.repeat(codes, stride)[:n_frames]
