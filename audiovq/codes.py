"""Token files: `.npy`, plain and readable anywhere, and `.avq`, compact and checked.

`.npy` holds a uint16 array [n_q, T] and nothing else, or the levels of a model that has them at
several rates (`npy_bytes`). `.avq` is a bitstream of one of two forms, which the magic tells apart.
A whole recording:

    bytes   field
    4       magic "AVQ1" (the last character is the format's version)
    2       length of the header in bytes, big-endian
    n       header, JSON in UTF-8: the fields of `Header`, of level_strides none when all are 1
    m       codes, frame by frame, level by level, ceil(log2 K) bits each, zero bits to a byte; a
            code of several frames at the first of them alone (`flatten`)
    4       CRC32 of all bytes before it, big-endian

A live stream, whose length is not known when it begins (`StreamWriter`, `StreamReader`):

    bytes   field
    4       magic "AVQS"
    2, n    length and header as above, but for n_samples, which is 0
    4       CRC32 of all bytes before it
    then any number of chunks:
    2       number of frames in the chunk, 1 .. 65535, big-endian; but for the last chunk, a
            multiple of the largest of level_strides
    m       codes of these frames, packed as above, zero bits to a byte
    4       CRC32 of all bytes before it, from the start of the stream
    and the end:
    2       0
    8       number of samples, big-endian
    4       CRC32 of all bytes before it

Because each checksum covers all that came before, a chunk that is lost, doubled or moved is found.
A stored live stream is a token file like any other.

In version 2 of either form, magic "AVQ2" and "AVQT", a model's tables code the codes in fewer bits
(`audiovq.entropy`). The key of the tables follows the header, and where a stream says how many
frames a chunk has, it also says how many bytes: docs/reference/file_formats.md has all of them. A
piece that is as long as its codes when packed is packed: none is coded that would be longer, or
shorter than a byte for `_MOST_CODES_A_BYTE` codes.

Nothing is ever unpickled. `FORMATS` lists the kinds of files: a further one is a pair of functions
and an entry there.
"""

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from audiovq import entropy
from audiovq.files import FileRefused, atomic_output, refuse_unreadable
from audiovq.flatten import (
    checked_strides,
    codes_per_second,
    compact,
    count_codes,
    join_levels,
    spread,
)

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"AVQ1"
STREAM_MAGIC = b"AVQS"
CODED_MAGIC = b"AVQ2"
CODED_STREAM_MAGIC = b"AVQT"
_NPY_MAGIC = b"\x93NUMPY"
_PACKED_AT_ONCE = 8192  # codes, about
_MOST_CODES_A_BYTE = 16  # or a small file could claim very many
_LIMITS = {
    "sample_rate": (1, 768_000),
    "hop_length": (1, 1 << 20),
    "codebook_size": (1, 1 << 16),
    "n_q": (1, 1024),
    "n_samples": (0, 1 << 48),
}
_LONGEST_TEXT = 1000


@dataclass(frozen=True)
class Header:
    """What a token stream says of the model that made it and the audio that it stands for.

    Raises `ValueError` for values beyond those given here; texts are of at most 1000 characters.
    """

    model: str
    """Name of the model."""
    fingerprint: str
    """Hexadecimal hash of what decides the model's tokens; another model's mean other sounds."""
    sample_rate: int
    """Samples per second of the decoded audio, in Hz, up to 768,000."""
    hop_length: int
    """Samples per frame, up to 2^20."""
    codebook_size: int
    """Codes are in 0 .. codebook_size - 1; up to 2^16."""
    n_q: int
    """Levels of the codes, up to 1024."""
    n_samples: int
    """Samples of the audio, at `sample_rate`, up to 2^48; ceil(n_samples / hop_length) frames. 0
    while a live stream goes on."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for, up to 32; empty when all are 1."""

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{name} must be a whole number in {least}..{most}, not {_short(value)}."
                )
        for name in ("model", "fingerprint"):
            value = getattr(self, name)
            if type(value) is not str or len(value) > _LONGEST_TEXT:
                raise ValueError(
                    f"{name} must be text of at most {_LONGEST_TEXT} characters, not "
                    f"{_short(value)}."
                )
        strides = checked_strides(self.level_strides, self.n_q)
        object.__setattr__(self, "level_strides", strides)

    @property
    def frames_per_code(self) -> tuple[int, ...]:
        """`level_strides`, all 1 written out."""
        return self.level_strides or (1,) * self.n_q

    @property
    def n_frames(self) -> int:
        """Frames that cover `n_samples`."""
        return -(-self.n_samples // self.hop_length)

    @property
    def bits_per_code(self) -> int:
        """ceil(log2 codebook_size), at least 1."""
        return max(1, (self.codebook_size - 1).bit_length())

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Bits per second of the codes."""
        return self.codes_per_second * self.bits_per_code

    def level_rate(self, level: int) -> float:
        """Codes per second of one level, in Hz."""
        return self.frame_rate / self.frames_per_code[level]

    @property
    def codes_per_second(self) -> float:
        """Codes per second of all levels."""
        return codes_per_second(self.sample_rate, self.hop_length, self.frames_per_code)


@dataclass(frozen=True)
class Codes:
    """The tokens of a batch of recordings, in memory."""

    indices: "Tensor"
    """int64 [B, n_q, T], each in 0 .. codebook_size - 1. Row 0 of an item are its units."""
    lengths: tuple[int, ...]
    """Samples of each item. Item b's frames are its first ceil(lengths[b] / hop_length)."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for, in each of which it stands; empty: all 1."""

    @property
    def levels(self) -> "list[Tensor]":
        """The codes of each level once, int64 [B, ceil(T / stride)]."""
        strides = self.level_strides or (1,) * self.indices.shape[1]
        return [self.indices[:, level, ::stride] for level, stride in enumerate(strides)]


@dataclass(frozen=True)
class Tokens:
    """The contents of a token file.

    `indices` is uint16 [n_q, T]. `header` is None for `.npy`, which does not carry one. `broken`
    says why the end of a live stream is missing, of which the part before was to be kept.
    `coded_bytes` is what the codes take in the file, where a model's tables code them.
    """

    indices: np.ndarray
    header: Header | None = None
    broken: str | None = None
    coded_bytes: int | None = None
    npy_strides: tuple[int, ...] = ()
    """The level_strides that a `.npy` has without a header."""

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Frames that a code of each level stands for; empty when all are 1."""
        return self.npy_strides if self.header is None else self.header.level_strides

    @property
    def levels(self) -> list[np.ndarray]:
        """The codes of each level once, uint16 [ceil(T / stride)]."""
        strides = self.level_strides or (1,) * len(self.indices)
        return [row[::stride] for row, stride in zip(self.indices, strides)]


@dataclass(frozen=True)
class Format:
    """A kind of token files; `FORMATS` lists them."""

    name: str
    """What the command line calls it; its suffix without the dot."""
    magic: bytes
    """How every file of the kind begins, and none of another."""
    noun: str
    """What a file of the kind is, for messages."""
    about: str
    """What the kind is good for, for help."""
    pack: Callable[[np.ndarray, Header], bytes]
    """(indices [n_q, T], header) to the bytes of a file."""
    unpack: Callable[..., Tokens]
    """(data, name, keep_broken=False) to the contents; see `unpack_tokens`."""

    @property
    def suffix(self) -> str:
        """That of file names, with the dot."""
        return f".{self.name}"


def write_npy(
    path: str | Path,
    indices: np.ndarray,
    *,
    level_strides: Sequence[int] = (),
    overwrite: bool = False,
) -> None:
    """Write codes [n_q, T] as `npy_bytes` has them."""
    data = npy_bytes(indices, level_strides)
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(data)


def npy_bytes(indices: np.ndarray, level_strides: Sequence[int] = ()) -> bytes:
    """Codes [n_q, T] as the bytes of a `.npy` file that `numpy.load` reads anywhere.

    Where all level_strides are 1, which is also meant by none, it is a plain uint16 array [n_q, T].
    Otherwise it is one record, whose fields are `n_frames`, `level_strides` [n_q] and the codes of
    each level once, `level0` and so on: `numpy.load("speech.npy")["level0"]` are the units.
    """
    codes, buffer = _as_uint16(indices), io.BytesIO()
    strides = checked_strides(level_strides, len(codes))
    if strides:
        compact(codes, strides)  # refuses codes that the record would not keep
        n_frames = codes.shape[1]
        levels = [row[::stride] for row, stride in zip(codes, strides)]
        codes = np.array((n_frames, strides, *levels), _npy_record(n_frames, strides))
    np.save(buffer, codes, allow_pickle=False)
    return buffer.getvalue()


def _npy_record(n_frames: int, strides: Sequence[int]) -> np.dtype:
    levels = [(f"level{i}", "<u2", (-(-n_frames // stride),)) for i, stride in enumerate(strides)]
    return np.dtype([("n_frames", "<u8"), ("level_strides", "<u2", (len(strides),)), *levels])


def read_npy(path: str | Path) -> Tokens:
    """Read a `.npy` token file.

    Accepts any unsigned or signed integer array [n_q, T], or units [T], with values in 0..65535,
    and the record of `npy_bytes`. Raises `FileRefused` for anything else, pickled files included.
    """
    return _unpack_npy(_read_bytes(path), str(path))


def write_avq(
    path: str | Path, indices: np.ndarray, header: Header, *, overwrite: bool = False
) -> None:
    """Write codes [n_q, T] as a compact, checked bitstream."""
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(pack_avq(indices, header))


def read_avq(path: str | Path) -> Tokens:
    """Read an `.avq` token file. Raises `FileRefused` when it is foreign, cut or altered."""
    return unpack_avq(_read_bytes(path), str(path))


def read_tokens(path: str | Path, *, keep_broken: bool = False) -> Tokens:
    """Read a token file of any of `FORMATS`, which is told by its first bytes.

    keep_broken: see `unpack_avq`.
    """
    return unpack_tokens(_read_bytes(path), str(path), keep_broken=keep_broken)


def unpack_tokens(data: bytes, name: str = "the stream", *, keep_broken: bool = False) -> Tokens:
    """The contents of a token file of any of `FORMATS`; `name` stands in `FileRefused`'s messages.

    keep_broken: see `unpack_avq`.
    """
    found = format_of(data)
    if found is None:
        raise _foreign(name)
    return found.unpack(data, name, keep_broken=keep_broken)


def format_of(data: bytes) -> Format | None:
    """The format of a token file, by its first bytes; None when they are of no such file."""
    return next((kind for kind in FORMATS.values() if data.startswith(kind.magic)), None)


def pack_avq(indices: np.ndarray, header: Header, tables: entropy.Tables | None = None) -> bytes:
    """Codes [n_q, T] and their header as the bytes of an `.avq` file.

    tables: those of the model, to code the codes by; they are packed when None.
    """
    codes = _as_uint16(indices)
    if codes.shape != (header.n_q, header.n_frames) or not codes.size:
        raise ValueError(
            f"codes of shape {codes.shape} do not match the header, which says "
            f"{(header.n_q, header.n_frames)}."
        )
    if tables is None:
        body = MAGIC + _pack_header(header) + _pack_codes(codes, header)
    else:
        body = CODED_MAGIC + _pack_header(header) + tables.key
        body += _code(codes, header, _coder(tables, header))
    return body + struct.pack(">I", zlib.crc32(body))


def unpack_avq(data: bytes, name: str = "the stream", *, keep_broken: bool = False) -> Tokens:
    """The codes and header of an `.avq` file of either form; `name` stands in `FileRefused`'s
    messages.

    keep_broken: of a live stream that breaks off or is damaged, keep what came before. A whole
        recording has one checksum, so that nothing of a damaged one can be trusted.
    """
    if data[:4] in (STREAM_MAGIC, CODED_STREAM_MAGIC):
        reader = StreamReader(io.BytesIO(data), name, keep_broken=keep_broken)
        codes = np.concatenate([np.zeros((reader.header.n_q, 0), np.uint16), *reader], axis=1)
        if not codes.size:
            raise FileRefused(f"{name} holds no tokens; its stream ended before the first frame.")
        return Tokens(codes, reader.header, reader.broken, reader.coded_bytes)
    if data[:3] != MAGIC[:3]:
        raise FileRefused(f"{name} is not an .avq token file; encode it with audiovq.")
    if data[:4] not in (MAGIC, CODED_MAGIC):
        raise FileRefused(f"{name} is in a newer .avq format; update audiovq to read it.")
    view = memoryview(data)
    if len(data) < 10 or zlib.crc32(view[:-4]) != struct.unpack(">I", view[-4:])[0]:
        raise _damaged(name)
    (n_head,) = struct.unpack(">H", view[4:6])
    header = _unpack_header(bytes(view[6 : 6 + n_head]), name)
    if not header.n_samples:
        raise _damaged(name)
    body = view[6 + n_head : -4]
    if data[:4] == MAGIC:
        return Tokens(_unpack_codes(body, header.n_frames, header, name), header)
    coder, coded = _find_coder(bytes(body[:_KEY_BYTES]), header, name), body[_KEY_BYTES:]
    codes = _decode(bytes(coded), header.n_frames, header, coder, name)
    return Tokens(codes, header, coded_bytes=len(coded))


class StreamWriter:
    """Writes a live stream to `file`, each chunk at once.

    `header` is that of the stream with n_samples 0; `tables` are those of the model, to code the
    codes by, which are packed when it is None. Raises `ValueError` for codes that do not match
    the header, and for tables of another model.
    """

    def __init__(
        self, file: BinaryIO, header: Header, tables: entropy.Tables | None = None
    ) -> None:
        self.header = replace(header, n_samples=0)
        self._file = file
        self._crc = 0
        self._group = max(self.header.frames_per_code)
        self._ended = False  # within a group
        self._coder = None
        if tables is None:
            self._write(STREAM_MAGIC + _pack_header(self.header))
        else:
            self._coder = _coder(tables, header)
            self._write(CODED_STREAM_MAGIC + _pack_header(self.header) + tables.key)

    def write(self, indices: np.ndarray) -> None:
        """Send codes [n_q, T]; of T = 0, nothing. Only the last ones may end within a group of the
        coarsest level's frames."""
        codes = _as_uint16(indices)
        if len(codes) != self.header.n_q:
            raise ValueError(f"codes have {len(codes)} levels; the header says {self.header.n_q}.")
        if self._ended and codes.size:
            raise ValueError(f"codes follow some that ended within a group of {self._group}.")
        self._ended |= codes.shape[1] % self._group > 0
        step = 0xFFFF // self._group * self._group
        for start in range(0, codes.shape[1], step):
            part = codes[:, start : start + step]
            if self._coder is None:
                self._write(struct.pack(">H", part.shape[1]) + _pack_codes(part, self.header))
            else:
                data = _code(part, self.header, self._coder)
                self._write(_pack_number(part.shape[1]) + _pack_number(len(data)) + data)

    def end(self, n_samples: int) -> None:
        """End the stream, which stands for `n_samples` samples."""
        self._write(bytes(2 if self._coder is None else 1) + struct.pack(">Q", n_samples))

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        data += struct.pack(">I", self._crc)
        self._crc = zlib.crc32(data[-4:], self._crc)
        self._file.write(data)
        self._file.flush()


class StreamReader:
    """Reads a live stream: iterate for the codes uint16 [n_q, T] of each chunk as it comes.

    After the last chunk, `header.n_samples` is the number of samples; before, it is 0.
    Raises `FileRefused` when the stream is foreign, altered, or ends before its end.

    magic: the first 4 bytes, when they have been read already.
    keep_broken: where the chunks are altered or end early, stop after the last one whose checksum
        holds instead, and say why in `broken`. Its frames are then taken to be whole ones.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str = "the stream",
        *,
        magic: bytes = b"",
        keep_broken: bool = False,
    ) -> None:
        self.broken: str | None = None
        self.coded_bytes: int | None = None
        self._file = file
        self._name = name
        self._keep_broken = keep_broken
        self._crc = zlib.crc32(magic)
        magic += self._read(4 - len(magic))
        if magic not in (STREAM_MAGIC, CODED_STREAM_MAGIC):
            raise FileRefused(f"{name} is not a live .avq stream; audiovq stream encode makes one.")
        (n_head,) = struct.unpack(">H", self._read(2))
        head = self._read(n_head)
        key = self._read(_KEY_BYTES) if magic == CODED_STREAM_MAGIC else b""
        self._check()
        self.header = _unpack_header(head, name)
        self._coder = None
        if key:
            self._coder, self.coded_bytes = _find_coder(key, self.header, name), 0

    def __iter__(self) -> Iterator[np.ndarray]:
        n_frames, strides = 0, self.header.frames_per_code
        try:
            while n_new := self._n_frames():
                if n_frames % max(strides):
                    raise _damaged(self._name)
                codes = self._chunk(n_new)
                n_frames += n_new
                yield codes
            (n_samples,) = struct.unpack(">Q", self._read(8))
            self._check()
            self._end_at(n_samples)
            if self.header.n_frames != n_frames or self._file.read(1):
                raise _damaged(self._name)
        except FileRefused as error:
            if not self._keep_broken:
                raise
            self.broken = str(error)
            if self.header.n_frames != n_frames:
                self._end_at(n_frames * self.header.hop_length)

    def _n_frames(self) -> int:
        """Frames of the next chunk; 0 at the end."""
        if self._coder is None:
            return int(struct.unpack(">H", self._read(2))[0])
        return self._number(0xFFFF)

    def _chunk(self, n_frames: int) -> np.ndarray:
        size = _packed_size(n_frames, self.header)
        if self._coder is None:
            packed = self._read(size)
            self._check()
            return _unpack_codes(packed, n_frames, self.header, self._name)
        data = self._read(self._number(size))
        self._check()
        assert self.coded_bytes is not None
        self.coded_bytes += len(data)
        return _decode(data, n_frames, self.header, self._coder, self._name)

    def _number(self, most: int) -> int:
        number = shift = 0
        while True:
            (byte,) = self._read(1)
            number |= (byte & 0x7F) << shift
            if number > most or (shift and not byte):
                raise _damaged(self._name)
            if byte < 0x80:
                return number
            shift += 7

    def _end_at(self, n_samples: int) -> None:
        try:
            self.header = replace(self.header, n_samples=n_samples)
        except ValueError as error:
            raise _damaged(self._name) from error

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise FileRefused(
                f"{self._name} broke off before its end; --keep-broken decodes what came before."
            )
        self._crc = zlib.crc32(data, self._crc)
        return data

    def _check(self) -> None:
        crc = self._crc
        if struct.unpack(">I", self._read(4))[0] != crc:
            raise _damaged(self._name)


def _damaged(name: str) -> FileRefused:
    return FileRefused(f"{name} is damaged or cut short; encode the audio again.")


def _pack_header(header: Header) -> bytes:
    values = asdict(header)
    if not header.level_strides:
        del values["level_strides"]  # as in files from before there was any
    head = json.dumps(values, separators=(",", ":")).encode()
    return struct.pack(">H", len(head)) + head


def _unpack_header(head: bytes, name: str) -> Header:
    try:
        return Header(**json.loads(head))
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(name) from error


_KEY_BYTES = 8


def _pack_number(number: int) -> bytes:
    """7 bits a byte, the lowest first, with the eighth bit set in all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _coder(tables: entropy.Tables, header: Header) -> entropy.Coder:
    """What codes a sequence that begins. Raises `ValueError` for tables of another model, and for
    levels of several rates."""
    if header.level_strides:
        raise ValueError("tables code levels that have a code each frame; pack these.")
    if (tables.fingerprint, tables.n_codes) != (header.fingerprint, header.codebook_size):
        raise ValueError(
            f"the tables are of the model {tables.fingerprint}, not of {header.fingerprint}; learn "
            "the model's own with audiovq tables."
        )
    return tables.coder(header.n_q)


def _find_coder(key: bytes, header: Header, name: str) -> entropy.Coder:
    """What decodes a sequence that names its tables."""
    if len(key) < _KEY_BYTES:
        raise _damaged(name)
    tables = entropy.find(key)
    if tables is None:
        raise FileRefused(
            f"{name} is coded by tables ({key.hex()}) of the model {_short(header.model)} "
            f"({_short(header.fingerprint)}) which are not here; name that model with --model."
        )
    try:
        return _coder(tables, header)
    except ValueError as error:
        raise _damaged(name) from error


def _code(codes: np.ndarray, header: Header, coder: entropy.Coder) -> bytes:
    """The codes [n_q, T] that come next, coded, or packed where that is not shorter."""
    packed = _pack_codes(codes, header)
    coded = coder.encode(codes)
    fits = len(coded) < len(packed) and codes.size <= _MOST_CODES_A_BYTE * len(coded)
    return coded if fits else packed


def _decode(
    data: bytes, n_frames: int, header: Header, coder: entropy.Coder, name: str
) -> np.ndarray:
    """The inverse of `_code`: uint16 [n_q, n_frames]."""
    if len(data) == _packed_size(n_frames, header):
        codes = _unpack_codes(data, n_frames, header, name)
        coder.encode(codes)  # it must have heard them for what follows
        return codes
    fewest = -(-n_frames * header.n_q // _MOST_CODES_A_BYTE)
    if not fewest <= len(data) <= _packed_size(n_frames, header):
        raise _damaged(name)
    try:
        return coder.decode(data, n_frames)
    except ValueError as error:
        raise _damaged(name) from error


def _packed_size(n_frames: int, header: Header) -> int:
    """Bytes of the codes of some frames when they are packed."""
    n_codes = count_codes(n_frames, header.frames_per_code)
    return -(-n_codes * header.bits_per_code // 8)


def _pack_codes(codes: np.ndarray, header: Header) -> bytes:
    """Codes [n_q, T] as bits, frame by frame, filled up to a byte."""
    if int(codes.max(initial=0)) >= header.codebook_size:
        raise ValueError(
            f"code {int(codes.max())} is out of range; codes are 0..{header.codebook_size - 1}."
        )
    shifts = np.arange(header.bits_per_code - 1, -1, -1, dtype=np.uint16)
    parts = []
    step = _frames_at_once(header)
    for start in range(0, codes.shape[1], step):
        some = compact(codes[:, start : start + step], header.frames_per_code)
        bits = (some[:, None] >> shifts) & 1
        parts.append(np.packbits(bits.astype(bool)).tobytes())
    return b"".join(parts)


def _frames_at_once(header: Header) -> int:
    """Eight groups or a multiple of them, so that each part is whole bytes."""
    groups = 8 * max(header.frames_per_code)
    return groups * max(1, _PACKED_AT_ONCE // (groups * header.n_q))


def _unpack_codes(data: bytes | memoryview, n_frames: int, header: Header, name: str) -> np.ndarray:
    """The inverse of `_pack_codes`: uint16 [n_q, n_frames]."""
    packed, strides = np.frombuffer(data, dtype=np.uint8), header.frames_per_code
    if len(packed) != _packed_size(n_frames, header):
        raise _damaged(name)
    weights = 1 << np.arange(header.bits_per_code - 1, -1, -1, dtype=np.int64)
    codes = np.empty((header.n_q, n_frames), dtype=np.uint16)
    step = _frames_at_once(header)
    for start in range(0, n_frames, step):
        part = codes[:, start : start + step]
        first = count_codes(start, strides) * header.bits_per_code // 8
        n_codes = count_codes(part.shape[1], strides)
        bits = np.unpackbits(packed[first:], count=n_codes * header.bits_per_code)
        part[:] = spread(bits.reshape(-1, header.bits_per_code) @ weights, part.shape[1], strides)
    if codes.max(initial=0) >= header.codebook_size:
        raise _damaged(name)
    return codes


def _short(value: object) -> str:
    """A value from a file as the messages quote it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of thousands of digits
        text = "a longer number"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _read_bytes(path: str | Path) -> bytes:
    with refuse_unreadable(path), open(path, "rb") as file:
        # What is clearly something else, a film or an endless device, is not read to its end.
        magics = [kind.magic for kind in FORMATS.values()]
        head = file.peek(max(map(len, magics)))
        if not any(magic.startswith(head[: len(magic)]) for magic in magics):
            raise _foreign(str(path))
        return file.read()


def _foreign(name: str) -> FileRefused:
    nouns = " nor ".join(kind.noun for kind in FORMATS.values())
    return FileRefused(f"{name} is not a token file: it is neither {nouns}.")


def _unpack_npy(data: bytes, name: str, *, keep_broken: bool = False) -> Tokens:
    file = io.BytesIO(data)
    try:
        # Versions 2 and 3 differ in the names of columns alone, which tokens have not.
        readers = [npy_format.read_array_header_1_0] + 2 * [npy_format.read_array_header_2_0]
        major, _ = npy_format.read_magic(file)
        shape, in_columns, dtype = readers[major - 1](file)
    except Exception as error:  # numpy lets through what Python's parser raises, of many kinds
        raise _foreign(name) from error
    start = file.tell()
    if dtype.hasobject:  # pickled
        raise _foreign(name)
    if dtype.names:
        return _unpack_npy_record(data[start:], shape, dtype, name)
    if len(shape) == 1:
        shape = (1, *shape)  # units alone are level 0
    if len(shape) != 2 or dtype.kind not in "iu" or min(shape) < 0:
        raise FileRefused(
            f"{name} holds {str(dtype)[:40]} {_short(shape)}; tokens are whole numbers "
            "[n_q, frames]."
        )
    if 0 in shape:
        raise FileRefused(f"{name} holds no tokens; its shape is {_short(shape)}.")
    if shape[0] * shape[1] * dtype.itemsize != len(data) - start:
        raise _damaged(name)
    array = np.frombuffer(data, dtype, offset=start).reshape(
        shape, order="F" if in_columns else "C"
    )
    if array.min() < 0 or array.max() > 0xFFFF:
        raise FileRefused(f"{name} holds numbers outside 0..65535, which no codebook has.")
    return Tokens(array.astype(np.uint16, order="C"))


def _unpack_npy_record(data: bytes, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Tokens:
    try:
        if shape or len(data) != dtype.itemsize:
            raise ValueError
        record = np.frombuffer(data, dtype)[0]
        n_frames, strides = int(record["n_frames"]), tuple(record["level_strides"].tolist())
        if not checked_strides(strides, len(strides)) or dtype != _npy_record(n_frames, strides):
            raise ValueError
        levels = [record[f"level{level}"] for level in range(len(strides))]
        indices = join_levels(levels, n_frames, strides)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FileRefused(
            f"{name} holds records that are not tokens, or is cut short; encode the audio again."
        ) from error
    if not n_frames:
        raise FileRefused(f"{name} holds no tokens.")
    return Tokens(indices.astype(np.uint16), npy_strides=strides)


def _as_uint16(indices: np.ndarray) -> np.ndarray:
    array = np.asarray(indices)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"codes must be whole numbers [n_q, T], not {array.dtype} {array.shape}.")
    if array.size and (array.min() < 0 or array.max() > 0xFFFF):
        raise ValueError("codes must be in 0..65535.")
    return np.ascontiguousarray(array.astype(np.uint16))


_KINDS = (
    Format(
        name="npy",
        magic=_NPY_MAGIC,
        noun="a plain .npy array",
        about="a plain array",
        pack=lambda indices, header: npy_bytes(indices, header.level_strides),
        unpack=_unpack_npy,
    ),
    Format(
        name="avq",
        magic=MAGIC[:3],
        noun=".avq",
        about="compact and checked",
        pack=pack_avq,
        unpack=unpack_avq,
    ),
)
FORMATS = {kind.name: kind for kind in _KINDS}
"""Every kind of token files by its name, the one that is written by default first."""
TOKEN_SUFFIXES = tuple(kind.suffix for kind in _KINDS)
