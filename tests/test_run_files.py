"""Laws of a run's folder: every recipe is kept, no step is there twice."""

import json
from dataclasses import asdict, replace

import pytest

from audiovq.files import FileRefused
from audiovq.runs import cut_metrics
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe
from audiovq.training.run_files import differences, save_recipe, saved_recipe

RECIPE = Recipe(data=DataSettings(train=(ManifestSettings("a.jsonl"),)), card={"name": "a"})


def faster(rate: float) -> Recipe:
    return replace(RECIPE, train=replace(RECIPE.train, learning_rate=rate))


def rates(folder) -> dict[str, float]:
    """The learning rate of each recipe in a folder."""
    paths = sorted(folder.glob("recipe*.json"))
    return {path.name: json.loads(path.read_text())["train"]["learning_rate"] for path in paths}


def test_every_recipe_is_kept_with_its_step(tmp_path):
    save_recipe(tmp_path, faster(0.1), 0)
    save_recipe(tmp_path, faster(0.1), 100)  # resumed as it was
    assert rates(tmp_path) == {"recipe.json": 0.1, "recipe-00000000.json": 0.1}
    save_recipe(tmp_path, faster(0.2), 200)
    save_recipe(tmp_path, faster(0.3), 200)  # no step was made with the second one
    save_recipe(tmp_path, faster(0.4), 300)
    kept = {"recipe-00000000.json": 0.1, "recipe-00000200.json": 0.3}
    assert rates(tmp_path) == {"recipe.json": 0.4, **kept, "recipe-00000300.json": 0.4}
    save_recipe(tmp_path, faster(0.3), 250)  # from an older checkpoint
    assert rates(tmp_path) == {"recipe.json": 0.3, **kept}
    save_recipe(tmp_path, faster(0.5), 0)
    assert rates(tmp_path) == {"recipe.json": 0.5, "recipe-00000000.json": 0.5}


def test_a_run_that_kept_the_last_recipe_alone_keeps_it(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(faster(0.1))))
    save_recipe(tmp_path, faster(0.2), 500)
    assert rates(tmp_path) == {
        "recipe.json": 0.2,
        "recipe-00000000.json": 0.1,
        "recipe-00000500.json": 0.2,
    }


def test_a_recipe_does_not_differ_from_itself_saved(tmp_path):
    assert saved_recipe(tmp_path) is None
    save_recipe(tmp_path, RECIPE, 0)
    saved = saved_recipe(tmp_path)
    assert saved is not None
    assert differences(saved, RECIPE) == []
    del saved["train"]["clip_norm"]  # a setting that came later
    assert differences(saved, RECIPE) == []
    for damaged in ("", "[1]", "[" * 99_999):
        (tmp_path / "recipe.json").write_text(damaged)
        with pytest.raises(FileRefused, match="damaged"):
            saved_recipe(tmp_path)


def test_what_differs_is_named_and_told_harmless_or_not():
    changed = replace(
        RECIPE,
        train=replace(RECIPE.train, steps=30_000, learning_rate=0.1, threads=7),
        data=replace(RECIPE.data, train=(ManifestSettings("b.jsonl"),)),
        model=replace(RECIPE.model, codebook_size=512),
        card={"licence": "MIT"},
    )
    found = differences(json.loads(json.dumps(asdict(RECIPE))), changed)
    assert {change.name: change.harmless for change in found} == {
        "train.steps": True,
        "train.threads": True,
        "card.name": True,
        "card.licence": True,
        "train.learning_rate": False,
        "data.train": False,
        "model.codebook_size": False,
    }
    assert "train.steps is 20000 in the run and 30000 in the recipe" in map(str, found)


def test_metrics_are_cut_where_the_run_goes_on(tmp_path):
    cut_metrics(tmp_path, 5)  # nothing there
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "mel": 1.0}) + "\n" for step in (1, 5, 5, 6, 10)]
    path.write_text("".join(lines) + '{"step": 3, "m')  # the last one halved by a kill
    cut_metrics(tmp_path, 5)
    assert path.read_text() == "".join(lines[:3])
    changed = path.stat().st_mtime_ns
    cut_metrics(tmp_path, 5)
    assert path.stat().st_mtime_ns == changed
    cut_metrics(tmp_path, 0)
    assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]
