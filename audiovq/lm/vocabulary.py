"""The vocabulary: special symbols, characters and units, and how long each unit lasts.

A symbol is a number; in order:

    0                      <pad>    fills up; nothing is learnt from it
    1                      <units>  units follow
    2                      <text>   characters follow
    3                      <end>    the utterance is over
    4 ..                   characters, in the order of `Vocabulary.characters`
    4 + n_characters ..    units, 0 .. codebook_size - 1

Speech is `<units> u u u <end>`, and speech whose text is known
`<text> c c c <units> u u u <end>`. Equal units in a row are merged: each has a duration, 1 ..
`max_duration` frames (or, with `level_strides`, times as many frames as a unit stands for), and a
longer run is several of them. All other symbols have duration 1.

A token is a symbol and its duration in one number: `symbol * max_duration + duration - 1`.
"""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.codes import Header
from audiovq.files import FileRefused, read_text
from audiovq.segment import run_lengths

SPECIALS = ("<pad>", "<units>", "<text>", "<end>")
PAD, UNITS, TEXT, END = range(len(SPECIALS))
IGNORED = -100
"""In the place of a target that nothing is learnt from, as in PyTorch's `cross_entropy`."""
MAX_DURATION = 16
"""Frames of the longest unit unless told otherwise: 640 ms at 25 units a second."""
Numbers = Any
"""A number, or an array or tensor of them."""
VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True)
class Vocabulary:
    """What numbers stand for, and which tokenizer's units they are.

    Raises `ValueError` for values that are not possible.
    """

    tokenizer: str
    """Name of the codec."""
    fingerprint: str
    """Of its tokens, as in `Header`."""
    sample_rate: int
    """Of its sound, in Hz."""
    hop_length: int
    """Samples of a frame."""
    codebook_size: int
    """Units are 0 .. codebook_size - 1."""
    n_q: int
    """Levels of the codes, the units among them."""
    characters: str = ""
    """Of the texts, each once, sorted; empty where no text was known."""
    max_duration: int = MAX_DURATION
    """Frames of the longest unit, 1 to 255."""
    level_strides: tuple[int, ...] = ()
    """Frames of the codec that a code of each level stands for; empty when all are 1."""

    def __post_init__(self) -> None:
        # Refuses numbers that no codec has.
        object.__setattr__(self, "level_strides", self.header(0).level_strides)
        if type(self.max_duration) is not int or not 1 <= self.max_duration <= 255:
            raise ValueError(f"max_duration must be in 1..255, not {self.max_duration}.")
        if type(self.characters) is not str or list(self.characters) != sorted(
            set(self.characters)
        ):
            raise ValueError(
                f"characters must be sorted, each there once, not {self.characters!r}."
            )

    @property
    def n_symbols(self) -> int:
        """Special symbols, characters and units."""
        return self.first_unit + self.codebook_size

    @property
    def n_tokens(self) -> int:
        """`n_symbols * max_duration`."""
        return self.n_symbols * self.max_duration

    @property
    def first_unit(self) -> int:
        """The symbol of unit 0."""
        return len(SPECIALS) + len(self.characters)

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def frames_per_code(self) -> tuple[int, ...]:
        """`level_strides`, all 1 written out."""
        return self.level_strides or (1,) * self.n_q

    @property
    def frames_per_unit(self) -> int:
        """Those of level 0."""
        return self.frames_per_code[0]

    @property
    def group_frames(self) -> int:
        """Frames after which all levels begin a code."""
        return max(self.frames_per_code)

    def header(self, n_samples: int) -> Header:
        """That of a token file of this tokenizer."""
        return Header(
            self.tokenizer,
            self.fingerprint,
            self.sample_rate,
            self.hop_length,
            self.codebook_size,
            self.n_q,
            n_samples,
            self.level_strides,
        )

    def of_units(self, units: np.ndarray) -> np.ndarray:
        """Units [T], each once, as tokens int64 [n]: merged, with their durations.

        Raises `ValueError` for units beyond the codebook.
        """
        units = np.asarray(units)
        if units.size and not 0 <= int(units.min()) <= int(units.max()) < self.codebook_size:
            raise ValueError(
                f"units must be in 0..{self.codebook_size - 1}, not {units.min()}..{units.max()}."
            )
        longest = self.max_duration
        rows = [
            (unit, min(longest, duration - start))
            for unit, _, duration in run_lengths(units)
            for start in range(0, duration, longest)
        ]
        symbols, durations = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return self.join(symbols + self.first_unit, durations)

    def to_units(self, tokens: np.ndarray) -> np.ndarray:
        """The inverse of `of_units`: int64 units [T]. Tokens that are no units are passed over."""
        symbols, durations = self.split(np.asarray(tokens))
        is_unit = symbols >= self.first_unit
        return np.repeat(symbols[is_unit] - self.first_unit, durations[is_unit])

    def of_text(self, text: str) -> np.ndarray:
        """A text as tokens int64 [n]; see `plain`. Raises `ValueError` for unknown characters."""
        if not self.characters:
            raise ValueError(
                "the language model was trained without texts, so it cannot read one; prepare its "
                "data with --text."
            )
        text = plain(text)
        if not text:
            raise ValueError("the text is empty; give a sentence.")
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise ValueError(
                f"the text has {' '.join(map(repr, unknown))}, which the language model has never "
                f"read; it knows {self.characters!r}."
            )
        symbols = np.array([self.characters.index(c) for c in text], dtype=np.int64)
        return self.join(symbols + len(SPECIALS))

    def sequence(self, units: np.ndarray, text: str | None = None) -> np.ndarray:
        """An utterance of units [T], and its text if it is to be learnt, as tokens int64 [n]."""
        head = [] if text is None else [self.special(TEXT), self.of_text(text)]
        parts = [*head, self.special(UNITS), self.of_units(units), self.special(END)]
        return np.concatenate(parts)

    def special(self, symbol: int) -> np.ndarray:
        """A special symbol as tokens [1]."""
        return self.join(np.array([symbol], dtype=np.int64))

    def join(self, symbols: Numbers, durations: Numbers | int = 1) -> Numbers:
        """Symbols and durations as tokens; numbers, arrays or tensors of them."""
        return symbols * self.max_duration + durations - 1

    def split(self, tokens: Numbers) -> tuple[Numbers, Numbers]:
        """The inverse of `join`."""
        return tokens // self.max_duration, tokens % self.max_duration + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of level_strides none when all are 1."""
        values = asdict(self)
        if not self.level_strides:
            del values["level_strides"]  # as in files from before there was any
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "Vocabulary":
        """The inverse of `to_dict`. Raises `ValueError` for anything else."""
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or set(values) | {"level_strides"} != names:
            raise ValueError(f"a vocabulary has the fields {', '.join(sorted(names))}.")
        return cls(**values)


def plain(text: str) -> str:
    """A text as it is learnt and read: composed (NFC), lower case, one blank between words."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def characters_of(texts: Iterable[str]) -> str:
    """The characters of plain texts, each once, sorted."""
    return "".join(sorted({character for text in texts for character in text}))


def read_vocabulary(folder: str | Path) -> Vocabulary:
    """That of a prepared folder. Raises `FileRefused`."""
    path = Path(folder) / VOCABULARY_FILE
    if not path.is_file():
        raise FileRefused(f"{folder} holds no {VOCABULARY_FILE}; audiovq lm prepare makes one.")
    try:
        return Vocabulary.from_dict(json.loads(read_text(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise FileRefused(f"{path} is damaged ({error}); prepare the folder again.") from error
