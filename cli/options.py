"""Options that several verbs share, and the files that their arguments name."""

import enum
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from audiovq.files import FileRefused

if TYPE_CHECKING:
    from audiovq import AudioVQ

STDIO = "-"
T = TypeVar("T")


class Device(enum.StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Model = Annotated[
    str, typer.Option("--model", help='"default", the model in the package, or a model\'s folder.')
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Also the folders inside folders.")
]


def load_model(name: str, device: Device = Device.CPU) -> "AudioVQ":
    """The model that --model names, on the device that --device names."""
    import torch

    from audiovq import AudioVQ

    if device is Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no CUDA device; use --device cpu.")
    use_cuda = device is not Device.CPU and torch.cuda.is_available()
    return AudioVQ.from_pretrained(name, device="cuda" if use_cuda else "cpu")


def plan(
    sources: list[str],
    out: str | None,
    suffixes: Iterable[str],
    rename: Callable[[Path], str],
    *,
    recursive: bool,
    what: str,
) -> list[tuple[str, str]]:
    """Pairs of source and target for files and folders; folders keep their tree under `out`.

    rename: the target's name for a source. Without `out` the targets stand beside the sources.
    """
    suffixes = tuple(suffixes)
    if out == STDIO or STDIO in sources:
        if len(sources) != 1:
            raise typer.BadParameter('"-" stands alone: give one source and one output.')
        if out is None:
            out = STDIO
        if sources[0] != STDIO and Path(sources[0]).is_dir():
            raise typer.BadParameter("a folder cannot go to standard output; name a folder.")
        if out != STDIO and Path(out).is_dir():
            raise typer.BadParameter(f"{out} is a folder; name the file to write.")
        return [(sources[0], out)]
    pairs: list[tuple[str, str]] = []
    single = len(sources) == 1 and not Path(sources[0]).is_dir()
    for name in sources:
        source = Path(name)
        if not source.is_dir():
            if out is None:
                target = source.with_name(rename(source))
            elif single and not (Path(out).is_dir() or out.endswith("/")):
                target = Path(out)
            else:
                target = Path(out) / rename(source)
            pairs.append((name, str(target)))
            continue
        found = sorted(
            path
            for path in source.glob("**/*" if recursive else "*")
            if path.suffix.lower() in suffixes and path.is_file()
        )
        if not found:
            hint = "" if recursive else "; --recursive also looks into the folders inside it"
            raise FileRefused(f"{source} holds no {what}{hint}.")
        base = Path(out) if out is not None else source
        pairs += [
            (str(path), str(base / path.relative_to(source).with_name(rename(path))))
            for path in found
        ]
    twice = {target for _, target in pairs if sum(target == other for _, other in pairs) > 1}
    if twice:
        raise typer.BadParameter(
            f"{len(twice)} outputs would be written twice, {sorted(twice)[0]} among them; "
            "rename the sources or encode them into different folders."
        )
    return pairs


def each(pairs: list[tuple[str, str]], convert: Callable[[str, str], float]) -> Iterator[str]:
    """Convert file after file and yield the sources that were refused, after saying why.

    convert: takes source and target and returns the seconds of audio. More than one file shows a
    progress bar with the speed.
    """
    if len(pairs) == 1:
        convert(*pairs[0])
        return
    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(pairs), speed="")
        seconds = 0.0
        for source, target in pairs:
            try:
                seconds += convert(source, target)
            except FileRefused as error:
                typer.echo(f"audiovq: {error}", err=True)
                yield source
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(task, advance=1, speed=f"{seconds / elapsed:.0f} s of audio a second")


def finish(refused: Iterable[str], n_files: int) -> None:
    """Exit with 1 when files were refused."""
    n_refused = len(list(refused))
    if n_refused:
        typer.echo(f"audiovq: {n_refused} of {n_files} files were refused.", err=True)
        raise typer.Exit(1)


def print_table(table: Table) -> None:
    """Print a table as wide as it must be: only a terminal's width would fold the numbers."""
    out = Console()
    width = out.measure(table, options=out.options.update(width=1000)).maximum
    Console(width=max(width, out.width)).print(table)
