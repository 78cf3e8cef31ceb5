"""`audiovq encode`: audio to tokens."""

import enum
from pathlib import Path
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


class TokenFormat(enum.StrEnum):
    """Kinds of token files."""

    NPY = "npy"
    AVQ = "avq"


def encode(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|DIR...", help='Audio; "-" is standard input.')
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", help="File or folder to write; beside the source if not given."
        ),
    ] = None,
    n_q: Annotated[
        int | None,
        typer.Option("--n-q", help="Levels to keep; fewer are fewer bits. All if unset."),
    ] = None,
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    token_format: Annotated[
        TokenFormat | None,
        typer.Option(
            "--format", help="npy: a plain array. avq: compact and checked. By the output's name."
        ),
    ] = None,
    force: Force = False,
    recursive: Recursive = False,
    segment: Annotated[
        bool,
        typer.Option("--segment", help="Write units with start and duration (.tsv) instead."),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(help="Of a segment: higher is fewer and longer ones. The model's if unset."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="With --segment: find the price that gives these sources so many a second.",
        ),
    ] = None,
) -> None:
    """Turn audio into tokens.

    Any rate and number of channels that libsndfile reads: WAV, FLAC, OGG, MP3, Opus, ...

    Example: audiovq encode speech.wav -o speech.npy
    """
    suffix = ".tsv" if segment else _suffix(out, token_format)
    pairs = plan(
        sources,
        out,
        _audio_suffixes(),
        lambda path: path.stem + suffix,
        recursive=recursive,
        what="audio files",
    )
    if segment and any(target == STDIO for _, target in pairs):
        raise typer.BadParameter("segments go to a file; name one with -o.")
    if rate is not None:
        _check_rate(segment, price, sources)
    codec = load_model(model, device)
    codec.check_n_q(n_q)
    if rate is not None:
        from audiovq.transcode import fit_price

        price = fit_price(codec, [source for source, _ in pairs], rate)
        typer.echo(f"price for {rate:g} segments a second: --price {price:g}", err=True)

    def convert(source: str, target: str) -> float:
        from audiovq.transcode import encode_file, segment_file

        if segment:
            done = segment_file(codec, source, target, price=price, overwrite=force)
            what = f"{done.shape[1]} segments, {done.shape[1] / done.seconds:.1f} a second"
        else:
            done = encode_file(
                codec, source, target, n_q=n_q, token_format=suffix[1:], overwrite=force
            )
            levels, frames = done.shape
            what = f"{levels} x {frames} tokens, {codec.config.bitrate(levels) / 1000:g} kbit/s"
        if done.source is not None and done.source.channels > 1:
            typer.echo(f"{source}: {done.source.channels} channels mixed down to one.", err=True)
        typer.echo(
            f"{source} -> {target}: {what}, {done.seconds:.2f} s, {done.n_bytes} bytes",
            err=target == STDIO,
        )
        return done.seconds

    finish(each(pairs, convert), len(pairs))


def _check_rate(segment: bool, price: float | None, sources: list[str]) -> None:
    if not segment:
        raise typer.BadParameter("--rate goes with --segment.")
    if price is not None:
        raise typer.BadParameter("give --price or --rate, not both.")
    if STDIO in sources:
        raise typer.BadParameter("--rate listens twice; give a file, or --price.")


def _suffix(out: str | None, token_format: TokenFormat | None) -> str:
    named = Path(out).suffix if out and out != STDIO and not Path(out).is_dir() else ""
    if named in (".npy", ".avq"):
        if token_format is not None and named != f".{token_format}":
            raise typer.BadParameter(f"--format {token_format} contradicts the name {out}.")
        return named
    return f".{token_format or TokenFormat.NPY}"


def _audio_suffixes() -> list[str]:
    import soundfile

    names = [name.lower() for name in soundfile.available_formats()]
    return [f".{name}" for name in [*names, "aif", "opus", "oga"] if name != "raw"]
