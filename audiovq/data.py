"""Training data: random crops of the recordings that lhotse manifests list.

The crop with index i is a pure function of the seed and i. So the order does not depend on the
number of workers or ranks, and a run resumes by going on with the next index.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils.data import Dataset

from audiovq.files import FileRefused

MAX_TRIES = 20
"""Unreadable recordings in a row after which the corpus, not the recording, must be at fault."""
NO_LABEL = -1


@dataclass(frozen=True)
class Corpus:
    """A manifest and how often it is drawn from."""

    cuts: list[dict[str, Any]]
    """One dict a recording: id, path, sample_rate, start (s), duration (s)."""
    weight: float
    """Share of the crops, in proportion to the other corpora."""


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Read a lhotse CutSet (`.jsonl` or `.jsonl.gz`) of single-file recordings.

    Raises `FileRefused` when it is missing, not a CutSet, or empty.
    """
    from lhotse import CutSet

    path = Path(path)
    if not path.is_file():
        raise FileRefused(f"{path} does not exist; make it with the recipe's prepare.py.")
    try:
        cuts = [
            {
                "id": cut.id,
                "path": cut.recording.sources[0].source,
                "sample_rate": cut.sampling_rate,
                "start": cut.start,
                "duration": cut.duration,
            }
            for cut in CutSet.from_jsonl_lazy(path)
        ]
    except Exception as error:  # lhotse raises whatever its parsing meets
        raise FileRefused(f"{path} is not a lhotse CutSet ({error}).") from error
    if not cuts:
        raise FileRefused(f"{path} lists no recordings.")
    return cuts


def read_crop(path: str, start: int, n_samples: int, sample_rate: int) -> np.ndarray:
    """Samples start .. start + n_samples of a file, counted at `sample_rate`: float32 [n], mono.

    Past the end there is silence. Only the part asked for is read. Raises `FileRefused`.
    """
    try:
        with soundfile.SoundFile(path) as file:
            ratio = file.samplerate / sample_rate
            file.seek(min(round(start * ratio), file.frames))
            part = file.read(round(n_samples * ratio), dtype="float32", always_2d=True).mean(axis=1)
            if file.samplerate != sample_rate:
                part = soxr.resample(part, file.samplerate, sample_rate)
    except (soundfile.LibsndfileError, OSError) as error:
        raise FileRefused(f"{path} cannot be read ({error}).") from error
    if not np.isfinite(part).all():
        raise FileRefused(f"{path} holds samples that are not finite.")
    part = part[:n_samples]
    return np.pad(part, (0, n_samples - len(part)))


class CropDataset(Dataset):
    """Random crops: dict of `wav` float32 [1, N] and what training adds to it.

    With `teacher_folder`, `teacher` float32 [T, D] are the features of `<id>.npy` there, one row a
    frame, and `has_teacher` says whether there were any. With `labels_folder`, `labels` int64 [T]
    are those of `<id>.npy`, -1 where there are none.
    A recording that cannot be read is skipped, noted in `skipped`, and another one drawn.
    """

    def __init__(
        self,
        corpora: list[Corpus],
        *,
        sample_rate: int,
        hop_length: int,
        crop_frames: int,
        seed: int,
        level_range_db: float = 0.0,
        teacher_folder: str = "",
        teacher_dim: int = 0,
        labels_folder: str = "",
    ) -> None:
        self.corpora = corpora
        weights = np.array([corpus.weight for corpus in corpora], dtype=np.float64)
        if not len(corpora) or (weights <= 0).any():
            raise ValueError("Training needs at least one manifest, each with a weight above 0.")
        self.shares = np.cumsum(weights / weights.sum())
        self.ends = [np.cumsum([cut["duration"] for cut in corpus.cuts]) for corpus in corpora]
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.crop_frames = crop_frames
        self.seed = seed
        self.level_range_db = level_range_db
        self.teacher_folder = teacher_folder
        self.teacher_dim = teacher_dim
        self.labels_folder = labels_folder
        self.skipped: dict[str, str] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        for _ in range(MAX_TRIES):
            cut = self._draw(rng)
            try:
                return self._crop(cut, rng)
            except FileRefused as error:
                self.skipped[cut["path"]] = str(error)
        raise FileRefused(
            f"{MAX_TRIES} recordings in a row could not be read, the last because: "
            f"{list(self.skipped.values())[-1]}"
        )

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A recording: a corpus by weight, in it a recording by duration."""
        which = min(int(np.searchsorted(self.shares, rng.random())), len(self.shares) - 1)
        ends = self.ends[which]
        return self.corpora[which].cuts[int(np.searchsorted(ends, rng.random() * ends[-1]))]

    def _crop(self, cut: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        n_frames = int(cut["duration"] * self.sample_rate) // self.hop_length
        first = int(rng.integers(max(1, n_frames - self.crop_frames + 1)))
        start = round(cut["start"] * self.sample_rate) + first * self.hop_length
        n_samples = self.crop_frames * self.hop_length
        wav = read_crop(cut["path"], start, n_samples, self.sample_rate)
        wav = _change_level(wav, self.level_range_db, rng)
        item: dict[str, Any] = {"wav": torch.from_numpy(wav)[None], "id": cut["id"]}
        if self.teacher_folder:
            teacher = _read_rows(self.teacher_folder, cut["id"], first, self.crop_frames)
            has_teacher = teacher is not None
            if teacher is None:
                teacher = np.zeros((self.crop_frames, self.teacher_dim), dtype=np.float32)
            item["teacher"] = torch.from_numpy(teacher.astype(np.float32))
            item["has_teacher"] = torch.tensor(has_teacher)
        if self.labels_folder:
            labels = _read_rows(self.labels_folder, cut["id"], first, self.crop_frames)
            if labels is None:
                labels = np.full(self.crop_frames, NO_LABEL)
            item["labels"] = torch.from_numpy(labels.astype(np.int64))
        return item


def _change_level(wav: np.ndarray, range_db: float, rng: np.random.Generator) -> np.ndarray:
    """Scale by up to +-range_db, but not so far that it clips."""
    gain = 10 ** (rng.uniform(-range_db, range_db) / 20)
    peak = float(np.abs(wav).max(initial=0.0))
    return (wav * min(gain, 1 / peak if peak > 1e-5 else gain)).astype(np.float32)


def _read_rows(folder: str, name: str, first: int, count: int) -> np.ndarray | None:
    """Rows first .. first + count of `<folder>/<name>.npy`, the last one repeated past the end."""
    path = Path(folder) / f"{name}.npy"
    if not path.is_file():
        return None
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    index = np.minimum(np.arange(first, first + count), len(rows) - 1)
    return np.asarray(rows[index])
