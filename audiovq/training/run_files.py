"""What a run's folder holds besides checkpoints and metrics: its recipes.

`recipe.json` is the recipe of the run as it is now, `recipe-00000000.json` the one it began with,
and `recipe-STEP.json` each one that it went on with from that step.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audiovq.config import ModelConfig
from audiovq.files import FileRefused, atomic_output
from audiovq.training.recipe import DataSettings, LossSettings, Recipe, TrainSettings

RECIPE_FILE = "recipe.json"
RECIPES = "recipe-*.json"
HARMLESS = (
    "train.steps train.log_every train.validate_every train.checkpoint_every train.keep "
    "train.threads train.precision train.accelerator train.devices data.workers"
).split()
"""Settings that a run may go on with changed: how long and where it runs, and what it says."""


@dataclass(frozen=True)
class Difference:
    """A setting that two recipes do not share."""

    name: str
    before: Any
    after: Any

    @property
    def harmless(self) -> bool:
        """Whether a run may go on with it without being told to."""
        return self.name in HARMLESS or self.name.startswith("card.")

    def __str__(self) -> str:
        before, after = json.dumps(self.before), json.dumps(self.after)
        return f"{self.name} is {before} in the run and {after} in the recipe"


def save_recipe(folder: Path, recipe: Recipe, step: int) -> None:
    """Write a run's recipe, from `step` on; those of later steps, which are to come anew, go."""
    text = _to_json(recipe)
    current, target = folder / RECIPE_FILE, folder / f"recipe-{step:08d}.json"
    history = sorted(folder.glob(RECIPES))
    if step and not history and current.is_file():  # a run from when the last one alone was kept
        history = [folder / "recipe-00000000.json"]
        _write(history[0], current.read_text(encoding="utf-8"))
    before = [path for path in history if path.name < target.name]
    for path in history[len(before) :]:
        if path != target:
            path.unlink()
    if not before or before[-1].read_text(encoding="utf-8") != text:
        _write(target, text)
    else:
        target.unlink(missing_ok=True)
    _write(current, text)


def saved_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe of a run as plain values; None when there is none. Raises `FileRefused`."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileRefused(f"{path} is damaged; put back the run's own recipe.") from error
    if not isinstance(values, dict):
        raise FileRefused(f"{path} is damaged; put back the run's own recipe.")
    return values


def differences(saved: dict[str, Any], recipe: Recipe) -> list[Difference]:
    """What a recipe changes of a saved one. Settings that are new since have their defaults."""
    defaults = {
        "model": asdict(ModelConfig()),
        "data": asdict(DataSettings()),
        "loss": asdict(LossSettings()),
        "train": asdict(TrainSettings()),
    }
    before = _flat(json.loads(json.dumps(defaults))) | _flat(saved)
    after = _flat(json.loads(_to_json(recipe)))
    names = [*after, *(name for name in before if name.startswith("card.") and name not in after)]
    return [
        Difference(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, settings in values.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
    }


def _to_json(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
