"""`audiovq encode`: audio to tokens."""

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audiovq.codes import FORMATS, TOKEN_SUFFIXES
from audiovq.flatten import count_codes
from audiovq.segment import SEGMENT_SUFFIX, check_price

from .options import (
    Coded,
    Device,
    DeviceOption,
    Force,
    Json,
    Model,
    Quiet,
    Recursive,
    load_model,
    say_if_packed,
)
from .plan import STDIO, names_folder, plan, read_list, share_of
from .work import Done, OnProgress, work

if TYPE_CHECKING:
    from audiovq import AudioVQ
    from audiovq.config import ModelConfig
    from audiovq.transcode import Transcoded


class TokenFormat(enum.StrEnum):
    """Kinds of token files: those of `FORMATS`."""

    _ignore_ = "members name"
    members = vars()
    for name in FORMATS:
        members[name.upper()] = name


def encode(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|DIR...", help='Audio; "-" is standard input.'),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            help="File (.npy, .avq; .tsv of segments) or folder to write; beside the source if "
            "not given. A name without a suffix is a folder, as is one that ends in /.",
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
            "--format",
            help=" ".join(f"{kind.name}: {kind.about}." for kind in FORMATS.values())
            + " By the output's name.",
        ),
    ] = None,
    coded: Coded = False,
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
    files_from: Annotated[
        str | None,
        typer.Option("--files-from", metavar="LIST", help="Also the files in LIST, one a line."),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave outputs that are whole and of this model."),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that encode.")] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Every N-th file from the I-th on.")
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option("--manifest", metavar="FILE", help="Append a JSON object a file, as --json."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn audio into tokens.

    Any rate and number of channels that libsndfile reads: WAV, FLAC, OGG, MP3, Opus, ...

    Example: audiovq encode speech.wav -o speech.npy
    """
    from audiovq.audio import audio_suffixes

    _refuse_unused(segment, n_q=n_q, token_format=token_format, price=price)
    formats = (SEGMENT_SUFFIX,) if segment else TOKEN_SUFFIXES
    suffix = suffix_of(out, formats, token_format)
    sources = sources or []
    if not sources and files_from is None:
        raise typer.BadParameter("there is nothing to encode; name files, or --files-from LIST.")
    if force and skip_existing:
        raise typer.BadParameter("--force and --skip-existing contradict each other.")
    todo = plan(
        sources,
        out,
        audio_suffixes(),
        lambda path: path.stem + suffix,
        formats,
        recursive=recursive,
        what="audio files",
        listed=read_list(files_from) if files_from is not None else (),
    )
    if coded and suffix != ".avq":
        raise typer.BadParameter(f"--coded is for .avq, not {suffix}; add --format avq.")
    if segment and any(target == STDIO for _, target in todo.pairs):
        raise typer.BadParameter("segments go to a file; name one with -o.")
    everything = [source for source, _ in todo.pairs]  # all shards have one price
    share_of(todo, shard)
    if rate is not None:
        _check_rate(segment, price, sources)
    codec = load_model(model, device)
    codec.check_n_q(n_q)
    say_if_packed(codec, coded)
    if segment and price is None and rate is None and "segment_price" not in codec.card:
        raise typer.BadParameter(
            f"the card of {codec.name} has no segment_price; give --price, or --rate to find one."
        )
    if rate is not None:
        from audiovq.transcode import fit_price

        price = fit_price(codec, everything, rate)
        typer.echo(f"price for {rate:g} segments a second: --price {price:g}", err=True)
    convert = _Converter(
        model,
        device,
        suffix,
        n_q,
        price,
        coded=coded,
        overwrite=force,
        skip=skip_existing,
        codec=codec,
    )
    work(todo, convert, quiet=quiet, as_json=as_json, jobs=jobs, manifest=manifest)


@dataclass
class _Converter:
    """Encodes a file. To another process it goes without its model, which is loaded there."""

    model: str
    device: Device
    suffix: str
    n_q: int | None
    price: float | None
    coded: bool
    overwrite: bool
    skip: bool
    codec: "AudioVQ | None"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "codec": None}

    def load(self) -> None:
        """Load the model, in a process that is one of many: it computes on one thread."""
        import torch

        torch.set_num_threads(1)
        self.codec = load_model(self.model, self.device)

    def __call__(self, source: str, target: str, on_progress: OnProgress) -> Done:
        from audiovq.transcode import encode_file, segment_file

        assert self.codec is not None
        overwrite = self.overwrite
        if self.skip and os.path.lexists(target) and target != STDIO:
            if is_whole(self.codec, target, self.n_q):
                line = f"{source} -> {target}: is there already"
                return Done(line, {"skipped": True}, 0.0, skipped=True)
            overwrite = True
        if self.suffix == SEGMENT_SUFFIX:
            done = segment_file(
                self.codec,
                source,
                target,
                price=self.price,
                overwrite=overwrite,
                progress=on_progress,
            )
            return _of_segments(source, target, done)
        done = encode_file(
            self.codec,
            source,
            target,
            n_q=self.n_q,
            token_format=self.suffix[1:],
            coded=self.coded,
            overwrite=overwrite,
            progress=on_progress,
        )
        return _of_tokens(source, target, done, self.codec.config)


def is_whole(codec: "AudioVQ", target: str, n_q: int | None) -> bool:
    """Whether a file is what this command would write with this model, as far as it says.

    `.avq` says its model and has a checksum; `.npy` has as many levels at the same rates and no
    code that the model has not; segments can be read.
    """
    from audiovq.codes import read_tokens
    from audiovq.files import FileRefused
    from audiovq.segment import read_segments

    try:
        if target.lower().endswith(SEGMENT_SUFFIX):
            return bool(read_segments(target, frame_rate=codec.config.level_rate(0)))
        tokens = read_tokens(target)
    except FileRefused:
        return False
    levels, header = len(tokens.indices), tokens.header
    return (
        levels == codec.check_n_q(n_q)
        and tokens.level_strides == codec.header(levels, 0).level_strides
        and int(tokens.indices.max()) < codec.config.codebook_size
        and (header is None or header.fingerprint == codec.fingerprint)
    )


def _of_segments(source: str, target: str, done: "Transcoded") -> Done:
    n_segments = done.shape[1]
    what = f"{n_segments} segments, {n_segments / done.seconds:.1f} a second"
    return _done(source, target, done, what, {"segments": n_segments})


def _of_tokens(source: str, target: str, done: "Transcoded", config: "ModelConfig") -> Done:
    levels, frames = done.shape
    bitrate, counted = config.bitrate(levels), f"{levels} x {frames} tokens"
    if config.level_strides:
        counted = f"{count_codes(frames, config.frames_per_code[:levels])} tokens, {levels} levels"
    what = f"{counted}, {bitrate / 1000:g} kbit/s"
    return _done(source, target, done, what, {"n_q": levels, "frames": frames, "bitrate": bitrate})


def _done(source: str, target: str, done: "Transcoded", what: str, facts: dict[str, Any]) -> Done:
    line = f"{source} -> {target}: {what}, {done.seconds:.2f} s, {done.n_bytes} bytes"
    facts |= {"seconds": done.seconds, "bytes": done.n_bytes}
    notes = []
    if done.source is not None and done.source.channels > 1:
        notes.append(f"{source}: {done.source.channels} channels mixed down to one.")
    return Done(line, facts, done.seconds, notes)


def _refuse_unused(
    segment: bool, *, n_q: int | None, token_format: TokenFormat | None, price: float | None
) -> None:
    """Refuse options that would be ignored, and a price that is none."""
    if price is not None:
        if not segment:
            raise typer.BadParameter("--price is for --segment; add --segment or leave it out.")
        check_price(price)
    if segment and n_q is not None:
        raise typer.BadParameter("--segment writes units, which are one level; leave out --n-q.")
    if segment and token_format is not None:
        raise typer.BadParameter("--segment writes a table (.tsv); leave out --format.")


def _check_rate(segment: bool, price: float | None, sources: list[str]) -> None:
    if not segment:
        raise typer.BadParameter("--rate goes with --segment.")
    if price is not None:
        raise typer.BadParameter("give --price or --rate, not both.")
    if STDIO in sources:
        raise typer.BadParameter("--rate listens twice; give a file, or --price.")


def suffix_of(out: str | None, formats: tuple[str, ...], token_format: TokenFormat | None) -> str:
    """The suffix of what is written: that of the output's name, or else the format's."""
    if out is not None and out != STDIO and not names_folder(out, formats):
        named = Path(out).suffix.lower()
        if token_format is not None and named != f".{token_format}":
            raise typer.BadParameter(f"--format {token_format} contradicts the name {out}.")
        return named
    return f".{token_format}" if token_format else formats[0]
