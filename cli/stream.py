"""`audiovq stream`: live sound through a pipe, to tokens and back."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from audiovq.files import FileRefused

from .options import Device, DeviceOption, Model, load_model

if TYPE_CHECKING:
    from audiovq import AudioVQ, ModelConfig
    from audiovq.live import LiveReport

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
    latency: Latency = False,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
) -> None:
    """Turn WAV or raw samples into an .avq stream, each frame as soon as it is known.

    Example: sox -d -t wav - | audiovq stream encode | audiovq stream decode | aplay
    """
    if raw != (rate is not None):
        raise typer.BadParameter("--raw and --rate go together: --raw --rate 16000.")
    codec = _load_model(model, device)
    from audiovq.live import encode_live

    try:
        report = encode_live(codec, sys.stdin.buffer, sys.stdout.buffer, n_q=n_q, raw_rate=rate)
    except BrokenPipeError as error:
        raise _reader_left() from error
    if latency:
        _say_latency(codec.config, report, "encode")


@stream.command()
def decode(
    raw: Annotated[
        bool, typer.Option("--raw", help="Write no WAV header: 16-bit little-endian mono.")
    ] = False,
    latency: Latency = False,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
) -> None:
    """Turn an .avq stream into WAV, each frame as soon as it is known.

    Example: audiovq stream decode < live.avq | aplay
    """
    codec = _load_model(model, device)
    from audiovq.live import decode_live

    try:
        report = decode_live(codec, sys.stdin.buffer, sys.stdout.buffer, raw=raw)
    except BrokenPipeError as error:
        raise _reader_left() from error
    if latency:
        _say_latency(codec.config, report, "decode")


def _load_model(model: str, device: Device) -> "AudioVQ":
    import torch

    torch.set_num_threads(1)  # a frame is too little for two to share
    return load_model(model, device)


def _reader_left() -> FileRefused:
    # Nobody reads standard output any more; without this Python complains again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FileRefused("the program that reads the output has ended.")


def _say_latency(config: "ModelConfig", report: "LiveReport", half: str) -> None:
    parts = {
        "encode": {"frame": 1, "lookahead": config.lookahead},
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
