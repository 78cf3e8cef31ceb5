"""`audiovq decode`: tokens to audio."""

from typing import Annotated

import typer

from .options import (
    STDIO,
    Device,
    DeviceOption,
    Force,
    KeepBroken,
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
        typer.Argument(
            metavar="TOKENS|DIR...",
            help='.npy, .avq, segments (.tsv) or units as text (.txt); "-" is standard input.',
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            help="File (.wav, .flac) or folder to write; NAME.decoded.wav if not given.",
        ),
    ] = None,
    n_q: Annotated[
        int | None,
        typer.Option("--n-q", help="Levels to decode, the first ones of the file; all if unset."),
    ] = None,
    keep_broken: KeepBroken = False,
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    force: Force = False,
    recursive: Recursive = False,
) -> None:
    """Turn tokens back into audio.

    A .npy file holds whole frames and is taken to be of the model at hand; an .avq file knows its
    model and its number of samples. Folders are searched for these two.

    Units decode as well: segments with their durations, an array [frames], or one line of numbers
    between blanks, a frame each. Text whose repeats were merged has lost the durations, and plays
    each unit for one frame.

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
    codec.check_n_q(n_q)

    def convert(source: str, target: str) -> float:
        from audiovq.transcode import decode_file

        done = decode_file(codec, source, target, n_q=n_q, keep_broken=keep_broken, overwrite=force)
        typer.echo(
            f"{source} -> {target}: {done.seconds:.2f} s at {codec.config.sample_rate} Hz",
            err=target == STDIO,
        )
        if done.broken is not None:
            typer.echo(
                f"{source} is not whole; its first {done.shape[1]} frames, {done.seconds:.2f} s, "
                "are decoded.",
                err=True,
            )
        return done.seconds

    finish(each(pairs, convert), len(pairs))
