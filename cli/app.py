"""The typer app: its verbs, and how errors reach people."""

import importlib.metadata
import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from audiovq.files import FileRefused

from .codebook import codebook
from .decode import decode
from .encode import encode
from .evaluate import evaluate
from .export import export
from .info import info
from .prepare import prepare
from .spectrogram import spectrogram
from .stream import stream
from .train import train
from .units import units

EXTRAS = {
    "matplotlib": "plot",
    "lightning_fabric": "train",
    "lhotse": "train",
    "tensorboard": "train",
    "pesq": "eval",
    "pystoi": "eval",
    "speechmos": "eval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "visqol": "visqol",
    "sklearn": "units",
    "praatio": "units",
    "fastabx": "units",
}
"""The extra that brings a package which is not always there."""


class SentenceGroup(TyperGroup):
    """Commands whose errors are one sentence on standard error: 1 for a refused file, 2 for bad
    arguments."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FileRefused as error:
            self._end(error, 1)
        except ValueError as error:
            self._end(error, 2)
        except FloatingPointError as error:
            self._end(error, 1)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            self._end(
                f"{error.name} is not installed; pip install 'audiovq[{extra}]' brings it.", 1
            )

    @staticmethod
    def _end(error: Exception | str, code: int) -> None:
        typer.echo(f"audiovq: {error}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=SentenceGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speech to short sequences of discrete tokens, and tokens to speech.",
)
for command in (encode, decode, info, codebook, spectrogram, evaluate, prepare, train, export):
    app.command()(command)
app.add_typer(stream, name="stream")
app.add_typer(units, name="units")


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
    # What the library logs is what its user wants to read: progress, and alarms in words.
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("audiovq").setLevel(logging.INFO)
