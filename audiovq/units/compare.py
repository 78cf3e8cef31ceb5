"""Units and their baselines, measured on the same utterances in one go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from audiovq.audio import AudioReader, load_audio
from audiovq.files import FileRefused
from audiovq.hearing import SAMPLE_RATE
from audiovq.segment import segment
from audiovq.units.abx import Abx, abx, require_fastabx
from audiovq.units.alignments import Interval, find
from audiovq.units.baselines import mfcc_units, permuted_units
from audiovq.units.files import find_audio, read_units, speakers_by_rule
from audiovq.units.measures import Evaluation, evaluate

if TYPE_CHECKING:
    from audiovq.model import AudioVQ


@dataclass(frozen=True)
class Comparison:
    """Systems by name, the measured one first, on the utterances of `names`."""

    names: list[str]
    alignments: dict[str, list[Interval]]
    units: dict[str, dict[str, np.ndarray]]
    """Units [T] by system, then by utterance."""
    evaluations: dict[str, Evaluation]
    abx: dict[str, Abx]
    unmatched: list[str]
    """Files of units that no alignment belongs to without doubt: left out."""

    def as_dict(self) -> dict[str, Any]:
        """All measures by system, ready for JSON."""
        systems = {}
        for name, evaluation in self.evaluations.items():
            systems[name] = evaluation.as_dict()
            if name in self.abx:
                systems[name]["abx"] = vars(self.abx[name])
        return systems


class System(NamedTuple):
    """Units to measure."""

    units: dict[str, np.ndarray]
    """[T] by utterance."""
    frame_rate: float
    codebook_size: int | None
    shift: int | Literal["auto"] | None
    """None: that of the measured system."""


def compare(
    units: Mapping[str, np.ndarray],
    alignments: Mapping[str, list[Interval]],
    *,
    name: str = "units",
    frame_rate: float = 50.0,
    file_rate: float | None = None,
    codebook_size: int | None = None,
    level: int = 0,
    speakers: str | None = None,
    shift: int | Literal["auto"] = "auto",
    others: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    other_rate: float | None = None,
    baselines: Sequence[str] = (),
    audio: str | Path | None = None,
    fit_audio: str | Path | None = None,
    with_abx: bool = False,
) -> Comparison:
    """Measure units [T] by file, and baselines, against the alignments that belong to them.

    Files without alignment are left out and named in `unmatched`; alignments without file are
    left out too. Which belong together, `alignments.find` says. `speakers` is a rule of
    `speakers_by_rule`. `others` are more units of the same files and codebook, by name of the
    system, `other_rate` a second where that is not `frame_rate`, the units a second. Baselines:

    - `mfcc`: k-means on MFCC of the recordings in `audio`, with as many units as the codebook
      has; fitted to the recordings in `fit_audio`, if given, else to the measured ones;
    - `permuted`: the same units in random order;
    - `NAME=FOLDER`: other tokens of the same recordings, read by `read_units` with `file_rate`, by
      default `frame_rate`.

    `shift` is measured for each system when "auto". A number holds for all but `mfcc`, whose own is
    always measured. `codebook_size` is by default the largest unit plus one.

    Raises `FileRefused` or `ValueError` when files do not belong together or one is refused.
    """
    if with_abx:
        if speakers is None:
            raise ValueError("ABX needs to know who speaks; say how to tell the speakers.")
        require_fastabx()
    aligned = _aligned(units, alignments, frame_rate)
    names = list(aligned)
    if codebook_size is None:
        codebook_size = max(int(units[n].max(initial=0)) for n in names) + 1
    systems: dict[str, System] = {}

    def add(system: str, made: System) -> None:
        if system in systems:
            raise ValueError(f"two systems are called {system!r}; name them apart.")
        systems[system] = made

    for system, found in [(name, units), *(others or {}).items()]:
        kept = {n: np.asarray(found[n]) for n in names}
        rate = frame_rate if system == name else other_rate or frame_rate
        add(system, System(kept, rate, codebook_size, shift))
    for baseline in baselines:
        file_rate = file_rate or frame_rate
        add(*_baseline(baseline, systems[name], level, file_rate, audio, fit_audio))
    speaker_list = None if speakers is None else speakers_by_rule(names, speakers)
    evaluations, errors = _measure(systems, name, aligned, speaker_list, with_abx=with_abx)
    return Comparison(
        names=names,
        alignments=aligned,
        units={system: made.units for system, made in systems.items()},
        evaluations=evaluations,
        abx=errors,
        unmatched=sorted(set(units) - set(names)),
    )


def _aligned(
    units: Mapping[str, np.ndarray], alignments: Mapping[str, list[Interval]], frame_rate: float
) -> dict[str, list[Interval]]:
    """The alignment of each file of units that has one, in the order of the names."""
    matches = find(units, alignments)
    if not matches:
        raise FileRefused(
            f"none of the {len(units)} token files has an alignment of its name that fits no other "
            f"file; the first are {next(iter(units))!r} and {next(iter(alignments))!r}."
        )
    aligned = {name: list(alignments[matches[name]]) for name in sorted(matches)}
    for name, alignment in aligned.items():
        seconds = len(units[name]) / frame_rate
        if alignment and alignment[0].start >= seconds:
            raise FileRefused(
                f"the alignment of {name} begins at {alignment[0].start:g} s, after its units end "
                f"at {seconds:g} s; check that they belong together."
            )
    return aligned


def _measure(
    systems: Mapping[str, System],
    measured: str,
    alignments: Mapping[str, list[Interval]],
    speakers: list[str] | None,
    *,
    with_abx: bool,
) -> tuple[dict[str, Evaluation], dict[str, Abx]]:
    """Evaluation and ABX errors by system, the one called `measured` first."""
    evaluations: dict[str, Evaluation] = {}
    errors: dict[str, Abx] = {}
    aligned = list(alignments.values())
    for system, (found, rate, size, shift) in systems.items():
        units = list(found.values())
        evaluations[system] = evaluate(
            units,
            aligned,
            frame_rate=rate,
            speakers=speakers,
            n_units=size,
            shift=evaluations[measured].shift if shift is None else shift,
        )
        if with_abx and speakers is not None:
            errors[system] = abx(
                units, aligned, speakers, frame_rate=rate, shift=evaluations[system].shift
            )
    return evaluations, errors


def _baseline(
    baseline: str,
    measured: System,
    level: int,
    file_rate: float,
    audio: str | Path | None,
    fit_audio: str | Path | None,
) -> tuple[str, System]:
    """The baseline of that name, on the utterances of the measured system; see `compare`."""
    names, rate, size = list(measured.units), measured.frame_rate, measured.codebook_size
    other, equals, folder = baseline.partition("=")
    if equals and other and folder:
        files = read_units(folder, level=level, frame_rate=file_rate)
        where = find(names, files.units)
        missing = [n for n in names if n not in where]
        if missing:
            raise FileRefused(f"{folder} has no tokens for {missing[0]}.")
        units = {n: files.units[where[n]] for n in names}
        return other, System(units, files.frame_rate, files.codebook_size, measured.shift)
    if baseline == "permuted":  # in random order no lag can be measured
        permuted = permuted_units(list(measured.units.values()))
        return other, System(dict(zip(names, permuted, strict=True)), rate, size, None)
    if baseline != "mfcc":
        raise ValueError(
            f"{baseline!r} is no baseline; give mfcc, permuted, or NAME=FOLDER of tokens."
        )
    if audio is None:
        raise ValueError("the baseline mfcc needs the recordings; name their folder.")
    paths = find_audio(audio, names)
    fit = find_audio(fit_audio).values() if fit_audio is not None else None
    clusters = mfcc_units(
        (load_audio(paths[n], SAMPLE_RATE) for n in names),
        size or 0,
        fit=None if fit is None else (load_audio(path, SAMPLE_RATE) for path in fit),
        sample_rate=SAMPLE_RATE,
        frame_rate=rate,
    )
    return other, System(dict(zip(names, clusters, strict=True)), rate, size, "auto")


def encode_units(model: "AudioVQ", path: str | Path, *, level: int = 0) -> np.ndarray:
    """One level of a model's codes of a recording: int64 [T]."""
    import torch

    wav = torch.from_numpy(load_audio(path, model.config.sample_rate))
    codes = model.encode(wav[None, None], n_q=level + 1)
    return codes.levels[level][0].cpu().numpy()


def segment_files(
    model: "AudioVQ", paths: Mapping[str, Path], units_per_second: float
) -> dict[str, np.ndarray]:
    """Segmented units [T] of recordings, at about `units_per_second` (see `segment`).

    The price of a segment is one for all, found by `transcode.fit_price`.
    """
    from audiovq.transcode import fit_price, unit_distances

    price = fit_price(model, list(paths.values()), units_per_second)
    rate = model.config.sample_rate
    return {
        name: segment(unit_distances(model, AudioReader(path, rate)), price)
        for name, path in paths.items()
    }
