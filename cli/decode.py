"""`audiovq decode`: tokens to audio."""

from typing import Annotated

import typer

from .options import (
    STDIO,
    Device,
    DeviceOption,
    Force,
    Model,
    Recursive,
    each,
    finish,
    load_model,
    plan,
)


def decode(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="TOKENS|DIR...", help='.npy or .avq; "-" is standard input.'),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            help="File (.wav, .flac) or folder to write; NAME.decoded.wav if not given.",
        ),
    ] = None,
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    force: Force = False,
    recursive: Recursive = False,
) -> None:
    """Turn tokens back into audio.

    A .npy file holds whole frames and is taken to be of the model at hand; an .avq file knows its
    model and its number of samples.

    Example: audiovq decode speech.npy -o speech.decoded.wav
    """
    pairs = plan(
        sources,
        out,
        (".npy", ".avq"),
        lambda path: f"{path.stem}.wav" if out else f"{path.stem}.decoded.wav",
        recursive=recursive,
        what="token files (.npy, .avq)",
    )
    codec = load_model(model, device)

    def convert(source: str, target: str) -> float:
        from audiovq.transcode import decode_file

        done = decode_file(codec, source, target, overwrite=force)
        typer.echo(
            f"{source} -> {target}: {done.seconds:.2f} s at {codec.config.sample_rate} Hz",
            err=target == STDIO,
        )
        return done.seconds

    finish(each(pairs, convert), len(pairs))
