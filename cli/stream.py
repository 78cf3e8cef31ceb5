"""`audiovq stream`: live sound through a pipe, to tokens and back."""

import io
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from audiovq.files import FileRefused

from .options import Coded, Device, DeviceOption, KeepBroken, Model, load_model, say_if_packed

if TYPE_CHECKING:
    from audiovq import AudioVQ, ModelConfig
    from audiovq.live import LiveReport

GRACE = 0.5
"""Seconds for which a stopped program still waits for more."""
MOST_AFTER_STOP = 1 << 20
"""Bytes that it takes then: a pipe holds no more, and a file need not be read to its end."""

stream = typer.Typer(
    no_args_is_help=True,
    help="Live sound through a pipe: standard input to standard output, frame by frame.",
)

Latency = Annotated[
    bool, typer.Option("--latency", help="Say on standard error how long sound is delayed.")
]


@stream.command()
def encode(
    n_q: Annotated[
        int | None, typer.Option("--n-q", help="Levels; all of the model's if not given.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The input has no header: 16-bit little-endian mono.")
    ] = False,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1, help="Sample rate of --raw in Hz.")
    ] = None,
    coded: Coded = False,
    latency: Latency = False,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
) -> None:
    """Turn WAV or raw samples into an .avq stream, each code as soon as it is known.

    Ctrl-C or SIGTERM end the sound and so the stream, which is whole; the exit status is 0. A
    second signal kills.

    Example: sox -d -t wav - | audiovq stream encode | audiovq stream decode | aplay
    """
    if raw != (rate is not None):
        raise typer.BadParameter("--raw and --rate go together: --raw --rate 16000.")
    with _until_stopped() as source:
        codec = _load_model(model, device)
        say_if_packed(codec, coded)
        from audiovq.live import encode_live

        with _pipe(source) as target:
            report = encode_live(codec, source, target, n_q=n_q, raw_rate=rate, coded=coded)
    if latency:
        _say_latency(codec.config, report, "encode")


@stream.command()
def decode(
    n_q: Annotated[
        int | None, typer.Option("--n-q", help="Levels to decode; all of the stream's if unset.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write no WAV header: 16-bit little-endian mono.")
    ] = False,
    keep_broken: KeepBroken = False,
    latency: Latency = False,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
) -> None:
    """Turn an .avq stream into WAV, each sample as soon as it is known.

    A whole .avq file is taken too, and decoded once its checksum at the end was seen. Ctrl-C or
    SIGTERM end the input: what came is decoded, and the exit status is 0.

    Example: audiovq stream decode < live.avq | aplay
    """
    with _until_stopped() as source:
        codec = _load_model(model, device)
        from audiovq.live import decode_live

        with _pipe(source) as target:
            report = decode_live(codec, source, target, n_q=n_q, raw=raw, keep_broken=True)
    if report.broken is not None:
        if not keep_broken and not _was_stopped(source):
            raise FileRefused(report.broken)
        seconds = report.n_samples / codec.config.sample_rate
        typer.echo(f"The stream is not whole; its first {seconds:.2f} s are decoded.", err=True)
    if latency:
        _say_latency(codec.config, report, "decode")


def _load_model(model: str, device: Device) -> "AudioVQ":
    import torch

    torch.set_num_threads(1)  # a frame is too little for two to share
    return load_model(model, device)


class _StoppableInput(io.RawIOBase):
    """A file that ends soon after the process was told to stop, if not before.

    What is in the pipe is still taken, and what the programs before this one send when they are
    stopped as well, as Ctrl-C in a terminal does.
    """

    def __init__(self, file: int, told: int) -> None:
        self._file = file
        self._told = told  # has something to read from when the process is told to stop
        self._deadline = 0.0
        self._left = MOST_AFTER_STOP
        self.stopped = False

    def stop(self, number: int, frame: object) -> None:
        """The handler of the signals that stop."""
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)  # a second one kills

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        ready, _, _ = select.select([self._file, self._told], [], [])
        told = self._told in ready
        if told:
            now = time.monotonic()
            self._deadline = self._deadline or now + GRACE
            ready, _, _ = select.select([self._file], [], [], max(0.0, self._deadline - now))
            if not ready or self._left <= 0:
                return 0
        n_bytes = os.readv(self._file, [buffer])
        if told:
            self._left -= n_bytes
        return n_bytes


@contextmanager
def _until_stopped() -> Iterator[BinaryIO]:
    """Standard input, which ends when SIGINT, SIGTERM or SIGHUP come.

    Nothing is interrupted by them but waiting for input, so that no chunk is written by half.
    """
    if sys.stdin is None or sys.stdout is None:
        raise FileRefused("standard input and output must be open: a stream goes from one pipe on.")
    try:
        file = sys.stdin.fileno()
    except io.UnsupportedOperation:  # not a file of the system
        file = -1
    if file < 0 or os.name != "posix":
        yield sys.stdin.buffer
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    source = _StoppableInput(file, told)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {name: signal.getsignal(name) for name in signals}
    for name, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # as of nohup, and of jobs in the background
            signal.signal(name, source.stop)
    try:
        yield io.BufferedReader(source)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
        signal.set_wakeup_fd(before)
        os.close(told)
        os.close(tell)


def _was_stopped(source: BinaryIO) -> bool:
    return getattr(getattr(source, "raw", None), "stopped", False)


@contextmanager
def _pipe(source: BinaryIO) -> Iterator[BinaryIO]:
    """Standard output to copy `source` to, with a sentence for all that may go wrong."""
    try:
        yield sys.stdout.buffer
    except OSError as error:
        # What is still buffered would be written, and fail, once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise FileRefused(f"the stream cannot go on: {error.strerror or error}.") from error
        if _was_stopped(source):  # and so was the reader
            raise typer.Exit(1) from error
        raise FileRefused("the program that reads the output has ended.") from error


def _group(config: "ModelConfig") -> str:
    return "frame" if config.group_frames == 1 else "group of frames"


def _say_latency(config: "ModelConfig", report: "LiveReport", half: str) -> None:
    parts = {
        "encode": {_group(config): config.group_frames, "lookahead": config.lookahead},
        "decode": {"overlap of the synthesis windows": config.overlap_frames},
    }
    hop = 1000 / config.frame_rate
    for name, terms in parts.items():
        total = hop * sum(terms.values())
        text = " + ".join(f"{hop * frames:g} ms {term}" for term, frames in terms.items())
        typer.echo(f"algorithmic delay of {name}: {total:g} ms = {text}", err=True)
    typer.echo(f"encode and decode: {1000 * config.delay / config.sample_rate:g} ms", err=True)
    if report.resampling_delay:
        typer.echo(f"resampling holds back {1000 * report.resampling_delay:.1f} ms", err=True)
    times = sorted(report.compute_times)
    if times:
        middle, late = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
        typer.echo(
            f"measured delay of {half} after a chunk came: median {1000 * middle:.1f} ms, "
            f"99 % within {1000 * late:.1f} ms, {len(times)} chunks",
            err=True,
        )
