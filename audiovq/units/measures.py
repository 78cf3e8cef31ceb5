"""How phoneme-like units are: every measure of units against phone alignments, with intervals.

Units are integer arrays [T], one per utterance, one code a frame. Phones come as lists of
`audiovq.units.alignments.Interval`. What is measured are the functions of
`audiovq.units.information` and `audiovq.units.boundaries`; their counts add up over utterances,
which is what makes the bootstrap cheap.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from audiovq.units.alignments import Interval
from audiovq.units.boundaries import (
    TOLERANCE,
    away_from_silence,
    boundary_scores,
    change_times,
    fill_silence,
    match_boundaries,
    phone_changes,
)
from audiovq.units.information import (
    adjusted_pnmi,
    chance_information,
    cluster_purity,
    contingency,
    entropy,
    frame_labels,
    held_out_hits,
    phone_given_unit,
    phone_purity,
    phone_set,
    pnmi,
    speaker_folds,
    unit_given_phone,
)

# Names that stood here; so does `audiovq.units`, which was this module.
from audiovq.units.information import mutual_information as mutual_information
from audiovq.units.information import zerospeech_bitrate as zerospeech_bitrate

SHIFTS = range(-3, 9)
"""Shifts, in frames, that `best_shift` tries."""


@dataclass(frozen=True)
class Measure:
    """A value and its 95 % bootstrap interval over utterances."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `with_silence` and `without_silence` map a measure's name to it."""

    n_utterances: int
    n_frames: int
    n_speakers: int | None
    n_units: int
    n_units_used: int
    n_phones: int
    frame_rate: float
    shift: int
    with_silence: dict[str, Measure]
    without_silence: dict[str, Measure]
    phones: list[str] = field(default_factory=list)
    table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """Frame counts [phones, units], silence included."""

    def as_dict(self) -> dict[str, Any]:
        """All but the table, ready for JSON."""
        values = asdict(self)
        del values["table"]
        return values


def evaluate(
    units: Sequence[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    *,
    frame_rate: float = 50.0,
    speakers: Sequence[str] | None = None,
    n_units: int | None = None,
    shift: int | Literal["auto"] = 0,
    n_folds: int = 5,
    tolerance: float = TOLERANCE,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Measure units against phones: every measure of this module, with and without silence.

    units: integer arrays [T], one per utterance; alignments: one per utterance, in seconds.
    `speakers` names each utterance's speaker: the held-out accuracy needs at least two and is
    left out otherwise. `shift` is the lag of the codes in frames, or "auto" for `best_shift`.
    `n_units` is K, by default the largest unit plus one.

    Without silence, information measures take the frames of speech alone, rates count them
    alone, and boundaries within `tolerance` of silence are left out on both sides.

    Intervals hold the spread of the bootstrap around the value itself: resampling repeats
    utterances, which shifts information measures upwards, so its centre is not used. Chance and
    the code-to-phone maps are not estimated anew in each resample.

    Raises `ValueError` for arrays that do not fit together, and when the alignments are much
    longer than the units, which a wrong frame rate makes them.
    """
    units = [np.asarray(u) for u in units]
    _check(units, alignments, speakers, frame_rate)
    n_units = _checked_size(units, n_units)
    phones = phone_set(alignments)
    if shift == "auto":
        shift = best_shift(units, alignments, frame_rate=frame_rate, n_units=n_units)
    labels = _labels(units, alignments, frame_rate, phones, shift)
    if not any((frames >= 0).any() for frames in labels):
        raise ValueError(f"no frame of the units is left after a shift of {shift} frames.")
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(units), [1 / len(units)] * len(units), size=n_bootstrap)
    folds = _folds(units, speakers, n_folds)

    def measures(*, silence: bool) -> dict[str, Measure]:
        kept = labels if silence else [np.where(frames == 0, -1, frames) for frames in labels]
        boundaries = _boundary_counts(units, alignments, frame_rate, shift, tolerance, silence)
        counts = _count(units, kept, folds, boundaries, n_units, len(phones), frame_rate)
        return _with_intervals(counts, draws)

    table = contingency(np.concatenate(units), np.concatenate(labels), n_units, len(phones))
    return Evaluation(
        n_utterances=len(units),
        n_frames=int(table.sum()),
        n_speakers=len(set(speakers)) if speakers is not None else None,
        n_units=n_units,
        n_units_used=int(table.any(axis=0).sum()),
        n_phones=len(phones),
        frame_rate=frame_rate,
        shift=shift,
        with_silence=measures(silence=True),
        without_silence=measures(silence=False),
        phones=phones,
        table=table,
    )


def best_shift(
    units: Sequence[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    *,
    frame_rate: float = 50.0,
    n_units: int | None = None,
    shifts: Sequence[int] = SHIFTS,
) -> int:
    """The lag of the codes in frames at which they tell most about the phones (highest PNMI).

    Among equals the one nearest to 0. One number chosen on the evaluated files flatters hardly;
    give it explicitly to be exact.
    """
    phones = phone_set(alignments)
    joined = np.concatenate([np.asarray(u) for u in units])
    n_units = n_units or int(joined.max(initial=0)) + 1

    def score(shift: int) -> float:
        labels = _labels(units, alignments, frame_rate, phones, shift)
        return pnmi(contingency(joined, np.concatenate(labels), n_units, len(phones)))

    return max(shifts, key=lambda s: (round(score(s), 9), -abs(s)))


def _labels(
    units: Sequence[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    frame_rate: float,
    phones: Sequence[str],
    shift: int,
) -> list[np.ndarray]:
    return [
        frame_labels(alignment, len(unit), frame_rate, phones, shift=shift)
        for unit, alignment in zip(units, alignments, strict=True)
    ]


def _folds(
    units: list[np.ndarray], speakers: Sequence[str] | None, n_folds: int
) -> np.ndarray | None:
    if speakers is None or len(set(speakers)) < 2:
        return None
    if n_folds < 2:
        raise ValueError(f"n_folds must be >= 2, not {n_folds}: a map is tried on other folds.")
    return speaker_folds(speakers, [len(u) for u in units], n_folds)


@dataclass(frozen=True)
class _Tally:
    """How often utterances hold things, kept sparse: a draw of utterances is a weighted sum."""

    utterance: np.ndarray
    thing: np.ndarray
    count: np.ndarray
    n_things: int

    @classmethod
    def of(cls, utterance: np.ndarray, thing: np.ndarray, n_things: int) -> "_Tally":
        """From pairs [n] of an utterance and a thing in it, 0 to n_things - 1."""
        keys, count = np.unique(utterance * n_things + thing, return_counts=True)
        return cls(keys // n_things, keys % n_things, count, n_things)

    def total(self, weight: np.ndarray) -> np.ndarray:
        """Counts [n_things] when each utterance stands `weight` [utterances] times."""
        weighted = self.count * weight[self.utterance]
        return np.bincount(self.thing, weights=weighted, minlength=self.n_things)


@dataclass(frozen=True)
class _Counts:
    """What the measures are made of, by utterance."""

    cells: _Tally
    """Frames of each phone and unit: phone * n_units + unit."""
    runs: _Tally
    """Runs of each unit."""
    boundaries: np.ndarray
    """Hits, found, true: int64 [utterances, 3]."""
    hits: tuple[np.ndarray, np.ndarray] | None
    """As `held_out_hits` gives them; None without speakers."""
    chance: float
    """`chance_information` of all frames."""
    frame_rate: float

    def values(self, weight: np.ndarray) -> dict[str, float]:
        """Each measure when each utterance stands `weight` [utterances] times."""
        runs = self.runs.total(weight)
        table = self.cells.total(weight).reshape(-1, len(runs))
        n_frames = table.sum()
        seconds = n_frames / self.frame_rate or 1.0
        values = {
            "pnmi": pnmi(table),
            "pnmi_adjusted": adjusted_pnmi(table, self.chance),
            "phone_purity": phone_purity(table),
            "cluster_purity": cluster_purity(table),
            "phone_entropy": entropy(table.sum(axis=1)),
            "phone_given_unit": phone_given_unit(table),
            "unit_given_phone": unit_given_phone(table),
        }
        if self.hits is not None:
            hits, prior = self.hits
            values["held_out_accuracy"] = float(hits @ weight) / max(1.0, n_frames)
            values["held_out_prior"] = float(prior @ weight) / max(1.0, n_frames)
        values |= boundary_scores(*(self.boundaries * weight[:, None]).sum(axis=0).tolist())
        values["units_per_second"] = runs.sum() / seconds
        values["bitrate"] = n_frames / seconds * entropy(table.sum(axis=0))
        values["bitrate_merged"] = runs.sum() / seconds * entropy(runs)
        return values


def _count(
    units: list[np.ndarray],
    labels: list[np.ndarray],
    folds: np.ndarray | None,
    boundaries: np.ndarray,
    n_units: int,
    n_phones: int,
    frame_rate: float,
) -> _Counts:
    """Counts of the frames that have a label; -1 is left out."""
    known = [frames >= 0 for frames in labels]
    joined = np.concatenate([u[k] for u, k in zip(units, known, strict=True)]).astype(np.int64)
    phones = np.concatenate([f[k] for f, k in zip(labels, known, strict=True)])
    utterance = np.repeat(np.arange(len(units)), [int(k.sum()) for k in known])
    # A run starts where the unit changes or where frames that count start again.
    starts = [
        (np.concatenate(([True], (u[1:] != u[:-1]) | ~k[:-1])))[k]
        for u, k in zip(units, known, strict=True)
    ]
    run = np.concatenate(starts)
    return _Counts(
        cells=_Tally.of(utterance, phones * n_units + joined, n_phones * n_units),
        runs=_Tally.of(utterance[run], joined[run], n_units),
        boundaries=boundaries,
        hits=None if folds is None else held_out_hits(units, labels, folds, n_units, n_phones),
        chance=chance_information(joined, phones, n_units, n_phones),
        frame_rate=frame_rate,
    )


def _with_intervals(counts: _Counts, draws: np.ndarray) -> dict[str, Measure]:
    """Each measure; draws is [n, utterances]: how often each stands in a resample."""
    value = counts.values(np.ones(len(counts.boundaries), dtype=np.int64))
    resampled = [counts.values(draw) for draw in draws]
    return {
        name: _interval(float(value[name]), np.array([float(other[name]) for other in resampled]))
        for name in value
    }


def _boundary_counts(
    units: list[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    frame_rate: float,
    shift: int,
    tolerance: float,
    silence: bool,
) -> np.ndarray:
    """Hits, boundaries found and true ones of each utterance: int64 [utterances, 3]."""
    counts = np.zeros((len(units), 3), dtype=np.int64)
    for i, (unit, alignment) in enumerate(zip(units, alignments, strict=True)):
        end = (len(unit) - shift) / frame_rate  # what the units can know of
        filled = fill_silence(alignment, end, shortest=1 / frame_rate)
        found = change_times(unit, frame_rate, shift=shift).tolist()
        true = [time for time in phone_changes(filled).tolist() if time < end]
        if not silence:
            found = away_from_silence(found, filled, tolerance)
            true = away_from_silence(true, filled, tolerance)
        counts[i] = match_boundaries(found, true, tolerance), len(found), len(true)
    return counts


def _interval(value: float, resampled: np.ndarray) -> Measure:
    if not len(resampled):
        return Measure(value, value, value)
    low, high = np.quantile(resampled, (0.025, 0.975)) - resampled.mean()
    return Measure(value, value + float(min(low, 0.0)), value + float(max(high, 0.0)))


def _checked_size(units: list[np.ndarray], n_units: int | None) -> int:
    """K: what was given, or the largest unit plus one."""
    top = max(int(u.max(initial=0)) for u in units) + 1
    if n_units is not None and top > n_units:
        raise ValueError(f"unit {top - 1} is out of range; n_units is {n_units}.")
    return n_units or top


def _check(
    units: list[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    speakers: Sequence[str] | None,
    frame_rate: float,
) -> None:
    if not units:
        raise ValueError("there are no units to evaluate; give at least one utterance.")
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frames a second must be > 0 and finite, not {frame_rate}.")
    if len(units) != len(alignments) or (speakers is not None and len(speakers) != len(units)):
        raise ValueError("units, alignments and speakers must have one entry per utterance each.")
    for u in units:
        if u.ndim != 1 or u.dtype.kind not in "iu" or not len(u) or int(u.min()) < 0:
            raise ValueError(f"units must be whole numbers >= 0 [T], not {u.dtype} {u.shape}.")
    if not all(alignments):
        raise ValueError("an alignment is empty; leave that utterance out.")
    too_long = [
        alignment[-1].end > 1.1 * len(u) / frame_rate + 0.1
        for u, alignment in zip(units, alignments, strict=True)
    ]
    if sum(too_long) > len(units) / 2:
        raise ValueError(
            f"the alignments are longer than the units at {frame_rate:g} frames a second; "
            "check the frame rate and that the files belong together."
        )
