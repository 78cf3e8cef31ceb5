"""`audiovq train`: from a recipe to a model."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, on what.")],
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
) -> None:
    """Train a model. It can be stopped at any time and goes on with --resume, bit for bit.

    Example: audiovq train recipes/folder/recipe.toml --set train.steps=5000 -o runs/mine
    """
    from audiovq.recipe import read_recipe

    settings = read_recipe(recipe, changes)
    from audiovq.train import train as run

    console = Console(stderr=True)
    if console.is_terminal:  # so that log lines and the progress bar do not cross
        logger = logging.getLogger("audiovq")
        logger.propagate = False
        logger.addHandler(RichHandler(console=console, show_path=False, show_level=False))
    target = out or Path("runs") / recipe.resolve().parent.name
    folder = run(settings, target, resume=resume, console=console)
    typer.echo(f"wrote {folder}; audiovq export {folder} -o MODEL_DIR makes a model of it")
