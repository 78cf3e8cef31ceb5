"""Tables of recordings: CSV, TSV and Parquet with a path a row."""

import csv
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiovq.corpus.rows import Problem, Row, stamp
from audiovq.files import FileRefused, refuse_unreadable

COLUMNS = ("path", "id", "start", "duration", "channel", "text", "speaker")
"""What a table may say of a row; `path` it must."""


def check_columns(columns: Mapping[str, str], known: tuple[str, ...] = COLUMNS) -> None:
    """Raise `ValueError` when `columns` renames what no row has."""
    for name in columns:
        if name not in known:
            raise ValueError(f"{name!r} is no column of a row; they are {', '.join(known)}.")


def table_rows(
    path: Path, columns: Mapping[str, str], audio_root: str | Path | None
) -> Callable[[], Iterator[Row | Problem]]:
    """The rows of a table. Raises `FileRefused` at once when it has no column of paths.

    The columns are `COLUMNS`, or what `columns` calls them; others are passed over. Without ids,
    they are paths without suffix, and for parts of recordings "@" and their start. CSV is quoted
    as in RFC 4180; TSV has no quotes.
    """
    check_columns(columns)
    there = _names(path)
    for name, column in {"path": "path", **columns}.items():
        if column not in there:
            raise FileRefused(
                f"{path} has no column {column!r}, but {', '.join(there)[:200]}; name it with "
                f"--column {name}=NAME."
            )
    chosen = {name: columns.get(name, name) for name in COLUMNS}
    chosen = {name: column for name, column in chosen.items() if column in there}
    root = os.path.abspath(audio_root if audio_root is not None else path.parent)

    # A folder's files are asked for their sizes once, though many rows may be parts of one.
    known_stamp = functools.lru_cache(maxsize=1 << 10)(stamp)

    def walk() -> Iterator[Row | Problem]:
        for number, values in _records(path, chosen):
            try:
                yield _row(values, root, known_stamp)
            except (ValueError, TypeError) as error:
                yield Problem(f"{path}, row {number}", str(error))

    return walk


def _row(values: dict[str, Any], root: str, known_stamp: Callable[[str], str | None]) -> Row:
    if values.get("") is not None:
        raise ValueError("it has another number of fields than the header")
    named = values.get("path")
    if not named:
        raise ValueError("it has no path")
    if not isinstance(named, str):
        raise ValueError(f"its path is {str(named)[:40]}, which is no text")
    path = os.path.normpath(os.path.join(root, named))
    start = _number(values, "start")
    duration = _number(values, "duration") if start is not None else None
    if start is not None and start < 0:
        raise ValueError(f"its start is {start:g}; give seconds from 0 on")
    if duration is not None and not duration > 0:
        raise ValueError(f"its duration is {duration:g}; give seconds above 0")
    channel = _number(values, "channel")
    if channel is not None and not channel.is_integer():
        raise ValueError(f"its channel is {channel:g}; give a whole number from 0 on")
    name = values.get("id")
    if name is None or name == "":
        name = os.path.splitext(named)[0] + (f"@{start:g}" if start is not None else "")
    return Row(
        str(name),
        path,
        start=start,
        duration=duration,
        channel=None if channel is None else int(channel),
        text=_text(values, "text"),
        speaker=_text(values, "speaker"),
        stamp=known_stamp(path),
    )


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
        if math.isfinite(number):
            return number
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError(f"its {name} is {str(value)[:40]!r}, which is no number")


def _text(values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    return None if value is None or value == "" else str(value)


def _names(path: Path) -> list[str]:
    """The names of a table's columns."""
    if path.suffix.lower() == ".parquet":
        return [str(name) for name in _open_parquet(path).schema_arrow.names]
    with _open_text(path) as file:
        try:
            header: list[str] = next(_reader(path, file), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileRefused(f"{path} is not a table of text in UTF-8: {error}.") from error
    if not header:
        raise FileRefused(f"{path} is empty; its first line names the columns.")
    return header


def _records(path: Path, chosen: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, from 1, and its values; "" holds those beyond the header."""
    if path.suffix.lower() == ".parquet":
        number = 0
        file = _open_parquet(path)
        try:
            for batch in file.iter_batches(batch_size=8192, columns=list(chosen.values())):
                lists = [batch.column(column).to_pylist() for column in chosen.values()]
                for values in zip(*lists):
                    number += 1
                    yield number, dict(zip(chosen, values))
        except (OSError, pa.ArrowException) as error:
            raise FileRefused(f"{path} is damaged after row {number} ({error}).") from error
        return
    with _open_text(path) as file:
        reader = _reader(path, file)
        header: list[str] = next(reader, [])
        places = {name: header.index(column) for name, column in chosen.items()}
        try:
            for number, values in enumerate(filter(None, reader), 1):
                if len(values) != len(header):
                    yield number, {"": values}
                else:
                    yield number, {name: values[place] for name, place in places.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileRefused(f"{path} is damaged after row {reader.line_num}: {error}.") from error


def _open_text(path: Path) -> Any:
    with refuse_unreadable(path):
        return open(path, encoding="utf-8-sig", newline="")


def _reader(path: Path, file: Any) -> Any:
    if path.suffix.lower() == ".csv":
        return csv.reader(file)
    return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _open_parquet(path: Path) -> pq.ParquetFile:
    with refuse_unreadable(path):
        try:
            return pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise FileRefused(f"{path} is not a Parquet table, or damaged.") from error
