"""`audiovq prepare` as it is typed."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from audiovq.files import FileRefused
from audiovq.training.data import read_manifest
from audiovq_cli.prepare import prepare

EXAMPLES = Path(__file__).parents[1] / "examples"
app = typer.Typer()
app.command()(prepare)


def run(*arguments: str | Path):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_folder_becomes_manifests_and_a_report(tmp_path):
    result = run(EXAMPLES, "-o", tmp_path / "out", "--validation", "0.2")
    assert result.exit_code == 0
    assert "recordings   5, " in result.stdout
    assert f"wrote {tmp_path / 'out'}" in result.stdout
    train = read_manifest(tmp_path / "out" / "train.jsonl.gz")
    validation = read_manifest(tmp_path / "out" / "validation.jsonl.gz")
    assert len(train) + len(validation) == 5
    assert len(validation) >= 1


def test_json_is_one_object_and_the_saved_one(tmp_path):
    result = run(EXAMPLES, "-o", tmp_path / "out", "--json", "--speaker-from", "prefix")
    report = json.loads(result.stdout)
    assert report["speakers"] == 1
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())


def test_bad_arguments_are_refused(tmp_path):
    assert run(EXAMPLES, "-o", tmp_path / "out", "--speaker-from", "name").exit_code == 2
    assert isinstance(run(tmp_path / "absent", "-o", tmp_path / "out").exception, FileRefused)
    result = run(EXAMPLES, "-o", tmp_path / "out", "--validation", "1.5")
    assert isinstance(result.exception, ValueError)
    assert not (tmp_path / "out").exists()


def test_help_ends_with_an_example():
    assert "audiovq prepare recordings/" in run("--help").stdout


@pytest.mark.parametrize("share", ["0", "0.2"])
def test_preparing_again_gives_the_same(tmp_path, share):
    for force in ([], ["--force"]):
        assert run(EXAMPLES, "-o", tmp_path / "out", "--validation", share, *force).exit_code == 0
    first = (tmp_path / "out" / "report.json").read_text()
    run(EXAMPLES, "-o", tmp_path / "other", "--validation", share)
    assert first == (tmp_path / "other" / "report.json").read_text()


def test_manifests_are_overwritten_only_when_told(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("mine")
    result = run(EXAMPLES, "--out", out)
    assert isinstance(result.exception, FileRefused)
    assert "report.json exists; add --force" in str(result.exception)
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert (out / "report.json").read_text() == "mine"
    result = run(EXAMPLES, "--out", out, "--force", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads((out / "report.json").read_text())["recordings"] == 5
