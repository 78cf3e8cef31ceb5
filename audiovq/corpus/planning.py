"""Which rows go into which shard: decided before the work, by the sources alone.

The plan is a Parquet file with a row group for each shard, so that a worker is told a number and
reads what it is to do itself. Who encodes a shard, where, and how many they are, has no say in its
bytes. The plan is written as the sources are walked: of a million rows, the rows of one shard and
8 bytes each are in memory.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from audiovq.corpus.layout import PLAN_FILE, VERSION, Corpus, Settings
from audiovq.corpus.rows import PLAN_SCHEMA, Row, from_table, to_table
from audiovq.corpus.sources import Source
from audiovq.files import FileRefused, atomic_output

MOST_PROBLEMS = 10_000
"""Problems of sources that are kept; of more, the number."""


def write_plan(source: Source, settings: Settings, path: Path) -> Corpus:
    """Walk the sources and write their plan to `path`.

    Raises `FileRefused` when they give no row, or two with one id.
    """
    problems: list[tuple[str, str]] = []
    n_more = 0
    hashes = array("Q")
    digests: list[str] = []
    seed = json.dumps([VERSION, settings.facts()]).encode()

    def rows() -> Iterator[Row]:
        nonlocal n_more
        for row in source.walk():
            if isinstance(row, Row):
                yield row
            elif len(problems) < MOST_PROBLEMS:
                problems.append((row.source, row.why))
            else:
                n_more += 1

    with atomic_output(path, overwrite=True, durable=True) as temporary:
        with pq.ParquetWriter(temporary, PLAN_SCHEMA, compression="zstd") as writer:
            for chunk in _chunks(rows(), settings.shard_rows):
                hashes.extend(_hash(row.id) for row in chunk)
                digests.append(_digest(seed, chunk))
                writer.write_table(to_table(chunk), row_group_size=len(chunk))
        if not digests:
            why = f" ({problems[0][0]}: {problems[0][1]})" if problems else ""
            raise FileRefused(f"{source.root} gives no recordings to encode{why}.")
        _refuse_doubles(temporary, hashes)
    if n_more:
        problems.append(("", f"{n_more} more problems of the sources are not listed"))
    return Corpus(settings, source.root, len(hashes), tuple(digests), tuple(problems))


def read_plan(out: Path, shard: int) -> list[Row]:
    """The rows that are planned for a shard. Raises `FileRefused` when the plan is damaged."""
    try:
        with pq.ParquetFile(out / PLAN_FILE) as file:
            return from_table(file.read_row_group(shard, use_threads=False))
    except (OSError, ValueError, TypeError) as error:
        raise FileRefused(f"{out / PLAN_FILE} cannot be read ({error}).") from error


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _digest(seed: bytes, rows: list[Row]) -> str:
    """32 hexadecimal digits of the rows and the settings."""
    return hashlib.sha256(seed + json.dumps(rows).encode()).hexdigest()[:32]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _refuse_doubles(plan: Path, hashes: array) -> None:
    """Raise `FileRefused` that names rows with one id, if there are any."""
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    doubled = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not doubled:
        return
    first: dict[str, str] = {}
    clashes: list[str] = []
    for batch in pq.ParquetFile(plan).iter_batches(columns=["id", "source"]):
        for name, source in zip(batch["id"].to_pylist(), batch["source"].to_pylist()):
            if _hash(name) not in doubled:
                continue
            if name in first:
                clashes.append(f"{name!r} ({first[name]} and {source})")
            first.setdefault(name, source)
    if clashes:  # and not two names with one hash
        more = f", and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        raise FileRefused(
            f"two recordings have one id: {', '.join(clashes[:5])}{more}; give each its own, or "
            "--prefix-ids to begin ids with the name of the tar or table."
        )
