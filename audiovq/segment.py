"""Segments: runs of frames that share a unit, found by duration-penalised dynamic programming.

Frame by frame, the nearest code flickers. `segment` chooses the codes of all frames together so
that the sum of squared distances plus a price for every segment is smallest (Kamper and van
Niekerk 2021, "Towards unsupervised phone and word segmentation using self-supervised
vector-quantized neural networks").
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiovq.files import FileRefused, atomic_output, read_text

HEADER = ("unit", "start", "duration")
MAX_FRAMES = 1 << 25
"""Frames that the segments of a file may last together: a week at 50 Hz."""
MAX_UNIT = (1 << 16) - 1


class Segment(NamedTuple):
    """A unit, the frame at which it starts, and how many frames it lasts."""

    unit: int
    start: int
    duration: int


def code_distances(z: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances [T, K] of latent vectors [T, D] to the codes [K, D]."""
    z, codebook = z.astype(np.float64), codebook.astype(np.float64)
    distances = (
        (z * z).sum(axis=1, keepdims=True) - 2 * z @ codebook.T + (codebook * codebook).sum(axis=1)
    )
    return np.maximum(distances, 0.0)


def segment(distances: np.ndarray, price: float) -> np.ndarray:
    """Units [T] that minimise their distances [T, K] plus `price` for every segment.

    Kamper and van Niekerk reward a segment of d frames with price * (d - 1), which over all
    segments is price * (T - segments): a price for each segment. The best path is then Viterbi's,
    with one cost for staying in a code (0) and one for moving to any other (`price`), exact in
    O(T K). At price 0 each frame takes its nearest code.

    Raises `ValueError` for a negative price or distances that are not [T, K] and finite.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 2 or not distances.size or not np.isfinite(distances).all():
        raise ValueError(f"distances must be finite numbers [T, K], not {distances.shape}.")
    if not price >= 0:
        raise ValueError(f"the price of a segment must be >= 0, not {price}.")
    n_frames, n_codes = distances.shape
    stay = np.arange(n_codes)
    before = np.zeros((n_frames, n_codes), dtype=np.int64)  # best code one frame earlier
    cost = distances[0].copy()
    for t in range(1, n_frames):
        best = int(cost.argmin())
        moved = cost[best] + price
        moves = moved < cost
        before[t] = np.where(moves, best, stay)
        cost = np.where(moves, moved, cost) + distances[t]
    units = np.empty(n_frames, dtype=np.int64)
    units[-1] = cost.argmin()
    for t in range(n_frames - 1, 0, -1):
        units[t - 1] = before[t, units[t]]
    return units


def price_for_rate(
    distances: Sequence[np.ndarray], units_per_second: float, *, frame_rate: float = 50.0
) -> float:
    """The price of a segment at which these utterances have at most `units_per_second`.

    distances: [T, K] per utterance, a few of them that stand for all. Found by bisection to a
    thousandth; more price never gives more segments. Use the result for all files of a model:
    a price chosen per file would make the same sound into different units.
    """
    if units_per_second <= 0:
        raise ValueError(f"units_per_second must be > 0, not {units_per_second}.")
    seconds = sum(len(d) for d in distances) / frame_rate

    def rate(price: float) -> float:
        return sum(len(run_lengths(segment(d, price))) for d in distances) / seconds

    low, high = 0.0, float(np.mean([d.min(axis=1).mean() for d in distances])) or 1.0
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


def to_text(units: np.ndarray, *, dedup: bool = False) -> str:
    """Units [T] as one line, numbers between blanks; `dedup` merges repeats."""
    numbers = [s.unit for s in run_lengths(units)] if dedup else np.asarray(units).tolist()
    return " ".join(map(str, numbers))


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
        unit, start, duration = segments[-1]
        if not 0 <= unit <= MAX_UNIT:
            raise FileRefused(f"{path} has a unit outside 0..{MAX_UNIT}, which no codebook has.")
        if start != end or duration < 1:
            raise FileRefused(
                f"{path} has a segment at {row[1][:20]} s that does not follow the one before it "
                f"at {frame_rate:g} frames a second."
            )
        end = start + duration
        if end > MAX_FRAMES:
            raise FileRefused(
                f"{path} has segments of more than {MAX_FRAMES / frame_rate:.0f} s in all; cut it."
            )
    if not segments:
        raise FileRefused(f"{path} holds no segments.")
    return segments
