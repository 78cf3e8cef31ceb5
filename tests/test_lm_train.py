"""Laws of training the stages: what stops and resumes is what did not stop, and it learns."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_tiny import prepared, tiny_recipe
from tiny import TINY, started_model

pytest.importorskip("transformers")
pytest.importorskip("lightning_fabric")

from audiovq.files import FileRefused
from audiovq.interrupt import TrainingStopped
from audiovq.lm import train as loop
from audiovq.lm.data import TokenDataset
from audiovq.lm.recipe import Recipe, StageSettings, read_recipe
from audiovq.lm.stage import STAGES, load_stage
from audiovq.lm.train import Run, schedule, train
from audiovq.runs import newest_checkpoint

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "lm").glob("*.toml"))


@pytest.fixture(scope="module")
def data(tiny_model, tmp_path_factory) -> Path:
    return prepared(tiny_model, tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize("name", STAGES)
def test_what_resumes_is_what_did_not_stop(name, data, tiny_folder, tmp_path, monkeypatch):
    recipe = tiny_recipe(name, data, tiny_folder)
    train(recipe, tmp_path / "whole")
    monkeypatch.setattr(Run, "_log", _stop_at(2, Run._log))
    with pytest.raises(TrainingStopped, match="Stopped at step 2"):
        train(recipe, tmp_path / "parts")
    folder = train(recipe, tmp_path / "parts", resume=True)
    checkpoints = [newest_checkpoint(tmp_path / run / name) for run in ("whole", "parts")]
    assert checkpoints[0] is not None
    assert checkpoints[1] is not None
    assert checkpoints[0].read_bytes() == checkpoints[1].read_bytes()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 4, 4]
    model, card = load_stage(folder)
    assert card["name"] == "tiny"
    assert model.vocabulary == TokenDataset(data).vocabulary


def _stop_at(step, log):
    def stopping(self, seconds):
        log(self, seconds)
        if self.step == step and not newest_checkpoint(self.folder):
            signal.raise_signal(signal.SIGTERM)

    return stopping


@pytest.mark.parametrize("name", STAGES)
def test_it_learns_by_heart(name, data, tiny_folder, tmp_path):
    recipe = tiny_recipe(name, data, tiny_folder, steps=40, learning_rate=2e-2, warmup_steps=1)
    recipe = replace(recipe, sizes=replace(recipe.sizes, dropout=0.0))
    folder = train(recipe, tmp_path)
    values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in values if "seconds_per_step" in row]
    names = [key for key in losses[0] if key.startswith(("units", "level"))]
    first, last = (sum(row[key] for key in names) / len(names) for row in (losses[0], losses[-1]))
    assert last < first - 0.3


def test_the_model_that_is_kept_is_the_best(data, tiny_folder, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(loop, "validation_losses", lambda *a: {"units": next(scores)})
    folder = train(tiny_recipe("units", data, tiny_folder, steps=3, validate_every=1), tmp_path)
    assert load_stage(folder)[1]["steps"] == 2


def test_the_learning_rate_rises_and_falls_to_0():
    recipe = Recipe(StageSettings(data="d"))
    rates = [schedule(recipe, step) for step in (0, 100, 199, 10_000, 20_000)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[4] == pytest.approx(0)


def test_an_acoustic_stage_may_write_fewer_levels(data, tiny_folder, tmp_path):
    recipe = tiny_recipe("acoustic", data, tiny_folder, steps=1)
    folder = train(replace(recipe, stage=replace(recipe.stage, n_q=2)), tmp_path)
    assert load_stage(folder)[0].vocabulary.n_q == 2
    wrong = replace(recipe, stage=replace(recipe.stage, n_q=5))
    with pytest.raises(FileRefused, match="codes of 4 levels, not 5"):
        train(wrong, tmp_path / "wrong")


def test_frames_that_are_told_wrongly_are_others_of_the_utterance():
    torch.manual_seed(0)
    codes = torch.arange(2 * 3 * 40).reshape(2, 3, 40)
    there = torch.arange(40) < torch.tensor([[40], [10]])
    heard = loop.with_wrong_frames(codes, there, 0.5)
    shares = (heard != codes).float().mean((1, 2))
    assert ((shares > 0.3) & (shares < 0.7)).all()
    frames = heard[:, 0] - codes[:, :1, 0]
    assert (heard == codes.gather(2, frames[:, None].expand_as(codes))).all()  # whole frames
    wrong = frames != torch.arange(40)
    assert frames[1][wrong[1]].max() < 10
    assert frames[0][wrong[0]].max() > 30
    assert (loop.with_wrong_frames(codes, there, 0.0) == codes).all()


def test_only_the_acoustic_stage_learns_from_what_it_is_told_wrongly(
    data, tiny_folder, tmp_path, monkeypatch
):
    shares = []
    original = loop.with_wrong_frames

    def noted(codes, there, share):
        shares.append(share)
        return original(codes, there, share)

    monkeypatch.setattr(loop, "with_wrong_frames", noted)
    for name in STAGES:
        train(tiny_recipe(name, data, tiny_folder, steps=2, wrong_frames=0.3), tmp_path)
    assert shares == [0.3, 0.3]  # its two steps, not its validation


def test_losses_that_are_not_finite_end_it(data, tiny_folder, tmp_path, monkeypatch):
    bad = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(loop, "stage_losses", lambda *a: {"units": bad})
    with pytest.raises(FloatingPointError, match=r"5 steps in a row.*learning_rate"):
        train(tiny_recipe("units", data, tiny_folder, steps=9), tmp_path)


def test_what_a_run_cannot_do_is_said(data, tiny_folder, tmp_path):
    recipe = tiny_recipe("units", data, tiny_folder, steps=1)
    with pytest.raises(FileRefused, match="no checkpoint"):
        train(recipe, tmp_path, resume=True)
    train(recipe, tmp_path)
    with pytest.raises(FileRefused, match="--resume"):
        train(recipe, tmp_path)
    shutil.copytree(tmp_path / "units", tmp_path / "model" / "units")
    for path in (tmp_path / "model").rglob("checkpoint-*"):
        path.unlink()  # a model is used without them, and still not to be lost
    with pytest.raises(FileRefused, match="a run or a model"):
        train(recipe, tmp_path / "model")
    with_seed = replace(recipe, train=replace(recipe.train, seed=1 << 53))
    train(with_seed, tmp_path / "seed")
    other = replace(recipe, sizes=replace(recipe.sizes, width=64))
    with pytest.raises(FileRefused, match=r"sizes\.width differ"):
        train(other, tmp_path, resume=True)
    longer = replace(recipe, train=replace(recipe.train, steps=2))
    train(longer, tmp_path, resume=True)


def test_tokens_of_another_tokenizer_are_refused(data, tmp_path):
    other = started_model(TINY)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.01)
    other.save_pretrained(tmp_path / "codec")
    with pytest.raises(FileRefused, match=r"test model \(.*stage\.tokenizer"):
        train(tiny_recipe("acoustic", data, tmp_path / "codec"), tmp_path / "run")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_project_are_valid(path):
    recipe = read_recipe(path)
    assert recipe.stage.name == path.stem
    assert recipe.stage.data == "data/lm"
    assert recipe.card["name"]


def test_there_are_recipes_of_both_stages():
    assert [path.stem for path in RECIPES] == ["acoustic", "units"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "names no folder"),
        ('[stage]\ndata = "d"\nname = "words"', r'"units" or "acoustic"'),
        ('[stage]\ndata = "d"\n[sizes]\nwidth = 10', "multiple of twice"),
        ('[stage]\ndata = "d"\n[card]\ndate = 2025-11-28', r"card\.date is a date"),
        ('[stage]\ndata = "d"\n[train]\nstep = 1', r'did you mean "train\.steps"'),
    ],
)
def test_recipes_that_are_not_possible_are_refused(tmp_path, text, match):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(FileRefused, match=match):
        read_recipe(tmp_path / "r.toml")
