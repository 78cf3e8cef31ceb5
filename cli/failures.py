"""How failures reach people: one sentence on standard error, and a code that tells their kind."""

import errno
import os
import sys
import traceback

import typer
from rich.text import Text

from audiovq.files import FileRefused, OutputExists

REFUSED, BAD_ARGUMENT, EXISTS, INTERRUPTED = 1, 2, 3, 130

EXIT_CODES = (
    "Exit codes: 0 all done; 1 a file was refused or something failed; 2 bad arguments; "
    "3 nothing failed but outputs that exist; 130 interrupted."
)


def printable(text: str) -> str:
    """`text` with what no terminal can show, and what steers it, as backslash escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def plain(text: str) -> Text:
    """Lines from files and of names as they may stand in a table: markup reads as it is written."""
    return Text("\n".join(map(printable, text.split("\n"))))


def tell(text: str, *, err: bool = False) -> None:
    """Print lines for people. Where standard output was closed, nobody wants to read them."""
    try:
        for line in text.split("\n"):
            typer.echo(printable(line), err=err)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def exit_code(error: BaseException) -> int:
    """The code with which a command ends that failed so."""
    if isinstance(error, OutputExists):
        return EXISTS
    argument = isinstance(error, ValueError) and not isinstance(error, FileRefused | UnicodeError)
    return BAD_ARGUMENT if argument else REFUSED


def sentence(error: BaseException, name: str = "") -> str:
    """What failed, in one sentence. `name`: the file at hand, for errors that name none.

    With AUDIOVQ_DEBUG=1 in the environment the traceback is printed before it.
    """
    if os.environ.get("AUDIOVQ_DEBUG"):
        traceback.print_exception(error)
    said = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        named = error.filename if isinstance(error.filename, str | bytes) else None
        # Files are written through `atomic_output`, which names them.
        at_stdout = error.errno in (errno.ENOSPC, errno.EBADF, errno.EPIPE)
        name = os.fsdecode(named) if named else "standard output" if at_stdout else name
        said = f"{error.strerror or said}."
    elif isinstance(error, MemoryError):
        said = "not enough memory."
    elif isinstance(error, FileRefused | FloatingPointError) or (
        isinstance(error, ValueError) and not isinstance(error, UnicodeError) and not name
    ):
        name = ""  # the message says it
    else:
        said = f"{type(error).__name__}: {said} (AUDIOVQ_DEBUG=1 shows where)."
    return printable(f"{name}: {said}" if name else said)


def settle_stdout() -> None:
    """Drop what standard output does not take, of which Python would complain when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
