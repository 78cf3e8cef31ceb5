"""Token files: `.npy`, plain and readable anywhere, and `.avq`, compact and checked.

`.npy` holds a uint16 array [n_q, T] and nothing else. `.avq` is a bitstream:

    bytes   field
    4       magic "AVQ1" (the last character is the format's version)
    2       length of the header in bytes, big-endian
    n       header, JSON in UTF-8: the fields of `Header`
    m       codes, frame by frame, level by level, ceil(log2 K) bits each, zero bits to a byte
    4       CRC32 of all bytes before it, big-endian

Nothing is ever unpickled.
"""

import io
import json
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from audiovq.files import FileRefused, atomic_output

MAGIC = b"AVQ1"
TOKEN_SUFFIXES = (".npy", ".avq")


@dataclass(frozen=True)
class Header:
    """What a token stream says of the model that made it and the audio that it stands for."""

    model: str
    """Name of the model."""
    fingerprint: str
    """Hexadecimal hash of the model's weights; other weights read other sounds into the codes."""
    sample_rate: int
    """Samples per second of the decoded audio, in Hz."""
    hop_length: int
    """Samples per frame."""
    codebook_size: int
    """Codes are in 0 .. codebook_size - 1."""
    n_q: int
    """Levels of the codes."""
    n_samples: int
    """Samples of the audio, at `sample_rate`; ceil(n_samples / hop_length) frames."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a whole number >= 1, not {value!r}.")
            if field.type in (str, "str") and type(value) is not str:
                raise ValueError(f"{field.name} must be text, not {value!r}.")
        if self.codebook_size > 1 << 16:
            raise ValueError(f"codebook_size must be at most 65536, not {self.codebook_size}.")

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
        return self.frame_rate * self.n_q * self.bits_per_code


@dataclass(frozen=True)
class Tokens:
    """The contents of a token file.

    `indices` is uint16 [n_q, T]. `header` is None for `.npy`, which does not carry one.
    """

    indices: np.ndarray
    header: Header | None = None


def write_npy(path: str | Path, indices: np.ndarray, *, overwrite: bool = False) -> None:
    """Write codes [n_q, T] as a plain uint16 array that `numpy.load` reads anywhere."""
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(npy_bytes(indices))


def npy_bytes(indices: np.ndarray) -> bytes:
    """Codes [n_q, T] as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, _as_uint16(indices), allow_pickle=False)
    return buffer.getvalue()


def read_npy(path: str | Path) -> Tokens:
    """Read a `.npy` token file.

    Accepts any unsigned or signed integer array [n_q, T] with values in 0..65535.
    Raises `FileRefused` for anything else, pickled files included.
    """
    return Tokens(_parse_npy(_read_bytes(path), path))


def write_avq(
    path: str | Path, indices: np.ndarray, header: Header, *, overwrite: bool = False
) -> None:
    """Write codes [n_q, T] as a compact, checked bitstream."""
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(pack_avq(indices, header))


def read_avq(path: str | Path) -> Tokens:
    """Read an `.avq` token file. Raises `FileRefused` when it is foreign, cut or altered."""
    return unpack_avq(_read_bytes(path), str(path))


def read_tokens(path: str | Path) -> Tokens:
    """Read a token file of either kind: the format is told by its first bytes."""
    return unpack_tokens(_read_bytes(path), str(path))


def unpack_tokens(data: bytes, name: str = "the stream") -> Tokens:
    """The contents of a token file of either kind; `name` stands in `FileRefused`'s messages."""
    if data[:3] == MAGIC[:3]:
        return unpack_avq(data, name)
    return Tokens(_parse_npy(data, name))


def pack_avq(indices: np.ndarray, header: Header) -> bytes:
    """Codes [n_q, T] and their header as the bytes of an `.avq` file."""
    codes = _as_uint16(indices)
    if codes.shape != (header.n_q, header.n_frames):
        raise ValueError(
            f"codes of shape {codes.shape} do not match the header, which says "
            f"{(header.n_q, header.n_frames)}."
        )
    if int(codes.max(initial=0)) >= header.codebook_size:
        raise ValueError(
            f"code {int(codes.max())} is out of range; codes are 0..{header.codebook_size - 1}."
        )
    head = json.dumps(asdict(header), separators=(",", ":")).encode()
    shifts = np.arange(header.bits_per_code - 1, -1, -1, dtype=np.uint16)
    bits = (codes.T[..., None] >> shifts) & 1  # [T, n_q, bits]
    body = MAGIC + struct.pack(">H", len(head)) + head + np.packbits(bits.astype(bool)).tobytes()
    return body + struct.pack(">I", zlib.crc32(body))


def unpack_avq(data: bytes, name: str = "the stream") -> Tokens:
    """The inverse of `pack_avq`; `name` stands in the messages of `FileRefused`."""
    if data[:3] != MAGIC[:3]:
        raise FileRefused(f"{name} is not an .avq token file; encode it with audiovq.")
    if data[3:4] != MAGIC[3:4]:
        raise FileRefused(f"{name} is in a newer .avq format; update audiovq to read it.")
    damaged = FileRefused(f"{name} is damaged or cut short; encode the audio again.")
    if len(data) < 10 or zlib.crc32(data[:-4]) != struct.unpack(">I", data[-4:])[0]:
        raise damaged
    (n_head,) = struct.unpack(">H", data[4:6])
    try:
        header = Header(**json.loads(data[6 : 6 + n_head]))
    except (TypeError, ValueError) as error:
        raise damaged from error
    packed = np.frombuffer(data[6 + n_head : -4], dtype=np.uint8)
    n_bits = header.n_frames * header.n_q * header.bits_per_code
    if len(packed) != -(-n_bits // 8):
        raise damaged
    bits = np.unpackbits(packed, count=n_bits).reshape(-1, header.bits_per_code)
    weights = 1 << np.arange(header.bits_per_code - 1, -1, -1, dtype=np.int64)
    codes = (bits @ weights).reshape(header.n_frames, header.n_q).T
    if codes.max(initial=0) >= header.codebook_size:
        raise damaged
    return Tokens(np.ascontiguousarray(codes.astype(np.uint16)), header)


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileRefused(f"{path} does not exist; check the name.") from error
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {error.strerror}.") from error


def _parse_npy(data: bytes, path: str | Path) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise FileRefused(
            f"{path} is not a token file: it is neither a plain .npy array nor .avq."
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise FileRefused(f"{path} holds {what}; tokens are whole numbers [n_q, frames].")
    if not array.size:
        raise FileRefused(f"{path} holds no tokens; its shape is {array.shape}.")
    if array.min() < 0 or array.max() > 0xFFFF:
        raise FileRefused(f"{path} holds numbers outside 0..65535, which no codebook has.")
    return array.astype(np.uint16)


def _as_uint16(indices: np.ndarray) -> np.ndarray:
    array = np.asarray(indices)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be whole numbers [n_q, T], not {array.dtype} {array.shape}."
        )
    if array.size and (array.min() < 0 or array.max() > 0xFFFF):
        raise ValueError("codes must be in 0..65535.")
    return np.ascontiguousarray(array.astype(np.uint16))
