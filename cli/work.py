"""File after file: what each became, progress, and what failed."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from audiovq.files import OutputExists

from .failures import EXISTS, REFUSED, printable, sentence, tell
from .plan import STDIO, Plan

OnProgress = Callable[[float, float | None], None]
"""Called with the seconds of a file's audio that are done, and those in all if that is known."""


@dataclass(frozen=True)
class Done:
    """What a file became."""

    line: str
    """For people."""
    facts: dict[str, Any]
    """For --json."""
    seconds: float
    """Of audio."""
    notes: list[str] = field(default_factory=list)
    """What people should know besides."""


def work(
    todo: Plan,
    convert: Callable[[str, str, OnProgress], Done],
    *,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Convert file after file; whatever goes wrong with one, the next is done.

    Lines for people go to standard output, or to standard error when data goes there. Raises
    `typer.Exit` when anything failed: 3 when it was nothing but outputs that exist, else 1.
    """
    if as_json and any(target == STDIO for _, target in todo.pairs):
        raise typer.BadParameter(
            "--json and data would both go to standard output; name an output."
        )
    start = time.perf_counter()
    seconds, n_exist, n_refused = 0.0, 0, 0
    with _Screen(len(todo.pairs), quiet=quiet) as screen:
        for note in todo.notes:
            screen.note(note)
        for folder, why in todo.refused:
            screen.failure(folder, None, why, exists=False, as_json=as_json)
        for source, target in todo.pairs:
            try:
                done = convert(source, target, screen.on_progress)
            except (BrokenPipeError, ModuleNotFoundError):
                raise  # not this file's fault
            except Exception as error:
                exists = isinstance(error, OutputExists)
                n_exist += exists
                n_refused += not exists
                why = sentence(error, source)
                screen.failure(source, target, why, exists=exists, as_json=as_json)
            else:
                seconds += done.seconds
                for note in done.notes:
                    screen.note(note)
                if as_json:
                    screen.data({"source": source, "target": target, **done.facts})
                elif not quiet:
                    screen.say(done.line, err=target == STDIO)
            screen.next_file(seconds)
        n_files = len(todo.pairs)
        if n_files > 1:
            screen.note(_summary(n_files, n_refused, n_exist, seconds, time.perf_counter() - start))
    if n_refused or todo.refused:
        raise typer.Exit(REFUSED)
    if n_exist:
        raise typer.Exit(EXISTS)


def _summary(n_files: int, n_refused: int, n_exist: int, seconds: float, spent: float) -> str:
    parts = [f"{n_files - n_refused - n_exist} of {n_files} files written"]
    parts += [f"{n_refused} refused"] if n_refused else []
    parts += [f"{n_exist} left because the output exists"] if n_exist else []
    told = ", ".join(parts)
    if not seconds:
        return f"{told}."
    speed = f"{seconds / max(spent, 1e-9):.0f} times as fast as it plays"
    return f"{told}: {seconds:.1f} s of audio in {spent:.1f} s, {speed}."


class _Screen:
    """Lines on standard output and error, and on a terminal progress under them."""

    def __init__(self, n_files: int, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            # rich would send what is meant for a piped standard output to the terminal.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=quiet or not console.is_terminal,
        )
        many = n_files > 1
        self._files = self._bar.add_task("files", total=n_files, state="", visible=many)
        self._audio = self._bar.add_task("this file", total=None, state="", visible=not many)
        self._n_files, self._n_done, self._seconds = n_files, 0, 0.0

    def __enter__(self) -> "_Screen":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, line: str, *, err: bool = False) -> None:
        """A line of its own, above the progress."""
        line = printable(line)
        if not self._bar.disable and (err or sys.stdout.isatty()):
            self._bar.console.print(
                line, markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        else:
            tell(line, err=err)

    def data(self, facts: dict[str, Any]) -> None:
        """A line for programs."""
        line = json.dumps(facts)
        if sys.stdout.isatty():
            self.say(line)
        else:
            typer.echo(line)

    def note(self, line: str) -> None:
        """A line for people that is no error."""
        if not self._quiet:
            self.say(line, err=True)

    def failure(
        self, source: str, target: str | None, why: str, *, exists: bool, as_json: bool
    ) -> None:
        """Say that a file failed, and to programs that read standard output as well."""
        self.say(f"audiovq: {why}", err=True)
        if as_json:
            facts = {"source": source, "target": target, "refused": why, "exists": exists}
            self.data(facts)

    def on_progress(self, seconds: float, total: float | None) -> None:
        """Show how far the file at hand is."""
        of = f" of {total:.0f}" if total else ""
        self._bar.update(
            self._audio, completed=seconds, total=total, state=f"{seconds:.0f}{of} s", visible=True
        )
        self._show_speed(self._seconds + seconds)

    def next_file(self, seconds: float) -> None:
        """Show that a file is done, and `seconds` of audio in all."""
        self._n_done += 1
        self._seconds = seconds
        self._bar.reset(self._audio, total=None, visible=False, state="")
        self._show_speed(seconds)

    def _show_speed(self, seconds: float) -> None:
        speed = seconds / (self._bar.tasks[0].elapsed or 1e-9)
        state = f"{self._n_done} of {self._n_files}, {speed:.0f} s of audio a second"
        self._bar.update(self._files, completed=self._n_done, state=state)
