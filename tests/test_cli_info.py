"""`audiovq info` shows what files say, and nothing of them reaches the terminal as a command."""

import json

import pytest
from tiny import TINY
from typer.testing import CliRunner

from audiovq import AudioVQ
from audiovq_cli import app


@pytest.fixture
def hostile(tmp_path, tiny_model):
    """A model whose card would paint the terminal and hide the fingerprint."""
    model = AudioVQ(TINY)
    model.load_state_dict(tiny_model.state_dict())
    model.card = {
        "name": "[red]x[/red][/bold] \x1b[2J\x9b1m\u202e\ud800 :smile:",
        "fingerprint": "0000000000000000",
        "[link=http://x]n\x1b": ["[/]", "\x07\x1b]0;title\x07"],
        "note": "two\nlines",
    }
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_card_is_shown_as_it_reads(hostile, tiny_model, tmp_path):
    out = run("info", str(hostile))
    assert all(character.isprintable() or character == "\n" for character in out)
    for text in (
        "[red]x[/red][/bold] \\x1b[2J\\x9b1m\\u202e\\ud800",
        ":smile:",
        "[link=http://x]n",
    ):
        assert text in out
    assert tiny_model.fingerprint in out
    assert "card fingerprint" in out
    facts = json.loads(run("info", str(hostile), "--json"))
    assert facts["fingerprint"] == tiny_model.fingerprint
    assert facts["card_fingerprint"] == "0000000000000000"
    assert facts["note"] == "two\nlines"


def test_a_header_is_shown_as_it_reads(hostile, tmp_path, speech, monkeypatch):
    from audiovq import write_avq

    model = AudioVQ.from_pretrained(hostile)
    indices = model.encode(speech).indices[0].numpy().astype("uint16")
    monkeypatch.chdir(tmp_path)
    write_avq("[b]a.avq", indices, model.header(4, speech.shape[2]))
    out = run("info", "[b]a.avq")
    assert all(character.isprintable() or character == "\n" for character in out)
    assert "[red]x[/red][/bold] \\x1b[2J" in out
    assert "[b]a.avq" in out
