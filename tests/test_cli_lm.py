"""`audiovq lm` as it is typed."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lm_tiny import TEXTS, write_tokens
from tiny import EXAMPLES
from typer.testing import CliRunner

from audiovq_cli import app

pytest.importorskip("transformers")
pytest.importorskip("lightning_fabric")

RECIPE = """
[stage]
name = "{name}"
data = "{data}"
tokenizer = "{codec}"
[sizes]
width = 32
layers = 1
heads = 2
context = 64
[train]
steps = 2
batch_size = 2
"""


def run(*arguments: object):
    return CliRunner().invoke(app, ["lm", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tiny_model, tiny_folder, tmp_path_factory) -> Path:
    """With tokens, data, a short prompt and a language model, all made by the commands."""
    folder = tmp_path_factory.mktemp("lm")
    write_tokens(tiny_model, folder / "tokens")
    done = run(
        *("prepare", folder / "tokens", "-o", folder / "data"),
        *("--text", folder / "texts.tsv", "--validation", 0.2),
    )
    assert done.exit_code == 0
    assert "4 utterances to train on, 1 for validation, 5 with text, 41.5 units" in done.stdout
    for name in ("units", "acoustic"):
        recipe = folder / f"{name}.toml"
        recipe.write_text(RECIPE.format(name=name, data=folder / "data", codec=tiny_folder))
        done = run("train", recipe, "-o", folder / "lm", "--set", "train.seed=3", "--json")
        assert done.exit_code == 0
        assert json.loads(done.stdout) == {"folder": str(folder / "lm" / name), "steps": 2}
    wav, rate = soundfile.read(EXAMPLES[1], frames=4000)
    soundfile.write(folder / "prompt.wav", wav, rate)
    return folder


@pytest.fixture
def common(folder, tiny_folder) -> list[object]:
    return ["--lm", folder / "lm", "--model", tiny_folder]


def test_speech_goes_on_and_a_stream_is_the_file(folder, common, tmp_path):
    out = tmp_path / "out.wav"
    verb = ["continue", folder / "prompt.wav", "--seconds", 0.3, *common]
    done = run(*verb, "-o", out)
    assert done.exit_code == 0
    assert done.stdout == f"wrote {out}: 0.56 s, 0.26 s of it the prompt\n"
    streamed = run(*verb, "--stream")
    assert streamed.exit_code == 0
    samples, rate = soundfile.read(out, dtype="int16")
    assert rate == 16_000
    assert streamed.stdout_bytes[44:] == samples.astype("<i2").tobytes()
    piped = soundfile.read(io.BytesIO(run(*verb, "-o", "-").stdout_bytes), dtype="int16")[0]
    assert np.array_equal(piped, samples)


def test_the_seed_says_what_is_drawn(common, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        verb = ["sample", "--seconds", 0.2, "--seed", seed, "-o", tmp_path / f"{name}.wav"]
        assert run(*verb, *common).exit_code == 0
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_a_text_is_said(folder, common, tmp_path):
    out = tmp_path / "out.flac"
    voice = ["--voice", folder / "prompt.wav", "--seconds", 0.4]
    assert run("say", TEXTS[0], *voice, *common, "-o", out).exit_code == 0
    assert 0 < soundfile.info(out).duration <= 0.4


def test_scores_are_said_and_written(folder, common):
    done = run("score", folder / "prompt.wav", EXAMPLES[0], *common)
    assert done.exit_code == 0
    assert len(re.findall(r": -\d+\.\d{3} a unit, -\d+\.\d\d a second; perp", done.stdout)) == 2
    facts = json.loads(run("score", folder / "prompt.wav", *common, "--json").stdout)
    assert 1 <= facts["units"] <= 13
    assert facts["per_unit"] * facts["units"] == pytest.approx(
        facts["per_second"] * facts["seconds"]
    )


def test_what_goes_wrong_is_a_sentence_and_a_code(folder, common, tiny_folder, tmp_path):
    prompt, out = folder / "prompt.wav", ["-o", tmp_path / "out.wav"]
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    (tmp_path / "there.wav").write_text("")
    cases = {
        ("continue", EXAMPLES[0], *common, *out): (2, "looks back at 63"),
        ("continue", tmp_path / "empty.wav", *common, *out): (1, "empty.wav"),
        ("continue", tmp_path / "none.wav", *common, *out): (1, "none.wav"),
        ("continue", prompt, *common): (2, "--stream"),
        ("continue", prompt, *common, "--stream", *out): (2, "--stream"),
        ("continue", prompt, *common, "-o", tmp_path / "there.wav"): (3, "--force"),
        ("continue", prompt, *common, "-o", tmp_path / "out.mp3"): (1, "mp3"),
        ("continue", prompt, *common, *out, "--seconds", 0): (2, "seconds must be"),
        ("say", "xyz", *common, *out): (2, "never read"),
        ("say", " ", *common, *out): (2, "the text is empty"),
        ("sample", "--lm", tmp_path, "--model", tiny_folder, *out): (1, "no language model"),
        ("sample", "--lm", folder / "lm", *out): (1, "knows the tokens of test model"),
        ("sample", *common, *out, "--temperature", -1): (2, "temperature"),
        ("sample", *common, "--stream", "--seconds", 0): (2, "seconds must be"),
        ("prepare", tmp_path, "-o", tmp_path / "d"): (1, "no .avq"),
        ("prepare", folder / "tokens", "-o", folder / "data"): (3, "--force"),
        ("train", tmp_path / "no.toml"): (1, "no.toml"),
        ("train", folder / "units.toml", "-o", folder / "lm"): (1, "--resume"),
        ("train", folder / "units.toml", "--set", "sizes.width=3"): (2, r"sizes.width"),
    }
    for arguments, (code, said) in cases.items():
        done = run(*arguments)
        assert (done.exit_code, said in done.stderr) == (code, True), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert not done.stdout_bytes  # no header of a sound that does not come
    assert not (tmp_path / "out.wav").exists()


def test_help_has_examples():
    for verb in ("prepare", "train", "continue", "sample", "say", "score"):
        assert f"audiovq lm {verb}" in run(verb, "--help").stdout
