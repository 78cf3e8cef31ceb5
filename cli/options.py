"""Options that several verbs share."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from audiovq import AudioVQ


class Device(enum.StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        help='"default", the model in the package, a model\'s folder, or owner/name on the '
        "Hugging Face hub.",
    ),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Also the folders inside folders.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line on standard output.")
]
Coded = Annotated[
    bool,
    typer.Option(
        "--coded", help="In .avq, code the tokens by the model's tables: fewer bytes, same tokens."
    ),
]
KeepBroken = Annotated[
    bool,
    typer.Option("--keep-broken", help="Of a live stream that broke off, decode what is there."),
]


def know_tables(model: str) -> None:
    """Let coded tokens be read that a model's own tables may have coded."""
    from audiovq import hub
    from audiovq.entropy import TABLES_FILE, read_tables, register

    if hub.names_repository(model) and not Path(model).exists():
        load_model(model)  # registers what lies beside it
        return
    tables = Path(model) / TABLES_FILE
    if tables.is_file():
        register(read_tables(tables))


def load_model(name: str, device: Device = Device.CPU) -> "AudioVQ":
    """The model that --model names, on the device that --device names."""
    import torch

    from audiovq import AudioVQ

    if device is Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no CUDA device; use --device cpu.")
    use_cuda = device is not Device.CPU and torch.cuda.is_available()
    return AudioVQ.from_pretrained(name, device="cuda" if use_cuda else "cpu")


def say_if_packed(codec: "AudioVQ", coded: bool) -> None:
    """Say on standard error that a model has no tables to code its tokens by."""
    if coded and codec.coding_tables() is None:
        typer.echo(
            f"{codec.name} has no tables for its tokens, which are packed; audiovq tables makes "
            "some.",
            err=True,
        )


def print_table(table: Table) -> None:
    """Print a table as wide as it must be: only a terminal's width would fold the numbers."""
    out = Console()
    width = out.measure(table, options=out.options.update(width=1000)).maximum
    Console(width=max(width, out.width)).print(table)
