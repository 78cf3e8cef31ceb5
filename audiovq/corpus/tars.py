"""WebDataset tars: members that share a name up to the first dot are one recording."""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audiovq.audio import audio_suffixes
from audiovq.corpus.rows import Problem, Row, stamp

_TEXT_BYTES = 1 << 20
"""Size of the largest member that is read as text."""


def tar_rows(path: Path, folder: Path) -> Iterator[Row | Problem]:
    """The recordings of an uncompressed tar: an audio member each, found by its place in the tar.

    A member NAME.txt beside it is its text; NAME.json may say `id`, `text` and `speaker`. Nothing
    but headers and these is read. What a damaged tar holds before the damage is given.
    """
    suffixes = frozenset(audio_suffixes())
    below = path.relative_to(folder).as_posix()
    sign = stamp(path)
    try:
        size = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            row, key, end, damage = None, None, 0, None
            about: dict[str, str] = {}
            while True:
                try:
                    member = tar.next()
                except tarfile.TarError as error:
                    damage = f"it is damaged from byte {end} on ({error})"
                    break
                if member is None:
                    if _goes_on(path, end):  # tarfile takes a broken header for the end
                        damage = f"it is damaged from byte {end} on"
                    break
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all
                end = member.offset_data + member.size
                if not member.isfile():
                    continue
                parent, _, name = member.name.rpartition("/")
                if name.startswith("."):  # as in folders: other programs' notes (._a.wav)
                    continue
                stem, _, suffix = name.partition(".")
                if (parent, stem) != key:
                    if row is not None:
                        yield _told(row, about)
                    row, key, about = None, (parent, stem), {}
                if end > size:
                    yield Problem(f"{below}#{member.name}", "the tar ends inside it")
                    break
                if f".{suffix.lower().rpartition('.')[2]}" in suffixes:
                    if row is not None:
                        yield Problem(f"{below}#{member.name}", f"{row.part} has the same name")
                        continue
                    row = Row(
                        f"{parent}/{stem}".removeprefix("/").removeprefix("./"),
                        str(path),
                        kind="tar",
                        part=member.name,
                        offset=member.offset_data,
                        size=member.size,
                        stamp=sign,
                    )
                elif suffix.lower() in ("txt", "json") and member.size <= _TEXT_BYTES:
                    file = tar.extractfile(member)
                    about[suffix.lower()] = (
                        "" if file is None else file.read().decode(errors="replace")
                    )
            if row is not None:
                yield _told(row, about)
            if damage is not None:
                yield Problem(below, damage)
    except (OSError, tarfile.TarError) as error:
        yield Problem(below, f"it cannot be read as an uncompressed tar ({error})")


def _goes_on(path: Path, end: int) -> bool:
    """Whether a tar has more than zeros after its last member, which ends at `end`."""
    with path.open("rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return bool(file.read(tarfile.BLOCKSIZE).strip(b"\0"))


def _told(row: Row, about: dict[str, str]) -> Row:
    """The row with what the members beside it say."""
    try:
        facts = json.loads(about.get("json", "{}"))
    except (ValueError, RecursionError):
        facts = {}
    facts = facts if isinstance(facts, dict) else {}
    said: dict[str, Any] = {
        name: str(facts[name]) for name in ("id", "text", "speaker") if facts.get(name)
    }
    if "txt" in about:
        said["text"] = about["txt"].strip()
    return row._replace(**said)
