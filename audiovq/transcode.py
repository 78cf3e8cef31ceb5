"""Files to files: audio to tokens and back, block by block, in bounded memory."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from audiovq.audio import AudioInfo, AudioReader, audio_writer
from audiovq.codes import (
    FORMATS,
    Header,
    Tokens,
    format_of,
    pack_avq,
    read_tokens,
    unpack_tokens,
)
from audiovq.config import ModelConfig
from audiovq.entry import entry
from audiovq.files import (
    STDIO,
    FileRefused,
    atomic_output,
    read_standard_input,
    read_text,
    refuse_existing,
    write_standard_output,
)
from audiovq.model import AudioVQ
from audiovq.segment import HEADER as SEGMENT_COLUMNS
from audiovq.segment import (
    SEGMENT_SUFFIX,
    DistanceBlocks,
    check_price,
    expand,
    from_text,
    parse_segments,
    price_for_rate,
    run_lengths,
    segment,
    write_segments,
)

ENCODE_FRAMES = 256
"""Frames whose distances to the codes are computed at once."""
DECODE_FRAMES = 512
"""Frames between two writes of decoded samples."""
OnProgress = Callable[[float, float | None], None]
"""Called every few seconds of audio with the seconds that are done, and with those in all, None
where the file does not know them."""
FIT_FILES = 40
FIT_SECONDS = 600
"""How many recordings `fit_price` listens to, and how many seconds of them all."""


@dataclass(frozen=True)
class Transcoded:
    """What was read and written."""

    source: AudioInfo | None
    """The audio that was encoded; None after decoding."""
    shape: tuple[int, int]
    """Levels and frames of the codes; of segments 1 and their number."""
    seconds: float
    """Duration of the audio at the model's rate."""
    n_bytes: int
    """Size of the token file."""
    broken: str | None = None
    """Why the end of a live stream is missing, of which the part before was to be kept."""


def encode_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    n_q: int | None = None,
    token_format: str = "npy",
    coded: bool = False,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Transcoded:
    """Encode an audio file to a token file; "-" is standard input or output.

    token_format: the name of one of `codes.FORMATS`. coded: code the tokens of an `.avq` file by
    the model's tables; they are packed where it has none.
    Raises `FileRefused` for either file and `ValueError` for n_q and token_format.
    """
    if token_format not in FORMATS:
        raise ValueError(f"token_format must be {' or '.join(FORMATS)}, not {token_format!r}.")
    n_q = model.check_n_q(n_q)
    if str(target) != STDIO:
        refuse_existing(target, overwrite=overwrite)  # before the work, not after it
    reader = AudioReader(source, model.config.sample_rate)
    stream = model.stream(n_q)
    parts = [
        as_array(stream.encode_blocks(torch.from_numpy(block)[None, None]))
        for block in _watched(reader, progress)
    ]
    parts.append(as_array(stream.flush_encode()))
    indices = np.concatenate(parts, axis=1)
    data = _pack(indices, model.header(n_q, reader.n_samples), token_format, model, coded=coded)
    _write(target, data, overwrite=overwrite)
    levels, frames = indices.shape
    seconds = reader.n_samples / reader.sample_rate
    return Transcoded(reader.source, (levels, frames), seconds, len(data))


def _pack(
    indices: np.ndarray, header: Header, token_format: str, model: AudioVQ, *, coded: bool
) -> bytes:
    if coded and token_format == "avq":
        return pack_avq(indices, header, model.coding_tables())
    return FORMATS[token_format].pack(indices, header)


def repack_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    n_q: int | None = None,
    n_units: int | None = None,
    token_format: str = "avq",
    coded: bool = False,
    keep_broken: bool = False,
    overwrite: bool = False,
) -> Transcoded:
    """Write the tokens of a file in another format; "-" is standard input or output.

    source: what `decode_file` takes. n_q: levels to keep, all when None. n_units: how many units
    to tell apart, all when None; see `AudioVQ.coarse_units`. token_format, coded: as in
    `encode_file`. Raises `FileRefused` for either file, and for tokens that another model made;
    `ValueError` for n_units.
    """
    coarse = None if n_units is None else model.coarse_units(n_units).numpy()
    if str(target) != STDIO:
        refuse_existing(target, overwrite=overwrite)
    tokens, header = _read_for(model, source, keep_broken=keep_broken)
    n_q = check_levels(n_q, header.n_q, str(source))
    header = replace(header, n_q=n_q, level_strides=header.level_strides[:n_q])
    indices = tokens.indices[:n_q]
    if coarse is not None:
        indices = np.concatenate([coarse[indices[:1]].astype(np.uint16), indices[1:]])
    data = _pack(indices, header, token_format, model, coded=coded)
    _write(target, data, overwrite=overwrite)
    seconds = header.n_samples / header.sample_rate
    return Transcoded(None, (n_q, header.n_frames), seconds, len(data), tokens.broken)


def _write(target: str | Path, data: bytes, *, overwrite: bool) -> None:
    if str(target) == STDIO:
        write_standard_output(data)
    else:
        with atomic_output(target, overwrite=overwrite) as temporary:
            temporary.write_bytes(data)


def _watched(reader: AudioReader, progress: OnProgress | None) -> Iterator[np.ndarray]:
    """The blocks of a recording; `progress` hears of each when it has been worked on."""
    total = reader.source.n_samples / reader.source.sample_rate or None
    for block in reader:
        yield block
        if progress is not None:
            progress(reader.n_samples / reader.sample_rate, total)


def segment_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    price: float | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Transcoded:
    """Encode an audio file to units with start and duration (tab-separated); see `segment`.

    price: of a segment; that of the model's card when None. The best segments depend on the whole
    recording, of which some hundred bytes a frame are kept. Raises `FileRefused`, and `ValueError`
    for the price.
    """
    price = check_price(_price_of_card(model) if price is None else price)
    refuse_existing(target, overwrite=overwrite)
    reader = AudioReader(source, model.config.sample_rate)
    distances = unit_distances(model, _watched(reader, progress))
    segments = run_lengths(segment(distances, price))
    write_segments(target, segments, frame_rate=model.config.level_rate(0), overwrite=overwrite)
    seconds = reader.n_samples / reader.sample_rate
    return Transcoded(reader.source, (1, len(segments)), seconds, Path(target).stat().st_size)


def fit_price(model: AudioVQ, sources: Sequence[str | Path], units_per_second: float) -> float:
    """The price of a segment that gives recordings about so many units a second.

    Listens to at most `FIT_FILES` of the sources, evenly spaced, and to the beginnings of them:
    `FIT_SECONDS` in all. Rounded to four digits, so that it can be written down, used for other
    recordings of the same kind, and set as `segment_price` in the model's card. Sources that are
    refused are left out.

    Raises `FileRefused` when all of them are, and `ValueError` when there is none.
    """
    if not units_per_second > 0:
        raise ValueError(f"units_per_second must be > 0, not {units_per_second}.")
    if not sources:
        raise ValueError("there are no recordings to find a price on; give at least one.")
    chosen = sources[:: math.ceil(len(sources) / FIT_FILES)]
    rate = model.config.sample_rate
    n_samples = round(FIT_SECONDS / len(chosen) * rate)
    heard, refused = [], None
    for source in chosen:
        try:
            blocks = _beginning(AudioReader(source, rate), n_samples)
            heard.append(unit_distances(model, blocks))
        except FileRefused as error:
            refused = error
    if not heard and refused is not None:
        raise refused
    price = price_for_rate(heard, units_per_second, frame_rate=model.config.level_rate(0))
    return float(f"{price:.4g}")


@entry
def unit_distances(model: AudioVQ, wav: Iterable[np.ndarray]) -> DistanceBlocks:
    """Squared distances of frames, or groups of them, to the codes of level 0, for `segment`.

    wav: float32 [n] at the model's rate, in blocks of any lengths: the distances do not depend on
    them. They are those of `AudioVQ.unit_distances` on the whole, but for rounding.
    """
    config, n_samples = model.config, 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in wav:
            n_samples += len(block)
            yield block

    encoder, buffer = model.encoder, io.BytesIO()  # arrays would litter the heap
    state = encoder.initial_state(1)[encoder.needed(1)]
    with torch.no_grad():
        for piece in _pieces(counted(), config):
            samples = torch.from_numpy(piece)[None, None].to(model.device)
            z, state = encoder.path(1)(samples, state)
            buffer.write(model.quantizer.unit_vectors(z).float().cpu().numpy().tobytes())
        table = model.quantizer.codebooks[0].vectors.cpu().numpy()
    vectors = np.frombuffer(buffer.getbuffer(), dtype=np.float32).reshape(-1, table.shape[1])
    first = config.first_frame // config.frames_per_code[0]
    return DistanceBlocks(vectors[first : first + config.n_codes(0, n_samples)], table)


def _pieces(wav: Iterable[np.ndarray], config: ModelConfig) -> Iterator[np.ndarray]:
    """The samples in pieces of whole groups of frames, with the silence around them."""
    hop = config.hop_length
    size = max(1, ENCODE_FRAMES // config.group_frames) * config.group_frames * hop
    n_samples, pending = 0, np.zeros(config.lead * hop, dtype=np.float32)
    for block in wav:
        n_samples += len(block)
        pending = np.concatenate([pending, block])
        while len(pending) >= size:
            yield pending[:size]
            pending = pending[size:]
    n_missing = (config.encoder_frames(n_samples) - config.lead) * hop - n_samples
    pending = np.pad(pending, (0, n_missing))
    for start in range(0, len(pending), size):
        yield pending[start : start + size]


def _beginning(reader: AudioReader, n_samples: int) -> Iterator[np.ndarray]:
    """The first blocks of a recording, with `n_samples` or a little more."""
    for block in reader:
        yield block
        n_samples -= len(block)
        if n_samples <= 0:
            return


def _price_of_card(model: AudioVQ) -> float:
    price = model.card.get("segment_price")
    if price is None:
        raise ValueError(
            f"the card of {model.name} has no segment_price; give --price, or --rate to find one."
        )
    if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
        raise FileRefused(
            f"the card of {model.name} has the segment_price {price!r}; it is a number >= 0."
        )
    return float(price)


def decode_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    n_q: int | None = None,
    keep_broken: bool = False,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Transcoded:
    """Decode a token file to 16-bit mono audio; "-" is standard input or output.

    source: `.npy` of tokens [n_q, T] or units [T], `.avq` of either form, segments (`.tsv`), or
        units as text (`.txt`), one line that `segment.from_text` reads.
    n_q: levels to decode, at most those of the file; all of them when None.
    keep_broken: of a live stream that breaks off or is damaged, decode what came before.

    Raises `FileRefused` for either file, and for tokens that another model made.
    """
    if str(target) != STDIO:
        refuse_existing(target, overwrite=overwrite)
    tokens, header = _read_for(model, source, keep_broken=keep_broken)
    frames = tokens.indices.shape[1]
    levels = check_levels(n_q, header.n_q, str(source))
    n_left = n_samples = header.n_samples
    stream, rate = model.stream(), model.config.sample_rate
    with audio_writer(target, rate, n_samples=n_samples, overwrite=overwrite) as file:
        for start in range(0, frames, DECODE_FRAMES):
            block = tokens.indices[:levels, start : start + DECODE_FRAMES]
            wav = stream.decode(as_tensor(block, model)).flatten().cpu().numpy()
            file.write(wav[:n_left])
            n_left -= len(wav[:n_left])
            if progress is not None:
                n_passed = min((start + block.shape[1]) * model.config.hop_length, n_samples)
                progress(n_passed / rate, n_samples / rate)
        file.write(stream.flush_decode().flatten().cpu().numpy()[:n_left])
    n_bytes = 0 if str(source) == STDIO else Path(source).stat().st_size
    return Transcoded(None, (levels, frames), n_samples / rate, n_bytes, tokens.broken)


def _read_for(model: AudioVQ, source: str | Path, *, keep_broken: bool) -> tuple[Tokens, Header]:
    """Tokens of the model and their header, which says whole frames where the file has none."""
    tokens = _read(source, model.config, keep_broken=keep_broken)
    levels, frames = tokens.indices.shape
    if tokens.header is not None:
        check_header(model, tokens.header, str(source))
    try:
        model.check_n_q(levels)
        model.check_range(0, int(tokens.indices.max()))
    except ValueError as error:
        raise FileRefused(f"{source} does not fit the model {model.name}: {error}") from error
    if tokens.npy_strides:
        _check_strides(model, tokens.npy_strides, levels, str(source))
    return tokens, tokens.header or model.header(levels, frames * model.config.hop_length)


def check_header(model: AudioVQ, header: Header, name: str) -> None:
    """Raise `FileRefused` when tokens with this header are not of the model.

    name: of the file, for the message.
    """
    if header.fingerprint != model.fingerprint:
        raise FileRefused(
            f"{name} was made by model {header.model} ({header.fingerprint}), not by "
            f"{model.name} ({model.fingerprint}); name that model with --model."
        )
    own = model.header(model.config.n_codebooks, 0)
    for field in ("sample_rate", "hop_length", "codebook_size", "n_q"):
        says, has = getattr(header, field), getattr(own, field)
        if says > has or (says != has and field != "n_q"):
            raise FileRefused(
                f"{name} says {field} {says}, which {model.name} ({has}) cannot have made; "
                "encode the audio again."
            )
    _check_strides(model, header.level_strides, header.n_q, name)


def _check_strides(model: AudioVQ, strides: tuple[int, ...], levels: int, name: str) -> None:
    has = model.header(levels, 0).level_strides
    if strides != has:
        raise FileRefused(
            f"{name} says level_strides {list(strides)}, which {model.name} ({list(has)}) cannot "
            "have made; name the model that did with --model."
        )


def check_levels(n_q: int | None, levels: int, name: str) -> int:
    """`n_q`, or all `levels` of the file when it is None. Raises `FileRefused` beyond them."""
    if n_q is None:
        return levels
    if not 1 <= n_q <= levels:
        raise FileRefused(f"{name} has {levels} levels; n_q must be in 1..{levels}, not {n_q}.")
    return n_q


def _read(source: str | Path, config: ModelConfig, *, keep_broken: bool) -> Tokens:
    """The tokens in any of the forms that `decode_file` takes."""
    suffix = Path(source).suffix.lower()
    if str(source) == STDIO:
        data = read_standard_input()
        if format_of(data):
            return unpack_tokens(data, str(source), keep_broken=keep_broken)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return unpack_tokens(data, str(source))  # refuses it
    elif suffix in (SEGMENT_SUFFIX, ".txt"):
        text = read_text(source)
    else:
        return read_tokens(source, keep_broken=keep_broken)
    if suffix == SEGMENT_SUFFIX or text.startswith(SEGMENT_COLUMNS[0]):
        units = expand(parse_segments(text, source, frame_rate=config.frame_rate))
    else:
        try:
            units = from_text(text, config.frames_per_code[0])
        except ValueError as error:
            raise FileRefused(f"{source} is not units as text: {error}") from error
        if not len(units):
            raise FileRefused(f"{source} holds no units.")
    return Tokens(units.astype(np.uint16)[None])


def as_tensor(codes: np.ndarray, model: AudioVQ) -> torch.Tensor:
    """Codes [n_q, T] as int64 [1, n_q, T] where the model is."""
    return torch.from_numpy(codes.astype(np.int64))[None].to(model.device)


def as_array(codes: torch.Tensor) -> np.ndarray:
    """Codes [1, n_q, T] of a stream as uint16 [n_q, T]."""
    return codes[0].cpu().numpy().astype(np.uint16)
