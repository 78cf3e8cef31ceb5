"""Corpora: plans, shards, engines, resuming, faults."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="corpora need the extra corpus")

import pyarrow.parquet as pq

from audiovq.corpus import encode, layout
from audiovq.corpus.checking import verify
from audiovq.corpus.codec import Encoded, batches
from audiovq.corpus.layout import Settings, read_corpus, read_entry
from audiovq.corpus.pool import Death
from audiovq.corpus.rows import Problem, Row
from audiovq.corpus.sources import Source
from audiovq.corpus.worker import MOST_DEATHS, Job, Task, Trail, encode_shard
from audiovq.files import FileRefused

SETTINGS = Settings("fake", "f0", 16_000, 320, 32, n_q=3, shard_rows=5)


@dataclass(frozen=True)
class FakeLoader:
    """A codec without a model: codes that hang on the id alone."""

    seconds: float = 0.0
    """That a recording takes."""
    deadly: str = ""
    """The id at which the process dies."""
    preload = ()

    def __call__(self, slot: int) -> "FakeLoader":
        return self

    def encode(self, rows, started):
        for index, row in enumerate(rows):
            started(index)
            time.sleep(self.seconds)
            if row.id == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if row.id.endswith("bad"):
                yield f"{row.name} is bad."
                continue
            rng = np.random.default_rng([*row.id.encode()])
            frames = int(rng.integers(1, 40))
            codes = rng.integers(0, 32, (3, frames)).astype(np.uint16)
            yield Encoded(codes, frames * 320 - 7)


def source(n: int = 23, bad: tuple[int, ...] = (4, 11)) -> Source:
    rows = [Row(f"r{i:03d}{'bad' if i in bad else ''}", f"{i}.wav", stamp="1:1") for i in range(n)]
    return Source("/nowhere", lambda: iter(rows))


def run(out: Path, loader=None, *, settings=SETTINGS, rows=None, **options):
    return encode.run(rows or source(), out, settings, loader or FakeLoader(), **options)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("shard-*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "out"
    run(out)
    return out


# Laws.


def test_every_planned_recording_is_in_a_shard_or_refused(undisturbed):
    held = [i for path in sorted(undisturbed.glob("shard-*")) for i in pq.read_table(path)["id"].to_pylist()]
    assert held == [f"r{i:03d}" for i in range(23) if i not in (4, 11)]
    lines = (undisturbed / layout.REFUSED_FILE).read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert [item["id"] for item in refused] == ["r004bad", "r011bad"]
    assert refused[0]["why"] == "4.wav is bad."
    assert verify(undisturbed) == []
