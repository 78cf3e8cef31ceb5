"""The notebook is one, and runs."""

import runpy
from pathlib import Path

import pytest
from tiny import EXAMPLES

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorials" / "tour.py"


def test_the_notebook_runs(tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "examples").symlink_to(EXAMPLES[0].parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audiovq.AudioVQ.from_pretrained", lambda: tiny_model)
    runpy.run_path(str(NOTEBOOK), run_name="__main__")
    written = {path.name for path in (tmp_path / "tour").iterdir()}
    assert written >= {"original.wav", "levels-1.wav", "slow.wav", "spectrograms.png"}


def test_the_notebook_is_one():
    jupytext = pytest.importorskip("jupytext")
    kinds = [cell.cell_type for cell in jupytext.read(NOTEBOOK).cells]
    assert kinds[:2] == ["markdown", "code"]
    assert kinds.count("code") >= 6
