"""A row: one recording of a corpus, where it is, and what is known of it.

Rows are what sources give, what plans hold and what workers encode.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa


class Row(NamedTuple):
    """One recording, whole or a part of a file.

    Named tuples: there may be many millions of them.
    """

    id: str
    """Its name, which no other row of the corpus has."""
    source: str
    """Path of the file that it is in; below the corpus's root where it can be."""
    kind: str = "file"
    """How it is read: "file", "tar" (a member), "hf" (a row of a Hugging Face dataset) or "cut"
    (a lhotse cut that is more than a part of a file)."""
    part: str | None = None
    """What of `source`: the member's name, the row's number, or the cut as JSON."""
    offset: int | None = None
    """Of a tar's member: its first byte in the tar."""
    size: int | None = None
    """Of a tar's member: its number of bytes."""
    start: float | None = None
    """Of a part of a recording, in seconds."""
    duration: float | None = None
    """Of a part of a recording, in seconds; to the end when None."""
    channel: int | None = None
    """The channel to take; the mean of all when None."""
    text: str | None = None
    speaker: str | None = None
    stamp: str | None = None
    """Size and time of the file, by which a change is noticed; None where it is missing."""

    @property
    def name(self) -> str:
        """The recording as shards and messages name it: the file, and what of it."""
        inside = self.part if self.kind in ("tar", "hf") else None
        return self.source if inside is None else f"{self.source}#{inside}"


class Problem(NamedTuple):
    """Something in a source that gives no row, and why."""

    source: str
    why: str


PLAN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("part", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
        ("channel", pa.int32()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("stamp", pa.string()),
    ]
)
"""The columns of a plan: the fields of `Row`."""


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of `PLAN_SCHEMA`."""
    columns: Sequence[Sequence[Any]] = list(zip(*rows)) or [[] for _ in PLAN_SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PLAN_SCHEMA)]
    return pa.Table.from_arrays(arrays, schema=PLAN_SCHEMA)


def from_table(table: pa.Table) -> list[Row]:
    """The inverse of `to_table`."""
    return [Row(*values) for values in zip(*(column.to_pylist() for column in table.columns))]


def stamp(path: str | Path) -> str | None:
    """Size and time of change of a file, as text; None when it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return f"{found.st_size}:{found.st_mtime_ns}"
