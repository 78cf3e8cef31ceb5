"""Boundaries: where units change, where phones change, and how well the two agree.

Source: the R-value, Räsänen, Laine and Altosaar 2009.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from audiovq.units.alignments import EPSILON, SILENCE, Interval

TOLERANCE = 0.02
"""Seconds that a boundary may be off and still count as found."""


def change_times(units: np.ndarray, frame_rate: float, *, shift: int = 0) -> np.ndarray:
    """Seconds at which the unit changes, brought back by `shift` frames; not the two ends."""
    times = (np.flatnonzero(np.diff(units)) + 1 - shift) / frame_rate
    return times[times > 0]


def fill_silence(
    alignment: Sequence[Interval], seconds: float, *, shortest: float = 0.0
) -> list[Interval]:
    """The alignment with silence where no interval is, from 0 to `seconds`, silences joined.

    A gap at either end that is not longer than `shortest` seconds stays: the frames of a recording
    end a little after its sound.
    """
    filled: list[Interval] = []

    def add(start: float, end: float, phone: str) -> None:
        if phone == SILENCE and filled and filled[-1].phone == SILENCE:
            filled[-1] = filled[-1]._replace(end=end)
        else:
            filled.append(Interval(start, end, phone))

    at, least = 0.0, shortest
    for start, end, phone in alignment:
        if start - at > least + EPSILON:
            add(at, start, SILENCE)
        add(start, end, phone)
        at, least = end, 0.0
    if seconds - at > shortest + EPSILON:
        add(at, seconds, SILENCE)
    return filled


def phone_changes(alignment: Sequence[Interval]) -> np.ndarray:
    """Seconds at which one interval of an alignment without gaps follows another.

    Two intervals of one phone in a row are two phones, and there is a boundary between them.
    """
    return np.array([interval.start for interval in alignment[1:]])


def match_boundaries(
    found: Sequence[float], true: Sequence[float], tolerance: float = TOLERANCE
) -> int:
    """How many of the sorted times agree within `tolerance` seconds, each used once.

    One pass over both is a largest matching, since all tolerances are equal.
    """
    hits = i = j = 0
    while i < len(found) and j < len(true):
        late = found[i] - true[j]
        if abs(late) <= tolerance + EPSILON:
            hits, i, j = hits + 1, i + 1, j + 1
        elif late < 0:
            i += 1
        else:
            j += 1
    return hits


def boundary_scores(n_hits: float, n_found: float, n_true: float) -> dict[str, float]:
    """Precision, recall, F1, over-segmentation and R-value from counts of boundaries.

    over_segmentation = recall / precision - 1, the surplus of found boundaries.
    R-value (Räsänen et al. 2009) = 1 - (|r1| + |r2|) / 2 with
    r1 = sqrt((1 - recall)^2 + over_segmentation^2) and
    r2 = (recall - 1 - over_segmentation) / sqrt(2): 1 is perfect, and unlike F1 it cannot be
    raised by setting many boundaries. Zeros where there is nothing to count.
    """
    precision = n_hits / n_found if n_found else 0.0
    recall = n_hits / n_true if n_true else 0.0
    f1 = 2 * n_hits / (n_found + n_true) if n_found + n_true else 0.0
    surplus = n_found / n_true - 1 if n_true else 0.0
    r1 = np.hypot(1 - recall, surplus)
    r2 = (recall - 1 - surplus) / np.sqrt(2)
    r_value = float(1 - (r1 + abs(r2)) / 2) if n_true else 0.0
    return {
        "boundary_precision": precision,
        "boundary_recall": recall,
        "boundary_f1": f1,
        "over_segmentation": surplus,
        "r_value": r_value,
    }


def away_from_silence(
    times: Sequence[float], alignment: Sequence[Interval], margin: float
) -> list[float]:
    """The times that lie in speech, more than `margin` seconds from any silence."""
    stretches: list[list[float]] = []  # starts and ends of speech
    for start, end, phone in alignment:
        if phone == SILENCE:
            continue
        if stretches and start - stretches[-1][1] <= EPSILON:
            stretches[-1][1] = end
        else:
            stretches.append([start, end])
    starts = [start for start, _ in stretches]
    kept = []
    for time in times:
        at = bisect_right(starts, time) - 1
        if at < 0:
            continue
        start, end = stretches[at]
        if start + margin + EPSILON < time < end - margin - EPSILON:
            kept.append(time)
    return kept
