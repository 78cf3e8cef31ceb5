"""Training data: random crops of the recordings that lhotse manifests list.

The crop with index i is a pure function of the seed and i. So the order does not depend on the
number of workers or ranks, and a run resumes by going on with the next index.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils.data import Dataset, Sampler

from audiovq.audio import check_level, check_rate, spelled
from audiovq.files import FileRefused
from audiovq.training.augment import SHARE, augmented, with_voice

MAX_TRIES = 20
"""Unreadable recordings in a row after which the corpus, not the recording, must be at fault."""
NO_LABEL = -1
LONGEST = 1e7
"""Seconds of a recording, some 16 weeks: more is a mistake in the manifest."""

_CONTEXT = 800
"""Samples read on either side of a crop that is resampled: more than soxr's filter reaches."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A stretch of one audio file."""

    id: str
    path: str
    start: float
    """First second of it in the file."""
    duration: float
    """In s."""


@dataclass(frozen=True)
class Corpus:
    """Recordings and how often they are drawn from."""

    cuts: list[Cut]
    weight: float
    """Share of the crops, in proportion to the other corpora."""


def read_manifest(path: str | Path) -> list[Cut]:
    """Read a lhotse CutSet (`.jsonl` or `.jsonl.gz`) of single-file recordings.

    Raises `FileRefused` when it is missing, not a CutSet, or empty, and for recordings whose times
    are not possible or whose ids are no names for files.
    """
    from lhotse import CutSet

    path = Path(path)
    if not path.is_file():
        raise FileRefused(
            f"{path} does not exist; make it with `audiovq prepare` or the recipe's prepare.py."
        )
    try:
        cuts = list(map(_as_cut, CutSet.from_jsonl_lazy(path)))
    except Exception as error:  # lhotse raises whatever its parsing meets
        raise FileRefused(f"{path} is not a lhotse CutSet of audio files ({error}).") from error
    if not cuts:
        raise FileRefused(f"{path} lists no recordings.")
    for cut in cuts:
        _check_cut(cut, path)
    return cuts


def _as_cut(cut: Any) -> Cut:
    """A lhotse cut as what is needed of it. lhotse takes values of any type."""
    if not isinstance(cut.id, str):
        raise TypeError(f"the id {str(cut.id)[:40]} is no text")
    return Cut(cut.id, _source(cut), float(cut.start), float(cut.duration))


def _check_cut(cut: Cut, path: Path) -> None:
    for what, value, possible in (
        ("starts at", cut.start, 0 <= cut.start <= LONGEST),
        ("lasts", cut.duration, 0 < cut.duration <= LONGEST),
    ):
        if not possible:
            raise FileRefused(f"{path} says that {cut.id} {what} {value} s; prepare it again.")
    name = PurePosixPath(cut.id.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise FileRefused(
            f"{path} has the id {cut.id!r}, which is no name for a file of teacher features or "
            "labels; rename it."
        )


def _source(cut: Any) -> str:
    """The audio file of a lhotse cut."""
    (source,) = cut.recording.sources
    if source.type != "file":
        raise ValueError(f"the audio of {cut.id} is a {source.type}, not a file")
    return str(source.source)


def read_crop(path: str | Path, start: int, n_samples: int, sample_rate: int) -> np.ndarray:
    """Samples start .. start + n_samples of a file, counted at `sample_rate`: float32 [n], mono.

    Past the end there is silence. Raises `FileRefused` as `read_part`.
    """
    part = read_part(path, start, n_samples, sample_rate)
    return np.pad(part, (0, n_samples - len(part)))


def read_part(path: str | Path, start: int, n_samples: int, sample_rate: int) -> np.ndarray:
    """What a file has of the samples start .. start + n_samples, counted at `sample_rate`: float32
    [n] and mono.

    Only the part asked for is read, and of a file at another rate a little more, so that it equals
    that part of the whole file resampled. Raises `FileRefused`, also when the file ends at `start`
    or before, and for samples that are not finite or beyond `audio.HIGHEST_LEVEL`.
    """
    try:
        with soundfile.SoundFile(spelled(path)) as file:
            check_rate(file.samplerate, str(path))
            if file.samplerate == sample_rate:
                part = _read(file, start, n_samples, str(path))
            else:
                # Both rates meet a whole sample every `up` and `down` samples; begin at one.
                common = math.gcd(file.samplerate, sample_rate)
                up, down = sample_rate // common, file.samplerate // common
                begin = max(0, start - _CONTEXT) // up
                end = -(-(start + n_samples + _CONTEXT) // up)
                part = _read(file, begin * down, (end - begin) * down, str(path))
                part = soxr.resample(part, file.samplerate, sample_rate)[start - begin * up :]
    except (soundfile.LibsndfileError, OSError) as error:
        raise FileRefused(f"{path} cannot be read ({error}).") from error
    if not len(part):
        raise FileRefused(
            f"{path} has nothing from {start / sample_rate:g} s on; prepare it again."
        )
    return part[:n_samples]


def _read(file: soundfile.SoundFile, start: int, count: int, name: str) -> np.ndarray:
    """Samples start .. start + count of an open file, or fewer at its end, mixed down."""
    file.seek(min(start, file.frames))
    part = file.read(count, dtype="float32", always_2d=True)
    check_level(part, name)  # before channels that cancel each other are averaged
    return part.mean(axis=1)


class CropDataset(Dataset):
    """Random crops: dict of `wav` float32 [1, N], `id`, and what training adds to them.

    With `teacher_folder`, `teacher` float32 [T, D] are the features of `<id>.npy` there, one row a
    frame, and `has_teacher` says whether there were any. With `labels_folder`, `labels` float32 [T,
    n_labels] are the probabilities of those of `<id>.npy`, 0 where there are none. With
    `tokens_folder`, `tokens` int64 [n_codebooks, T] are the codes of `<id>.npy` [frames,
    n_codebooks], and a recording without them is not drawn; with `pitch_folder`, `pitch` float32
    [T] is the fundamental in Hz at the end of each frame, 0 where there is none. With
    `augment_share` above 0, that share of the crops is heard through another microphone
    (`augment.augmented`), some of them in a voice that is up to `voice_range` semitones higher or
    lower, and `clean` is the crop before that and before its level was changed.
    In place of a recording that cannot be read another one is drawn; `skipped` lists the reasons,
    one sentence for each such recording, so that they reach the process that trains.
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
        speed_range: float = 0.0,
        teacher_folder: str = "",
        teacher_dim: int = 0,
        labels_folder: str = "",
        n_labels: int = 40,
        tokens_folder: str = "",
        n_codebooks: int = 0,
        pitch_folder: str = "",
        augment_share: float = 0.0,
        voice_range: float = 0.0,
    ) -> None:
        self.corpora = corpora
        weights = np.array([corpus.weight for corpus in corpora], dtype=np.float64)
        if not len(corpora) or (weights <= 0).any():
            raise ValueError("Training needs at least one manifest, each with a weight above 0.")
        self.shares = np.cumsum(weights / weights.sum())
        self.ends = [np.cumsum([cut.duration for cut in corpus.cuts]) for corpus in corpora]
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.crop_frames = crop_frames
        self.seed = seed
        self.level_range_db = level_range_db
        self.speed_range = speed_range
        self.teacher_folder = teacher_folder
        self.teacher_dim = teacher_dim
        self.labels_folder = labels_folder
        self.n_labels = n_labels
        self.tokens_folder, self.n_codebooks = tokens_folder, n_codebooks
        self.pitch_folder = pitch_folder
        self.augment_share, self.voice_range = augment_share, voice_range

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        skipped: list[str] = []
        for _ in range(MAX_TRIES):
            cut = self._draw(rng)
            try:
                return self._crop(cut, rng) | {"skipped": skipped}
            except FileRefused as error:
                skipped.append(str(error))
        raise FileRefused(
            f"{MAX_TRIES} recordings in a row could not be read, the last because: {skipped[-1]}"
        )

    def _draw(self, rng: np.random.Generator) -> Cut:
        """A recording: a corpus by weight, in it a recording by duration."""
        which = min(int(np.searchsorted(self.shares, rng.random())), len(self.shares) - 1)
        ends = self.ends[which]
        return self.corpora[which].cuts[int(np.searchsorted(ends, rng.random() * ends[-1]))]

    def _crop(self, cut: Cut, rng: np.random.Generator) -> dict[str, Any]:
        # Frames of the recording that pass in one frame of the crop: pitch and formants move too.
        speed = (1 + self.speed_range) ** rng.uniform(-1, 1) if self.speed_range else 1.0
        cut_samples = round(cut.duration * self.sample_rate)
        n_frames = cut_samples // self.hop_length
        first = int(rng.integers(max(1, n_frames - math.ceil(self.crop_frames * speed) + 1)))
        start = round(cut.start * self.sample_rate) + first * self.hop_length
        n_samples = self.crop_frames * self.hop_length
        # What follows a short cut in its file is not part of it.
        n_read = min(math.ceil(n_samples * speed), cut_samples - first * self.hop_length)
        wav = read_crop(cut.path, start, n_read, self.sample_rate)
        if speed != 1.0:
            wav = soxr.resample(wav, self.sample_rate * speed, self.sample_rate)[:n_samples]
        wav = np.pad(wav, (0, n_samples - len(wav)))
        clean, voice = wav, 0.0
        if self.augment_share and rng.random() < self.augment_share:
            if self.voice_range and rng.random() < SHARE:
                voice = rng.uniform(-self.voice_range, self.voice_range)
                wav = with_voice(wav, voice, self.sample_rate)
            wav = augmented(wav, self.sample_rate, rng, lambda: self._other(rng, n_samples))
        wav = _change_level(wav, self.level_range_db, rng)
        rows = first + ((np.arange(self.crop_frames) + 0.5) * speed).astype(int)
        item: dict[str, Any] = {"wav": torch.from_numpy(wav)[None], "id": cut.id}
        if self.augment_share:
            item["clean"] = torch.from_numpy(clean)[None]
        if self.teacher_folder:
            teacher = _read_rows(self.teacher_folder, cut.id, rows, (self.teacher_dim,))
            has_teacher = teacher is not None
            if teacher is None:
                teacher = np.zeros((self.crop_frames, self.teacher_dim), dtype=np.float32)
            item["teacher"] = torch.from_numpy(teacher.astype(np.float32))
            item["has_teacher"] = torch.tensor(has_teacher)
        if self.labels_folder:
            labels = _read_rows(self.labels_folder, cut.id, rows, (), (self.n_labels,))
            if labels is None:
                labels = np.full(self.crop_frames, NO_LABEL)
            item["labels"] = torch.from_numpy(self._probabilities(labels, cut.id))
        if self.tokens_folder:
            tokens = _read_rows(self.tokens_folder, cut.id, rows, (self.n_codebooks,))
            if tokens is None:
                raise FileRefused(f"{cut.path} has no codes in {self.tokens_folder}.")
            item["tokens"] = torch.from_numpy(tokens.T.astype(np.int64))
        if self.pitch_folder:
            pitch = _read_rows(self.pitch_folder, cut.id, rows, ())
            if pitch is None:
                pitch = np.zeros(self.crop_frames)
            item["pitch"] = torch.from_numpy((pitch * speed * 2 ** (voice / 12)).astype(np.float32))
        return item

    def _other(self, rng: np.random.Generator, n_samples: int) -> np.ndarray:
        """Samples [n_samples] of another recording."""
        cut = self._draw(rng)
        spare = max(0, round(cut.duration * self.sample_rate) - n_samples)
        start = round(cut.start * self.sample_rate) + int(rng.integers(spare + 1))
        return read_crop(cut.path, start, n_samples, self.sample_rate)

    def _probabilities(self, labels: np.ndarray, name: str) -> np.ndarray:
        """Labels [T], or their probabilities [T, n_labels], as the latter: float32, a row of zeros
        where there is no label. Raises `FileRefused`."""
        path = Path(self.labels_folder) / f"{name}.npy"
        if labels.ndim == 2:
            labels = labels.astype(np.float32)
            sums = labels.sum(axis=1)
            if not ((labels >= 0).all() and (np.abs(sums - (sums > 0)) < 0.02).all()):
                raise FileRefused(f"{path} holds rows that are no probabilities: they sum to 1.")
            return labels
        wrong = labels[~((labels >= NO_LABEL) & (labels < self.n_labels))]
        if len(wrong):
            raise FileRefused(
                f"{path} holds the label {wrong[0]}, and data.n_labels is {self.n_labels}."
            )
        return (labels[:, None] == np.arange(self.n_labels)).astype(np.float32)


class StepBatches(Sampler[list[int]]):
    """Indices of the crops of each step of one rank, from `first` to before `last`.

    The batches of all ranks together are `batch_size` indices in a row; each is made when it is
    asked for, since a run may have very many.
    """

    def __init__(self, first: int, last: int, batch_size: int, *, rank: int, ranks: int) -> None:
        self.steps = range(first, last)
        self.batch_size = batch_size
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.ranks
        for step in self.steps:
            start = (step * self.ranks + self.rank) * share
            yield list(range(start, start + share))


def _change_level(wav: np.ndarray, range_db: float, rng: np.random.Generator) -> np.ndarray:
    """Scale by up to +-range_db, but not so far that it clips."""
    gain = 10 ** (rng.uniform(-range_db, range_db) / 20)
    peak = float(np.abs(wav).max(initial=0.0))
    return (wav * min(gain, 1 / peak if peak > 1e-5 else gain)).astype(np.float32)


def _read_rows(
    folder: str, name: str, index: np.ndarray, *shapes: tuple[int, ...]
) -> np.ndarray | None:
    """These rows of `<folder>/<name>.npy`, the last one repeated past the end.

    shapes: those that a row may have. Raises `FileRefused`.
    """
    path = Path(folder) / f"{name}.npy"
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise FileRefused(f"{path} is not a .npy file, or damaged ({error}).") from error
    if rows.ndim < 1 or rows.shape[1:] not in shapes or rows.dtype.kind not in "iuf":
        wanted = " or ".join(f"[{', '.join(['frames', *map(str, shape)])}]" for shape in shapes)
        raise FileRefused(f"{path} holds {rows.dtype} {list(rows.shape)}, not numbers {wanted}.")
    if not len(rows):
        return None
    return np.asarray(rows[np.minimum(index, len(rows) - 1)])
