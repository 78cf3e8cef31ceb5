"""File after file: what each became, progress, and what failed."""

import itertools
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from audiovq.files import FileRefused, OutputExists

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
    skipped: bool = False
    """Whether it was there already, and nothing was done."""


@dataclass(frozen=True)
class Failed:
    """Why a file became nothing."""

    why: str
    """One sentence."""
    exists: bool
    """Whether nothing is wrong but that the output exists."""


Convert = Callable[[str, str, OnProgress], Done]
"""Source, target and a function to tell how far it is, to what the file became."""


def work(
    todo: Plan,
    convert: Convert,
    *,
    quiet: bool = False,
    as_json: bool = False,
    jobs: int = 1,
    manifest: str | None = None,
) -> None:
    """Convert file after file; whatever goes wrong with one, the next is done.

    jobs: processes that do it, to each of which `convert` is sent; its attribute `load` is called
    there first. manifest: a file to which the objects of `as_json` are appended, line by line.

    Lines for people go to standard error: standard output is for data and JSON. Raises
    `typer.Exit` when anything failed: 3 when it was nothing but outputs that exist, else 1.
    """
    if as_json and any(target == STDIO for _, target in todo.pairs):
        raise typer.BadParameter(
            "--json and data would both go to standard output; name an output."
        )
    tally = _Tally(len(todo.pairs))
    with (
        _Screen(len(todo.pairs), quiet=quiet) as screen,
        _appending(manifest) as record,
    ):

        def report(facts: dict[str, Any]) -> None:
            if as_json:
                screen.data(facts)
            record(json.dumps(facts))

        for note in todo.notes:
            screen.note(note)
        for folder, why in todo.refused:
            screen.failure(why)
            report({"source": folder, "target": None, "refused": why, "exists": False})
        for source, target, outcome in _outcomes(todo, convert, jobs, screen.on_progress):
            tally.count(outcome)
            facts: dict[str, Any] = {"source": source, "target": target}
            if isinstance(outcome, Failed):
                screen.failure(outcome.why)
                report({**facts, "refused": outcome.why, "exists": outcome.exists})
            else:
                for note in outcome.notes:
                    screen.note(note)
                if not as_json and not outcome.skipped:
                    screen.note(outcome.line)
                report({**facts, **outcome.facts})
            screen.next_file(tally.seconds)
        if tally.n_files > 1:
            screen.note(tally.summary())
    if tally.n_refused or todo.refused:
        raise typer.Exit(REFUSED)
    if tally.n_exist:
        raise typer.Exit(EXISTS)


def attempt(
    convert: Convert, source: str, target: str, on_progress: OnProgress = lambda *_: None
) -> Done | Failed:
    """What a file became, or why nothing came of it."""
    try:
        return convert(source, target, on_progress)
    except (BrokenPipeError, ModuleNotFoundError):
        raise  # not this file's fault
    except Exception as error:
        return Failed(sentence(error, source), isinstance(error, OutputExists))


def _outcomes(
    todo: Plan, convert: Convert, jobs: int, on_progress: OnProgress
) -> Iterator[tuple[str, str, Done | Failed]]:
    """What each file became, in the order of the plan."""
    if jobs == 1 or not todo.pairs:
        for source, target in todo.pairs:
            yield source, target, attempt(convert, source, target, on_progress)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # copies of torch's threads would wait for ever
    pool = ProcessPoolExecutor(min(jobs, len(todo.pairs)), context, _begin, (convert,))
    try:
        # Not all at once: of a million files, a few are on their way.
        waiting: deque[tuple[str, str, Future[Done | Failed]]] = deque()
        pairs = iter(todo.pairs)
        while True:
            for source, target in itertools.islice(pairs, 4 * jobs - len(waiting)):
                waiting.append((source, target, pool.submit(_attempt_here, source, target)))
            if not waiting:
                return
            source, target, future = waiting.popleft()
            yield source, target, future.result()
    except BrokenProcessPool as error:
        raise FileRefused(
            "A process that encodes has died, which is often for want of memory; try fewer --jobs, "
            "and --skip-existing to go on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_convert: Convert | None = None
"""In a process of `work`, what it does."""


def _begin(convert: Convert) -> None:
    global _convert
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    convert.load()  # type: ignore[attr-defined]
    _convert = convert


def _attempt_here(source: str, target: str) -> Done | Failed:
    assert _convert is not None
    return attempt(_convert, source, target)


@contextmanager
def _appending(path: str | None) -> Iterator[Callable[[str], None]]:
    """A function that appends a line to a file, at once, so that a kill loses none."""
    if path is None:
        yield lambda line: None
        return
    try:
        with open(path, "ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill, or a full disk, in the middle of a line
                    file.write(b"\n")

            def append(line: str) -> None:
                file.write(f"{line}\n".encode())

            yield append
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise FileRefused(f"{path} cannot be written: {error.strerror}.") from error


class _Tally:
    """How many files became what."""

    def __init__(self, n_files: int) -> None:
        self.n_files = n_files
        self.n_written = self.n_exist = self.n_refused = self.n_skipped = 0
        self.seconds = 0.0
        """Of audio, in what was written."""
        self._start = time.perf_counter()

    def count(self, outcome: Done | Failed) -> None:
        """Count one file."""
        if isinstance(outcome, Failed):
            self.n_exist += outcome.exists
            self.n_refused += not outcome.exists
        elif outcome.skipped:
            self.n_skipped += 1
        else:
            self.n_written += 1
            self.seconds += outcome.seconds

    def summary(self) -> str:
        """All of it in a sentence."""
        parts = [f"{self.n_written} of {self.n_files} files written"]
        parts += [f"{self.n_skipped} were there already"] if self.n_skipped else []
        parts += [f"{self.n_refused} refused"] if self.n_refused else []
        parts += [f"{self.n_exist} left because the output exists"] if self.n_exist else []
        told = ", ".join(parts)
        if not self.seconds:
            return f"{told}."
        spent = time.perf_counter() - self._start
        speed = f"{self.seconds / max(spent, 1e-9):.0f} times as fast as it plays"
        return f"{told}: {self.seconds:.1f} s of audio in {spent:.1f} s, {speed}."


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

    def say(self, line: str, *, err: bool = True) -> None:
        """A line of its own, above the progress; on standard output where `err` is False."""
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
            self.say(line, err=False)
        else:
            typer.echo(line)

    def note(self, line: str) -> None:
        """A line for people that is no error."""
        if not self._quiet:
            self.say(line)

    def failure(self, why: str) -> None:
        """Say that a file failed."""
        self.say(f"audiovq: {why}")

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
