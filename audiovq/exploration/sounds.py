"""Sound for pages: compressed, and codes as they sound alone."""

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from audiovq.model import AudioVQ

SUFFIX = ".ogg"
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
ALONE_FRAMES = (12, 10, 8)
"""Frames of silence, of the code, and of silence again, in what a code sounds like alone."""


def write_sound(path: Path, wav: np.ndarray, sample_rate: int) -> None:
    """Write float32 samples [n] as Opus in Ogg, which browsers play; makes the folder."""
    rate = next((rate for rate in OPUS_RATES if rate >= sample_rate), OPUS_RATES[-1])
    if rate != sample_rate:
        wav = soxr.resample(wav, sample_rate, rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wav, -1, 1), rate, format="OGG", subtype="OPUS")


def neutral_codes(model: AudioVQ, n_q: int) -> torch.Tensor:
    """The codes of a frame in the middle of silence: int64 [n_q]."""
    silence = torch.zeros(1, 1, round(model.config.sample_rate))
    return model.encode(silence, n_q=n_q).indices[0, :, -5]


def alone(model: AudioVQ, code: int, level: int, neutral: torch.Tensor) -> np.ndarray:
    """A code of `level` in the midst of silence, decoded: float32 [n].

    neutral: of `neutral_codes`, for `level + 1` levels. Every frame has the codes of silence at the
    levels before `level`, and none after it.
    """
    before, during, after = ALONE_FRAMES
    indices = neutral[:, None].repeat(1, before + during + after)
    indices[level, before : before + during] = code
    return model.decode(indices[None]).flatten().cpu().numpy()
