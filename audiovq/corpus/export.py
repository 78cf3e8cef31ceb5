"""Corpora in other tools' forms."""

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from audiovq.codes import write_npy
from audiovq.corpus.dataset import Example, Groups
from audiovq.corpus.layout import read_corpus, read_index
from audiovq.corpus.planning import read_plan
from audiovq.corpus.rows import Row
from audiovq.files import FileRefused, atomic_output, refuse_existing, refuse_unwritable
from audiovq.segment import to_text

Count = Callable[[int], None]
"""Called with the number of recordings that are written so far."""


def examples(folder: str | Path, n_q: int | None = None) -> Iterator[Example]:
    """The recordings of a corpus in the order of its sources. Raises as `dataset.Groups`."""
    groups = Groups(folder, n_q)
    for number in range(len(groups.places)):
        yield from groups.read(number)


def export_text(
    folder: str | Path,
    out: str | Path,
    *,
    level: int = 0,
    dedup: bool = False,
    names: bool = False,
    overwrite: bool = False,
    count: Count = lambda n: None,
) -> None:
    """Units as text, one line a recording, numbers between blanks, each code once.

    dedup: merge repeats. names: begin each line with the id and "|". Raises `ValueError` for a
    level that the corpus has not.
    """
    settings = read_corpus(folder).settings
    if not 0 <= level < settings.n_q:
        raise ValueError(f"{folder} has levels 0 to {settings.n_q - 1}; there is no level {level}.")
    stride = settings.frames_per_code[level]
    with (
        atomic_output(out, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for n, example in enumerate(examples(folder, level + 1), 1):
            line = to_text(example.codes[level, ::stride], dedup=dedup)
            file.write(f"{example.id}|{line}\n" if names else f"{line}\n")
            count(n)


def export_npy(
    folder: str | Path, out: str | Path, *, overwrite: bool = False, count: Count = lambda n: None
) -> None:
    """A tree of `.npy` token files, as `audiovq.codes.npy_bytes` has them, each by its id.

    Raises `FileRefused` for an id that leads out of `out`.
    """
    for n, example in enumerate(examples(folder), 1):
        write_npy(
            _place(Path(out), example.id),
            example.codes,
            level_strides=example.level_strides,
            overwrite=overwrite,
        )
        count(n)


def _place(out: Path, name: str) -> Path:
    below = PurePosixPath(name)
    if below.is_absolute() or ".." in below.parts or not below.name or "\0" in name:
        raise FileRefused(f"the id {name!r} is no name of a file below a folder.")
    return out / below.with_name(f"{below.name}.npy")


def export_datasets(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> None:
    """A Hugging Face dataset on disk, with the columns of the shards; see `shards`."""
    import datasets

    _refuse_folder(Path(out), overwrite=overwrite)
    if not sum(Groups(folder).sizes):
        raise FileRefused(f"{folder} has no recordings, of which no dataset can be made.")
    files = [str(Path(folder) / entry.file) for entry in read_index(folder)]
    datasets.disable_progress_bars()
    parent = Path(out).absolute().parent
    with refuse_unwritable(out):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as cache:
            try:
                data = datasets.Dataset.from_parquet(files, cache_dir=cache)
            except datasets.exceptions.DatasetGenerationError as error:
                why = error.__cause__ or error
                raise FileRefused(f"{folder} cannot become a dataset ({why}).") from error
            data.save_to_disk(os.fspath(out))


def export_lhotse(
    folder: str | Path, out: str | Path, *, overwrite: bool = False, count: Count = lambda n: None
) -> None:
    """A lhotse CutSet, `cuts.jsonl.gz`, with the codes as arrays beside it.

    `cut.load_codes()` gives uint16 [T, n_q]; a code that stands for several frames stands in each
    of them. A cut has its recording where that is an audio file
    that is still there, and is without sound otherwise. Text and speaker are a supervision.
    """
    from lhotse import CutSet, NumpyFilesWriter

    out = Path(out)
    _refuse_folder(out, overwrite=overwrite)
    corpus, groups = read_corpus(folder), Groups(folder)
    with refuse_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)

    planned = functools.lru_cache(maxsize=1)(_planned)  # groups of a shard follow each other

    def cuts(storage: Any) -> Iterator[Any]:
        n = 0
        for number in range(len(groups.places)):
            rows = planned(groups.folder, groups.places[number][0])
            for example in groups.read(number):
                n += 1
                key = f"{n % 1000:03d}-{n}"  # its first three characters are a folder
                cut = _cut(example, rows[example.id], corpus.root, groups.settings.sample_rate)
                cut.codes = storage.store_array(
                    key=key,
                    value=example.codes.T,
                    temporal_dim=0,
                    frame_shift=1 / groups.settings.frame_rate,
                    start=cut.start,
                )
                yield cut
                count(n)

    with (
        NumpyFilesWriter(out / "codes") as storage,
        atomic_output(out / "cuts.jsonl.gz", overwrite=overwrite) as temporary,
    ):
        named = temporary.with_name(temporary.name + ".jsonl.gz")  # lhotse goes by the suffix
        try:
            with CutSet.open_writer(named) as writer:
                for cut in cuts(storage):
                    writer.write(cut)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def _planned(folder: Path, shard: str) -> dict[str, Row]:
    """The rows of a shard's plan by their ids: shards say neither kind nor channel."""
    return {row.id: row for row in read_plan(folder, int(Path(shard).stem.rpartition("-")[2]))}


def _cut(example: Example, row: Row, root: str, sample_rate: int) -> Any:
    from lhotse import MonoCut, Recording, SupervisionSegment

    duration = example.n_samples / sample_rate
    start, path = row.start or 0.0, os.path.join(root, row.source)
    recording = None
    if row.kind == "file" and os.path.isfile(path):
        recording = Recording.from_file(path)
    if recording is not None and row.channel is None and recording.num_channels > 1:
        recording = None  # the codes are of the mean of its channels, which no cut of one has
    if recording is not None:
        duration = min(duration, recording.duration - start)
    cut = MonoCut(
        id=example.id,
        start=start,
        duration=duration,
        channel=row.channel or 0,
        recording=recording,
    )
    if example.text or example.speaker:
        cut.supervisions = [
            SupervisionSegment(
                id=example.id,
                recording_id=recording.id if recording is not None else example.id,
                start=0.0,
                duration=duration,
                text=example.text,
                speaker=example.speaker,
            )
        ]
    return cut


def _refuse_folder(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        if any(out.iterdir()) and not overwrite:
            raise FileRefused(f"{out} is not empty; name a new folder, or add --force.")
    else:
        refuse_existing(out, overwrite=False)
