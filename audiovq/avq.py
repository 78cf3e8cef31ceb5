"""The `.avq` bitstream: compact, checked token files, whole or live, packed or coded by tables.

It is of one of two forms, which the magic tells apart. A whole recording:

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
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import BinaryIO

import numpy as np

from audiovq import entropy
from audiovq.files import FileRefused
from audiovq.flatten import compact, count_codes, spread
from audiovq.tokens import Header, Tokens, as_uint16, damaged, shortened

MAGIC = b"AVQ1"
STREAM_MAGIC = b"AVQS"
CODED_MAGIC = b"AVQ2"
CODED_STREAM_MAGIC = b"AVQT"
_KEY_BYTES = 8
_PACKED_AT_ONCE = 8192  # codes, about
_MOST_CODES_A_BYTE = 16  # or a small file could claim very many


def pack_avq(indices: np.ndarray, header: Header, tables: entropy.Tables | None = None) -> bytes:
    """Codes [n_q, T] and their header as the bytes of an `.avq` file.

    tables: those of the model, to code the codes by; they are packed when None.
    """
    codes = as_uint16(indices)
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
        raise damaged(name)
    (n_head,) = struct.unpack(">H", view[4:6])
    header = _unpack_header(bytes(view[6 : 6 + n_head]), name)
    if not header.n_samples:
        raise damaged(name)
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
        codes = as_uint16(indices)
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
                    raise damaged(self._name)
                codes = self._chunk(n_new)
                n_frames += n_new
                yield codes
            (n_samples,) = struct.unpack(">Q", self._read(8))
            self._check()
            self._end_at(n_samples)
            if self.header.n_frames != n_frames or self._file.read(1):
                raise damaged(self._name)
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
                raise damaged(self._name)
            if byte < 0x80:
                return number
            shift += 7

    def _end_at(self, n_samples: int) -> None:
        try:
            self.header = replace(self.header, n_samples=n_samples)
        except ValueError as error:
            raise damaged(self._name) from error

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
            raise damaged(self._name)


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
        raise damaged(name) from error


def _pack_number(number: int) -> bytes:
    """7 bits a byte, the lowest first, with the eighth bit set in all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _coder(tables: entropy.Tables, header: Header) -> entropy.Coder:
    """What codes a sequence that begins. Raises `ValueError` for tables of another model."""
    if (tables.fingerprint, tables.n_codes) != (header.fingerprint, header.codebook_size):
        raise ValueError(
            f"the tables are of the model {tables.fingerprint}, not of {header.fingerprint}; learn "
            "the model's own with audiovq tables."
        )
    return tables.coder(header.n_q, header.level_strides)


def _find_coder(key: bytes, header: Header, name: str) -> entropy.Coder:
    """What decodes a sequence that names its tables."""
    if len(key) < _KEY_BYTES:
        raise damaged(name)
    tables = entropy.find(key)
    if tables is None:
        raise FileRefused(
            f"{name} is coded by tables ({key.hex()}) of the model {shortened(header.model)} "
            f"({shortened(header.fingerprint)}) which are not here; name that model with --model."
        )
    try:
        return _coder(tables, header)
    except ValueError as error:
        raise damaged(name) from error


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
        raise damaged(name)
    try:
        return coder.decode(data, n_frames)
    except ValueError as error:
        raise damaged(name) from error


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
        raise damaged(name)
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
        raise damaged(name)
    return codes
