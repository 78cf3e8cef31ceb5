"""Laws of the language model: what is heard live is the whole, and the seed says what it is."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_tiny import prepared, tiny_recipe
from tiny import TINY, started_model

pytest.importorskip("transformers")
pytest.importorskip("lightning_fabric")

from audiovq.files import FileRefused
from audiovq.lm import LanguageModel, Sampling
from audiovq.lm.model import DEFAULT_FOLDER
from audiovq.lm.train import train

HOP = 320


@pytest.fixture(scope="module")
def folder(tiny_model, tiny_folder, tmp_path_factory) -> Path:
    """Of a trained language model."""
    folder = tmp_path_factory.mktemp("lm")
    data = prepared(tiny_model, folder)
    for name in ("units", "acoustic"):
        train(tiny_recipe(name, data, tiny_folder, steps=1), folder / "lm")
    return folder / "lm"


@pytest.fixture(scope="module")
def lm(folder, tiny_model) -> LanguageModel:
    return LanguageModel.from_pretrained(folder, tiny_model)


@pytest.fixture(scope="module")
def prompt(speech) -> torch.Tensor:
    return speech[:, :, : 12 * HOP]


def test_a_continuation_is_the_prompt_and_as_much_as_was_asked_for(lm, tiny_model, prompt):
    speech = lm.continue_speech(prompt, 0.5)
    assert (speech.codes.shape, speech.n_prompt) == ((1, 4, 37), 12)
    assert torch.equal(speech.codes[:, :, :12], tiny_model.encode(prompt).indices)
    assert torch.equal(tiny_model.decode(speech.codes), speech.wav)


@pytest.mark.parametrize("verb", ["continue_speech", "sample", "say"])
def test_what_is_heard_live_is_the_whole_and_the_seed_says_what(lm, prompt, verb):
    arguments = {"continue_speech": (prompt, 0.3), "sample": (0.3,), "say": ("it was so", prompt)}
    heard: list[torch.Tensor] = []
    limit = {"most_seconds": 0.5} if verb == "say" else {}
    generate = getattr(lm, verb)
    state = torch.get_rng_state()
    whole = generate(*arguments[verb], Sampling(seed=3), heard.append, **limit)
    assert len(heard) > 3
    assert torch.equal(torch.cat(heard, dim=2), whole.wav)
    torch.manual_seed(17)
    assert torch.equal(generate(*arguments[verb], Sampling(seed=3), **limit).codes, whole.codes)
    other = generate(*arguments[verb], Sampling(seed=4), **limit).codes
    assert other.shape != whole.codes.shape or not torch.equal(other, whole.codes)
    torch.set_rng_state(state)
    generate(*arguments[verb], Sampling(seed=3), **limit)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's draws are not touched


def test_what_is_said_holds_no_prompt(lm, prompt):
    speech = lm.say("it was", prompt, most_seconds=0.5)
    assert speech.n_prompt == 0
    assert 1 <= speech.codes.shape[2] <= 25


def test_without_an_acoustic_stage_there_are_units_alone(folder, tiny_model, prompt, tmp_path):
    shutil.copytree(folder / "units", tmp_path / "units")
    alone = LanguageModel.from_pretrained(tmp_path, tiny_model)
    speech = alone.continue_speech(prompt, 0.2)
    assert speech.codes.shape == (1, 1, 22)
    assert torch.equal(tiny_model.decode(speech.codes), speech.wav)


def test_the_score_is_the_sum_over_units(lm, tiny_model, prompt):
    score = lm.score(prompt)
    units = tiny_model.encode(prompt, 1).indices[0, 0].numpy()
    tokens = lm.vocabulary.sequence(units)[:-1]
    with torch.no_grad():
        logits = lm.units(torch.from_numpy(tokens[:-1])[None]).logits[0]
    total = float(logits.gather(1, torch.from_numpy(tokens[1:, None])).sum())
    assert score.n_units == len(tokens) - 1
    assert score.per_unit == pytest.approx(total / score.n_units, rel=1e-4)
    assert score.per_second == pytest.approx(total / 0.24, rel=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-score.units / score.n_units))


def test_what_is_longer_than_the_context_is_scored_in_parts(lm):
    units = np.arange(200) % 32
    whole = lm.score_units(units)
    assert whole.n_units == 200
    half = lm.units.sizes.context // 2
    first = lm.score_units(units[:half])
    assert whole.units + whole.durations < first.units + first.durations < 0


def test_what_cannot_be_done_is_said(lm, speech, prompt):
    with pytest.raises(ValueError, match=r"looks back at 63: cut it to [\d.]+ s") as refused:
        lm.continue_speech(speech, 1)
    room = float(str(refused.value).rpartition("cut it to ")[2].removesuffix(" s."))
    lm.continue_speech(speech[:, :, : round(room * 16_000)], 0.1)
    empty = speech[:, :, :0]
    for verb in (lm.score, lambda wav: lm.continue_speech(wav, 1), lambda wav: lm.say("it", wav)):
        with pytest.raises(ValueError, match="empty"):
            verb(empty)
    with pytest.raises(ValueError, match="no units"):
        lm.score_units(np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"'c' 'z'.*never read"):
        lm.say("cz was it")
    with pytest.raises(ValueError, match=r"39 characters.*at most 32"):
        lm.say("it was so " * 4)
    for seconds in (0, -1, math.nan, 1e9):
        with pytest.raises(ValueError, match="seconds must be"):
            lm.sample(seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1},
        {"temperature": 1e-38},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
        {"acoustic_temperature": 11},
    ],
)
def test_draws_that_are_not_possible_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(Sampling(), **change)


def test_the_bundled_one_goes_on_in_the_bundled_tokens(speech):
    lm = LanguageModel.from_pretrained()
    assert lm.vocabulary.fingerprint == lm.codec.fingerprint
    files = [path for path in DEFAULT_FOLDER.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in files) < 30e6
    codes = lm.codec.encode(speech, 1).levels[0][0].numpy()
    assert lm.score_units(codes).per_unit > lm.score_units(codes[::-1].copy()).per_unit + 1
    prompt = speech[:, :, : 50 * HOP]
    wav = lm.continue_speech(prompt, 0.2).wav
    assert wav.shape == (1, 1, 60 * HOP)
    heard = lm.codec.decode(lm.codec.encode(prompt, lm.n_q))[:, :, : 47 * HOP]
    assert torch.equal(wav[:, :, : 47 * HOP], heard)  # but for what the windows see ahead


def test_a_model_of_another_tokenizer_is_refused(folder):
    other = started_model(TINY)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.01)
    with pytest.raises(FileRefused, match=r"knows the tokens of test model .*not those of"):
        LanguageModel.from_pretrained(folder, other)


def test_codes_of_several_rates_are_drawn_whole(speech, prompt, tmp_path):
    codec = started_model(replace(TINY, level_strides=(2, 4, 1, 2)))
    codec.save_pretrained(tmp_path / "codec")
    data = prepared(codec, tmp_path)
    for name in ("units", "acoustic"):
        train(tiny_recipe(name, data, tmp_path / "codec", steps=1), tmp_path / "lm")
    lm = LanguageModel.from_pretrained(tmp_path / "lm", codec)
    # The units' stage may have learnt from files of units alone, which are whole sooner.
    lm.units.vocabulary = replace(lm.vocabulary, n_q=1, level_strides=(2,))
    lm = LanguageModel(codec, lm.units, lm.acoustic)
    heard: list[torch.Tensor] = []
    said = lm.continue_speech(prompt[:, :, : 11 * HOP], 0.5, hear=heard.append)
    assert (said.codes.shape, said.n_prompt) == ((1, 4, 32), 8)
    assert torch.equal(torch.cat(heard, dim=2), said.wav)
    assert torch.equal(codec.decode(said.codes), said.wav)
    assert torch.equal(said.codes[:, :, :8], codec.encode(prompt).indices[:, :, :8])
    for level, stride in enumerate(codec.config.level_strides):
        row = said.codes[0, level]
        assert torch.equal(row, row[::stride].repeat_interleave(stride))
    units = codec.encode(speech, 1).levels[0][0].numpy()
    whole, alone = len(units) // 2 * 2, LanguageModel(codec, lm.units, None)
    assert lm.score(speech).units == pytest.approx(lm.score_units(units[:whole]).units)
    assert lm.score(speech).seconds == pytest.approx(whole * 0.04)
    assert alone.continue_speech(prompt[:, :, :1], 0.1).codes.shape == (1, 1, 6)


def test_damaged_folders_are_refused(folder, tiny_model, tmp_path):
    with pytest.raises(FileRefused, match="holds no language model"):
        LanguageModel.from_pretrained(tmp_path, tiny_model)
    shutil.copytree(folder, tmp_path / "lm")
    config = tmp_path / "lm/units/config.json"
    good = config.read_text()
    bad = [
        "",
        "[]",
        good.replace('"units"', '"words"'),
        good.replace('"width": 32', '"width": 31'),
        good.replace('"width": 32', '"width": 64'),
        json.dumps(json.loads(good) | {"vocabulary": None}),
    ]
    for text in bad:
        config.write_text(text)
        with pytest.raises(FileRefused, match=r"config|does not fit"):
            LanguageModel.from_pretrained(tmp_path / "lm", tiny_model)
    for stage, change in (
        ("units", {"code_dim": math.inf}),
        ("units", {"sizes": json.loads(good)["sizes"] | {"width": 32.0}}),
        ("units", {"sizes": json.loads(good)["sizes"] | {"layers": True}}),
        ("acoustic", {"vocabulary": json.loads(good)["vocabulary"] | {"n_q": 1}}),
    ):
        shutil.copytree(folder, tmp_path / "lm", dirs_exist_ok=True)
        path = tmp_path / "lm" / stage / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(FileRefused, match="config"):
            LanguageModel.from_pretrained(tmp_path / "lm", tiny_model)
    shutil.copytree(folder / "acoustic", tmp_path / "lm/units", dirs_exist_ok=True)
    with pytest.raises(FileRefused, match="units holds the stage acoustic"):
        LanguageModel.from_pretrained(tmp_path / "lm", tiny_model)
    shutil.copytree(folder, tmp_path / "lm", dirs_exist_ok=True)
    weights = tmp_path / "lm/units/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(FileRefused, match="damaged"):
        LanguageModel.from_pretrained(tmp_path / "lm", tiny_model)
