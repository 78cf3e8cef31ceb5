"""How phoneme-like units are: measures of discrete units against phone alignments.

Units are integer arrays [T], one per utterance, one code a frame. Phones come as lists of
`audiovq.units.alignments.Interval`. Every information measure is a function of a contingency table
[phones, units] of frame counts; those tables add up over utterances, which is what makes the
bootstrap cheap. Entropies are in bits.

Sources: PNMI and the purities, Hsu et al. 2021 (HuBERT); the R-value, Räsänen, Laine and Altosaar
2009; the bitrate, Dunbar et al. 2019 (ZeroSpeech); adjustment for chance, Vinh, Epps and Bailey
2010.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from audiovq.units.alignments import SILENCE, Interval

TOLERANCE = 0.02
"""Seconds that a boundary may be off and still count as found."""

SHIFTS = range(-3, 9)
"""Shifts, in frames, that `best_shift` tries."""

_EPSILON = 1e-6  # seconds: times on a 10 ms grid are not exact in binary


# --- Frames ---------------------------------------------------------------------------------------


def phone_set(alignments: Sequence[Sequence[Interval]]) -> list[str]:
    """The phones of the alignments, sorted, silence first."""
    phones = {interval.phone for alignment in alignments for interval in alignment}
    return [SILENCE, *sorted(phones - {SILENCE})]


def frame_labels(
    alignment: Sequence[Interval],
    n_frames: int,
    frame_rate: float,
    phones: Sequence[str],
    *,
    shift: int = 0,
) -> np.ndarray:
    """The phone at the centre of each frame: indices into `phones`, int64 [n_frames].

    Frame t is compared with the sound at (t + 0.5 - shift) / frame_rate seconds: `shift` is how
    many frames the codes lag the sound. What no interval covers is silence; a frame whose centre
    lies before the sound is -1.
    """
    index = {phone: i for i, phone in enumerate(phones)}
    starts = np.array([interval.start for interval in alignment])
    ends = np.array([interval.end for interval in alignment])
    labels = np.array([index[interval.phone] for interval in alignment], dtype=np.int64)
    times = (np.arange(n_frames) + 0.5 - shift) / frame_rate
    at = np.searchsorted(starts, times + _EPSILON, side="right") - 1
    covered = (at >= 0) & (times + _EPSILON < ends[at])
    frames = np.where(covered, labels[at], index[SILENCE])
    frames[times < 0] = -1
    return frames


def contingency(units: np.ndarray, phones: np.ndarray, n_units: int, n_phones: int) -> np.ndarray:
    """Frame counts [n_phones, n_units] of units [T] against phone indices [T]; -1 is left out."""
    known = phones >= 0
    cells = phones[known] * n_units + units[known].astype(np.int64)
    return np.bincount(cells, minlength=n_phones * n_units).reshape(n_phones, n_units)


# --- Information measures of a table [phones, units] ----------------------------------------------


def entropy(counts: np.ndarray) -> float:
    """Entropy of a distribution given as counts of any shape, in bits."""
    used = counts[counts > 0].astype(np.float64)
    share = used / used.sum() if used.size else used
    return float(-(share * np.log2(share)).sum()) + 0.0  # never -0.0


def mutual_information(table: np.ndarray) -> float:
    """I(phone; unit) in bits, by plugging in the observed shares."""
    information = entropy(table.sum(axis=1)) + entropy(table.sum(axis=0)) - entropy(table)
    return max(0.0, information)


def pnmi(table: np.ndarray) -> float:
    """Phone-normalised mutual information, I(phone; unit) / H(phone), in 0..1.

    How much of the uncertainty about the phone the unit removes (Hsu et al. 2021). It rises with
    the number of units by itself, and the more so the fewer frames there are. 0 when there is one
    phone.
    """
    uncertainty = entropy(table.sum(axis=1))
    return mutual_information(table) / uncertainty if uncertainty > 0 else 0.0


def adjusted_pnmi(table: np.ndarray, chance: float) -> float:
    """PNMI corrected for chance: (I - chance) / (H(phone) - chance).

    `chance` is the information in bits that units without relation to the phones would seem to
    carry on as many frames: see `chance_information`. Perfect units have 1, unrelated ones about
    0, a little below it included (the adjustment of Vinh et al. 2010, normalised by the phones).
    """
    uncertainty = entropy(table.sum(axis=1))
    room = uncertainty - chance
    return (mutual_information(table) - chance) / room if room > 0 else 0.0


def chance_information(
    units: np.ndarray,
    phones: np.ndarray,
    n_units: int,
    n_phones: int,
    *,
    draws: int = 10,
    seed: int = 0,
) -> float:
    """I(phone; unit) in bits that remains when units and phones are torn apart, mean of `draws`.

    units and phones: [T] over all utterances on end. The runs of units stay where and as long as
    they are, and their units are dealt out anew: runs carry fewer independent observations than
    frames do. (A permutation of frames, and the Miller-Madow correction, take frames as
    independent and correct too little.)
    """
    if not len(units):
        return 0.0
    random = np.random.default_rng(seed)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(units)) + 1))
    lengths = np.diff(np.append(starts, len(units)))
    dealt = (np.repeat(random.permutation(units[starts]), lengths) for _ in range(draws))
    tables = (contingency(deal, phones, n_units, n_phones) for deal in dealt)
    return float(np.mean([mutual_information(table) for table in tables]))


def phone_purity(table: np.ndarray) -> float:
    """Share of frames that are right when each unit stands for its most frequent phone."""
    return float(table.max(axis=0).sum() / max(1, table.sum()))


def cluster_purity(table: np.ndarray) -> float:
    """Share of frames that are right when each phone stands for its most frequent unit."""
    return float(table.max(axis=1).sum() / max(1, table.sum()))


def phone_given_unit(table: np.ndarray) -> float:
    """H(phone | unit) in bits: what is left to guess of the phone when the unit is known."""
    return entropy(table) - entropy(table.sum(axis=0))


def unit_given_phone(table: np.ndarray) -> float:
    """H(unit | phone) in bits: speaker, context and noise that the unit carries besides."""
    return entropy(table) - entropy(table.sum(axis=1))


# --- Held-out accuracy ----------------------------------------------------------------------------


def speaker_folds(speakers: Sequence[str], sizes: Sequence[int], n_folds: int = 5) -> np.ndarray:
    """A fold for each utterance, int64, such that no speaker stands in two.

    The speakers, largest first, go to the fold with the fewest frames so far; there are at most
    as many folds as speakers. `sizes` are frames per utterance.
    """
    totals: dict[str, int] = {}
    for speaker, size in zip(speakers, sizes, strict=True):
        totals[speaker] = totals.get(speaker, 0) + size
    filled = [0] * min(n_folds, len(totals))
    fold_of: dict[str, int] = {}
    for speaker in sorted(totals, key=lambda s: (-totals[s], s)):
        fold = filled.index(min(filled))
        fold_of[speaker] = fold
        filled[fold] += totals[speaker]
    return np.array([fold_of[speaker] for speaker in speakers])


def held_out_hits(
    units: Sequence[np.ndarray],
    phones: Sequence[np.ndarray],
    folds: np.ndarray,
    n_units: int,
    n_phones: int,
    *,
    tried: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames that a code-to-phone map from the other folds names rightly, per utterance.

    The map gives each unit the phone it stood for most often in the other folds, and a unit not
    seen there their most frequent phone. Also returned: the hits of that phone alone, the prior.
    units, phones: [T] per utterance, -1 left out. `tried`: units and phones that the maps are tried
    on instead of those they are made from. Both results are int64 [utterances].
    """
    tried_units, tried_phones = tried or (units, phones)
    n_folds = int(folds.max()) + 1
    tables = np.zeros((n_folds, n_phones, n_units), dtype=np.int64)
    for utterance, fold in enumerate(folds):
        tables[fold] += contingency(units[utterance], phones[utterance], n_units, n_phones)
    hits = np.zeros(len(units), dtype=np.int64)
    prior = np.zeros(len(units), dtype=np.int64)
    for fold in range(n_folds):
        others = tables.sum(axis=0) - tables[fold]
        majority = int(others.sum(axis=1).argmax())
        phone_of = np.where(others.any(axis=0), others.argmax(axis=0), majority)
        for held_out in np.flatnonzero(folds == fold).tolist():
            labels = tried_phones[held_out]
            hits[held_out] = (phone_of[tried_units[held_out].astype(np.int64)] == labels).sum()
            prior[held_out] = (labels == majority).sum()
    return hits, prior


# --- Boundaries -----------------------------------------------------------------------------------


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
        if start - at > least + _EPSILON:
            add(at, start, SILENCE)
        add(start, end, phone)
        at, least = end, 0.0
    if seconds - at > shortest + _EPSILON:
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
        if abs(late) <= tolerance + _EPSILON:
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


def _away_from_silence(
    times: Sequence[float], alignment: Sequence[Interval], margin: float
) -> list[float]:
    """The times that lie in speech, more than `margin` seconds from any silence."""
    stretches: list[list[float]] = []  # starts and ends of speech
    for start, end, phone in alignment:
        if phone == SILENCE:
            continue
        if stretches and start - stretches[-1][1] <= _EPSILON:
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
        if start + margin + _EPSILON < time < end - margin - _EPSILON:
            kept.append(time)
    return kept


# --- Rate -----------------------------------------------------------------------------------------


def zerospeech_bitrate(sequences: Sequence[np.ndarray], seconds: float) -> float:
    """Bits per second of symbol sequences: symbols a second times their entropy in bits.

    The definition of ZeroSpeech 2019 (Dunbar et al.): the entropy is that of single symbols over
    all sequences, with no credit for their order.
    """
    symbols = np.concatenate([np.asarray(s) for s in sequences]) if len(sequences) else np.zeros(0)
    if seconds <= 0 or not len(symbols):
        return 0.0
    _, counts = np.unique(symbols, return_counts=True)
    return len(symbols) / seconds * entropy(counts)


# --- All of it ------------------------------------------------------------------------------------


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
    top = max(int(u.max(initial=0)) for u in units) + 1
    if n_units is None:
        n_units = top
    elif top > n_units:
        raise ValueError(f"unit {top - 1} is out of range; n_units is {n_units}.")
    phones = phone_set(alignments)
    if shift == "auto":
        shift = best_shift(units, alignments, frame_rate=frame_rate, n_units=n_units)
    labels = [
        frame_labels(a, len(u), frame_rate, phones, shift=shift)
        for u, a in zip(units, alignments, strict=True)
    ]
    if not any((frames >= 0).any() for frames in labels):
        raise ValueError(f"no frame of the units is left after a shift of {shift} frames.")
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(units), [1 / len(units)] * len(units), size=n_bootstrap)
    folds = None
    if speakers is not None and len(set(speakers)) > 1:
        if n_folds < 2:
            raise ValueError(f"n_folds must be >= 2, not {n_folds}: a map is tried on other folds.")
        folds = speaker_folds(speakers, [len(u) for u in units], n_folds)

    def measures(*, silence: bool) -> dict[str, Measure]:
        kept = labels if silence else [np.where(frames == 0, -1, frames) for frames in labels]
        counts = _boundary_counts(units, alignments, frame_rate, shift, tolerance, silence)
        samples = _samples(units, kept, folds, counts, n_units, len(phones), frame_rate, draws)
        return {name: _interval(sample) for name, sample in samples.items()}

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
        labels = [
            frame_labels(a, len(u), frame_rate, phones, shift=shift)
            for u, a in zip(units, alignments, strict=True)
        ]
        return pnmi(contingency(joined, np.concatenate(labels), n_units, len(phones)))

    return max(shifts, key=lambda s: (round(score(s), 9), -abs(s)))


def _samples(
    units: list[np.ndarray],
    labels: list[np.ndarray],
    folds: np.ndarray | None,
    boundary_counts: np.ndarray,
    n_units: int,
    n_phones: int,
    frame_rate: float,
    draws: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each measure on all utterances (first) and on each draw of them: [1 + draws] by name.

    boundary_counts is [utterances, 3]: hits, found, true. draws is [n, utterances]: how often
    each utterance stands in a resample.
    """
    weights = np.concatenate([np.ones((1, len(units)), dtype=np.int64), draws])
    # Frames that count, with their cell in the table and the utterance they are from.
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

    # Equal cells of an utterance are counted once and for all; draws only add those up.
    size = n_phones * n_units
    keys, counts = np.unique(utterance * size + phones * n_units + joined, return_counts=True)
    owner, cell = keys // size, keys % size
    run_keys, run_counts = np.unique(utterance[run] * n_units + joined[run], return_counts=True)
    run_owner, run_unit = run_keys // n_units, run_keys % n_units

    chance = chance_information(joined, phones, n_units, n_phones)
    hits = prior = None
    if folds is not None:
        hits, prior = held_out_hits(units, labels, folds, n_units, n_phones)

    samples: dict[str, list[float]] = {}
    for weight in weights:
        table = np.bincount(cell, weights=counts * weight[owner], minlength=size)
        table = table.reshape(n_phones, n_units)
        runs = np.bincount(run_unit, weights=run_counts * weight[run_owner], minlength=n_units)
        n_frames = table.sum()
        seconds = n_frames / frame_rate or 1.0
        values = {
            "pnmi": pnmi(table),
            "pnmi_adjusted": adjusted_pnmi(table, chance),
            "phone_purity": phone_purity(table),
            "cluster_purity": cluster_purity(table),
            "phone_entropy": entropy(table.sum(axis=1)),
            "phone_given_unit": phone_given_unit(table),
            "unit_given_phone": unit_given_phone(table),
        }
        if hits is not None and prior is not None:
            values["held_out_accuracy"] = float(hits @ weight) / max(1.0, n_frames)
            values["held_out_prior"] = float(prior @ weight) / max(1.0, n_frames)
        values |= boundary_scores(*(boundary_counts * weight[:, None]).sum(axis=0).tolist())
        values["units_per_second"] = runs.sum() / seconds
        values["bitrate"] = n_frames / seconds * entropy(table.sum(axis=0))
        values["bitrate_merged"] = runs.sum() / seconds * entropy(runs)
        for name, value in values.items():
            samples.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in samples.items()}


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
            found = _away_from_silence(found, filled, tolerance)
            true = _away_from_silence(true, filled, tolerance)
        counts[i] = match_boundaries(found, true, tolerance), len(found), len(true)
    return counts


def _interval(samples: np.ndarray) -> Measure:
    value, resampled = float(samples[0]), samples[1:]
    if not len(resampled):
        return Measure(value, value, value)
    low, high = np.quantile(resampled, (0.025, 0.975)) - resampled.mean()
    return Measure(value, value + float(min(low, 0.0)), value + float(max(high, 0.0)))


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
