"""Files that are refused and files that are written whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileRefused(ValueError):  # noqa: N818 - it names what happened to the file
    """A file cannot be used. The message is one sentence: what was given and how to mend it."""


@contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block writes to the temporary path; if it raises, the temporary file is removed and `path`
    is as it was. Missing parent folders are made.

    Raises `FileRefused` when `path` exists and `overwrite` is false, and when the folder cannot be
    written to or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(path.suffix, f".{path.name}.", path.parent)
    except OSError as error:
        raise FileRefused(f"{path} cannot be written: {error.strerror}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner may read; give what open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise FileRefused(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
    """Raise `FileRefused` when `path` exists and may not be overwritten, or is a folder."""
    path = Path(path)
    if path.is_dir():
        raise FileRefused(f"{path} is a folder; name a file to write.")
    if path.exists() and not overwrite:
        raise FileRefused(f"{path} exists; add --force to overwrite it or name another output.")


def read_standard_input() -> bytes:
    """All of standard input. Raises `FileRefused` when it is closed or cannot be read."""
    try:
        return sys.stdin.buffer.read()
    except (AttributeError, OSError, ValueError) as error:  # None, or an object that is closed
        raise FileRefused("Standard input is closed; pipe a file into it.") from error


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
