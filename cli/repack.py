"""`audiovq repack`: tokens to another format, to fewer levels, or to fewer units."""

from typing import Annotated

import typer

from audiovq.codes import TOKEN_SUFFIXES

from .encode import TokenFormat, suffix_of
from .options import (
    Coded,
    Force,
    Json,
    KeepBroken,
    Model,
    Quiet,
    Recursive,
    load_model,
    say_if_packed,
)
from .plan import plan
from .work import Done, OnProgress, work


def repack(
    sources: Annotated[
        list[str], typer.Argument(metavar="TOKENS|DIR...", help='Tokens; "-" is standard input.')
    ],
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="File (.npy, .avq) or folder to write; see encode."),
    ] = None,
    n_q: Annotated[
        int | None, typer.Option("--n-q", help="Levels to keep, the first ones; all if unset.")
    ] = None,
    n_units: Annotated[
        int | None,
        typer.Option(help="Units to tell apart: each other one becomes the most similar of those."),
    ] = None,
    token_format: Annotated[
        TokenFormat | None, typer.Option("--format", help="By the output's name.")
    ] = None,
    coded: Coded = False,
    keep_broken: KeepBroken = False,
    model: Model = "default",
    force: Force = False,
    recursive: Recursive = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write tokens in another format, coded or packed, fewer levels of them, or fewer units.

    The tokens stay what they are, but for --n-units, which merges units that mean nearly the same.

    Example: audiovq repack tokens/ -o small/ --format avq --coded
    """
    suffix = suffix_of(out, TOKEN_SUFFIXES, token_format)
    if coded and suffix != ".avq":
        raise typer.BadParameter(f"--coded is for .avq, not {suffix}; add --format avq.")
    todo = plan(
        sources,
        out,
        TOKEN_SUFFIXES,
        lambda path: path.stem + suffix,
        TOKEN_SUFFIXES,
        recursive=recursive,
        what=f"token files ({', '.join(TOKEN_SUFFIXES)})",
    )
    codec = load_model(model)
    codec.check_n_q(n_q)
    if n_units is not None:
        codec.coarse_units(n_units)
    say_if_packed(codec, coded)

    def convert(source: str, target: str, on_progress: OnProgress) -> Done:
        from audiovq.transcode import repack_file

        done = repack_file(
            codec,
            source,
            target,
            n_q=n_q,
            n_units=n_units,
            token_format=suffix[1:],
            coded=coded,
            keep_broken=keep_broken,
            overwrite=force,
        )
        levels, frames = done.shape
        line = f"{source} -> {target}: {levels} levels, {frames} frames, {done.n_bytes} bytes"
        if done.broken is not None:
            line += f"; the source is not whole, its first {frames} frames are kept"
        facts = {"n_q": levels, "frames": frames, "seconds": done.seconds, "bytes": done.n_bytes}
        return Done(line, facts | {"whole": done.broken is None}, done.seconds)

    work(todo, convert, quiet=quiet, as_json=as_json)
