"""Token files: `.npy`, plain and readable anywhere, and `.avq`, compact and checked.

`.npy` holds a uint16 array [n_q, T] and nothing else, or the levels of a model that has them at
several rates (`npy_bytes`). `.avq` is a bitstream with a header and checksums (`audiovq.avq`).
Nothing is ever unpickled. `FORMATS` lists the kinds of files: a further one is a pair of functions
and an entry there.

What they hold, `audiovq.tokens`, and the bitstream's own names can be imported from here too.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from audiovq.avq import (
    CODED_MAGIC,
    CODED_STREAM_MAGIC,
    MAGIC,
    STREAM_MAGIC,
    StreamReader,
    StreamWriter,
    pack_avq,
    unpack_avq,
)
from audiovq.files import FileRefused, atomic_output, refuse_unreadable
from audiovq.flatten import checked_strides, compact, join_levels
from audiovq.tokens import Codes, Header, Tokens, as_uint16, damaged, shortened

__all__ = [
    "CODED_MAGIC",
    "CODED_STREAM_MAGIC",
    "FORMATS",
    "MAGIC",
    "STREAM_MAGIC",
    "TOKEN_SUFFIXES",
    "Codes",
    "Format",
    "Header",
    "StreamReader",
    "StreamWriter",
    "Tokens",
    "format_of",
    "npy_bytes",
    "pack_avq",
    "read_avq",
    "read_npy",
    "read_tokens",
    "unpack_avq",
    "unpack_tokens",
    "write_avq",
    "write_npy",
]
_NPY_MAGIC = b"\x93NUMPY"


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


def write_avq(
    path: str | Path, indices: np.ndarray, header: Header, *, overwrite: bool = False
) -> None:
    """Write codes [n_q, T] as a compact, checked bitstream."""
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(pack_avq(indices, header))


def read_avq(path: str | Path) -> Tokens:
    """Read an `.avq` token file. Raises `FileRefused` when it is foreign, cut or altered."""
    return unpack_avq(_read_bytes(path), str(path))


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
    codes, buffer = as_uint16(indices), io.BytesIO()
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
        shape, in_columns, dtype = _npy_header(file)
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
            f"{name} holds {str(dtype)[:40]} {shortened(shape)}; tokens are whole numbers "
            "[n_q, frames]."
        )
    if 0 in shape:
        raise FileRefused(f"{name} holds no tokens; its shape is {shortened(shape)}.")
    if shape[0] * shape[1] * dtype.itemsize != len(data) - start:
        raise damaged(name)
    array = np.frombuffer(data, dtype, offset=start).reshape(
        shape, order="F" if in_columns else "C"
    )
    if array.min() < 0 or array.max() > 0xFFFF:
        raise FileRefused(f"{name} holds numbers outside 0..65535, which no codebook has.")
    return Tokens(array.astype(np.uint16, order="C"))


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """What stands before the array; anything may be raised for what is not NumPy's."""
    # Versions 2 and 3 differ in the names of columns alone, which tokens have not.
    readers = [npy_format.read_array_header_1_0] + 2 * [npy_format.read_array_header_2_0]
    major, _ = npy_format.read_magic(file)
    size = 2 if major == 1 else 4
    length = int.from_bytes(file.read(size), "little")
    header = file.read(length)
    if len(header) < length:
        raise ValueError("cut")
    header = b" ".join(header.split())  # NumPy may take a minute for 9,000 blanks
    return readers[major - 1](io.BytesIO(len(header).to_bytes(size, "little") + header))


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
