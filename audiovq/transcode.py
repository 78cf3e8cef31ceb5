"""Files to files: audio to tokens and back, block by block, in bounded memory."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiovq.audio import STDIO, AudioInfo, AudioReader, audio_writer
from audiovq.codes import npy_bytes, pack_avq, read_tokens, unpack_tokens
from audiovq.files import FileRefused, atomic_output, refuse_existing
from audiovq.model import AudioVQ
from audiovq.segment import run_lengths, segment, write_segments

DECODE_FRAMES = 512
"""Frames between two writes of decoded samples."""


@dataclass(frozen=True)
class Transcoded:
    """What was read and written."""

    source: AudioInfo | None
    """The audio that was encoded; None after decoding."""
    shape: tuple[int, int]
    """Levels and frames of the codes."""
    seconds: float
    """Duration of the audio at the model's rate."""
    n_bytes: int
    """Size of the token file."""


def encode_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    n_q: int | None = None,
    token_format: str = "npy",
    overwrite: bool = False,
) -> Transcoded:
    """Encode an audio file to a token file; "-" is standard input or output.

    token_format: "npy" or "avq". Raises `FileRefused` for either file and `ValueError` for n_q.
    """
    n_q = model.check_n_q(n_q)
    if str(target) != STDIO:
        refuse_existing(target, overwrite=overwrite)  # before the work, not after it
    reader = AudioReader(source, model.config.sample_rate)
    stream = model.stream(n_q)
    n_samples, parts = 0, []
    for block in reader:
        n_samples += len(block)
        try:
            parts.append(_as_numpy(stream.encode_blocks(torch.from_numpy(block)[None, None])))
        except ValueError as error:
            raise FileRefused(f"{source} cannot be encoded: {error}") from error
    parts.append(_as_numpy(stream.flush_encode()))
    indices = np.concatenate(parts, axis=1)
    if token_format == "avq":
        data = pack_avq(indices, model.header(n_q, n_samples))
    else:
        data = npy_bytes(indices)
    if str(target) == STDIO:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with atomic_output(target, overwrite=overwrite) as temporary:
            temporary.write_bytes(data)
    levels, frames = indices.shape
    seconds = n_samples / model.config.sample_rate
    return Transcoded(reader.source, (levels, frames), seconds, len(data))


def segment_file(
    model: AudioVQ,
    source: str | Path,
    target: str | Path,
    *,
    price: float | None = None,
    overwrite: bool = False,
) -> Transcoded:
    """Encode an audio file to units with start and duration (tab-separated); see `segment`.

    price: of a segment; that of the model's card when None. The best segments depend on the whole
    recording, which is held in memory. Raises `FileRefused`.
    """
    if price is None:
        price = model.card.get("segment_price")
    if price is None:
        raise ValueError(f"the card of {model.name} has no segment_price; give --price.")
    refuse_existing(target, overwrite=overwrite)
    reader = AudioReader(source, model.config.sample_rate)
    wav = torch.from_numpy(np.concatenate(list(reader)))[None, None].to(model.device)
    n_samples = wav.shape[2]
    distances = model.unit_distances(wav)[0].cpu().numpy()
    segments = run_lengths(segment(distances, price))
    write_segments(target, segments, frame_rate=model.config.frame_rate, overwrite=overwrite)
    seconds = n_samples / model.config.sample_rate
    return Transcoded(reader.source, (1, len(segments)), seconds, Path(target).stat().st_size)


def decode_file(
    model: AudioVQ, source: str | Path, target: str | Path, *, overwrite: bool = False
) -> Transcoded:
    """Decode a token file to 16-bit mono audio; "-" is standard input or output.

    Raises `FileRefused` for either file, and for tokens that another model made.
    """
    if str(target) != STDIO:
        refuse_existing(target, overwrite=overwrite)
    tokens = unpack_tokens(sys.stdin.buffer.read(), "-") if str(source) == STDIO else None
    tokens = tokens or read_tokens(source)
    header, hop = tokens.header, model.config.hop_length
    if header is not None and header.fingerprint != model.fingerprint:
        raise FileRefused(
            f"{source} was made by model {header.model} ({header.fingerprint}), not by "
            f"{model.name} ({model.fingerprint}); name that model with --model."
        )
    levels, frames = tokens.indices.shape
    try:
        model.check_n_q(levels)
        model.check_range(0, int(tokens.indices.max()))
    except ValueError as error:
        raise FileRefused(f"{source} does not fit the model {model.name}: {error}") from error
    n_left = n_samples = header.n_samples if header is not None else frames * hop
    codes = torch.from_numpy(tokens.indices.astype(np.int64))[None].to(model.device)
    stream = model.stream()
    with audio_writer(target, model.config.sample_rate, overwrite=overwrite) as file:
        for block in codes.split(DECODE_FRAMES, dim=2):
            wav = stream.decode(block).flatten().cpu().numpy()
            file.write(wav[:n_left])
            n_left -= len(wav[:n_left])
        file.write(stream.flush_decode().flatten().cpu().numpy()[:n_left])
    n_bytes = 0 if str(source) == STDIO else Path(source).stat().st_size
    return Transcoded(None, (levels, frames), n_samples / model.config.sample_rate, n_bytes)


def _as_numpy(codes: torch.Tensor) -> np.ndarray:
    """Codes [1, n_q, T] of a stream as uint16 [n_q, T]."""
    return codes[0].cpu().numpy().astype(np.uint16)
