"""`audiovq evaluate`: what it passes on, prints and writes."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from audiovq import FileRefused
from audiovq.quality.metrics import METRICS
from audiovq.quality.results import Evaluation, Row
from audiovq_cli.evaluate import evaluate

CLIPS = sorted((Path(__file__).parent.parent / "examples").glob("*.flac"))


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(evaluate)

    def call(*arguments: object, ok: bool = True):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if ok:
            assert result.exit_code == 0, result.output or result.exception
        return result

    return call


def test_a_copy_of_the_clips_in_a_table(run, tmp_path):
    for clip in CLIPS[1:3]:
        shutil.copy(clip, tmp_path)
    result = run(tmp_path, tmp_path, "--metrics", "si_sdr,lsd")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mean of 2 files")
    assert lines[1].split() == ["SI-SDR", "LSD"]
    assert lines[3].split() == [tmp_path.name, "138.5", "0.0"]
    assert lines[4].split() == ["±0.0", "±0.0"]


def test_a_line_for_every_file(run):
    result = run(CLIPS[0].parent, CLIPS[0].parent, "--metrics", "lsd", "--per-file", "--limit", 2)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == [
        CLIPS[0].name,
        CLIPS[2].name,
    ]


def test_json_is_one_object_and_nothing_else(run):
    result = run(CLIPS[1], CLIPS[1], "--metrics", "lsd", "--json")
    found = json.loads(result.stdout)
    assert found["files"][0]["file"] == CLIPS[1].name
    assert found["files"][0]["values"] == {"lsd": 0}


def test_a_model_at_several_levels_with_plot_and_page(run, tmp_path, tiny_folder):
    pytest.importorskip("matplotlib")
    plot, page = tmp_path / "plot.png", tmp_path / "page"
    arguments = (CLIPS[1], "--model", tiny_folder, "--n-q", "1,4", "--metrics", "lsd", "--json")
    result = run(*arguments, "--plot", plot, "--page", page)
    systems = json.loads(result.stdout)["systems"]
    assert [system["system"] for system in systems] == ["test model n_q=1", "test model n_q=4"]
    assert 250 < systems[0]["bitrate"] < 1000 < systems[1]["bitrate"] < 2000
    assert f"Wrote {plot}" in result.stderr
    assert f"Wrote {page / 'index.html'}" in result.stderr
    assert plot.is_file()
    assert (page / "index.html").is_file()
    for again in (("--plot", plot), ("--page", page)):
        refused = run(*arguments, *again, ok=False)
        assert isinstance(refused.exception, FileRefused)
        assert "add --force" in str(refused.exception)
    run(*arguments, "--plot", plot, "--page", page, "--force")


def test_options_reach_the_library(run, monkeypatch):
    seen = {}

    def fake(reference, decoded, **options):
        seen.update(options, decoded=decoded)
        return Evaluation(["lsd"], ["x"], [Row("a", "x", 1, {"lsd": 1.0})], ["A note."])

    monkeypatch.setattr("audiovq.quality.evaluate.evaluate", fake)
    result = run(
        *("ref", "--n-q", "none", "--peers", "opus:6, codec2:3200", "--metrics", "lsd,mel"),
        *("--asr", "tool {}", "--texts", "said.tsv", "--limit", 3, "--jobs", 2),
    )
    assert seen.pop("progress")
    assert seen == {
        "decoded": None,
        "model": None,
        "n_q": [],
        "peers": ["opus:6", "codec2:3200"],
        "metrics": ["lsd", "mel"],
        "asr": "tool {}",
        "texts": Path("said.tsv"),
        "limit": 3,
        "jobs": 2,
        "audio_dir": None,
    }
    assert result.stderr.strip() == "A note."


def test_levels_default_to_powers_of_two_and_all(run, monkeypatch, tiny_folder):
    seen = {}

    def fake(reference, decoded, **options):
        seen.update(options)
        return Evaluation(["lsd"], ["x"], [Row("a", "x", 1, {"lsd": 1.0})])

    monkeypatch.setattr("audiovq.quality.evaluate.evaluate", fake)
    run("ref", "--model", tiny_folder)
    assert seen["n_q"] == [1, 2, 4]
    run("ref", "decoded", "--model", tiny_folder)
    assert (seen["n_q"], seen["model"]) == ([], None)


def test_the_help_names_every_measure(run):
    said = " ".join(run("--help").stdout.replace("│", " ").split())
    assert " ".join(name for name, metric in METRICS.items() if metric.by_default) in said


@pytest.mark.parametrize("n_q", ["0", "9", "1,x"])
def test_levels_out_of_range_are_refused_with_what_is_allowed(run, tiny_folder, n_q):
    result = run(CLIPS[1], "--model", tiny_folder, "--n-q", n_q, ok=False)
    assert result.exit_code == 2
    assert "give levels in 1..4" in " ".join(result.stderr.replace("│", "").split())


def test_a_device_that_is_not_known_is_refused(run):
    result = run(CLIPS[1], "--device", "tpu", ok=False)
    assert result.exit_code == 2
    assert "'cuda'" in result.stderr


@pytest.mark.parametrize("name", ["quality", "run-0.5"])
def test_a_plot_needs_no_suffix(run, tmp_path, name):
    pytest.importorskip("matplotlib")
    run(CLIPS[1], CLIPS[1], "--metrics", "lsd", "--plot", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
