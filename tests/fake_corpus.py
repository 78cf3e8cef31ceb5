"""A corpus without audio and a codec without a model, for tests of all that is around them."""

import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiovq.corpus import encode
from audiovq.corpus.codec import Encoded
from audiovq.corpus.layout import Settings
from audiovq.corpus.progress import Progress
from audiovq.corpus.rows import Row
from audiovq.corpus.sources import Source

SETTINGS = Settings("fake", "f0", 16_000, 320, 32, n_q=3, shard_rows=5)


def codes_of(name: str) -> np.ndarray:
    """What the codec makes of a recording: uint16 [3, T], which its id in any case decides."""
    rng = np.random.default_rng([*name.lower().encode()])
    return rng.integers(0, 32, (3, int(rng.integers(2, 40)))).astype(np.uint16)


@dataclass(frozen=True)
class FakeLoader:
    """Loads a codec that takes its time, refuses what ends in "bad", and may die."""

    seconds: float = 0.0
    """That a recording takes."""
    deadly: str = ""
    """The id at which its process is killed."""
    strides: tuple[int, ...] = (1, 1, 1)
    """Frames that a code of each level stands for."""
    preload: tuple[str, ...] = ("audiovq.corpus.worker", "fake_corpus")

    def __call__(self, slot: int) -> "FakeLoader":
        return self

    def encode(self, rows, started) -> Iterator[Encoded | str]:
        for index, row in enumerate(rows):
            started(index)
            time.sleep(self.seconds)
            if row.id == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if row.id.endswith("bad"):
                yield f"{row.name} is bad."
            else:
                codes = codes_of(row.id)
                once = [row[::stride] for row, stride in zip(codes, self.strides)]
                yield Encoded(once, codes.shape[1] * 320 - 7)


def fake_rows(n: int = 23, bad: Collection[int] = (4, 11)) -> list[Row]:
    """n rows, some of which the codec refuses."""
    return [Row(f"r{i}{'bad' if i in bad else ''}", f"{i}.wav", stamp="1:1") for i in range(n)]


def run(
    out: Path,
    rows: list[Row] | None = None,
    *,
    loader: FakeLoader | None = None,
    settings: Settings = SETTINGS,
    **options,
) -> Progress:
    """Encode rows with the codec."""
    rows = fake_rows() if rows is None else rows
    return encode.run(
        Source("/nowhere", lambda: iter(rows)), out, settings, loader or FakeLoader(), **options
    )


def shards(out: Path) -> dict[str, bytes]:
    """The bytes of every shard."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("shard-*"))}


if __name__ == "__main__":  # a driver that tests kill
    run(Path(sys.argv[1]), loader=FakeLoader(seconds=0.02), jobs=2)
