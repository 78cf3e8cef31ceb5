"""`audiovq decode`: tokens to audio."""

from typing import Annotated

import typer

from audiovq.codes import TOKEN_SUFFIXES

from .options import (
    Device,
    DeviceOption,
    Force,
    Json,
    KeepBroken,
    Model,
    Quiet,
    Recursive,
    load_model,
)
from .plan import plan
from .work import Done, OnProgress, work


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
            help="File (.wav, .flac) or folder to write; NAME.decoded.wav beside the tokens if not "
            "given. A name without a suffix is a folder, as is one that ends in /.",
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn tokens back into audio.

    A .npy file holds whole frames and is taken to be of the model at hand; an .avq file knows its
    model and its number of samples. Folders are searched for these two.

    Units decode as well: segments with their durations, an array with a unit for each frame, or a
    line of text with blanks between them, as unit:frames or a number for each frame. Where repeats
    were merged without durations, each unit plays for one frame.

    Example: audiovq decode speech.npy -o speech.decoded.wav
    """
    todo = plan(
        sources,
        out,
        TOKEN_SUFFIXES,
        lambda path: f"{path.stem}.wav" if out else f"{path.stem}.decoded.wav",
        (".wav", ".flac"),
        recursive=recursive,
        what=f"token files ({', '.join(TOKEN_SUFFIXES)})",
    )
    codec = load_model(model, device)
    codec.check_n_q(n_q)

    def convert(source: str, target: str, on_progress: OnProgress) -> Done:
        from audiovq.transcode import decode_file

        done = decode_file(
            codec,
            source,
            target,
            n_q=n_q,
            keep_broken=keep_broken,
            overwrite=force,
            progress=on_progress,
        )
        levels, frames = done.shape
        rate = codec.config.sample_rate
        line = f"{source} -> {target}: {done.seconds:.2f} s at {rate} Hz"
        if done.broken is not None:
            line += f"; the source is not whole, its first {frames} frames are decoded"
        facts = {"n_q": levels, "frames": frames, "bitrate": codec.config.bitrate(levels)}
        facts |= {"seconds": done.seconds, "bytes": done.n_bytes, "whole": done.broken is None}
        return Done(line, facts, done.seconds)

    work(todo, convert, quiet=quiet, as_json=as_json)
