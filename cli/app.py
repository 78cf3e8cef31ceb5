"""The typer app: its verbs, and how errors reach people."""

import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from audiovq.files import FileRefused

from .codebook import codebook
from .corpus import corpus
from .decode import decode
from .demo import demo
from .encode import encode
from .evaluate import evaluate
from .explore import explore
from .export import export
from .failures import EXIT_CODES, INTERRUPTED, exit_code, printable, sentence, settle_stdout
from .info import info
from .interpolate import interpolate
from .lm import lm
from .prepare import prepare
from .repack import repack
from .spectrogram import spectrogram
from .stream import stream
from .tables import tables
from .train import train
from .units import units

EXTRAS = {
    "matplotlib": "plot",
    "jinja2": "plot",
    "lightning_fabric": "train",
    "lhotse": "train",
    "tensorboard": "train",
    "swift_f0": "train",
    "pesq": "eval",
    "pystoi": "eval",
    "speechmos": "eval",
    "transformers": "lm",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "visqol": "visqol",
    "sklearn": "units",
    "praatio": "units",
    "gradio": "demo",
    "fastabx": "units",
    "pyarrow": "corpus",
    "datasets": "datasets",
    "ray": "scale",
}
"""The extra that brings a package which is not always there."""


class SentenceGroup(TyperGroup):
    """Commands whose errors are one sentence on standard error; see `EXIT_CODES`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except Exception as error:
            typer.echo(f"audiovq: {_said(error)}", err=True)
            sys.exit(exit_code(error))
        finally:
            settle_stdout()

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _printable_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _printable_usage():
                return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would end without a word
            raise FileRefused("the program that reads the output has ended.") from error
        except KeyboardInterrupt:
            typer.echo("audiovq: interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _printable_usage() -> Iterator[None]:
    """What typer shows of bad arguments quotes them: with what steers terminals as escapes."""
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = "\n".join(map(printable, message.split("\n")))  # type: ignore[attr-defined]
        raise


def _said(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is not None:
            return f"{error.name} is not installed; pip install '.[{extra}]' in the checkout."
    return sentence(error)


app = typer.Typer(
    cls=SentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speech to short sequences of discrete tokens, and tokens to speech.",
    epilog=EXIT_CODES,
)
VERBS: tuple[Callable[..., None], ...] = (
    encode,
    decode,
    repack,
    info,
    codebook,
    spectrogram,
    evaluate,
    explore,
    interpolate,
    demo,
    prepare,
    train,
    export,
    tables,
)
for command in VERBS:
    app.command(epilog=EXIT_CODES)(command)
app.add_typer(stream, name="stream")
app.add_typer(units, name="units")
app.add_typer(lm, name="lm")
app.add_typer(corpus, name="corpus")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"audiovq {importlib.metadata.version('audiovq')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say it.")
    ] = False,
) -> None:
    """Speech to short sequences of discrete tokens, and tokens to speech.

    Example: audiovq encode speech.wav && audiovq decode speech.npy
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in no encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    # What the library logs is what its user wants to read: progress, and alarms in words.
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("audiovq").setLevel(logging.INFO)


def _open_closed_streams() -> None:
    # A shell's <&- and >&- leave None, and the numbers 0 and 1 to the next files that are opened.
    # An empty input and an output that takes nothing fail as those of other programs do.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
