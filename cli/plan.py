"""Which files a command reads, and where it writes what comes of them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from audiovq.files import (
    STDIO,
    FileRefused,
    read_standard_input,
    refuse_existing,
    refuse_unreadable,
)

_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,5}")  # .wav and .npy, but not the .5 of run-0.5


@dataclass
class Plan:
    """The work of a command."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    """Source and target of each file."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Folders that give nothing, and why."""
    notes: list[str] = field(default_factory=list)
    """What was left out of folders."""


def names_folder(out: str, formats: Sequence[str]) -> bool:
    """Whether -o names a folder: one that exists, a name that ends in / or one without a suffix.

    A name with a suffix of `formats` is a file. Raises `typer.BadParameter` for another suffix.
    """
    if not out:
        raise typer.BadParameter("the output has an empty name.")
    if out.endswith(("/", os.sep)) or os.path.isdir(out):
        return True
    suffix = Path(out).suffix.lower()
    if suffix in formats:
        return False
    if _SUFFIX.fullmatch(suffix):
        raise typer.BadParameter(
            f"{out} ends in {suffix}, but what is written is {' or '.join(formats)}; end the name "
            "so, or in / if it is a folder."
        )
    return True


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Before the work: raise `typer.BadParameter` when `path` is named after another format than
    PNG, and `FileRefused` when it cannot be written."""
    if path.suffix.lower() != ".png" and _SUFFIX.fullmatch(path.suffix.lower()):
        raise typer.BadParameter(f"{path} ends in {path.suffix}; pictures are PNG: end it in .png.")
    refuse_existing(path, overwrite=overwrite)


def plan(
    sources: Sequence[str],
    out: str | None,
    suffixes: Iterable[str],
    rename: Callable[[Path], str],
    formats: Sequence[str],
    *,
    recursive: bool,
    what: str,
    listed: Sequence[str] = (),
) -> Plan:
    """Sources and targets for files and folders; folders keep their tree under `out`.

    listed: more files, which keep theirs below the folder that they all are in.
    rename: the target's name for a source. Without `out` the targets stand beside the sources.
    formats: suffixes of the files that `out` may name.
    Raises `typer.BadParameter` when `out` does not fit, when two sources would be written to one
    target, or a target is a source; `FileRefused` when there is nothing to do.
    """
    if out == STDIO or STDIO in (*sources, *listed):
        sources = [*sources, *listed]
        return Plan([_through_pipe(sources, out, formats)])
    to_folder = out is None or names_folder(out, formats)
    if not to_folder and (len(sources) + len(listed) > 1 or any(map(os.path.isdir, sources))):
        raise typer.BadParameter(
            f"{out} is the name of one file, for one source; name a folder, or end it in /."
        )
    found = Plan()
    if sources or not listed:
        found = find_sources(sources, suffixes, recursive=recursive, what=what)
    found.pairs += _with_places(listed)
    for index, (source, below) in enumerate(found.pairs):
        path = Path(below)
        if not to_folder:
            target = Path(str(out))
        elif out is None:
            target = Path(source).with_name(rename(path))
        else:
            target = Path(out) / path.with_name(rename(path))
        found.pairs[index] = (source, str(target))
    _refuse_clashes(found.pairs)
    refuse_sources([source for source, _ in found.pairs], [target for _, target in found.pairs])
    return found


def find_sources(
    sources: Sequence[str], suffixes: Iterable[str], *, recursive: bool, what: str
) -> Plan:
    """Files, and those in folders, each with its path below its folder in the place of a target.

    Raises `FileRefused` when there are none.
    """
    suffixes = frozenset(suffixes)
    found = Plan()
    for name in sources:
        if not name:
            raise typer.BadParameter("a source has an empty name.")
        if not os.path.isdir(name):
            found.pairs.append((name, Path(name).name))
            continue
        files, others, errors = _walk(name, suffixes, recursive=recursive)
        found.pairs += [(str(Path(name, file)), file) for file in files]
        for error in errors:
            said = f"{error.filename} cannot be read: {error.strerror}."
            found.refused.append((error.filename, said))
        kinds = ", ".join(f"{n} {kind}" for kind, n in others.most_common(5))
        if not files and not errors:
            hint = "" if recursive else "; --recursive also looks into the folders inside it"
            hint += f" (it holds other files: {kinds})" if others else ""
            found.refused.append((name, f"{name} holds no {what}{hint}."))
        elif others:
            n_others = others.total()
            noun = "file" if n_others == 1 else "files"
            found.notes.append(f"{name}: {n_others} other {noun} skipped ({kinds}).")
    if not found.pairs:
        raise FileRefused(" ".join(why for _, why in found.refused))
    return found


def read_list(path: str) -> list[str]:
    """The names in a file, one a line, blank lines aside. Raises `FileRefused` when it has none."""
    data = read_standard_input() if path == STDIO else None
    if data is None:
        with refuse_unreadable(path):
            data = Path(path).read_bytes()
    # Names need not be text; Python has its own way to hold those that are not.
    names = [os.fsdecode(line) for line in data.splitlines() if line.strip()]
    if not names:
        raise FileRefused(f"{path} names no files; write one a line.")
    return names


def _with_places(listed: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with its path below the folder that all of them are in."""
    if not listed:
        return []
    paths = [os.path.abspath(name) for name in listed]
    top = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [(name, os.path.relpath(path, top)) for name, path in zip(listed, paths)]


def share_of(todo: Plan, share: str | None) -> None:
    """Keep the files of a share "i/n", every n-th of them from the i-th on; all when None.

    Raises `typer.BadParameter` for anything else.
    """
    if share is None:
        return
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", share, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise typer.BadParameter(f"--shard is i/n, from 1/n to n/n, not {share!r}.")
    n_all = len(todo.pairs)
    todo.pairs = todo.pairs[int(match[1]) - 1 :: int(match[2])]
    todo.notes.append(f"shard {share}: {len(todo.pairs)} of {n_all} files.")


def refuse_sources(sources: Iterable[str], targets: Iterable[str]) -> None:
    """Raise `typer.BadParameter` when a target is one of the sources, by whatever name."""
    inodes = {inode for source in sources if (inode := _inode(source))}
    for target in targets:
        if _inode(target) in inodes:
            raise typer.BadParameter(f"{target} is a source; name another output.")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _through_pipe(
    sources: Sequence[str], out: str | None, formats: Sequence[str]
) -> tuple[str, str]:
    if len(sources) != 1:
        raise typer.BadParameter('"-" stands alone: give one source and one output.')
    if sources[0] != STDIO and os.path.isdir(sources[0]):
        raise typer.BadParameter("a folder cannot go to standard output; name a folder.")
    if out is None or out == STDIO:
        return sources[0], STDIO
    if names_folder(out, formats):
        raise typer.BadParameter(
            f"{out} names a folder; name the file to write, ending in {' or '.join(formats)}."
        )
    return sources[0], out


def _refuse_clashes(pairs: list[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    clashes = []
    for source, target in pairs:
        place = os.path.abspath(target)
        if place in first:
            clashes.append(f"{first[place]} and {source} to {target}")
        first[place] = source
    if clashes:
        more = f", and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        raise typer.BadParameter(
            f"outputs would be written twice: {'; '.join(clashes[:5])}{more}. Rename the sources, "
            "or write them to different folders."
        )


def _walk(
    folder: str, suffixes: frozenset[str], *, recursive: bool
) -> tuple[list[str], Counter[str], list[OSError]]:
    """Files below `folder` with these suffixes, what else is there by kind, and what cannot be
    listed.

    Dot-files are passed over: other programs' notes (._a.wav) and outputs that are being written.
    Links to files are followed; links to folders are not, for they may lead in circles.
    """
    files: list[str] = []
    others: Counter[str] = Counter()
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        inner = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in inner if not os.path.islink(os.path.join(parent, name))]
        if len(folders) < len(inner):
            others["linked folder"] += len(inner) - len(folders)
        below = os.path.relpath(parent, folder)
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = os.path.join(parent, name)
            suffix = os.path.splitext(name)[1].lower()
            if not os.path.isfile(path):
                others["broken link" if os.path.islink(path) else "special file"] += 1
            elif suffix in suffixes:
                files.append(name if below == "." else os.path.join(below, name))
            else:
                others[suffix or "without a suffix"] += 1
    return files, others, errors
