"""ABX discriminability of units within and across speakers, by fastabx.

Of three triphones A, B and X, where A and X are the same and B differs in the middle phone, how
often is X nearer to B? The distance is that of dynamic time warping over frames that are equal or
not (Schatz et al. 2013; ZeroSpeech 2021 for the triphone task and its subsampling).
"""

import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np

from audiovq.files import FileRefused
from audiovq.units.alignments import EPSILON, SILENCE, Interval


@dataclass(frozen=True)
class Abx:
    """ABX error rates in 0..1, chance is 0.5; None where the recordings hold no such triple."""

    within: float | None
    """A, B and X by one speaker."""
    across: float | None
    """A and B by one speaker, X by another."""
    n_triphones: int


def require_fastabx() -> None:
    """Raise `FileRefused` when fastabx is not there."""
    try:
        import fastabx  # noqa: F401
    except ImportError as error:
        raise FileRefused(
            "ABX needs fastabx, which needs Python 3.12 or newer (this is "
            f"{sys.version_info.major}.{sys.version_info.minor}); there, pip install "
            "'.[units]'."
        ) from error


def abx(
    units: Sequence[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    speakers: Sequence[str],
    *,
    frame_rate: float = 50.0,
    shift: int = 0,
    seed: int = 0,
) -> Abx:
    """Triphone ABX of units [T], one array per utterance; `shift` as in `units.evaluate`.

    Takes the triphones without silence. At most 10 of each kind stand in a comparison and 5
    other speakers, as in ZeroSpeech; `seed` draws them.

    Raises `FileRefused` when fastabx is missing; it needs Python 3.12.
    """
    require_fastabx()
    from fastabx import Dataset, EmptyTaskError, Score, Subsampler, Task

    rows = triphones(units, alignments, speakers, frame_rate=frame_rate, shift=shift)
    if not rows:
        return Abx(None, None, 0)
    with tempfile.TemporaryDirectory() as folder:
        item, tokens = Path(folder, "triphones.csv"), Path(folder, "units.jsonl")
        with item.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker"]
            )
            writer.writerows(rows)
        with tokens.open("w", encoding="utf-8") as file:
            for i, unit in enumerate(units):
                row = {"audio": f"u{i}", "units": np.asarray(unit).tolist()}
                file.write(json.dumps(row) + "\n")
        # Times in the item file are in frames, so that no rate has to be a whole number.
        dataset = Dataset.from_item_and_units(item, tokens, 1, device="cpu", progress=False)

        def error_rate(by: list[str], across: list[str] | None) -> float | None:
            subsampler = Subsampler(10, 5 if across else None, seed)
            try:
                task = Task(dataset, on="#phone", by=by, across=across, subsampler=subsampler)
            except EmptyTaskError:
                return None
            score = Score(task, "identical", progress=False)
            return float(score.collapse(levels=[("next-phone", "prev-phone"), "speaker"]))

        context = ["prev-phone", "next-phone"]
        return Abx(
            within=error_rate([*context, "speaker"], None),
            across=error_rate(context, ["speaker"]),
            n_triphones=len(rows),
        )


def triphones(
    units: Sequence[np.ndarray],
    alignments: Sequence[Sequence[Interval]],
    speakers: Sequence[str],
    *,
    frame_rate: float = 50.0,
    shift: int = 0,
) -> list[tuple[str, str, str, str, str, str, str]]:
    """Three phones in a row, no silence: file, onset, offset, phone, previous, next, speaker.

    Onset and offset are in frames, from the start of the first phone to the end of the last one;
    the file is "u" and the utterance's index. Triphones that the units do not cover are left out.
    """
    rows = []
    for i, (unit, alignment, speaker) in enumerate(zip(units, alignments, speakers, strict=True)):
        for before, middle, after in zip(alignment, alignment[1:], alignment[2:], strict=False):
            if SILENCE in (before.phone, middle.phone, after.phone):
                continue
            if middle.start - before.end > EPSILON or after.start - middle.end > EPSILON:
                continue  # silence that is not written
            onset = before.start * frame_rate + shift
            offset = after.end * frame_rate + shift
            half = Fraction(1, 2)
            # Frames whose centre lies in [onset, offset], as fastabx slices them.
            onset, offset = round(onset, 3), round(offset, 3)
            first, last = ceil(Fraction(str(onset)) - half), floor(Fraction(str(offset)) - half)
            if 0 <= first <= last < len(unit):
                rows.append(
                    (
                        f"u{i}",
                        f"{onset:.3f}",
                        f"{offset:.3f}",
                        middle.phone,
                        before.phone,
                        after.phone,
                        str(speaker),
                    )
                )
    return rows
