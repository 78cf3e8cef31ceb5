"""`audiovq train`: from a recipe to a model."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from audiovq.files import FileRefused

from .failures import tell


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.toml|RUN",
            help="What to train, on what; or with --resume the folder of a run.",
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="Change a setting; may repeat."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the run; runs/NAME if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume with another recipe than the run had."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print where the run ended as JSON.")
    ] = False,
) -> None:
    """Train a model. It can be stopped at any time and goes on with --resume, bit for bit.

    Ctrl-C and SIGTERM write a checkpoint first. A run goes on with its own recipe: what differs is
    refused, but for how long and where it runs.

    Example: audiovq train recipes/folder/recipe.toml -o runs/mine; audiovq train runs/mine --resume
    """
    from audiovq.training.recipe import read_recipe

    file, folder = _recipe_and_run(recipe, out, resume)
    settings = read_recipe(file, changes)
    from audiovq.interrupt import TrainingStopped
    from audiovq.training.loop import train as run

    console = Console(stderr=True)
    set_up_log(console, quiet)
    try:
        run(
            settings,
            folder,
            resume=resume,
            accept_changes=accept_changes,
            console=None if quiet else console,
        )
    except TrainingStopped as stopped:
        raise typer.Exit(128 + stopped.signum) from stopped
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "steps": settings.train.steps}))
    elif not quiet:
        tell(f"wrote {folder}; audiovq export {folder} -o MODEL_DIR makes a model of it")


def set_up_log(console: Console, quiet: bool) -> None:
    """Let the library's log lines go well with a progress bar, or be still."""
    logger = logging.getLogger("audiovq")
    if quiet:
        logger.setLevel(logging.WARNING)
    elif console.is_terminal:  # so that log lines and the progress bar do not cross
        logger.propagate = False
        logger.addHandler(RichHandler(console=console, show_path=False, show_level=False))


def _recipe_and_run(recipe: Path, out: Path | None, resume: bool) -> tuple[Path, Path]:
    """The file of the recipe and the folder of the run."""
    if not recipe.is_dir():
        return recipe, out or Path("runs") / recipe.resolve().parent.name
    if not resume:
        raise typer.BadParameter(
            f"{recipe} is a folder; name a recipe, or add --resume to go on with the run in it."
        )
    if out is not None and out.resolve() != recipe.resolve():
        raise typer.BadParameter(f"{recipe} goes on where it is; leave out -o {out}.")
    file = recipe / "recipe.json"
    if not file.is_file():
        raise FileRefused(f"{recipe} holds no recipe.json; name the recipe, and the run with -o.")
    return file, recipe
