"""What units tell about phones: the phone of each frame, and measures of their joint counts.

Units are integer arrays [T], one code a frame. Every information measure is a function of a
contingency table [phones, units] of frame counts; tables add up over utterances. Entropies are in
bits.

Sources: PNMI and the purities, Hsu et al. 2021 (HuBERT); the bitrate, Dunbar et al. 2019
(ZeroSpeech); adjustment for chance, Vinh, Epps and Bailey 2010.
"""

from collections.abc import Sequence

import numpy as np

from audiovq.units.alignments import EPSILON, SILENCE, Interval

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
    at = np.searchsorted(starts, times + EPSILON, side="right") - 1
    covered = (at >= 0) & (times + EPSILON < ends[at])
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
