"""Live streams: audio to an `.avq` stream and back, from one pipe to the next, as it comes."""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import soxr
import torch

from audiovq.codes import StreamReader, StreamWriter
from audiovq.files import FileRefused
from audiovq.model import AudioVQ

_CHUNK = 1 << 15  # bytes that are taken at once when more have come
_UNKNOWN = 0xFFFFFFFF  # length in the header of a WAV stream that has not ended


@dataclass
class LiveReport:
    """What went through, and how long it took."""

    n_samples: int = 0
    """Samples at the model's rate."""
    compute_times: list[float] = field(default_factory=list)
    """Seconds from a chunk's arrival until its result was written, chunk by chunk."""
    resampling_delay: float = 0.0
    """Seconds that the resampler holds back; 0 when the input has the model's rate."""


@dataclass(frozen=True)
class _Pcm:
    dtype: str
    channels: int
    sample_rate: int


def encode_live(
    model: AudioVQ,
    source: BinaryIO,
    target: BinaryIO,
    *,
    n_q: int | None = None,
    raw_rate: int | None = None,
) -> LiveReport:
    """Encode WAV or raw PCM to a live `.avq` stream, each frame as soon as it is known.

    raw_rate: the source has no header; it is 16-bit little-endian mono at this rate in Hz.

    The tokens are those of `model.encode` on the whole sound. Raises `FileRefused` for a source
    that is empty or not WAV of 16-bit or float samples, and `ValueError` for n_q.
    """
    n_q = model.check_n_q(n_q)
    report = LiveReport()
    pcm = _Pcm("<i2", 1, raw_rate) if raw_rate is not None else _read_wav_header(source)
    rate = model.config.sample_rate
    resampler = None
    if pcm.sample_rate != rate:
        resampler = soxr.ResampleStream(pcm.sample_rate, rate, 1, dtype="float32")
    stream = model.stream(n_q)
    stream.encode(torch.zeros(1, 1, model.config.hop_length, device=model.device))  # warm up
    stream.flush_encode()
    writer = None
    n_read = 0
    for block in _read_pcm(source, pcm):
        start = time.perf_counter()
        if writer is None:
            writer = StreamWriter(target, model.header(n_q, 0))
        n_read += len(block)
        if resampler is not None:
            block = resampler.resample_chunk(block)
            report.resampling_delay = max(report.resampling_delay, resampler.delay() / rate)
        report.n_samples += len(block)
        writer.write(_as_uint16(stream.encode(_as_wav(block, model))))
        report.compute_times.append(time.perf_counter() - start)
    if writer is None:
        raise FileRefused("The input holds no samples; pipe sound into it.")
    if resampler is not None:
        block = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        due = max(1, round(n_read * rate / pcm.sample_rate)) - report.n_samples
        block = np.pad(block, (0, max(0, due - len(block))))[:due]
        report.n_samples += len(block)
        writer.write(_as_uint16(stream.encode(_as_wav(block, model))))
    writer.write(_as_uint16(stream.flush_encode()))
    writer.end(report.n_samples)
    return report


def decode_live(
    model: AudioVQ, source: BinaryIO, target: BinaryIO, *, raw: bool = False
) -> LiveReport:
    """Decode a live `.avq` stream to 16-bit WAV, each frame as soon as it is known.

    raw: write the samples without a WAV header.

    Raises `FileRefused` for a stream of another model, and for one that is damaged or breaks off.
    """
    report = LiveReport()
    reader = StreamReader(source)
    header = reader.header
    if header.fingerprint != model.fingerprint:
        raise FileRefused(
            f"The stream was made by model {header.model} ({header.fingerprint}), not by "
            f"{model.name} ({model.fingerprint}); name that model with --model."
        )
    model.check_n_q(header.n_q)
    if not raw:
        target.write(_wav_header(model.config.sample_rate))
        target.flush()
    stream = model.stream()
    for codes in reader:
        start = time.perf_counter()
        indices = torch.from_numpy(codes.astype(np.int64))[None].to(model.device)
        report.n_samples += _write_pcm(target, stream.decode(indices))
        report.compute_times.append(time.perf_counter() - start)
    n_left = reader.header.n_samples - report.n_samples
    report.n_samples += _write_pcm(target, stream.flush_decode()[:, :, :n_left])
    return report


def _read_pcm(source: BinaryIO, pcm: _Pcm) -> Iterator[np.ndarray]:
    """Mono float32 blocks [n], n >= 1, as they come."""
    size = np.dtype(pcm.dtype).itemsize * pcm.channels
    # A buffered pipe gives what is there; anything else is read to the end of the chunk.
    read = getattr(source, "read1", source.read)
    rest = b""
    while data := read(_CHUNK):
        data = rest + data
        n_whole = len(data) // size * size
        rest = data[n_whole:]
        if not n_whole:
            continue
        samples = np.frombuffer(data[:n_whole], pcm.dtype).reshape(-1, pcm.channels)
        scale = 1.0 if samples.dtype.kind == "f" else 1 / 32768
        block = samples.astype(np.float32).mean(axis=1) * np.float32(scale)
        if not np.isfinite(block).all():
            raise FileRefused("The input holds samples that are not finite (NaN or infinity).")
        yield block


def _read_wav_header(source: BinaryIO) -> _Pcm:
    """Read up to the first sample. The lengths in the header are not believed: a pipe has none."""
    refused = FileRefused(
        "The input is not WAV with 16-bit or float samples; convert it "
        "(sox ... -b 16 -t wav -), or name the rate of raw samples with --raw --rate."
    )
    head = source.read(12)
    if not head:
        raise FileRefused("The input holds no samples; pipe sound into it.")
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise refused
    pcm = None
    while True:
        chunk = source.read(8)
        if len(chunk) < 8:
            raise refused
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            break
        content = source.read(length + length % 2)
        if name == b"fmt " and len(content) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if kind == 0xFFFE and len(content) >= 26:  # the format follows in the extension
                (kind,) = struct.unpack("<H", content[24:26])
            dtype = {(1, 16): "<i2", (3, 32): "<f4"}.get((kind, bits))
            if dtype is None or not channels or not rate:
                raise refused
            pcm = _Pcm(dtype, channels, rate)
    if pcm is None:
        raise refused
    return pcm


def _wav_header(sample_rate: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", len(form))
        + form
        + struct.pack("<4sI", b"data", _UNKNOWN)
    )


def _write_pcm(target: BinaryIO, wav: torch.Tensor) -> int:
    """Write wav [1, 1, n] as 16-bit samples; returns n."""
    samples = (wav.flatten() * 32768).round().clamp(-32768, 32767).cpu().numpy().astype("<i2")
    target.write(samples.tobytes())
    target.flush()
    return len(samples)


def _as_wav(block: np.ndarray, model: AudioVQ) -> torch.Tensor:
    return torch.from_numpy(block)[None, None].to(model.device)


def _as_uint16(codes: torch.Tensor) -> np.ndarray:
    return codes[0].cpu().numpy().astype(np.uint16)
