"""What a corpus can be made of: folders, tables, lhotse cuts, tars, Hugging Face datasets.

Every source is walked in an order that depends on its contents alone, and row by row: none is ever
in memory as a whole.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiovq.audio import audio_suffixes
from audiovq.corpus.layout import CORPUS_FILE
from audiovq.corpus.rows import Problem, Row, stamp
from audiovq.corpus.tables import table_rows
from audiovq.corpus.tars import tar_rows
from audiovq.files import FileRefused

CUT_SUFFIXES = (".jsonl", ".jsonl.gz")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

Rows = Iterator[Row | Problem]


@dataclass(frozen=True)
class Source:
    """A corpus that can be walked again and again."""

    root: str
    """The folder that paths of rows are below, absolute."""
    walk: Callable[[], Rows]
    """The rows in their order, and what gives none."""


def open_sources(
    names: Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    audio_root: str | Path | None = None,
    prefix_ids: bool = False,
) -> Source:
    """The rows of one or more sources, one source after the other.

    names: each a folder (searched through, `.tar` files in it included), a WebDataset `.tar`, a
        table (`.csv`, `.tsv`, `.parquet`), a lhotse CutSet (`.jsonl`, `.jsonl.gz`) or the folder
        of a Hugging Face dataset that was saved to disk.
    columns: names of a table's or dataset's columns, where they are not those of `Row`:
        {"path": "audio"}.
    audio_root: the folder that paths of tables and cuts are below; the table's own by default.
    prefix_ids: begin the ids of tars, tables and cuts with the file's name and "/".

    Raises `FileRefused` for a source that is missing or none of these, and `ValueError` for names
    of columns that no row has.
    """
    paths = [Path(os.path.abspath(name)) for name in names]
    if not paths:
        raise ValueError("there are no sources; give at least one.")
    parts = [_open(path, columns or {}, audio_root, prefix_ids) for path in paths]
    folders = [path if path.is_dir() and not _is_dataset(path) else path.parent for path in paths]
    if audio_root is not None:
        folders.append(Path(os.path.abspath(audio_root)))
    root = os.path.commonpath(folders)

    def walk() -> Rows:
        for path, rows in zip(paths, parts):
            prefix = f"{path.name.partition('.')[0]}/" if prefix_ids and path.is_file() else ""
            for row in rows():
                yield _spelled(_settled(row, root, prefix) if isinstance(row, Row) else row)

    return Source(root, walk)


def _spelled(row: Row | Problem) -> Row | Problem:
    """The row as UTF-8 can hold it, as plans, shards and lists do."""
    if isinstance(row, Problem):
        return Problem(*map(_as_text, row))
    if _is_text("".join(value for value in row if isinstance(value, str))):
        return row
    if not _is_text(row.id + row.name):
        return Problem(_as_text(row.name), "its name is not UTF-8; rename it")
    part, text, speaker = (value and _as_text(value) for value in (row.part, row.text, row.speaker))
    return row._replace(part=part, text=text, speaker=speaker)


def _settled(row: Row, root: str, prefix: str) -> Row:
    """The row with its prefix, and its path below `root` where it is there."""
    source = row.source
    if source.startswith(root + os.sep):
        source = source[len(root) + 1 :]
    return row._replace(id=prefix + row.id, source=source)


def _open(
    path: Path, columns: Mapping[str, str], audio_root: str | Path | None, prefix_ids: bool
) -> Callable[[], Rows]:
    name = path.name.lower()
    if not path.exists():
        raise FileRefused(f"{path} does not exist; check the name.")
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            splits = sorted(p.parent.name for p in path.glob("*/dataset_info.json"))
            raise FileRefused(f"{path} holds several datasets ({', '.join(splits)}); name one.")
        if _is_dataset(path):
            from audiovq.corpus.datasets import dataset_rows

            return dataset_rows(path, columns)
        return lambda: folder_rows(path, prefix_ids=prefix_ids)
    if name.endswith(".tar"):
        return lambda: tar_rows(path, path.parent)
    if name.endswith(CUT_SUFFIXES):
        from audiovq.corpus.cuts import cut_rows

        return cut_rows(path, audio_root)
    if name.endswith(TABLE_SUFFIXES):
        return table_rows(path, columns, audio_root)
    if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz")):
        raise FileRefused(f"{path} is a compressed tar, in which nothing can be found; unpack it.")
    raise FileRefused(
        f"{path} is no source of a corpus; give a folder, {', '.join(TABLE_SUFFIXES)}, "
        f"{', '.join(CUT_SUFFIXES)}, .tar or a Hugging Face dataset's folder."
    )


def _is_dataset(path: Path) -> bool:
    """Whether it is what `datasets.Dataset.save_to_disk` writes."""
    return (path / "state.json").exists() and (path / "dataset_info.json").exists()


def folder_rows(folder: Path, *, prefix_ids: bool = False) -> Rows:
    """The audio files below a folder, and the members of tars there.

    Ids are paths below `folder` without the suffix; with it where two files of a folder differ in
    it alone. Names that begin with a dot and links to folders are passed over.
    """
    suffixes = frozenset(audio_suffixes())
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        if CORPUS_FILE in names:  # an output that stands among its sources
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Problem(str(e.filename), f"it cannot be read: {e.strerror}") for e in errors)
        errors.clear()
        found = [
            (stem, suffix)
            for stem, suffix in map(os.path.splitext, sorted(names))
            if suffix.lower() in suffixes and not stem.startswith(".")
        ]
        stems = [stem for stem, _ in found]
        below = os.path.relpath(parent, folder)
        prefix = "" if below == "." else Path(below).as_posix() + "/"
        doubled = {stem for stem, after in itertools.pairwise(stems) if stem == after}
        for stem, suffix in found:
            path = os.path.join(parent, stem + suffix)
            name = prefix + stem + (suffix if stem in doubled else "")
            if not _is_text(path):  # Parquet holds UTF-8
                yield Problem(_as_text(path), "its name is not UTF-8; rename it")
            else:
                yield Row(name, path, stamp=stamp(path))
        for name in sorted(names):
            if name.lower().endswith(".tar") and not name.startswith("."):
                before = f"{prefix}{name.partition('.')[0]}/" if prefix_ids else ""
                for row in tar_rows(Path(parent, name), folder):
                    yield row._replace(id=before + row.id) if isinstance(row, Row) else row


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
