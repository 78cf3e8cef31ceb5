"""Editing codes: replace a unit, take frames in any order, splice, swap the acoustic levels.

Every function gives new `Codes`, which decode as any others do, and leaves those it was given as
they were. Frames that an edit does not touch keep their codes. The decoder is causal, so that the
sound up to `ModelConfig.overlap_frames` before an edited frame stays to the bit too; after it the
decoder remembers the edit for as many frames as `ModelConfig.decoder_memory` says, and the phase of
its source for ever.

`audiovq.read_tokens` with `from_tokens` reads codes from a file; `audiovq.write_npy(path,
codes.indices[0].numpy(), level_strides=codes.level_strides)` writes them. Where an edit cuts into
the frames that a code stands for, what it gives has a code in every frame, and no `level_strides`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from audiovq.codes import Codes, Tokens
from audiovq.config import ModelConfig


def from_tokens(tokens: Tokens, config: ModelConfig) -> Codes:
    """The contents of a token file as the codes of one recording, [1, n_q, T].

    Files without a header (`.npy`) stand for whole frames. Raises `ValueError` for more levels or
    larger codes than `config` has.
    """
    config.check_n_q(len(tokens.indices))
    config.check_range(int(tokens.indices.min()), int(tokens.indices.max()))
    n_samples = tokens.indices.shape[1] * config.hop_length
    if tokens.header is not None:
        n_samples = tokens.header.n_samples
    indices = torch.from_numpy(tokens.indices.astype(np.int64))[None]
    return Codes(indices, (n_samples,), tokens.level_strides)


def replace(
    codes: Codes,
    old: int,
    new: int,
    config: ModelConfig,
    *,
    level: int = 0,
    frames: slice = slice(None),
) -> Codes:
    """Every frame whose code at `level` is `old` gets `new` there; level 0 are the units.

    frames: where to replace, by default everywhere. Raises `ValueError` for a level that the codes
    lack and a code that the codebook lacks.
    """
    n_levels = codes.indices.shape[1]
    if not 0 <= level < n_levels:
        raise ValueError(f"level must be in 0..{n_levels - 1}, not {level}.")
    config.check_range(min(old, new), max(old, new))
    indices = codes.indices.clone()
    row = indices[:, level, frames]  # a view
    row[row == old] = new
    return _edited(indices, codes.lengths, codes)


def take(codes: Codes, frames: Sequence[int] | np.ndarray, config: ModelConfig) -> Codes:
    """The frames of one recording by their numbers, in the order given: `range(50, 100)` cuts the
    second second out at 50 frames a second, `np.repeat(range(n), 2)` is half as fast.

    Of a last frame that the recording fills in part, so much is kept where it is taken last.
    Raises `ValueError` for a batch of more than one, no frames, and frames that are not there.
    """
    numbers = np.asarray(frames)
    n_frames = _frames_of_one(codes, config)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu":
        raise ValueError("frames must be whole numbers [n], n >= 1.")
    if numbers.min() < 0 or numbers.max() >= n_frames:
        raise ValueError(
            f"frames {numbers.min()}..{numbers.max()} are asked for; there are 0..{n_frames - 1}."
        )
    missing = n_frames * config.hop_length - codes.lengths[0] if numbers[-1] == n_frames - 1 else 0
    at = torch.from_numpy(numbers.astype(np.int64)).to(codes.indices.device)
    length = len(numbers) * config.hop_length - missing
    return _edited(codes.indices[:, :, at], (length,), codes)


def splice(parts: Sequence[Codes], config: ModelConfig) -> Codes:
    """Recordings one after the other, joined at frame borders.

    A part that ends within a frame keeps that frame whole, but for the last part, which keeps its
    length. Raises `ValueError` for no parts, batches of more than one, and different levels.
    """
    if not parts:
        raise ValueError("there is nothing to splice; give one part or more.")
    lengths = [_frames_of_one(part, config) for part in parts]
    levels = {part.indices.shape[1] for part in parts}
    if len(levels) > 1:
        raise ValueError(f"the parts have {sorted(levels)} levels; give parts of as many.")
    pieces = [part.indices[:, :, :n] for part, n in zip(parts, lengths, strict=True)]
    before = sum(lengths[:-1]) * config.hop_length
    return _edited(torch.cat(pieces, dim=2), (before + parts[-1].lengths[0],), parts[0])


def swap_acoustics(a: Codes, b: Codes, *, only_shared: bool = True) -> tuple[Codes, Codes]:
    """Two recordings with each other's acoustic levels, those after level 0, frame by frame.

    only_shared: swap only where the units are the same, and leave the other frames as they are;
        with False swap every frame, so that a unit may stand beside codes of another sound.

    Both have the same shape; `take` gives one the timing of the other.
    Raises `ValueError` when the shapes differ or there is no level but the units.
    """
    if a.indices.shape != b.indices.shape:
        raise ValueError(
            f"codes are {list(a.indices.shape)} and {list(b.indices.shape)}; give two of one shape."
        )
    if a.indices.shape[1] < 2:
        raise ValueError("the codes have one level, the units; there is nothing to swap.")
    swapped = torch.ones_like(a.indices[:, :1], dtype=torch.bool)
    if only_shared:
        swapped = a.indices[:, :1] == b.indices[:, :1]
    pair = []
    for own, other in ((a, b), (b, a)):
        acoustic = torch.where(swapped, other.indices[:, 1:], own.indices[:, 1:])
        pair.append(_edited(torch.cat([own.indices[:, :1], acoustic], dim=1), own.lengths, own))
    return pair[0], pair[1]


def _edited(indices: torch.Tensor, lengths: tuple[int, ...], before: Codes) -> Codes:
    """Codes at the rates that they had, if each still stands in all its frames."""
    for level, stride in enumerate(before.level_strides):
        row = indices[:, level]
        if not torch.equal(row[:, ::stride].repeat_interleave(stride, 1)[:, : row.shape[1]], row):
            return Codes(indices, lengths)
    return Codes(indices, lengths, before.level_strides)


def _frames_of_one(codes: Codes, config: ModelConfig) -> int:
    """The frames of the one recording in `codes`."""
    if len(codes.lengths) != 1 or len(codes.indices) != 1:
        raise ValueError(f"give codes of one recording, not a batch of {len(codes.indices)}.")
    return -(-codes.lengths[0] // config.hop_length)
