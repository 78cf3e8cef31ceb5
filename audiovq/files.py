"""Files that are refused and files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileRefused(ValueError):  # noqa: N818 - it names what happened to the file
    """A file cannot be used. The message is one sentence: what was given and how to mend it."""


class OutputExists(FileRefused):
    """An output exists and may not be overwritten."""


@contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block writes to the temporary path; if it raises, the temporary file is removed and `path`
    is as it was. Missing parent folders are made.

    Raises `OutputExists` when `path` exists and `overwrite` is false, and `FileRefused` when the
    folder cannot be written to or the disk is full.
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
    """Raise `OutputExists` when `path` exists and may not be overwritten, and `FileRefused` when it
    is a folder."""
    path = Path(path)
    if path.is_dir():
        raise FileRefused(f"{path} is a folder; name a file to write.")
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists; add --force to overwrite it or name another output.")
