"""Segments: runs of frames that share a unit, found by duration-penalised dynamic programming.

Frame by frame, the nearest code flickers. `segment` chooses the codes of all frames together so
that the sum of squared distances plus a price for every segment is smallest (Kamper and van
Niekerk 2021, "Towards unsupervised phone and word segmentation using self-supervised
vector-quantized neural networks").
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiovq.files import FileRefused, atomic_output, read_text

HEADER = ("unit", "start", "duration")
SEGMENT_SUFFIX = ".tsv"
BLOCK_FRAMES = 1024
"""Frames whose distances are held at once."""
MAX_FRAMES = 1 << 25
"""Frames that the segments of a file may last together: a week at 50 Hz."""
MAX_UNIT = (1 << 16) - 1
"""The largest unit of a file: token files hold 16 bits."""

Distances = np.ndarray | Iterable[np.ndarray]
"""Squared distances [T, K] of frames to codes, whole or in blocks of frames."""


class Segment(NamedTuple):
    """A unit, the frame at which it starts, and how many frames it lasts."""

    unit: int
    start: int
    duration: int


def code_distances(z: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances, float64 [T, K], of latent vectors [T, D] to the codes [K, D]."""
    z, codebook = z.astype(np.float64), codebook.astype(np.float64)
    distances = (
        (z * z).sum(axis=1, keepdims=True) - 2 * z @ codebook.T + (codebook * codebook).sum(axis=1)
    )
    return np.maximum(distances, 0.0)


class DistanceBlocks:
    """The distances of latent vectors [T, D] to the codes [K, D], made anew block by block.

    An hour of them would fill more than 700 MB; the vectors take a small part of that.
    """

    def __init__(self, z: np.ndarray, codebook: np.ndarray) -> None:
        self.z, self.codebook = z, codebook

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.z), BLOCK_FRAMES):
            yield code_distances(self.z[start : start + BLOCK_FRAMES], self.codebook)


def segment(distances: Distances, price: float) -> np.ndarray:
    """Units, int64 [T], that minimise their distances plus `price` for every segment.

    distances: [T, K], or an iterable of blocks [t, K] of it, such as `DistanceBlocks`. Of these
    one bit is kept: T * K / 8 bytes.

    Kamper and van Niekerk reward a segment of d frames with price * (d - 1), which over all
    segments is price * (T - segments): a price for each segment. The best path is then Viterbi's,
    with one cost for staying in a code (0) and one for moving to any other (`price`), exact in
    O(T K). At price 0 each frame takes its nearest code.

    Raises `ValueError` for a negative price or distances that are not [T, K] and finite.
    """
    check_price(price)
    # Whatever code a path moves to, it comes from the one that was best a frame earlier. So a
    # number a frame and a bit a code, whether it was moved to, say how every path went.
    came_from: list[int] = []
    moved: list[np.ndarray] = []  # [t, K / 8], bits of [t, K]
    cost = np.zeros(0)
    for block in _blocks(distances):
        moves = np.zeros(block.shape, dtype=bool)
        for t, fit in enumerate(block):
            if not came_from:
                cost = np.zeros(len(fit))
            best = int(cost.argmin())
            came_from.append(best)
            cost_of_move = cost[best] + price
            np.greater(cost, cost_of_move, out=moves[t])
            np.minimum(cost, cost_of_move, out=cost)
            cost += fit
        moved.append(np.packbits(moves, axis=1))
    units = np.empty(len(came_from), dtype=np.int64)
    unit, t = int(cost.argmin()), len(units) - 1
    for bits in reversed(moved):
        for row in reversed(bits):
            units[t] = unit
            if row[unit >> 3] & (128 >> (unit & 7)):
                unit = came_from[t]
            t -= 1
    return units


def check_price(price: float) -> float:
    """`price`, of a segment. Raises `ValueError` when it is negative or no number."""
    if not price >= 0:
        raise ValueError(f"the price of a segment must be >= 0, not {price}.")
    return price


def _blocks(distances: Distances) -> Iterator[np.ndarray]:
    """The blocks as float64, checked."""
    n_codes = None
    for block in [distances] if isinstance(distances, np.ndarray) else distances:
        block = np.asarray(block, dtype=np.float64)
        if block.ndim != 2 or not block.size or not np.isfinite(block).all():
            raise ValueError(f"distances must be finite numbers [T, K], not {block.shape}.")
        if block.shape[1] != (n_codes or block.shape[1]):
            raise ValueError(f"blocks of distances have {n_codes} and {block.shape[1]} codes.")
        n_codes = block.shape[1]
        yield block
    if n_codes is None:
        raise ValueError("there are no distances; give at least one frame.")


def price_for_rate(
    distances: Sequence[Distances], units_per_second: float, *, frame_rate: float = 50.0
) -> float:
    """The price of a segment at which these utterances have at most `units_per_second`.

    distances: [T, K] per utterance, a few of them that stand for all; or blocks that can be
    iterated over again and again, such as `DistanceBlocks`. Found by bisection to a thousandth;
    more price never gives more segments. Use the result for all files of a model: a price chosen
    per file would make the same sound into different units.
    """
    if not units_per_second > 0:
        raise ValueError(f"units_per_second must be > 0, not {units_per_second}.")
    if not distances:
        raise ValueError("there are no utterances to find a price on; give at least one.")
    nearest = [np.concatenate([b.min(axis=1) for b in _blocks(d)]) for d in distances]
    seconds = sum(map(len, nearest)) / frame_rate

    def rate(price: float) -> float:
        return sum(len(run_lengths(segment(d, price))) for d in distances) / seconds

    low, high = 0.0, float(np.mean([fit.mean() for fit in nearest])) or 1.0
    if rate(low) <= units_per_second:
        return low
    # A segment an utterance is the least there can be.
    target = max(units_per_second, len(distances) / seconds)
    while rate(high) > target:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if rate(middle) <= target else (middle, high)
    return high


def run_lengths(units: np.ndarray) -> list[Segment]:
    """Units [T] as segments: repeats of the same unit are one."""
    units = np.asarray(units)
    if not len(units):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(units.astype(np.int64))) + 1))
    durations = np.diff(np.append(starts, len(units)))
    rows = zip(units[starts].tolist(), starts.tolist(), durations.tolist(), strict=True)
    return [Segment(*row) for row in rows]


def expand(segments: Sequence[Segment]) -> np.ndarray:
    """The inverse of `run_lengths`: int64 units [T]."""
    units = np.array([s.unit for s in segments], dtype=np.int64)
    return np.repeat(units, [s.duration for s in segments])


def to_text(units: np.ndarray, *, dedup: bool = False, durations: bool = False) -> str:
    """Units [T] as one line, numbers between blanks; `dedup` merges repeats.

    `durations` merges them too and says how many frames each unit lasts: "5:2 7:1".
    """
    if durations:
        return " ".join(f"{s.unit}:{s.duration}" for s in run_lengths(units))
    numbers = [s.unit for s in run_lengths(units)] if dedup else np.asarray(units).tolist()
    return " ".join(map(str, numbers))


def from_text(line: str, frames_per_unit: int = 1) -> np.ndarray:
    """The inverse of `to_text`, with durations or without: int64 units [T].

    frames_per_unit: how many times each unit is there, for models with `level_strides`.
    Raises `ValueError` for anything else, several lines among it, and for what is beyond `MAX_UNIT`
    or `MAX_FRAMES`, before it takes memory.
    """
    if len(line.strip().splitlines()) > 1:
        raise ValueError("several lines were given, and the units of an utterance are one.")
    segments = []
    end = 0
    for word in line.split():
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", word, re.ASCII)
        if match is None:
            raise ValueError(f"{word[:40]!r} is no unit; write numbers, or unit:frames.")
        segments.append(Segment(int(match[1]), end, frames_per_unit * int(match[2] or 1)))
        if (wrong := _out_of_range(segments[-1])) is not None:
            raise ValueError(f"{word!r} {wrong}.")
        end += segments[-1].duration
    return expand(segments)


def write_segments(
    path: str | Path,
    segments: Sequence[Segment],
    *,
    frame_rate: float = 50.0,
    overwrite: bool = False,
) -> None:
    """Write segments as tab-separated text: unit, start and duration in seconds, with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(HEADER)
    for unit, start, duration in segments:
        writer.writerow((unit, f"{start / frame_rate:.4f}", f"{duration / frame_rate:.4f}"))
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")


def read_segments(path: str | Path, *, frame_rate: float = 50.0) -> list[Segment]:
    """Read what `write_segments` wrote. Raises `FileRefused` for anything else.

    Units are at most `MAX_UNIT`, and all segments together last at most `MAX_FRAMES`.
    """
    return parse_segments(read_text(path), path, frame_rate=frame_rate)


def parse_segments(text: str, path: str | Path, *, frame_rate: float = 50.0) -> list[Segment]:
    """`read_segments` of a text; `path` stands in `FileRefused`'s messages."""
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
    except csv.Error as error:
        raise FileRefused(f"{path} is not a segment file: {error}.") from error
    if not rows or tuple(rows[0]) != HEADER:
        raise FileRefused(f"{path} is not a segment file; its first line is `unit start duration`.")
    segments: list[Segment] = []
    end = 0
    for row in rows[1:]:
        try:
            segments.append(Segment(int(row[0]), *(round(float(x) * frame_rate) for x in row[1:3])))
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise FileRefused(
                f"{path} has the line {' '.join(row)[:80]!r}; want unit, start, duration."
            ) from error
        _, start, duration = segments[-1]
        if (wrong := _out_of_range(segments[-1])) is not None:
            raise FileRefused(f"{path} has a segment at {row[1][:20]} s that {wrong}.")
        if start != end or duration < 1:
            raise FileRefused(
                f"{path} has a segment at {row[1][:20]} s that does not follow the one before it "
                f"at {frame_rate:g} frames a second."
            )
        end = start + duration
    if not segments:
        raise FileRefused(f"{path} holds no segments.")
    return segments


def _out_of_range(segment: Segment) -> str | None:
    """What is wrong with a segment of a file: these numbers say how much memory it takes."""
    if not 0 <= segment.unit <= MAX_UNIT:
        return f"has a unit out of range; units are 0 to {MAX_UNIT}"
    if segment.duration < 1 or segment.start + segment.duration > MAX_FRAMES:
        return f"ends after frame {MAX_FRAMES}, or lasts none"
    return None
