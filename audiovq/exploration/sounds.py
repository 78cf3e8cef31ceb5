"""What codes sound like alone."""

from collections.abc import Iterator

import numpy as np
import torch

from audiovq.model import AudioVQ

ALONE_FRAMES = (8, 10, 6)
"""Frames of silence, of the code, and of silence again, in what a code sounds like alone."""


def neutral_codes(model: AudioVQ, n_q: int) -> torch.Tensor:
    """The codes of a frame in the middle of silence: int64 [n_q]."""
    silence = torch.zeros(1, 1, round(model.config.sample_rate))
    return model.encode(silence, n_q=n_q).indices[0, :, -5]


def alone(model: AudioVQ, level: int, *, at_once: int = 64) -> Iterator[np.ndarray]:
    """Each code of `level` in the midst of silence, decoded: float32 [n], one after the other.

    All frames have the codes of silence at the levels before `level`, and none after it.
    """
    before, during, _ = ALONE_FRAMES
    neutral = neutral_codes(model, level + 1)
    indices = torch.zeros(1, model.config.n_codebooks, sum(ALONE_FRAMES), dtype=torch.int64)
    indices[0, : level + 1] = neutral[:, None]
    for codes in torch.arange(model.config.codebook_size).split(at_once):
        batch = indices.repeat(len(codes), 1, 1).to(model.device)
        batch[:, level, before : before + during] = codes[:, None].to(model.device)
        n_q = torch.full((len(codes),), level + 1, device=model.device)
        with torch.no_grad():  # all at once: `decode` takes one after the other
            yield from model.resynthesize(batch, n_q).wav[:, 0].cpu().numpy()
