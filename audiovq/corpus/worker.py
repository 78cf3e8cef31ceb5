"""What a worker does with a shard, whatever engine runs it."""

import hashlib
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from audiovq.corpus.codec import Codec, Encoded
from audiovq.corpus.layout import ENTRY_FOLDER, Entry, Settings, entry_path, shard_file, whole_entry
from audiovq.corpus.planning import read_plan
from audiovq.corpus.rows import Row
from audiovq.corpus.shards import GROUP_ROWS, shard_writer
from audiovq.files import atomic_output, refuse_unreadable, refuse_unwritable

MOST_DEATHS = 5
"""How many workers of one run may die at the same recording, before it is refused."""


class Loader(Protocol):
    """Makes the codec of a worker; it is pickled and sent there."""

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that all workers import."""
        ...

    def __call__(self, slot: int) -> Codec:
        """The codec of worker `slot`, from 0."""
        ...


@dataclass(frozen=True)
class Job:
    """What all workers of a run know."""

    out: Path
    settings: Settings
    loader: Loader
    run: str
    """A name that no other run has."""


@dataclass(frozen=True)
class Task:
    """A shard to encode."""

    shard: int
    digest: str
    """Of its plan."""


@dataclass(frozen=True)
class Result:
    """A shard that was encoded."""

    entry: Entry
    worker: str
    """Host and process."""
    busy: float
    """Seconds that it took."""


def encode_shard(
    job: Job, task: Task, codec: Codec, tick: Callable[[float], None] = lambda seconds: None
) -> Result:
    """Encode the rows of a shard, write it and its entry, whole or not at all.

    tick: called after each recording with its seconds of audio.

    Raises `FileRefused` when the shard cannot be written.
    """
    start = time.perf_counter()
    done = whole_entry(job.out, task.shard, task.digest)
    path = job.out / shard_file(task.shard, job.settings.format)
    if done is None:
        rows = read_plan(job.out, task.shard)
        with (
            Trail(job, task.shard) as trail,
            atomic_output(path, overwrite=True, durable=True) as temporary,
        ):
            groups, refused = _write(temporary, rows, job.settings, codec, trail, tick)
            lengths = [n_samples for group in groups for n_samples in group]
            n_bytes, sha256 = checksum(temporary)
        done = Entry(
            shard=task.shard,
            file=path.name,
            digest=task.digest,
            rows=len(lengths),
            samples=sum(lengths),
            frames=sum(map(job.settings.n_frames, lengths)),
            bytes=n_bytes,
            sha256=sha256,
            groups=tuple(len(group) for group in groups if group),
            refused=tuple(refused),
        )
        # After the shard: what has an entry is whole.
        target = entry_path(job.out, task.shard)
        with atomic_output(target, overwrite=True, durable=True) as temporary:
            temporary.write_text(done.to_json(), encoding="utf-8")
        trail.clear()
    worker = f"{socket.gethostname()}:{getpid()}"
    return Result(done, worker, time.perf_counter() - start)


def _write(
    path: Path,
    rows: Sequence[Row],
    settings: Settings,
    codec: Codec,
    trail: "Trail",
    tick: Callable[[float], None],
) -> tuple[list[list[int]], list[dict[str, str]]]:
    """Write the rows' shard: samples of each row of its groups, and what was refused."""
    groups: list[list[int]] = []
    refused: list[dict[str, str]] = []
    deadly = trail.deadly()
    with shard_writer(path, settings) as writer:
        for first in range(0, len(rows), GROUP_ROWS):
            window = rows[first : first + GROUP_ROWS]
            safe = [row for i, row in enumerate(window, first) if i not in deadly]
            places = [i for i in range(first, first + len(window)) if i not in deadly]
            found = iter(codec.encode(safe, lambda i, places=places: trail.at(places[i])))  # type: ignore[misc]
            kept_rows: list[Row] = []
            kept: list[Encoded] = []
            for index, row in enumerate(window, first):
                item = _killer(row) if index in deadly else next(found)
                if isinstance(item, str):
                    refused.append({"id": row.id, "source": row.name, "why": item})
                    tick(0.0)
                else:
                    kept_rows.append(row)
                    kept.append(item)
                    tick(item.n_samples / settings.sample_rate)
            writer.write(kept_rows, kept)
            groups.append([item.n_samples for item in kept])
    return groups, refused


def _killer(row: Row) -> str:
    return f"{row.name}: {MOST_DEATHS} processes died while they encoded it."


def checksum(path: Path) -> tuple[int, str]:
    """The size of a file and its SHA-256. Raises `FileRefused` when it cannot be read."""
    with refuse_unreadable(path), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


class Trail:
    """Where in a shard each worker of this run was, so that a recording which kills them is found.

    A small file of the rows' numbers, four bytes each, that outlives the worker; -1 begins an
    attempt. Those of other runs are not counted: a batch system may end them all at one place.
    """

    def __init__(self, job: Job, shard: int) -> None:
        self._folder = job.out / ENTRY_FOLDER
        self._shard = shard
        self._path = self._folder / f"{shard:06d}.{job.run}.trail"

    def __enter__(self) -> Self:
        with refuse_unwritable(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)
        self.at(-1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def at(self, row: int) -> None:
        """Note that `row` is begun."""
        with refuse_unwritable(self._path):
            self._file.write(np.int32(row).tobytes())

    def deadly(self) -> set[int]:
        """Rows at which `MOST_DEATHS` workers have ended."""
        data = self._path.read_bytes()
        steps = np.frombuffer(data[: len(data) // 4 * 4], dtype=np.int32)
        ends = steps[:-1][steps[1:] == -1]  # what came last before each attempt but the first
        rows, counts = np.unique(ends[ends >= 0], return_counts=True)
        return set(rows[counts >= MOST_DEATHS].tolist())

    def clear(self) -> None:
        """Forget the shard's trails: it is done."""
        for path in self._folder.glob(f"{self._shard:06d}.*.trail"):
            with suppress(OSError):
                path.unlink()
