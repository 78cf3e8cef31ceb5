"""`audiovq prepare`: from a folder of audio to training manifests."""

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from .failures import tell
from .options import Force


class SpeakerFrom(enum.StrEnum):
    """Where a recording's speaker is to be read."""

    PARENT = "parent"
    PREFIX = "prefix"


def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of audio; folders in it count too.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the manifests.")],
    validation: Annotated[
        float, typer.Option(help="Share of the hours to keep for validation, 0 to 1.")
    ] = 0.02,
    speaker_from: Annotated[
        SpeakerFrom | None,
        typer.Option(
            help="What names the speaker: the file's folder, or its name up to the first - or _."
        ),
    ] = None,
    force: Force = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make training manifests of a folder of audio, and report what the audio is like.

    Every file is read once from end to end. What cannot be read is listed and left out. With
    speakers, validation hears only voices that training does not.

    Example: audiovq prepare recordings/ -o data/folder --speaker-from parent
    """
    from audiovq.training import prepare as library

    cuts, unreadable = library.find_recordings(folder, speaker_from)
    console = Console(stderr=True)
    columns = [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("")
        report = library.prepare(
            cuts,
            out,
            validation=validation,
            unreadable=unreadable,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            overwrite=force,
        )
    if as_json:
        typer.echo(report.to_json())
    elif not quiet:
        tell(report.summary())
    if not quiet:
        tell(f"wrote {out}: train.jsonl.gz, validation.jsonl.gz, report.json", err=as_json)
