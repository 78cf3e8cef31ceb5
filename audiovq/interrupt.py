"""Ctrl-C and SIGTERM as a wish to stop, which a loop grants when it is ready."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(KeyboardInterrupt):
    """A training stopped because it was told to, after it wrote a checkpoint."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        """The signal; a command ends with 128 more than it."""


@dataclass
class StopWish:
    """Whether a signal has come."""

    signum: int = 0
    """0 when none has."""


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Within the block the first SIGINT or SIGTERM is noted; a second one acts as it always does.

    Outside the main thread, which alone may handle signals, nothing is noted.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(signum: int, frame: Any) -> None:
        wish.signum = signum
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        restore()


def leave_to_parent(worker: int) -> None:
    """Let a data worker ignore both signals: they reach the whole group, and the process that
    trains needs its workers until the step is done. It ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
