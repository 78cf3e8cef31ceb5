"""Tokens in memory: the codes of recordings, and what a stream of them says of itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audiovq.files import FileRefused
from audiovq.flatten import checked_strides, codes_per_second

if TYPE_CHECKING:
    from torch import Tensor

_LIMITS = {
    "sample_rate": (1, 768_000),
    "hop_length": (1, 1 << 20),
    "codebook_size": (1, 1 << 16),
    "n_q": (1, 1024),
    "n_samples": (0, 1 << 48),
}
_LONGEST_TEXT = 1000


@dataclass(frozen=True)
class Header:
    """What a token stream says of the model that made it and the audio that it stands for.

    Raises `ValueError` for values beyond those given here; texts are of at most 1000 characters.
    """

    model: str
    """Name of the model."""
    fingerprint: str
    """Hexadecimal hash of what decides the model's tokens; another model's mean other sounds."""
    sample_rate: int
    """Samples per second of the decoded audio, in Hz, up to 768,000."""
    hop_length: int
    """Samples per frame, up to 2^20."""
    codebook_size: int
    """Codes are in 0 .. codebook_size - 1; up to 2^16."""
    n_q: int
    """Levels of the codes, up to 1024."""
    n_samples: int
    """Samples of the audio, at `sample_rate`, up to 2^48; ceil(n_samples / hop_length) frames. 0
    while a live stream goes on."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for, up to 32; empty when all are 1."""

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{name} must be a whole number in {least}..{most}, not {shortened(value)}."
                )
        for name in ("model", "fingerprint"):
            value = getattr(self, name)
            if type(value) is not str or len(value) > _LONGEST_TEXT:
                raise ValueError(
                    f"{name} must be text of at most {_LONGEST_TEXT} characters, not "
                    f"{shortened(value)}."
                )
        strides = checked_strides(self.level_strides, self.n_q)
        object.__setattr__(self, "level_strides", strides)

    @property
    def frames_per_code(self) -> tuple[int, ...]:
        """`level_strides`, all 1 written out."""
        return self.level_strides or (1,) * self.n_q

    @property
    def n_frames(self) -> int:
        """Frames that cover `n_samples`."""
        return -(-self.n_samples // self.hop_length)

    @property
    def bits_per_code(self) -> int:
        """ceil(log2 codebook_size), at least 1."""
        return max(1, (self.codebook_size - 1).bit_length())

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Bits per second of the codes."""
        return self.codes_per_second * self.bits_per_code

    def level_rate(self, level: int) -> float:
        """Codes per second of one level, in Hz."""
        return self.frame_rate / self.frames_per_code[level]

    @property
    def codes_per_second(self) -> float:
        """Codes per second of all levels."""
        return codes_per_second(self.sample_rate, self.hop_length, self.frames_per_code)


@dataclass(frozen=True)
class Codes:
    """The tokens of a batch of recordings, in memory."""

    indices: "Tensor"
    """int64 [B, n_q, T], each in 0 .. codebook_size - 1. Row 0 of an item are its units."""
    lengths: tuple[int, ...]
    """Samples of each item. Item b's frames are its first ceil(lengths[b] / hop_length)."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for, in each of which it stands; empty: all 1."""

    @property
    def levels(self) -> "list[Tensor]":
        """The codes of each level once, int64 [B, ceil(T / stride)]."""
        strides = self.level_strides or (1,) * self.indices.shape[1]
        return [self.indices[:, level, ::stride] for level, stride in enumerate(strides)]


@dataclass(frozen=True)
class Tokens:
    """The contents of a token file.

    `indices` is uint16 [n_q, T]. `header` is None for `.npy`, which does not carry one. `broken`
    says why the end of a live stream is missing, of which the part before was to be kept.
    `coded_bytes` is what the codes take in the file, where a model's tables code them.
    """

    indices: np.ndarray
    header: Header | None = None
    broken: str | None = None
    coded_bytes: int | None = None
    npy_strides: tuple[int, ...] = ()
    """The level_strides that a `.npy` has without a header."""

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Frames that a code of each level stands for; empty when all are 1."""
        return self.npy_strides if self.header is None else self.header.level_strides

    @property
    def levels(self) -> list[np.ndarray]:
        """The codes of each level once, uint16 [ceil(T / stride)]."""
        strides = self.level_strides or (1,) * len(self.indices)
        return [row[::stride] for row, stride in zip(self.indices, strides)]


def as_uint16(indices: np.ndarray) -> np.ndarray:
    """Codes [n_q, T] as files hold them. Raises `ValueError` where they are no such codes."""
    array = np.asarray(indices)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"codes must be whole numbers [n_q, T], not {array.dtype} {array.shape}.")
    if array.size and (array.min() < 0 or array.max() > 0xFFFF):
        raise ValueError("codes must be in 0..65535.")
    return np.ascontiguousarray(array.astype(np.uint16))


def damaged(name: str) -> FileRefused:
    """What is said of a token file whose parts contradict each other."""
    return FileRefused(f"{name} is damaged or cut short; encode the audio again.")


def shortened(value: object) -> str:
    """A value from a file as the messages quote it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of thousands of digits
        text = "a longer number"
    return text if len(text) <= 40 else f"{text[:40]}..."
