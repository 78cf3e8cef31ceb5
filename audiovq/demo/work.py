"""What the page computes: recordings to codes, codes to sound and to a picture."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiovq.audio import AudioReader
from audiovq.codes import read_tokens
from audiovq.files import FileRefused
from audiovq.model import AudioVQ
from audiovq.segment import from_text
from audiovq.transcode import check_header

ALONE_FRAMES = (6, 14, 6)
"""Frames of silence, of the unit, and of silence again, in what a unit sounds like alone."""


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for."""

    seconds: float = 60.0
    """The longest recording, and the longest decoded sound."""
    megabytes: int = 32
    """The largest upload."""


@dataclass(frozen=True)
class Heard:
    """A recording and its codes."""

    wav: np.ndarray
    """float32 [N]."""
    indices: np.ndarray
    """uint16 [n_q, T]."""


def listen(model: AudioVQ, path: str | Path, limits: Limits) -> Heard:
    """Read and encode a recording. Raises `FileRefused`: what cannot be read, or is too long."""
    rate = model.config.sample_rate
    parts, n_samples = [], 0
    for block in AudioReader(path, rate):
        n_samples += len(block)
        if n_samples > limits.seconds * rate:
            raise FileRefused(
                f"{path} is longer than {limits.seconds:g} s, the most that this page takes; cut "
                "it, or use `audiovq encode`, which takes any length."
            )
        parts.append(block)
    wav = np.concatenate(parts)
    codes = model.encode(torch.from_numpy(wav)[None, None])
    return Heard(wav, codes.indices[0].numpy().astype(np.uint16))


def decode(
    model: AudioVQ, indices: np.ndarray, n_q: int, n_samples: int | None = None
) -> np.ndarray:
    """The first `n_q` levels of codes [n_q, T] as sound, float32 [N]."""
    return model.decode(indices[None, :n_q])[0, 0, :n_samples].numpy()


def given_codes(model: AudioVQ, text: str, path: str | Path | None, limits: Limits) -> np.ndarray:
    """Codes [n_q, T] of a token file, or of units as text where there is none.

    Raises `FileRefused` for damaged files and those of another model, `ValueError` for the rest.
    """
    most = round(limits.seconds * model.config.frame_rate)
    too_long = f"that is too long; this page decodes {most} frames at most."
    if path is not None:
        tokens = read_tokens(path)
        header, indices = tokens.header, tokens.indices
        if header is not None:
            check_header(model, header, str(path))
    elif text.strip():
        if sum(map(int, re.findall(r":(\d{1,9})", text))) > most:  # before it takes memory
            raise ValueError(too_long)
        indices = from_text(text, model.config.frames_per_code[0])[None]
    else:
        raise ValueError("give a token file (.npy or .avq), or units as numbers between blanks.")
    if indices.shape[1] > most:
        raise ValueError(too_long)
    model.check_n_q(len(indices))
    model.check_range(int(indices.min()), int(indices.max()))
    return indices


def unit_alone(model: AudioVQ, unit: int) -> np.ndarray:
    """A unit in the midst of silence, decoded with level 0 alone: float32 [N]."""
    silence = torch.zeros(1, 1, round(model.config.sample_rate))
    neutral = model.encode(silence, n_q=1).indices[0, 0, -5]
    before, during, after = ALONE_FRAMES
    units = neutral.repeat(before + during + after)
    units[before : before + during] = unit
    return decode(model, units[None].numpy(), 1)
