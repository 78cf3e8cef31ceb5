"""Entropy coding of tokens: what a model's tables say of the next code, in whole numbers alone.

Every code is coded by two symbols of a range coder: its group, and its place in the group. How
likely they are is computed from what came before it: the codes of the lower levels in its frame,
the frames before in averages of several lengths, and whether it is the code that the level had in
the frame before. All of it is gathering, adding, multiplying and shifting of whole numbers, so that
every machine computes the same and decodes the same codes; no floating point takes part.

What is learnt are the `Tables`, int8 and int16, which belong to one model and are stored beside
it (`TABLES_FILE`). A fixed-point number with f bits of fraction stands for itself / 2^f:

    vector of a code            code                                       6 bits
    a frame                     sum over levels of code . mix             12 bits
    average of frames           average += (frame - average) >> decay     12 bits
    hidden, of a level          start + averages . past + codes . below   12 bits, then cut to -1..1
    score of a group            group_bias + hidden . group                6 bits
    score of a place            member_bias + hidden . member              6 bits
    the group and the place of the code before: + repeat_bias + hidden . repeat

A symbol's frequency is 2^(16 + score), rounded, for scores in -16..16.

With `level_strides` a code is coded at the first of its frames, and known in the others.
"""

import bisect
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from audiovq.files import FileRefused, atomic_output
from audiovq.rangecoder import Decoder, encode_symbols

TABLES_FILE = "tables.safetensors"
FRACTION = 6
"""Bits of fraction of the tables and of scores."""
ONE = 1 << 8
"""What hidden numbers are cut to, with 8 bits of fraction."""
_FOUR, _LEAST, _MOST = np.array(4), np.array(-ONE), np.array(ONE)  # faster than numbers of Python
_WIDEST = 1 << 15  # of an average with 8 bits of fraction
_ZERO = 16 << FRACTION  # where a score of 0 stands in the table of frequencies
_FORMAT = "audiovq tables 1"
_LARGEST = 1 << 26  # bytes of a file of tables
_AT_ONCE = 512  # frames whose scores are computed at once


@dataclass(frozen=True)
class Tables:
    """What a model's tokens are coded by: Q levels of K codes, each in G groups of S / G slots.

    Raises `ValueError` for arrays that do not fit each other.
    """

    fingerprint: str
    """That of the model whose tokens they were learnt from."""
    slots: np.ndarray
    """uint16 [Q, K]: where each code stands; slot // (S / G) is its group."""
    code: np.ndarray
    """int8 [Q, S, E]: a vector for the code in each slot, for what comes after it."""
    mix: np.ndarray
    """int8 [Q, E, X]: the codes' vectors to that of their frame."""
    decay: np.ndarray
    """uint8 [D]: an average goes 2^-decay of the way to each new frame."""
    past: np.ndarray
    """int8 [D, X, Q, H]: averages to hidden."""
    below: np.ndarray
    """int8 [Q, Q, E, H]: the code of level i to the hidden of level j > i in its frame."""
    start: np.ndarray
    """int16 [Q, H]: hidden when nothing is known."""
    group: np.ndarray
    """int8 [Q, G, H]"""
    group_bias: np.ndarray
    """int16 [Q, G]"""
    member: np.ndarray
    """int8 [Q, S, H]"""
    member_bias: np.ndarray
    """int16 [Q, S]"""
    repeat: np.ndarray
    """int8 [Q, 2, H]: for the group and the place of the code before."""
    repeat_bias: np.ndarray
    """int16 [Q, 2]"""

    def __post_init__(self) -> None:
        if self.slots.ndim != 2 or self.past.ndim != 4 or self.group.ndim != 3:
            raise ValueError("arrays have other dimensions than tables have.")
        (q, k), (d, x, _, h), g = self.slots.shape, self.past.shape, self.group.shape[1]
        s, e = self.code.shape[1:] if self.code.ndim == 3 else (0, 0)
        expected = {
            "slots": ("u2", (q, k)), "code": ("i1", (q, s, e)), "mix": ("i1", (q, e, x)),
            "decay": ("u1", (d,)), "past": ("i1", (d, x, q, h)), "below": ("i1", (q, q, e, h)),
            "start": ("i2", (q, h)), "group": ("i1", (q, g, h)), "group_bias": ("i2", (q, g)),
            "member": ("i1", (q, s, h)), "member_bias": ("i2", (q, s)),
            "repeat": ("i1", (q, 2, h)), "repeat_bias": ("i2", (q, 2)),
        }  # fmt: skip
        for name, (kind, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype.str[1:] != kind or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {kind} {shape}.")
        if not 0 < k <= s or not g or s % g or self.decay.max(initial=0) > 16:
            raise ValueError("numbers of slots, groups or decays are none that tables have.")
        if any(len(np.unique(row)) < k for row in self.slots) or self.slots.max() >= s:
            raise ValueError("two codes stand in one slot, or one stands in none.")

    @functools.cached_property
    def key(self) -> bytes:
        """8 bytes that tell these tables from any others; coded files name them so."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.digest()[:8]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their names."""
        names = [field.name for field in fields(self) if field.name != "fingerprint"]
        return {name: getattr(self, name) for name in names}

    @property
    def n_codes(self) -> int:
        """K, codes of a level."""
        return self.slots.shape[1]

    @functools.cached_property
    def engine(self) -> "Engine":
        """What computes with them."""
        return Engine(self)

    def coder(self, n_q: int, level_strides: Sequence[int] = ()) -> "Coder":
        """Begin a sequence of frames of `n_q` levels, each with a code every so many frames."""
        return Coder(self.engine, n_q, tuple(level_strides) or (1,) * n_q)


class Engine:
    """Tables multiplied out as far as they can be, as int64."""

    def __init__(self, tables: Tables) -> None:
        wide = {name: array.astype(np.int64) for name, array in tables.arrays().items()}
        self.n_levels, n_codes = tables.slots.shape
        self.slots, self.decay = wide["slots"], wide["decay"][:, None]
        n_slots = tables.code.shape[1]
        codes = np.full((self.n_levels, n_slots), -1)
        np.put_along_axis(codes, self.slots, np.arange(n_codes)[None], axis=1)
        self.codes: list[list[int]] = codes.tolist()  # -1 where there is none
        self.to_frame = wide["code"] @ wide["mix"]  # [Q, S, X]
        n_averages, width, _, self.n_hidden = wide["past"].shape
        past = wide["past"].reshape(n_averages * width, -1)
        self.past = np.ascontiguousarray(past.T)  # [Q * H, D * X]
        above = np.triu(np.ones((self.n_levels, self.n_levels), np.int64), 1)
        below = wide["below"] * above[:, :, None, None]
        self.to_hidden = np.stack(  # [Q, S, Q * H]
            [
                codes @ rows.transpose(1, 0, 2).reshape(rows.shape[1], -1)
                for codes, rows in zip(wide["code"], below)
            ]
        )
        self.start = wide["start"].ravel() << FRACTION
        self.group_size = n_slots // wide["group"].shape[1]
        # With the biases as a last column, which a hidden number of 1 brings in; scores of 0 stand
        # in the middle of the table of frequencies.
        rows = np.concatenate([wide["group"], wide["repeat"]], axis=1)
        biases = np.concatenate([wide["group_bias"] + _ZERO, wide["repeat_bias"]], axis=1)
        self.group = list(np.concatenate([rows, biases[..., None]], axis=2))  # Q of [G + 2, H + 1]
        biases = wide["member_bias"] + _ZERO
        member = np.concatenate([wide["member"], biases[..., None]], axis=2)
        groups = self.n_levels, -1, self.group_size, self.n_hidden + 1
        self.member = list(member.reshape(groups))  # Q of [G, S / G, H + 1]

    def hidden_before(self, averages: np.ndarray, n_q: int) -> np.ndarray:
        """What averages [..., D, X] alone say: [..., n_q * H], 12 bits of fraction."""
        cut = np.minimum(np.maximum(averages >> 4, -_WIDEST), _WIDEST)
        width = n_q * self.n_hidden
        flat = cut.reshape(*averages.shape[:-2], -1)
        return self.start[:width] + (flat @ self.past[:width].T >> 2)


@functools.cache
def frequencies() -> np.ndarray:
    """Frequencies by score + `_ZERO`: 2^(16 + score / 64), rounded, at least 1. int64.

    By roots of whole numbers, which are exact on every machine.
    """
    found = []
    for i in range(2 * _ZERO + 1):
        doubled = 1 << i + 64
        for _ in range(FRACTION):  # the 64th root
            doubled = math.isqrt(doubled)
        found.append(max(1, (doubled + 1) // 2))
    return np.array(found)


def _cut(hidden: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Hidden numbers [..., H] in -1..1 with 8 bits of fraction, in all but the last of `out`."""
    cut = out[..., :-1]
    np.right_shift(hidden, _FOUR, out=cut)
    np.maximum(cut, _LEAST, out=cut)
    np.minimum(cut, _MOST, out=cut)
    return out


class Coder:
    """Codes frames that follow each other: a new one for each recording.

    A decoder must be given the bytes that an encoder made of the frames, in the same pieces.
    """

    def __init__(self, engine: Engine, n_q: int, strides: tuple[int, ...]) -> None:
        if not 1 <= n_q <= engine.n_levels:
            raise ValueError(f"n_q must be in 1..{engine.n_levels}, as the tables, not {n_q}.")
        self._engine = engine
        self._n_q = n_q
        self._strides = np.array(strides)
        self._n_frames = 0
        self._averages = np.zeros((len(engine.decay), engine.to_frame.shape[2]), np.int64)
        self._before = [-1] * n_q  # slots of the last frame

    def encode(self, codes: np.ndarray) -> bytes:
        """The bytes of the next frames, codes [n_q, T] in 0 .. K - 1."""
        parts = (codes[:, at : at + _AT_ONCE] for at in range(0, codes.shape[1], _AT_ONCE))
        return encode_symbols(symbol for part in parts for symbol in self.shares(part).tolist())

    def shares(self, codes: np.ndarray) -> np.ndarray:
        """What `encode` gives the range coder of the next frames: [codes * 2, 3]."""
        engine, (n_q, n_frames) = self._engine, codes.shape
        due = self._due(n_frames)
        slots = np.take_along_axis(engine.slots[:n_q], codes.astype(np.int64), axis=1)
        before = np.concatenate([np.array(self._before)[:, None], slots[:, :-1]], axis=1)
        self._before = slots[:, -1].tolist()
        frames = sum(engine.to_frame[level, row] for level, row in enumerate(slots))
        averages = np.empty((n_frames, *self._averages.shape), np.int64)
        for t, frame in enumerate(frames):
            averages[t] = self._averages
            self._averages += (frame - self._averages) >> engine.decay
        hidden = engine.hidden_before(averages, n_q)
        for level, row in enumerate(slots):
            hidden += engine.to_hidden[level, row, : hidden.shape[1]]
        hidden = _cut(
            hidden.reshape(n_frames, n_q, -1),
            np.full((n_frames, n_q, engine.n_hidden + 1), ONE),
        )
        found = np.empty((n_frames, n_q, 2, 3), np.int64)
        for level in range(n_q):
            rows = np.flatnonzero(due[:, level])
            own, old = hidden[rows, level], before[level, rows]
            group, place = np.divmod(slots[level, rows], engine.group_size)
            old_group, old_place = np.divmod(old, engine.group_size)
            scores = own @ engine.group[level].T >> 8
            scores, bonus = scores[:, :-2], scores[:, -2:]
            known = np.flatnonzero(old >= 0)
            scores[known, old_group[known]] += bonus[known, 0]
            found[rows, level, 0] = _shares(scores, group)
            scores = np.einsum("th,tmh->tm", own, engine.member[level][group]) >> 8
            same = np.flatnonzero((old >= 0) & (old_group == group))
            scores[same, old_place[same]] += bonus[same, 1]
            found[rows, level, 1] = _shares(scores, place)
        return found[due].reshape(-1, 3)

    def _due(self, n_frames: int) -> np.ndarray:
        """Which codes of the next frames are not those of the frame before: bool [T, n_q]."""
        frames = np.arange(self._n_frames, self._n_frames + n_frames)
        self._n_frames += n_frames
        return frames[:, None] % self._strides == 0

    def decode(self, data: bytes, n_frames: int) -> np.ndarray:
        """The codes uint16 [n_q, n_frames] of bytes that `encode` made.

        Raises `ValueError` where they are of none, as far as that can be seen.
        """
        engine, n_q = self._engine, self._n_q
        decoder, cut = Decoder(data), np.full(engine.n_hidden + 1, ONE)
        out = np.empty((n_frames, n_q), np.uint16)
        for t, due in enumerate(self._due(n_frames).tolist()):
            hidden = engine.hidden_before(self._averages, n_q)
            levels = hidden.reshape(n_q, -1)
            frame = np.zeros(engine.to_frame.shape[2], np.int64)
            for level in range(n_q):
                slot = self._before[level]
                if due[level]:
                    slot = self._decode_slot(decoder, level, _cut(levels[level], cut))
                    self._before[level] = slot
                hidden += engine.to_hidden[level, slot, : len(hidden)]
                frame += engine.to_frame[level, slot]
                code = engine.codes[level][slot]
                if code < 0:
                    raise ValueError("a code is none of the codebook's.")
                out[t, level] = code
            self._averages += (frame - self._averages) >> engine.decay
        return np.ascontiguousarray(out.T)

    def _decode_slot(self, decoder: Decoder, level: int, hidden: np.ndarray) -> int:
        engine, before = self._engine, self._before[level]
        size = engine.group_size
        scores = engine.group[level].dot(hidden) >> 8
        if before >= 0:
            scores[before // size] += scores[-2]
        group = _next(decoder, scores[:-2])
        bonus = scores[-1]
        scores = engine.member[level][group].dot(hidden) >> 8
        if before // size == group:
            scores[before % size] += bonus
        return group * size + _next(decoder, scores)


def _shares(scores: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """(start, size, total) of symbols [T] with scores [T, n]: [T, 3]."""
    sizes = frequencies().take(scores, mode="clip")
    ends = sizes.cumsum(axis=1)
    rows = np.arange(len(symbols))
    own = sizes[rows, symbols]
    return np.stack([ends[rows, symbols] - own, own, ends[:, -1]], axis=1)


def _next(decoder: Decoder, scores: np.ndarray) -> int:
    """The next symbol, whose scores are [n]."""
    ends = frequencies().take(scores, mode="clip").cumsum().tolist()
    symbol = bisect.bisect_right(ends, decoder.target(ends[-1]))
    start = ends[symbol - 1] if symbol else 0
    decoder.take(start, ends[symbol] - start, ends[-1])
    return symbol


_known: dict[bytes, Tables] = {}


def register(tables: Tables) -> None:
    """Let readers of coded tokens in this process find these tables."""
    _known[tables.key] = tables


def find(key: bytes) -> Tables | None:
    """The tables of that key: those of the model in the package, or registered ones."""
    if key not in _known and (bundled := _bundled()) is not None:
        register(bundled)
    return _known.get(key)


@functools.cache
def _bundled() -> Tables | None:
    path = Path(__file__).parent / "default" / TABLES_FILE
    return read_tables(path) if path.is_file() else None


def read_tables(path: str | Path) -> Tables:
    """Read a file of tables. Raises `FileRefused` when it is missing, damaged or foreign."""
    import safetensors

    names = {field.name for field in fields(Tables)} - {"fingerprint"}
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT or set(file.keys()) != names:
                raise ValueError("it holds something else")
            arrays = {name: file.get_tensor(name) for name in names}
        return Tables(str(about.get("fingerprint")), **arrays)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise FileRefused(
            f"{path} is no file of tables ({error}); audiovq tables makes one."
        ) from error


def write_tables(path: str | Path, tables: Tables, *, overwrite: bool = False) -> None:
    """Write tables to a safetensors file."""
    import safetensors.numpy

    about = {"format": _FORMAT, "fingerprint": tables.fingerprint}
    arrays = {name: np.ascontiguousarray(array) for name, array in tables.arrays().items()}
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata=about))
