"""Live streams: audio to an `.avq` stream and back, from one pipe to the next, as it comes."""

import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np
import soxr
import torch

from audiovq.audio import (
    HIGHEST_RATE,
    LOWEST_RATE,
    UNKNOWN_LENGTH,
    as_int16,
    check_level,
    fit_length,
    wav_header,
)
from audiovq.codes import (
    CODED_MAGIC,
    FORMATS,
    MAGIC,
    Header,
    StreamReader,
    StreamWriter,
    unpack_avq,
)
from audiovq.files import FileRefused
from audiovq.model import AudioVQ
from audiovq.transcode import DECODE_FRAMES, as_array, as_tensor, check_header, check_levels

_CHUNK = 1 << 15  # bytes that are taken at once when more have come
_ENDLESS = 1 << 63
_LONGEST_HEADER = 1 << 26  # bytes before the samples; text and pictures of a recording fit

_FORMATS = {
    (1, 8): ("u1", 1 / 128),
    (1, 16): ("<i2", 1 / 32768),
    (1, 24): ("<i4", 1 / 2147483648),  # three bytes, below which comes a zero
    (1, 32): ("<i4", 1 / 2147483648),
    (3, 32): ("<f4", 1.0),
    (3, 64): ("<f8", 1.0),
}
"""How samples of a WAV format code and a number of bits are stored, and what makes them -1..1."""


@dataclass
class LiveReport:
    """What went through, and how long it took."""

    n_samples: int = 0
    """Samples at the model's rate."""
    compute_times: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 16))
    """Seconds from a chunk's arrival until its result was written, of the last 65,536 chunks."""
    resampling_delay: float = 0.0
    """Seconds that the resampler holds back; 0 when the input has the model's rate."""
    broken: str | None = None
    """Why the end of a stream to decode is missing; None when it is there."""


@dataclass(frozen=True)
class _Pcm:
    kind: int
    bits: int
    channels: int
    sample_rate: int
    n_bytes: int = _ENDLESS

    @property
    def size(self) -> int:
        """Bytes of a sample of all channels."""
        return self.channels * self.bits // 8

    def samples(self, data: bytes) -> np.ndarray:
        """Mono float32 [n] of whole samples, those of `AudioReader`, to the bit."""
        dtype, scale = _FORMATS[self.kind, self.bits]
        if self.bits == 24:
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = padded.tobytes()
        with np.errstate(over="ignore"):  # too large for float32 is infinity, and refused as such
            samples = np.frombuffer(data, dtype).astype(np.float32)
        if self.bits == 8:
            samples -= 128
        samples *= np.float32(scale)
        check_level(samples, "The input")
        return samples.reshape(-1, self.channels).mean(axis=1)


def encode_live(
    model: AudioVQ,
    source: BinaryIO,
    target: BinaryIO,
    *,
    n_q: int | None = None,
    raw_rate: int | None = None,
    coded: bool = False,
) -> LiveReport:
    """Encode WAV or raw PCM to a live `.avq` stream, each frame as soon as it is known.

    source: WAV of 8, 16, 24 or 32 bits or float samples. What follows the samples is left unread
        where the header says how long they are; 0 and the lengths that programs write to a pipe
        (near 2 and 4 GiB) say nothing, and the samples then last to the end.
    raw_rate: the source has no header; it is 16-bit little-endian mono at this rate in Hz.
    coded: code the tokens by the model's tables; they are packed where it has none.

    The tokens are those of `model.encode` on the whole sound. Raises `FileRefused` for a source
    that is empty or no such sound, and `ValueError` for n_q and raw_rate. Where samples that are
    refused come in the middle, the stream breaks off, so that nobody takes it for the whole.
    """
    n_q = model.check_n_q(n_q)
    report = LiveReport()
    if raw_rate is not None and not LOWEST_RATE <= raw_rate <= HIGHEST_RATE:
        raise ValueError(f"the rate must be {LOWEST_RATE} to {HIGHEST_RATE} Hz, not {raw_rate}.")
    pcm = _Pcm(1, 16, 1, raw_rate) if raw_rate is not None else _read_wav_header(source)
    rate = model.config.sample_rate
    resampler = None
    if pcm.sample_rate != rate:
        resampler = soxr.ResampleStream(pcm.sample_rate, rate, 1, dtype="float32")
    stream = model.stream(n_q)
    stream.encode(torch.zeros(1, 1, model.config.hop_length, device=model.device))  # warm up
    stream.flush_encode()
    tables = model.coding_tables() if coded else None
    writer = None
    n_read = 0
    for block in _read_pcm(source, pcm):
        start = time.perf_counter()
        if writer is None:
            writer = StreamWriter(target, model.header(n_q, 0), tables)
        n_read += len(block)
        if resampler is not None:
            block = resampler.resample_chunk(block)
            report.resampling_delay = max(report.resampling_delay, resampler.delay() / rate)
        report.n_samples += len(block)
        writer.write(as_array(stream.encode(_as_wav(block, model))))
        report.compute_times.append(time.perf_counter() - start)
    if writer is None:
        raise FileRefused("The input holds no samples; pipe sound into it.")
    if resampler is not None:
        block = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        due = max(1, round(n_read * rate / pcm.sample_rate)) - report.n_samples
        block = fit_length(block, due)
        report.n_samples += len(block)
        writer.write(as_array(stream.encode(_as_wav(block, model))))
    writer.write(as_array(stream.flush_encode()))
    writer.end(report.n_samples)
    return report


def decode_live(
    model: AudioVQ,
    source: BinaryIO,
    target: BinaryIO,
    *,
    n_q: int | None = None,
    raw: bool = False,
    keep_broken: bool = False,
) -> LiveReport:
    """Decode an `.avq` stream to 16-bit WAV, each frame as soon as it is known.

    source: a live stream, or a whole `.avq` file, whose checksum at its end comes before any sound.
    n_q: levels to decode, at most those of the stream; all of them when None.
    raw: write the samples without a WAV header.
    keep_broken: report a stream that is damaged or breaks off as `broken` instead of raising.

    Raises `FileRefused` for a stream of another model, and for one that is damaged or breaks off,
    of which what came before has then been decoded to its end.
    """
    report = LiveReport()
    reader = _open_stream(source)
    check_header(model, reader.header, "the stream")
    n_q = check_levels(n_q, reader.header.n_q, "the stream")
    if not raw:
        target.write(wav_header(model.config.sample_rate))
        target.flush()
    stream = model.stream()
    for codes in reader:
        start = time.perf_counter()
        wav = stream.decode(as_tensor(codes[:n_q], model))
        report.n_samples += _write_pcm(target, wav)
        report.compute_times.append(time.perf_counter() - start)
    n_left = reader.header.n_samples - report.n_samples
    report.n_samples += _write_pcm(target, stream.flush_decode()[:, :, :n_left])
    report.broken = reader.broken
    if report.broken is not None and not keep_broken:
        raise FileRefused(report.broken)
    return report


@dataclass
class _Whole:
    """A whole `.avq` file, read as a `StreamReader` is."""

    header: Header
    codes: np.ndarray
    broken: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self.codes.shape[1], DECODE_FRAMES):
            yield self.codes[:, start : start + DECODE_FRAMES]


def _open_stream(source: BinaryIO) -> StreamReader | _Whole:
    magic = source.read(4)
    if not magic:
        raise FileRefused("The input is empty; pipe an .avq stream into it.")
    if FORMATS["npy"].magic.startswith(magic):
        raise FileRefused(
            "The input is .npy, which says neither its model nor its samples; give it to "
            "audiovq decode, or encode to .avq."
        )
    if magic not in (MAGIC, CODED_MAGIC):
        return StreamReader(source, magic=magic, keep_broken=True)
    tokens = unpack_avq(magic + source.read())
    assert tokens.header is not None  # .avq has one
    return _Whole(tokens.header, tokens.indices)


def _read_pcm(source: BinaryIO, pcm: _Pcm) -> Iterator[np.ndarray]:
    """Mono float32 blocks [n], n >= 1, as they come."""
    # A buffered pipe gives what is there; anything else is read to the end of the chunk.
    read = getattr(source, "read1", source.read)
    rest = b""
    left = pcm.n_bytes
    while data := read(min(_CHUNK, left)):
        left -= len(data)
        data = rest + data
        n_whole = len(data) // pcm.size * pcm.size
        rest = data[n_whole:]
        if not n_whole:
            continue
        yield pcm.samples(data[:n_whole])


def _read_wav_header(source: BinaryIO) -> _Pcm:
    """Read up to the first sample."""
    refused = FileRefused(
        "The input is not WAV with PCM or float samples; convert it "
        "(sox ... -b 16 -t wav -), or name the rate of raw samples with --raw --rate."
    )
    head = source.read(12)
    if not head:
        raise FileRefused("The input holds no samples; pipe sound into it.")
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        raise refused
    pcm = None
    long_length = 0  # of the samples, where 32 bits do not hold it
    left = _LONGEST_HEADER
    while True:
        chunk = source.read(8)
        if len(chunk) < 8:
            raise refused
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            break
        padded = length + length % 2
        left -= padded
        if left < 0:
            raise FileRefused(
                f"The input has {length} bytes of {name!r} before its samples; at most "
                f"{_LONGEST_HEADER} bytes of header are read."
            )
        content = source.read(min(padded, 40))
        _skip(source, padded - len(content))
        if name == b"ds64" and len(content) >= 16:
            (long_length,) = struct.unpack("<Q", content[8:16])
        elif name == b"fmt ":
            pcm = _parse_format(content)
            if pcm is None:
                raise refused
    if pcm is None:
        raise refused
    if head[:4] != b"RIFF" and length == UNKNOWN_LENGTH:
        return replace(pcm, n_bytes=long_length or _ENDLESS)
    return replace(pcm, n_bytes=_believed(length))


def _parse_format(content: bytes) -> _Pcm | None:
    """The content of a chunk `fmt `; None for samples that are stored otherwise."""
    if len(content) < 16:
        return None
    kind, channels, rate, _, size, bits = struct.unpack("<HHIIHH", content[:16])
    if kind == 0xFFFE and len(content) >= 26:  # the format follows in the extension
        (kind,) = struct.unpack("<H", content[24:26])
    pcm = _Pcm(kind, bits, channels, rate)
    if (kind, bits) not in _FORMATS or not channels or size not in (0, pcm.size):
        return None
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise FileRefused(
            f"The input has a rate of {rate} Hz; it must be {LOWEST_RATE} to {HIGHEST_RATE} Hz."
        )
    return pcm


def _believed(length: int) -> int:
    """The bytes of samples that a length in a header stands for.

    Programs that write to a pipe do not know it. ffmpeg and newer sox write 0xFFFFFFFF, older ones
    0 and 0x7FFFF000, the latter rounded down to whole samples; GStreamer writes 0x7FFF0000, lame
    0x7FFFFFFF, arecord 0x7FFFFF00 or 0x80000000. There may be a header's length less.
    """
    near_2_gib, near_4_gib = 0x7FFE0000 <= length <= 0x80000000, length >= 0xFFFE0000
    return _ENDLESS if not length or near_2_gib or near_4_gib else length


def _skip(source: BinaryIO, n_bytes: int) -> None:
    while n_bytes and (data := source.read(min(_CHUNK, n_bytes))):
        n_bytes -= len(data)


def _write_pcm(target: BinaryIO, wav: torch.Tensor) -> int:
    """Write wav [1, 1, n] as 16-bit samples; returns n."""
    samples = as_int16(wav.flatten().cpu().numpy()).astype("<i2")
    target.write(samples.tobytes())
    target.flush()
    return len(samples)


def _as_wav(block: np.ndarray, model: AudioVQ) -> torch.Tensor:
    check_level(block, "The input")  # resampled, a square wave reaches higher
    return torch.from_numpy(block)[None, None].to(model.device)
