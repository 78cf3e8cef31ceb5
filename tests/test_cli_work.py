"""File after file: no failure stops the others, and every one of them is a sentence."""

import io
import json
import sys
import time

import pytest
import typer
from rich.console import Console

from audiovq.files import FileRefused, OutputExists
from audiovq_cli import work as module
from audiovq_cli.plan import Plan
from audiovq_cli.work import Done, work

EXISTS = OutputExists("b exists")


def run(failures, n=3, **options):
    """Work over n files, some of which fail; the files that were tried, and the exit code."""
    tried = []

    def convert(source, target, on_progress):
        tried.append(source)
        on_progress(0.5, 1.0)
        if source in failures:
            raise failures[source]
        return Done(f"{source} is done", {"frames": 50}, 1.0, ["a note"])

    todo = Plan([(name, f"{name}.npy") for name in "abcdef"[:n]])
    try:
        work(todo, convert, **options)
    except typer.Exit as end:
        return tried, end.exit_code
    return tried, 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileRefused("b is not audio."), "audiovq: b is not audio."),
        (MemoryError(), "audiovq: b: not enough memory."),
        (RecursionError("too deep"), "audiovq: b: RecursionError: too deep (AUDIOVQ_DEBUG=1"),
        (PermissionError(13, "Permission denied", "dir/b"), "audiovq: dir/b: Permission denied."),
        (OSError(5, "Input/output error"), "audiovq: b: Input/output error."),
        (KeyError("n_q"), "audiovq: b: KeyError: 'n_q'"),
        (ValueError("bad\nand more"), "audiovq: b: ValueError: bad (AUDIOVQ"),
        ("\udce9".encode, "audiovq: b: UnicodeEncodeError: "),
    ],
)
@pytest.mark.parametrize("n", [2, 3])
def test_after_any_failure_the_next_file_is_done(capsys, error, said, n):
    if callable(error):
        with pytest.raises(UnicodeEncodeError) as failed:
            error("utf-8")
        error = failed.value
    tried, code = run({"b": error}, n)
    assert tried == list("abc"[:n])
    assert code == 1
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("audiovq: ")]
    assert line.startswith(said)
    assert "Traceback" not in err
    assert f"{n - 1} of {n} files written, 1 refused: {n - 1}.0 s of audio" in err
    assert [line for line in err.splitlines() if line.endswith("is done")] == [
        f"{name} is done" for name in "abc"[:n] if name != "b"
    ]
    assert out == ""  # for data and JSON


def test_the_code_tells_outputs_that_exist_from_failures(capsys):
    assert run({}) == (list("abc"), 0)
    assert run({"b": EXISTS}) == (list("abc"), 3)
    assert run({"a": EXISTS}, 1) == (["a"], 3)
    assert run({"a": FileRefused("no"), "b": EXISTS}) == (list("abc"), 1)
    assert "1 refused, 1 left because the output exists" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(), ModuleNotFoundError(), KeyboardInterrupt()])
def test_what_is_no_files_fault_ends_the_work(error):
    with pytest.raises(type(error)):
        run({"b": error})


def test_a_traceback_is_shown_when_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("AUDIOVQ_DEBUG", "1")
    run({"b": KeyError("n_q")})
    assert "Traceback" in capsys.readouterr().err


def test_json_is_a_line_for_each_file_the_failed_ones_too(capsys):
    run({"b": FileRefused("b is bad."), "c": EXISTS}, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"source": "a", "target": "a.npy", "frames": 50},
        {"source": "b", "target": "b.npy", "refused": "b is bad.", "exists": False},
        {"source": "c", "target": "c.npy", "refused": "b exists", "exists": True},
    ]
    assert "a note" in err
    todo = Plan([("a", "-")])
    with pytest.raises(typer.BadParameter, match="standard output"):
        work(todo, lambda *_: None, as_json=True)


def test_quiet_says_errors_alone(capsys):
    run({"b": FileRefused("b is bad.")}, quiet=True)
    assert capsys.readouterr() == ("", "audiovq: b is bad.\n")


def test_names_steer_no_terminal(capsys):
    todo = Plan([("a\x1b[2J\udce9\n", "x")])
    work(todo, lambda source, *_: Done(source, {}, 1.0))
    assert capsys.readouterr().err == "a\\x1b[2J\\udce9\\n\n"


def test_lines_and_the_progress_do_not_cross(capsys, monkeypatch):
    """On a terminal every line has a row of its own; what is piped goes where it should."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    monkeypatch.setattr(module, "Console", lambda stderr: terminal)
    run({"b": FileRefused("b is [bold]bad[/bold].")})
    shown = screen.getvalue()
    for row in ("a note", "a is done", "audiovq: b is [bold]bad[/bold]."):
        assert f"\x1b[2K{row}\n" in shown.replace("\r", "")  # the row was cleared before it
    assert "of audio a second" in shown
    run({}, as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run({}, as_json=True)
    assert '\x1b[2K{"source": "a"' in screen.getvalue().replace("\r", "")


def test_a_long_file_shows_how_far_it_is(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    monkeypatch.setattr(module, "Console", lambda stderr: terminal)

    def convert(source, target, on_progress):
        on_progress(1200.0, 3600.0)
        time.sleep(0.3)  # the screen is drawn ten times a second
        return Done(source, {}, 3600.0)

    work(Plan([("a", "b")]), convert)
    assert "1200 of 3600 s" in screen.getvalue()
