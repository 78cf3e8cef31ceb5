"""Files that are refused and files that are written whole or not at all."""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STDIO = "-"
"""The path that stands for standard input or output."""

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.audiovq-tmp(\..*)?", re.DOTALL)
_LONGEST_NAME = 150  # bytes of a name that go into that of its temporary file; systems take 255
_LONGEST_SUFFIX = 16
_STALE_SECONDS = 24 * 3600.0

_swept: set[Path] = set()


class FileRefused(ValueError):  # noqa: N818 - it names what happened to the file
    """A file cannot be used. The message is one sentence: what was given and how to mend it."""


class OutputExists(FileRefused):
    """An output is there already and may not be overwritten."""


@contextmanager
def atomic_output(
    path: str | Path, *, overwrite: bool = False, durable: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block writes to the temporary path, which has the suffix of `path`; if it raises, the
    temporary file is removed and `path` is as it was. Missing parent folders are made. A file that
    is replaced leaves its permissions to the new one; of a link, the link is replaced and what it
    points to stays. What killed writers left in the folder is removed: see `sweep_temporaries`.

    durable: what was written also survives the machine's sudden end, once the block is left.

    Raises `OutputExists` when `path` exists and `overwrite` is false, and `FileRefused` when it is
    not a regular file, cannot be written to or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(path.parent)
        temporary, mode = _new_temporary(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        refuse_existing(path, overwrite=overwrite)  # it may have come in the meantime
        _take_permissions(temporary, path, mode)
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            _flush_to_disk(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when `path` exists, a dangling link included, and may not be
    overwritten, and `FileRefused` when no file can be written there: it is a folder, a device, a
    pipe, a name that the system does not take, or in a folder that may not be read."""
    path = Path(path)
    try:
        # Through /dev and /proc, names are other processes' open files and the system's own.
        folder = os.path.realpath(path.parent)
        if folder == "/dev" or f"{folder}/".startswith(("/proc/", "/sys/")):
            raise FileRefused(
                f'{path} is no place for a file; give "-" to write to standard output.'
            )
        there = _stat(path)
        linked = _stat(path, follow=False)
    except OSError as error:
        raise _unwritable(path, error) from error
    except FileRefused:
        raise
    except ValueError as error:  # a null character, or one that the file system cannot spell
        raise FileRefused(f"{str(path)!r} is not a file name; name another output.") from error
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise FileRefused(f"{path} is a folder; name a file to write.")
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise FileRefused(
            f'{path} is a device, pipe or socket; name a file, or "-" for standard output.'
        )
    if linked is not None and not overwrite:
        raise OutputExists(f"{path} exists; add --force to overwrite it or name another output.")


def sweep_temporaries(folder: Path) -> None:
    """Remove the temporary files of `atomic_output`, and the folders of `page_folder`, that killed
    writers left in `folder`.

    Those of this machine whose process is gone, and any that nobody has written to for a day. A
    folder is looked through once a process, since it may hold very many files.
    """
    folder = Path(os.path.abspath(folder))
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                if not (
                    time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS
                    or (match[1] == _machine() and not _is_running(int(match[2])))
                ):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


@contextmanager
def page_folder(
    folder: str | Path,
    generator: str,
    *,
    sources: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` when the block succeeds.

    The block writes a page into it, `index.html` and what belongs to it. If the block raises, the
    temporary folder is removed and `folder` is as it was.

    generator: what stands in the page's `<meta name="generator">`, by which a page is known.
    sources: files and folders that the page is made of, which must not go with an older page.

    Raises `FileRefused` when `folder` holds anything, unless `overwrite` and it is a page of the
    same generator and none of the sources lies in it.
    """
    folder = Path(folder)
    for source in map(Path, sources):
        if source.resolve().is_relative_to(folder.resolve()):
            raise FileRefused(f"{source} lies in {folder}, which is replaced; name another folder.")
    if folder.exists() and not folder.is_dir():
        raise FileRefused(f"{folder} is a file; name a folder for the page.")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not overwrite:
        raise FileRefused(f"{folder} is not empty; add --force to overwrite it or name another.")
    if used and not _is_page(folder, generator):
        raise FileRefused(
            f"{folder} holds something else than a page of {generator}; name another."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder.parent)
        temporary = _temporary_name(Path(os.path.abspath(folder)), "")
        temporary.mkdir(0o700)
    except OSError as error:
        raise FileRefused(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise FileRefused(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_page(folder: Path, generator: str) -> bool:
    index, mark = folder / "index.html", f'<meta name="generator" content="{generator}">'
    return index.is_file() and mark in index.read_text(encoding="utf-8", errors="replace")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises `FileRefused` when it is missing or not that."""
    with refuse_unreadable(path):
        try:
            return Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise FileRefused(f"{path} is not UTF-8 text.") from error


@contextmanager
def refuse_unreadable(path: str | Path) -> Iterator[None]:
    """Raise `FileRefused` in the place of what Python raises where `path` cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileRefused(f"{path} does not exist; check the name.") from error
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {error.strerror or error}.") from error
    except MemoryError as error:
        raise FileRefused(f"{path} is larger than the memory; cut it into parts.") from error
    except FileRefused:
        raise
    except ValueError as error:  # a null character, or one that the file system cannot spell
        raise FileRefused(f"{str(path)!r} is not a file name; check the name.") from error


@contextmanager
def refuse_unwritable(path: str | Path) -> Iterator[None]:
    """Turn the errors of what writes `path`, a folder or file, into `FileRefused`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(Path(path), error) from error


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, sorted, without hidden files and folders.

    What begins with a dot is no source: other programs' notes (._a.wav), outputs being written.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]


def read_standard_input() -> bytes:
    """All of standard input. Raises `FileRefused` when it is empty, closed or cannot be read."""
    try:
        data = sys.stdin.buffer.read()
    except (AttributeError, OSError, ValueError) as error:  # None, or an object that is closed
        raise FileRefused("Standard input is closed; pipe a file into it.") from error
    if not data:
        raise FileRefused("Standard input is empty; pipe a file into it.")
    return data


def write_standard_output(data: bytes) -> None:
    """Write to standard output, at once. Raises `FileRefused` when it is closed, full, or nobody
    reads it."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except (AttributeError, OSError, ValueError) as error:
        # What is still buffered would be written, and fail, once more when Python ends.
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = getattr(error, "strerror", None) or "it is closed"
        raise FileRefused(f"Standard output cannot be written: {reason}.") from error


def _new_temporary(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path` that only its owner may read, and the permissions that
    open() gives."""
    temporary = _temporary_name(path, path.suffix)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
    temporary.chmod(0o600)
    return temporary, mode


def _temporary_name(path: Path, suffix: str) -> Path:
    """A name beside `path` that nobody has, and that says who writes there."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:
        suffix = ""
    writer = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{name}.{writer}.audiovq-tmp{suffix}")


def _take_permissions(temporary: Path, path: Path, mode: int) -> None:
    """Give `temporary` the permissions of the file that it will replace, or else `mode`."""
    replaced = _stat(path, follow=False)
    if replaced is not None and stat.S_ISREG(replaced.st_mode):
        mode = replaced.st_mode & 0o777
        if hasattr(os, "chown"):
            with suppress(OSError):  # only root may give files away
                os.chown(temporary, replaced.st_uid, replaced.st_gid)
    temporary.chmod(mode)


def _flush_to_disk(path: Path) -> None:
    # Windows flushes only what is open for writing.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stat(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _unwritable(path: Path, error: OSError) -> FileRefused:
    if error.errno == errno.ENAMETOOLONG:
        return FileRefused(f"{path.name[:40]}... is too long for a file name; name another output.")
    if error.errno == errno.EEXIST:  # in the place of the folder to make
        return FileRefused(f"{path.parent} is no folder; name another output than {path}.")
    return FileRefused(f"{path} cannot be written: {error.strerror or error}.")


def _machine() -> str:
    """8 hexadecimal digits for this machine: process numbers mean nothing on another one."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there a signal of 0 is none
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs, as somebody else
        return True
    return True
