"""`audiovq corpus`: the same tokens as `audiovq encode`, and sentences for what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import EXAMPLES, TINY, started_model
from typer.testing import CliRunner

pytest.importorskip("pyarrow", reason="needs the extra corpus")

import pyarrow.parquet as pq
from fake_corpus import run as run_fake

from audiovq.audio import load_audio
from audiovq.corpus import TokenDataset, collate
from audiovq_cli import app


def call(*words: object, code: int = 0):
    result = CliRunner().invoke(app, ["corpus", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def fake(tmp_path) -> Path:
    """A corpus without a model: 21 recordings, and two that were refused."""
    run_fake(tmp_path / "fake")
    return tmp_path / "fake"


def test_a_folder_becomes_a_corpus_of_the_models_tokens(tmp_path, tiny_folder, tiny_model):
    (tmp_path / "wavs").mkdir()
    for path in EXAMPLES[1:3]:
        shutil.copy(path, tmp_path / "wavs")
    (tmp_path / "wavs" / "bad.wav").write_text("no sound")
    out = tmp_path / "out"
    words = ["encode", tmp_path / "wavs", "-o", out, "--model", tiny_folder, "--jobs", 1, "--json"]
    words += ["--segments", "--price", "2", "--n-q", "3"]
    result = call(*words, code=1)
    assert "bad.wav is not audio" in result.stderr
    assert "2 of 3 recordings in 1 shards" in result.stderr
    facts = json.loads(result.stdout)
    assert (facts["encoded"], facts["refused"]) == (2, 1)
    for example, path in zip(TokenDataset(out), EXAMPLES[1:3]):
        wav = load_audio(path, 16_000)
        codes = tiny_model.encode(torch.from_numpy(wav)[None, None], 3).indices[0]
        assert (example.id, example.n_samples) == (path.stem, len(wav))
        np.testing.assert_array_equal(example.codes, codes)
    for row in pq.read_table(out / "shard-000000.parquet").to_pylist():
        assert sum(row["segment_frames"]) == len(row["codes_0"])
        assert len(row["segment_units"]) == len(row["segment_frames"])
    assert "nothing was left to do" in call(*words, code=1).stderr
    result = call(*words[:-1], "2", code=1)
    assert "was begun with n_q 3, not 2" in result.stderr


def test_levels_of_several_rates_are_the_models_too(tmp_path):
    model = started_model(replace(TINY, level_strides=(4, 2, 1, 1)))
    model.save_pretrained(tmp_path / "model")
    words = ["encode", EXAMPLES[1].parent, "-o", tmp_path / "out", "--model", tmp_path / "model"]
    call(*words, "--jobs", 1, "--n-q", 2, "--segments", "--price", 2)
    assert "is whole" in call("verify", tmp_path / "out").stdout
    data = TokenDataset(tmp_path / "out")
    for example, path in zip(data, EXAMPLES, strict=True):
        wav = torch.from_numpy(load_audio(path, 16_000))[None, None]
        codes = model.encode(wav, 2)
        np.testing.assert_array_equal(example.codes, codes.indices[0])
        batch = collate([example])
        assert batch.codes.level_strides == codes.level_strides
        if path == EXAMPLES[1]:
            assert torch.equal(model.decode(batch.codes), model.decode(codes))
    for row in pq.read_table(tmp_path / "out").to_pylist():
        assert sum(row["segment_frames"]) == len(row["codes_0"]) == -(-len(row["codes_1"]) // 2)


def test_verify_says_what_is_wrong(fake):
    assert "is whole: 23 recordings in 5 shards" in call("verify", fake).stdout
    (fake / "shard-000002.parquet").unlink()
    result = call("verify", fake, "--json", code=1)
    assert json.loads(result.stdout)["whole"] is False
    assert "audiovq: " in result.stderr
    assert "shard-000002.parquet does not exist" in result.stderr


def test_info_says_what_is_there(fake):
    said = call("info", fake).stdout
    assert "21 recordings" in said
    assert "2-grams: " in said
    facts = json.loads(call("info", fake, "--ngrams", 3, "--json").stdout)
    assert [gram["n"] for gram in facts["ngrams"]] == [1, 2, 3]


@pytest.mark.parametrize("to", ["npy", "text"])
def test_export_writes_and_overwrites_only_when_asked(fake, tmp_path, to):
    words = ["export", fake, "--to", to, "-o", tmp_path / "x"]
    assert "wrote" in call(*words).stderr
    call(*words, code=3)
    call(*words, "--force")


def test_whatever_is_wrong_is_one_sentence(fake, tmp_path):
    (tmp_path / "t.csv").write_text("file\nx.wav\n")
    source, out = tmp_path / "t.csv", tmp_path / "out"
    cases: list[tuple[list, int, str]] = [
        (["encode", tmp_path / "none", "-o", out], 1, "does not exist"),
        (["encode", source, "-o", out], 1, "no column 'path', but file"),
        (["encode", source, "-o", out, "--column", "path"], 2, "--column is NAME=COLUMN"),
        (["encode", source, "-o", out, "--column", "a=b"], 2, "'a' is no column of a row"),
        (["encode", source, "-o", out, "--price", "2"], 2, "--price goes with --segments"),
        (["encode", source, "-o", out, "--engine", "pool", "--address", "x"], 2, "Ray cluster"),
        (["verify", tmp_path], 1, "holds no corpus"),
        (["info", tmp_path / "none"], 1, "does not exist"),
        (["info", fake, "--ngrams", "20"], 2, "n-grams of 32 units"),
        (["export", fake, "--to", "npy", "--dedup", "-o", out], 2, "are of --to text"),
        (["export", fake, "--to", "text", "--level", "3", "-o", out], 2, "there is no level 3"),
    ]
    for words, code, message in cases:
        result = call(*words, code=code)
        said = " ".join(result.stderr.replace("│", "").split())
        assert message in said, (words, said)
        assert "Traceback" not in said
    assert not out.exists()
