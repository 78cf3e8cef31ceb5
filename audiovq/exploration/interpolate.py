"""From one recording to another through the latent space, and codes at every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audiovq.codes import Codes
from audiovq.model import AudioVQ
from audiovq.quantize import Search

LONGEST = 3000
"""Frames of the longer recording: time warping fills a table of both lengths."""


@dataclass(frozen=True)
class Step:
    """A point on the way from A (0) to B (1)."""

    share: float
    """How much of B is in it, 0..1."""
    codes: Codes
    """Of one recording, [1, n_q, T]."""
    wav: Tensor
    """What they decode to, float32 [1, 1, N]."""
    units_of: tuple[float, float]
    """Shares of frames whose unit is that of A, and of B, in the frames they were made from."""


def align(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The frames of two latents that belong together: int64 [P, 2], rising in both columns.

    a, b: [Ta, D], [Tb, D]. Dynamic time warping of librosa over the Euclidean distance, from both
    first frames to both last ones.
    """
    from librosa.sequence import dtw

    _, path = dtw(a.T, b.T, metric="euclidean")
    return path[::-1]


def interpolate(
    model: AudioVQ,
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    shares: Sequence[float],
    *,
    n_q: int | None = None,
) -> list[Step]:
    """Codes and sound between two recordings, in one step for each of `shares` (0 is A, 1 is B).

    a, b: [1, 1, N] in -1..1 at the model's rate. Their latents are aligned by `align`; each step
    has a length between theirs, the weighted means of the frames that belong together, and its own
    search in the codebooks. At 0 and 1 the codes are those of `AudioVQ.encode`, to the bit.

    Raises `ValueError` as `encode`, for shares outside 0..1, and for recordings of more than
    `LONGEST` frames.
    """
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares must be in 0..1, not {list(shares)}.")
    ends = [model.encode(wav, n_q=n_q) for wav in (a, b)]
    if (longest := max(end.indices.shape[2] for end in ends)) > LONGEST:
        raise ValueError(
            f"a recording has {longest} frames; interpolation takes up to {LONGEST} "
            f"({LONGEST / model.config.frame_rate:g} s). Cut it."
        )
    latents = [
        _latent(model, wav)[: end.indices.shape[2]] for wav, end in zip((a, b), ends, strict=True)
    ]
    path = align(*(z.cpu().numpy() for z in latents))
    searches = [Search(table, pack=False) for table in model.quantizer.tables()]
    searches = searches[: ends[0].indices.shape[1]]
    steps = []
    for share in shares:
        rows = path_frames(path, share)
        if share in (0, 1):
            codes = ends[int(share)]
        else:
            z = torch.lerp(latents[0][rows[:, 0]], latents[1][rows[:, 1]], share)
            filled = torch.cat([z, z[-1:].expand(-len(z) % model.config.group_frames, -1)])
            with torch.no_grad():
                indices = model.quantizer.encode(filled[None], searches)[:, :, : len(z)]
            lengths = [end.lengths[0] for end in ends]
            n_samples = round((1 - share) * lengths[0] + share * lengths[1])
            n_samples = _fitting(n_samples, len(rows), model)
            codes = Codes(indices, (n_samples,), ends[0].level_strides)
        units = codes.indices[0, 0]
        same = [
            float((units == end.indices[0, 0, column]).float().mean())
            for end, column in zip(ends, torch.from_numpy(rows.T), strict=True)
        ]
        steps.append(Step(share, codes, model.decode(codes), (same[0], same[1])))
    return steps


def path_frames(path: np.ndarray, share: float) -> np.ndarray:
    """The frames of A and B that each frame of a step is made of: int64 [T, 2].

    path: of `align`. A pair (i, j) stands at the time (1 - share) i + share j, which rises along
    the path; each whole time takes the last pair up to a quarter of a frame later. At 0 the first
    column counts up by one, at 1 the second.
    """
    times = (1 - share) * path[:, 0] + share * path[:, 1]
    n_frames = round(float(times[-1])) + 1
    at = np.searchsorted(times, np.arange(n_frames) + 0.25, side="right") - 1
    return np.ascontiguousarray(path[at])


def _latent(model: AudioVQ, wav: Tensor | np.ndarray) -> Tensor:
    """Latent [T, D] of one recording [1, 1, N], the last frame filled up with silence."""
    wav = torch.as_tensor(wav, dtype=torch.float32, device=model.device)
    short = -wav.shape[2] % model.config.hop_length
    return model.latent(torch.nn.functional.pad(wav, (0, short)))[0]


def _fitting(n_samples: int, n_frames: int, model: AudioVQ) -> int:
    """The nearest number of samples that takes just so many frames."""
    hop = model.config.hop_length
    return min(max(n_samples, (n_frames - 1) * hop + 1), n_frames * hop)
