"""A prepared folder of tokens, and the batches that the stages learn from.

vocabulary.json     what the numbers stand for (`audiovq.lm.vocabulary`)
train.npy           uint16 [n_q, T], the codes of all utterances one after the other
train.jsonl         one object an utterance: name, frames, text or null
validation.npy, validation.jsonl
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.files import FileRefused, read_text, refuse_unreadable
from audiovq.lm.vocabulary import END, IGNORED, Vocabulary, read_vocabulary

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
MOST_FRAMES = 1 << 48
"""Of an utterance: what their sum holds."""


@dataclass(frozen=True)
class Utterance:
    """What `TokenDataset` gives."""

    name: str
    """Path of its token file below the folder, without a suffix."""
    codes: np.ndarray
    """uint16 [n_q, T]; row 0 are the units."""
    units: np.ndarray
    """uint16, those of row 0, each once."""
    text: str | None
    """What is said, as `audiovq.lm.vocabulary.plain` writes it; None where it is not known."""


class TokenDataset(Dataset[Utterance]):
    """The utterances of a prepared folder; a PyTorch data set of `Utterance`.

    n_q: so many levels of the codes, from level 0 on; all when None.

    The codes stay on the disk until they are asked for. Raises `FileRefused` when the folder was
    not written by `audiovq lm prepare`, is damaged, or has fewer levels.
    """

    def __init__(self, folder: str | Path, split: str = TRAIN, n_q: int | None = None) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}.")
        self.folder, self.split = Path(folder), split
        self.vocabulary: Vocabulary = read_vocabulary(folder)
        path = self.folder / f"{split}.npy"
        with refuse_unreadable(path):
            try:
                self.codes = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # numpy lets through what Python's parser raises
                raise FileRefused(f"{path} is damaged; prepare the folder again.") from error
        if not isinstance(self.codes, np.ndarray):  # a zip of arrays
            raise FileRefused(f"{path} is damaged; prepare the folder again.")
        self.rows = _read_rows(self.folder / f"{split}.jsonl")
        self.frames = np.array([row["frames"] for row in self.rows], dtype=np.int64)
        """Of each utterance."""
        self.starts = np.cumsum(self.frames) - self.frames
        levels = self.vocabulary.n_q
        expected = (levels, int(self.frames.sum()))
        if self.codes.dtype != np.uint16 or self.codes.shape != expected:
            raise FileRefused(
                f"{path} holds {self.codes.dtype} {list(self.codes.shape)} and must hold uint16 "
                f"{list(expected)}; prepare the folder again."
            )
        if n_q is not None:
            if not 1 <= n_q <= levels:
                raise FileRefused(
                    f"{folder} has codes of {levels} levels, not {n_q}; ask for 1 to {levels}."
                )
            self.codes = self.codes[:n_q]
            strides = self.vocabulary.level_strides[:n_q]
            self.vocabulary = replace(self.vocabulary, n_q=n_q, level_strides=strides)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Utterance:
        row, start = self.rows[index], self.starts[index]
        codes = np.array(self.codes[:, start : start + self.frames[index]])
        units = codes[0, :: self.vocabulary.frames_per_unit]
        return Utterance(row["name"], codes, units, row["text"])

    @property
    def seconds(self) -> float:
        """Of all utterances."""
        return float(self.frames.sum()) / self.vocabulary.frame_rate


def _read_rows(path: Path) -> list[dict]:
    kinds = {"name": str, "frames": int, "text": str | None}
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        good = all(isinstance(row[key], kind) for row in rows for key, kind in kinds.items())
        good = good and all(0 < row["frames"] <= MOST_FRAMES for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FileRefused):
            raise
        good = False
    if not good:
        raise FileRefused(f"{path} is damaged; prepare the folder again.")
    return rows


class UnitBatches:
    """Rows of tokens for the units' stage: utterances one after the other, cut to the context.

    What step `n` learns from hangs on the seed and on `n` alone. An utterance is as likely as it is
    long. Of those with a text, `text_share` come with it; half of the others begin at a later unit,
    so that beginnings are not all that is learnt.
    """

    def __init__(
        self, data: TokenDataset, context: int, batch_size: int, seed: int, text_share: float
    ) -> None:
        self.data, self.context, self.batch_size, self.seed = data, context, batch_size, seed
        self.text_share = text_share
        self.shares = data.frames / data.frames.sum()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, context], and what comes after each, `IGNORED` where it is no matter."""
        rng = np.random.default_rng([self.seed, step])
        rows = np.stack([self._row(rng) for _ in range(self.batch_size)])
        return targets_of(rows, self.data.vocabulary)

    def _row(self, rng: np.random.Generator) -> np.ndarray:
        """Tokens [context + 1]."""
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) <= self.context:
            item = self.data[int(rng.choice(len(self.data), p=self.shares))]
            with_text, late = rng.random(2) < (self.text_share, 0.5)
            units, text = item.units, item.text if with_text else None
            if text is None and late:
                units = units[int(rng.integers(len(units))) :]
            parts.append(self.data.vocabulary.sequence(units, text))
        return np.concatenate(parts)[: self.context + 1]


def whole_units(data: TokenDataset, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every utterance's tokens up to the context, for validation: without texts and ends."""
    for item in data:
        tokens = data.vocabulary.sequence(item.units)[:-1]
        yield targets_of(tokens[None, : context + 1], data.vocabulary)


def targets_of(rows: np.ndarray, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Rows of tokens [B, n + 1] as what is read and what is learnt, int64 [B, n] each.

    Units and ends are learnt; characters and what begins a part are given.
    """
    tokens = torch.from_numpy(rows)
    symbols, _ = vocabulary.split(tokens[:, 1:])
    learnt = (symbols >= vocabulary.first_unit) | (symbols == END)
    return tokens[:, :-1], tokens[:, 1:].masked_fill(~learnt, IGNORED)


class CodeBatches:
    """Crops of codes, from the first frame of a group, for the acoustic stage; steps and
    utterances as in `UnitBatches`."""

    def __init__(self, data: TokenDataset, n_frames: int, batch_size: int, seed: int) -> None:
        self.data, self.n_frames, self.batch_size, self.seed = data, n_frames, batch_size, seed
        self.shares = data.frames / data.frames.sum()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Codes int64 [B, n_q, T], and which frames are there, bool [B, T]."""
        rng = np.random.default_rng([self.seed, step])
        group = self.data.vocabulary.group_frames
        crops = []
        for index in rng.choice(len(self.data), self.batch_size, p=self.shares):
            codes = self.data[int(index)].codes
            start = int(rng.integers(max(0, codes.shape[1] - self.n_frames) + 1))
            start -= start % group
            crops.append(codes[:, start : start + self.n_frames])
        return padded(crops)


def whole_codes(data: TokenDataset, n_frames: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every utterance's codes up to `n_frames`, for validation."""
    for item in data:
        yield padded([item.codes[:, :n_frames]])


def padded(crops: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Codes [n_q, t] as one tensor int64 [B, n_q, T], and which frames are there, bool [B, T]."""
    lengths = torch.tensor([crop.shape[1] for crop in crops])
    n_frames = int(lengths.max())
    rows = [np.pad(crop, ((0, 0), (0, n_frames - crop.shape[1]))) for crop in crops]
    there = torch.arange(n_frames) < lengths[:, None]
    return torch.from_numpy(np.stack(rows).astype(np.int64)), there
