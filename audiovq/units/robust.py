"""Do units hear the phone, or the volume, the room and the speaker?

The same recordings are encoded clean and under the conditions of `augment`, and the units
compared: the share of frames whose unit changes, and the edit distance of the merged units (after
Gat et al. 2023, "Augmentation invariant discrete representation for generative spoken language
modeling"). A tokenizer that always says the same is perfect in both, so the accuracy on other
speakers under each condition stands beside them, and a probe says how well units tell the speaker.
"""

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr

from audiovq.audio import load_audio
from audiovq.files import FileRefused
from audiovq.hearing import SAMPLE_RATE
from audiovq.levenshtein import edit_distance
from audiovq.pictures import new_figure
from audiovq.segment import run_lengths, segment
from audiovq.units.alignments import Interval, find
from audiovq.units.augment import CONDITIONS, Wav, augment
from audiovq.units.baselines import fit_kmeans, mfcc
from audiovq.units.files import UnitFiles, find_audio, read_units, speakers_by_rule
from audiovq.units.information import frame_labels, held_out_hits, phone_set, speaker_folds
from audiovq.units.measures import Measure, best_shift

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audiovq.model import AudioVQ

PROBE_SECONDS = 10.0
"""Length of the pieces whose speaker the probe names."""

Tokenizer = Callable[[Mapping[str, Wav]], dict[str, UnitFiles]]
"""Makes units of recordings by name, float32 [n] each; their names are those of the recordings.

It may make several kinds of units of them, by the kind's name: frames and segments.
"""


@dataclass(frozen=True)
class Score:
    """One kind of units under one condition, against the same recordings without it."""

    changed: Measure
    """Share of frames whose unit is another."""
    edit_distance: Measure
    """Insertions, deletions and substitutions between the units with repeats merged, for each
    merged unit of the clean recording."""
    accuracy: Measure | None
    """Frames of speech that the code-to-phone map of other speakers' clean speech names rightly."""


@dataclass(frozen=True)
class Probe:
    """How well a linear classifier names the speaker from unit counts."""

    accuracy: Measure
    chance: float
    """The share of the speaker with the most pieces."""
    n_speakers: int
    n_pieces: int


@dataclass(frozen=True)
class Robustness:
    """Scores by kind of units and condition, "clean" among them, which changes nothing."""

    scores: dict[str, dict[str, Score]]
    probes: dict[str, Probe]
    majority: float | None
    """Accuracy of the most frequent phone alone."""
    n_recordings: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Speech:
    """Recordings by name, and what is known of them."""

    wavs: dict[str, Wav]
    speakers: list[str] | None = None
    """One for each recording."""
    alignments: dict[str, list[Interval]] = field(default_factory=dict)
    """Of some or all recordings, in seconds."""


def load_speech(
    folder: str | Path,
    *,
    alignments: Mapping[str, list[Interval]] | None = None,
    speakers: str | None = None,
    limit: int | None = None,
    seconds: float | None = None,
) -> Speech:
    """Recordings of a folder at 16 kHz: `limit` of them, evenly spaced, and `seconds` of each.

    `alignments` by name are matched as `alignments.find` does; `speakers` is a rule of
    `speakers_by_rule`. Raises `FileRefused` for what is not there, and `ValueError` for alignments
    without speakers: the accuracy is that on other speakers.
    """
    if alignments is not None and speakers is None:
        raise ValueError("accuracy on other speakers needs to know who speaks; say --speakers.")
    recordings = find_audio(folder)
    names = sorted(recordings)
    matches = find(names, alignments or {})
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    n_samples = None if seconds is None else max(1, round(seconds * SAMPLE_RATE))
    wavs = {name: load_audio(recordings[name], SAMPLE_RATE)[:n_samples] for name in names}
    aligned = {n: list((alignments or {})[matches[n]]) for n in names if n in matches}
    if alignments is not None and not aligned:
        raise FileRefused(f"no recording of {folder} has an alignment of its name.")
    who = None if speakers is None else speakers_by_rule(names, speakers)
    return Speech(wavs, who, aligned)


# --- Tokenizers -----------------------------------------------------------------------------------


def model_tokenizer(model: "AudioVQ", *, level: int = 0, n_units: Sequence[int] = ()) -> Tokenizer:
    """The units of a model, and its segments where the card has a `segment_price` (level 0).

    n_units: also with so many units told apart, each a kind of its own; see
    `AudioVQ.coarse_units`. Raises `ValueError` for a number that it cannot have.
    """
    import torch

    from audiovq.transcode import unit_distances

    rate = model.config.sample_rate
    price = model.card.get("segment_price") if level == 0 else None
    coarse = {f"{model.name} {k} units": model.coarse_units(k).numpy() for k in n_units}

    def encode(wavs: Mapping[str, Wav]) -> dict[str, UnitFiles]:
        found: dict[str, dict[str, np.ndarray]] = {model.name: {}}
        for name, wav in wavs.items():
            if rate != SAMPLE_RATE:
                wav = soxr.resample(wav, SAMPLE_RATE, rate)
            if isinstance(price, int | float):  # one pass through the encoder for both
                blocks = unit_distances(model, [wav])
                found[model.name][name] = np.concatenate([b.argmin(axis=1) for b in blocks])
                found.setdefault(f"{model.name} segments", {})[name] = segment(blocks, price)
                continue
            codes = model.encode(torch.from_numpy(wav)[None, None], n_q=level + 1)
            found[model.name][name] = codes.levels[level][0].cpu().numpy()
        for kind, standing in coarse.items():
            found[kind] = {name: standing[units] for name, units in found[model.name].items()}
        size = model.config.codebook_size
        return {k: UnitFiles(u, model.config.level_rate(level), size) for k, u in found.items()}

    return encode


def command_tokenizer(
    command: str, *, name: str = "command", level: int = 0, frame_rate: float = 50.0
) -> Tokenizer:
    """A program that encodes a folder of WAV files to a folder of token files.

    command: its line, with {in} and {out} for the folders. The WAV files are float32 at 16 kHz;
    the tokens are read by `read_units` and have the names of the WAV files. No shell is started.

    Raises `ValueError` when {in} or {out} is missing; when it is run, `FileRefused` if the program
    fails or leaves tokens out.
    """
    words = shlex.split(command)
    if not all(any(folder in word for word in words) for folder in ("{in}", "{out}")):
        raise ValueError(
            f"the command {command!r} must name both folders, as in 'prog {{in}} {{out}}'."
        )

    def encode(wavs: Mapping[str, Wav]) -> dict[str, UnitFiles]:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in"), Path(folder, "out")
            source.mkdir()
            target.mkdir()
            files = {f"r{i:06d}": recording for i, recording in enumerate(wavs)}
            for file, recording in files.items():
                soundfile.write(source / f"{file}.wav", wavs[recording], SAMPLE_RATE, "FLOAT")
            _call([w.replace("{in}", str(source)).replace("{out}", str(target)) for w in words])
            found = read_units(target, level=level, frame_rate=frame_rate)
        where = find(files, found.units)
        lost = [recording for file, recording in files.items() if file not in where]
        if lost:
            raise FileRefused(f"{words[0]} wrote no tokens for {lost[0]} and {len(lost) - 1} more.")
        units = {recording: found.units[where[file]] for file, recording in files.items()}
        return {name: UnitFiles(units, found.frame_rate, found.codebook_size)}

    return encode


def _call(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except OSError as error:
        raise FileRefused(f"{words[0]} cannot be run: {error.strerror}.") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "nothing"
        raise FileRefused(
            f"{words[0]} failed with status {done.returncode} and said: {said.splitlines()[-1]}"
        )


def mfcc_tokenizer(
    name: str, fit: Mapping[str, Wav], n_units: int, *, frame_rate: float = 50.0
) -> Tokenizer:
    """K-means on MFCC, fitted to the recordings `fit`; `name` is mfcc or mfcc-cmn.

    mfcc-cmn takes off the mean of each coefficient over the recording (cepstral mean
    normalisation), which hears neither the level nor a fixed filter.
    """
    if name not in ("mfcc", "mfcc-cmn"):
        raise ValueError(f"{name!r} is no baseline; give mfcc, mfcc-cmn or mfcc:256 (K).")

    def features(wav: Wav) -> np.ndarray:
        made = mfcc(wav, SAMPLE_RATE, frame_rate)
        return made - made.mean(axis=0) if name == "mfcc-cmn" else made

    clusters = fit_kmeans([features(wav) for wav in fit.values()], n_units)

    def encode(wavs: Mapping[str, Wav]) -> dict[str, UnitFiles]:
        units = {n: clusters.predict(features(w)).astype(np.int64) for n, w in wavs.items()}
        return {f"{name}:{n_units}": UnitFiles(units, frame_rate, n_units)}

    return encode


# --- Measuring ------------------------------------------------------------------------------------


def robustness(
    speech: Speech,
    tokenizers: Sequence[Tokenizer],
    conditions: Sequence[str] = tuple(CONDITIONS),
    *,
    baselines: Sequence[str] = (),
    fit: Mapping[str, Wav] | None = None,
    n_bootstrap: int = 200,
    on_progress: Callable[[str], None] = lambda condition: None,
) -> Robustness:
    """Compare units of clean speech with those of the same speech under each condition.

    Baselines are named as `mfcc_tokenizer` does, with `:K` or with the K of the first tokenizer,
    and fitted to `fit`, by default to the measured recordings. Recordings are drawn again
    `n_bootstrap` times for the 95 % intervals. `on_progress` is told the condition at hand.

    Raises `ValueError` for unknown conditions and baselines, conditions that cannot be made, and
    kinds of units of the same name; `FileRefused` when a tokenizer gives other numbers of frames.
    """
    for baseline in baselines:
        _baseline(baseline, 1)
    on_progress("clean")
    encoders = list(tokenizers)
    made = [encode(speech.wavs) for encode in encoders]
    first = next(iter(made[0].values()))
    size = first.codebook_size or max(int(u.max()) for u in first.units.values()) + 1
    for baseline in baselines:
        kind, n_units = _baseline(baseline, size)
        wavs = fit or speech.wavs
        encoders.append(mfcc_tokenizer(kind, wavs, n_units, frame_rate=first.frame_rate))
        made.append(encoders[-1](speech.wavs))
    clean = {kind: units for kinds in made for kind, units in kinds.items()}
    if len(clean) < sum(map(len, made)):
        raise ValueError("two kinds of units have one name; name the tokenizers apart.")
    judges = {kind: _Judge(speech, units, n_bootstrap) for kind, units in clean.items()}
    scores = {kind: {"clean": judge.score(clean[kind].units)} for kind, judge in judges.items()}
    for condition in conditions:
        on_progress(condition)
        wavs = {
            name: augment(condition, wav, name, _others(speech.wavs, name))
            for name, wav in speech.wavs.items()
        }
        for encode in encoders:
            for kind, units in encode(wavs).items():
                speed = CONDITIONS[condition].speed
                scores[kind][condition] = judges[kind].score(units.units, speed)
    probes = {}
    if speech.speakers is not None:
        for kind, units in clean.items():
            probe = speaker_probe(
                [np.asarray(units.units[name]) for name in speech.wavs],
                speech.speakers,
                frame_rate=units.frame_rate,
                n_bootstrap=n_bootstrap,
            )
            if probe is not None:
                probes[kind] = probe
    seconds = sum(map(len, speech.wavs.values())) / SAMPLE_RATE
    majority = next(iter(judges.values())).majority
    return Robustness(scores, probes, majority, len(speech.wavs), seconds)


def _baseline(text: str, size: int) -> tuple[str, int]:
    """The kind and K of mfcc, mfcc-cmn or mfcc:256."""
    kind, _, k = text.partition(":")
    if kind not in ("mfcc", "mfcc-cmn") or (k and not (k.isdecimal() and int(k))):
        raise ValueError(f"{text!r} is no baseline; give mfcc, mfcc-cmn or mfcc:256 (K).")
    return kind, int(k) if k else size


def _others(wavs: Mapping[str, Wav], name: str) -> list[Wav]:
    return [wav for other, wav in wavs.items() if other != name]


class _Judge:
    """Compares units with those of the clean recordings."""

    def __init__(self, speech: Speech, clean: UnitFiles, n_bootstrap: int) -> None:
        self.clean = {name: np.asarray(clean.units[name]) for name in speech.wavs}
        self.frame_rate = clean.frame_rate
        n = len(self.clean)
        self.draws = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=n_bootstrap)
        self.majority: float | None = None
        # Recordings without alignment stay in the draws, with no frames to name.
        self.names = [name for name in self.clean if name in speech.alignments]
        self.alignments = [speech.alignments[name] for name in self.names]
        self.folds = None
        if self.names and speech.speakers is not None:
            who = dict(zip(self.clean, speech.speakers, strict=True))
            speakers = [who[name] for name in self.names]
            if len(set(speakers)) < 2:
                raise FileRefused("accuracy on other speakers needs two speakers with alignments.")
            units = [self.clean[name] for name in self.names]
            self.folds = speaker_folds(speakers, [len(u) for u in units])
            self.phones = phone_set(self.alignments)
            self.shift = best_shift(units, self.alignments, frame_rate=self.frame_rate)
            self.labels = self._labels(units, 1.0)

    def score(self, units: Mapping[str, np.ndarray], speed: float = 1.0) -> Score:
        """Units of the same recordings, `speed` times as fast."""
        changed, edits = [], []
        for name, before in self.clean.items():
            after = np.asarray(units[name])
            if abs(len(after) - len(before) / speed) > 2:
                raise FileRefused(
                    f"{name} has {len(before)} frames, and {len(after)} under another condition: "
                    "the tokenizer must give as many frames for as much sound."
                )
            at = ((np.arange(len(before)) + 0.5) / speed).astype(np.int64)
            other = after[np.minimum(at, len(after) - 1)] != before
            merged, merged_after = ([s.unit for s in run_lengths(u)] for u in (before, after))
            changed.append((int(other.sum()), len(before)))
            edits.append((edit_distance(merged, merged_after), len(merged)))
        return Score(
            changed=_ratio(np.array(changed), self.draws),
            edit_distance=_ratio(np.array(edits), self.draws),
            accuracy=self._accuracy(units, speed),
        )

    def _labels(self, units: list[np.ndarray], speed: float) -> list[np.ndarray]:
        """Phones of the frames, without silence."""
        labels = []
        for unit, alignment in zip(units, self.alignments, strict=True):
            heard = [Interval(start / speed, end / speed, phone) for start, end, phone in alignment]
            frames = frame_labels(heard, len(unit), self.frame_rate, self.phones, shift=self.shift)
            labels.append(np.where(frames == 0, -1, frames))
        return labels

    def _accuracy(self, units: Mapping[str, np.ndarray], speed: float) -> Measure | None:
        if self.folds is None:
            return None
        before = [self.clean[name] for name in self.names]
        after = [np.asarray(units[name]) for name in self.names]
        labels = self._labels(after, speed)
        n_units = max(int(u.max()) for u in (*before, *after)) + 1
        hits, prior = held_out_hits(
            before, self.labels, self.folds, n_units, len(self.phones), tried=(after, labels)
        )
        n_frames = np.array([(frames >= 0).sum() for frames in labels])
        if self.majority is None:
            self.majority = float(prior.sum() / max(1, n_frames.sum()))
        counts = np.zeros((len(self.clean), 2), dtype=np.int64)
        counts[[list(self.clean).index(name) for name in self.names]] = np.stack(
            [hits, n_frames], axis=1
        )
        return _ratio(counts, self.draws)


def _ratio(counts: np.ndarray, draws: np.ndarray) -> Measure:
    """Sum over sum of counts [recordings, 2], and its interval over draws [n, recordings]."""
    hits, total = counts.sum(axis=0)
    value = float(hits / max(1, total))
    resampled = draws @ counts
    if not len(resampled):
        return Measure(value, value, value)
    low, high = np.quantile(resampled[:, 0] / np.maximum(1, resampled[:, 1]), (0.025, 0.975))
    return Measure(value, min(value, float(low)), max(value, float(high)))


def speaker_probe(
    units: Sequence[np.ndarray],
    speakers: Sequence[str],
    *,
    frame_rate: float = 50.0,
    seconds: float = PROBE_SECONDS,
    n_folds: int = 5,
    n_bootstrap: int = 200,
) -> Probe | None:
    """Name the speaker of pieces of `seconds` from how often each unit stands in them.

    units: int [T] per recording; speakers: one per recording. A speaker's recordings are dealt
    out to the folds, and those in one fold joined and cut into pieces, so that no recording is on
    both sides. The classifier is logistic regression on the roots of the units' shares. None
    where fewer than two speakers have pieces in two folds.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise FileRefused("The probe needs scikit-learn; pip install '.[units]'.") from error
    joined: dict[tuple[str, int], list[np.ndarray]] = {}
    seen: dict[str, int] = {}
    for unit, speaker in zip(units, speakers, strict=True):
        joined.setdefault((speaker, seen.get(speaker, 0) % n_folds), []).append(unit)
        seen[speaker] = seen.get(speaker, 0) + 1
    n_units = max(int(u.max()) for u in units) + 1
    length = max(1, round(seconds * frame_rate))
    rows, who, fold_of = [], [], []
    for (speaker, fold), parts in joined.items():
        whole = np.concatenate(parts)
        for start in range(0, len(whole) - length + 1, length):
            counts = np.bincount(whole[start : start + length], minlength=n_units)
            rows.append(np.sqrt(counts / length))
            who.append(speaker)
            fold_of.append(fold)
    names, folds = np.array(who), np.array(fold_of)
    known = [s for s in sorted(set(who)) if len(set(folds[names == s])) > 1]
    if len(known) < 2:
        return None
    kept = np.isin(names, known)
    x, names, folds = np.stack(rows)[kept], names[kept], folds[kept]
    right = np.zeros(len(names), dtype=np.int64)
    for fold in sorted(set(folds.tolist())):
        test = folds == fold
        if len(set(names[~test])) > 1:
            fitted = LogisticRegression(C=100.0, max_iter=2000).fit(x[~test], names[~test])
            right[test] = fitted.predict(x[test]) == names[test]
    n = len(names)
    draws = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=n_bootstrap)
    chance = max(int((names == s).sum()) for s in known) / n
    accuracy = _ratio(np.stack([right, np.ones_like(right)], axis=1), draws)
    return Probe(accuracy, chance, len(known), n)


# --- Picture --------------------------------------------------------------------------------------


def robustness_picture(found: Robustness) -> "Figure":
    """Bars of the changed frames for each condition, and of the accuracy where it is known."""
    conditions = list(next(iter(found.scores.values())))
    panels: list[tuple[str, str, list[str]]] = [
        ("changed", "frames whose unit changes", conditions[1:])
    ]
    if found.majority is not None:
        panels.append(("accuracy", "accuracy on other speakers", conditions))
    rows = len(conditions) * len(found.scores)
    figure = new_figure(5.5 * len(panels), 1.5 + 0.14 * rows)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    width = 0.8 / len(found.scores)
    for axes, (measure, title, shown) in zip(all_axes, panels, strict=True):
        for i, (kind, scores) in enumerate(found.scores.items()):
            values = [getattr(scores[condition], measure) for condition in shown]
            axes.barh(
                np.arange(len(shown)) + (i + 0.5) * width - 0.4,
                [m.value for m in values],
                width,
                xerr=[[m.value - m.low for m in values], [m.high - m.value for m in values]],
                error_kw={"elinewidth": 0.7},
                label=kind,
            )
        if measure == "accuracy":
            axes.axvline(found.majority, color="0.4", linestyle=":", label="majority phone")
        axes.set_yticks(np.arange(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel(title)
    all_axes[-1].legend(fontsize=8)
    return figure
