"""Tables and pictures of an evaluation of units, and one HTML page with all of them.

Pictures are drawn with matplotlib (extra `units`), on figures of their own: no global state.
"""

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.pictures import new_figure, render, spectrogram_db
from audiovq.segment import run_lengths
from audiovq.units.abx import Abx
from audiovq.units.alignments import SILENCE, Interval
from audiovq.units.boundaries import fill_silence
from audiovq.units.measures import Evaluation, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """A line of the table: a measure's name, how it is called and written, and what it says."""

    name: str
    label: str
    decimals: int
    says: str


ROWS = (
    Row("pnmi", "PNMI", 3, "I(phone; unit) / H(phone): 1 is perfect; rises with K by itself"),
    Row("pnmi_adjusted", "PNMI, corrected", 3, "less what unrelated units seem to tell; 0 is none"),
    Row("phone_purity", "phone purity", 3, "frames right if a unit is its most frequent phone"),
    Row("cluster_purity", "cluster purity", 3, "frames right if a phone is its most frequent unit"),
    Row("phone_entropy", "H(phone), bit", 2, "uncertainty of the phone alone"),
    Row("phone_given_unit", "H(phone|unit), bit", 2, "what the unit leaves open of the phone"),
    Row("unit_given_phone", "H(unit|phone), bit", 2, "what else the unit tells: voice, context"),
    Row("held_out_accuracy", "accuracy, other speakers", 3, "code-to-phone map of other speakers"),
    Row("held_out_prior", "majority phone", 3, "the same for the most frequent phone alone"),
    Row("boundary_precision", "boundary precision", 3, "unit changes that are phone changes"),
    Row("boundary_recall", "boundary recall", 3, "phone changes that are unit changes"),
    Row("boundary_f1", "boundary F1", 3, "their harmonic mean"),
    Row("over_segmentation", "over-segmentation", 2, "unit changes beyond one per phone change"),
    Row("r_value", "R-value", 3, "recall and over-segmentation in one; 1 is perfect"),
    Row("units_per_second", "units a second", 1, "repeats merged"),
    Row("bitrate", "bit/s, all frames", 0, "symbols a second times their entropy (ZeroSpeech)"),
    Row("bitrate_merged", "bit/s, repeats merged", 0, "the same over merged units"),
)
"""The measures in the order of the table."""

ABX_ROWS = (
    Row("within", "ABX error, one speaker", 3, "triphones told apart wrongly; 0.5 is chance"),
    Row("across", "ABX error, two speakers", 3, "the same with X by another speaker"),
)


def written(measure: Measure, decimals: int) -> str:
    """A measure as text, with the wider side of its interval: `0.484 ± 0.010`."""
    spread = max(measure.high - measure.value, measure.value - measure.low)
    text = f"{measure.value:.{decimals}f}"
    return f"{text} ± {spread:.{decimals}f}" if spread > 0 else text


def table_rows(
    systems: Mapping[str, Evaluation],
    *,
    silence: bool,
    abx: Mapping[str, Abx] | None = None,
) -> list[list[str]]:
    """The table as text: for each measure its label and a cell for each system, "-" for none.

    ABX stands under the measures without silence, since its triphones have none.
    """
    rows = []
    for row in ROWS:
        cells = []
        for evaluation in systems.values():
            scores = evaluation.with_silence if silence else evaluation.without_silence
            measure = scores.get(row.name)
            cells.append(written(measure, row.decimals) if measure else "-")
        if set(cells) != {"-"}:
            rows.append([row.label, *cells])
    for row in ABX_ROWS if abx and not silence else ():
        values = [getattr(abx[name], row.name) if abx and name in abx else None for name in systems]
        rows.append([row.label, *("-" if v is None else f"{v:.{row.decimals}f}" for v in values)])
    return rows


def described(name: str, evaluation: Evaluation) -> str:
    """One line on what was measured: K, frames, utterances, speakers, lag."""
    speakers = f", {evaluation.n_speakers} speakers" if evaluation.n_speakers else ""
    return (
        f"{name}: {evaluation.n_units_used} of {evaluation.n_units} units used, "
        f"{evaluation.n_frames} frames at {evaluation.frame_rate:g} Hz, "
        f"{evaluation.n_utterances} utterances{speakers}, {evaluation.n_phones} phones with "
        f"silence, shift {evaluation.shift} (frames that the codes lag the sound)"
    )


def heatmap(evaluation: Evaluation, *, title: str = "") -> "Figure":
    """P(phone | unit) as a picture: a row for each phone, a column for each unit in use.

    Columns are ordered by their likeliest phone, so that phoneme-like units make a staircase.
    """
    figure = new_figure(11, 0.6 + 0.17 * max(12, len(evaluation.phones)))
    used = evaluation.table[:, evaluation.table.any(axis=0)]
    share = used / used.sum(axis=0)
    likeliest = share.argmax(axis=0)
    order = np.lexsort((-share.max(axis=0), likeliest))
    axes = figure.add_subplot()
    image = axes.imshow(
        share[:, order], aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(range(len(evaluation.phones)), evaluation.phones, fontsize=7)
    axes.set_xlabel(f"{used.shape[1]} units in use, ordered by their likeliest phone")
    axes.set_ylabel("phone")
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, label="P(phone | unit)", pad=0.01, fraction=0.03)
    return figure


def utterance_picture(
    wav: np.ndarray,
    sample_rate: int,
    alignment: Sequence[Interval],
    tracks: Mapping[str, np.ndarray],
    evaluations: Mapping[str, Evaluation],
    *,
    seconds: float = 4.0,
    title: str = "",
) -> "Figure":
    """Spectrogram, phones and units of one utterance on one time axis.

    wav: float32 [N]; tracks: units [T] by name, a row each, moved back by the shift of the
    evaluation of that name. A unit has the colour of its likeliest phone. The picture shows the
    `seconds` around the middle of the speech. Dotted lines are phone changes.
    """
    duration = len(wav) / sample_rate
    speech = [i for i in alignment if i.phone != SILENCE] or list(alignment)
    middle = (speech[0].start + speech[-1].end) / 2
    start = min(max(0.0, middle - seconds / 2), max(0.0, duration - seconds))
    end = min(duration, start + seconds)
    figure = new_figure(max(6.0, 3.2 * (end - start)), 3.2 + 0.45 * len(tracks))
    heights = [5.0, 0.7] + [0.7] * len(tracks)
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    first = max(0, round((start - 0.02) * sample_rate))  # whole windows at the edges too
    shown = wav[first : round((end + 0.02) * sample_rate)]
    spectrogram_db(shown, sample_rate).draw(rows[0], start=first / sample_rate)
    rows[0].set_title(title, fontsize=10, loc="left")
    filled = fill_silence(alignment, duration)
    _blocks(rows[1], "phones", [(i, i.phone) for i in filled], (start, end))
    for axes, (name, units) in zip(rows[2:], tracks.items(), strict=True):
        evaluation = evaluations[name]
        likeliest = evaluation.table.argmax(axis=0)
        blocks = []
        for unit, first, n in run_lengths(units):
            at = (first - evaluation.shift) / evaluation.frame_rate
            block = Interval(at, at + n / evaluation.frame_rate, str(unit))
            blocks.append((block, evaluation.phones[likeliest[unit]]))
        _blocks(axes, name, blocks, (start, end))
    for interval in filled[1:]:
        rows[0].axvline(interval.start, color="0.8", linewidth=0.6, linestyle=":")
        for axes in rows[2:]:
            axes.axvline(interval.start, color="0.25", linewidth=0.9, linestyle=":")
    rows[-1].set_xlim(start, end)
    rows[-1].set_xlabel("seconds")
    return figure


def png_bytes(figure: "Figure") -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def report_html(
    title: str,
    systems: Mapping[str, Evaluation],
    *,
    abx: Mapping[str, Abx] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """One HTML page that stands alone: notes, the tables, and pictures (PNG) by caption."""
    return render(
        Path(__file__).with_name("page.html"),
        title=title,
        lines=[*notes, *(described(name, e) for name, e in systems.items())],
        systems=systems,
        tables=[
            (heading, table_rows(systems, silence=silence, abx=abx))
            for silence, heading in ((False, "Speech alone"), (True, "With silence as a phone"))
        ],
        pictures=[(name, base64.b64encode(png).decode()) for name, png in (pictures or {}).items()],
        rows_said=(*ROWS, *(ABX_ROWS if abx else ())),
    )


def _blocks(
    axes: "Axes",
    name: str,
    blocks: Sequence[tuple[Interval, str]],
    view: tuple[float, float],
) -> None:
    """Blocks in the colour of a phone, with their own label where it has room."""
    for (start, end, label), phone in blocks:
        left, right = max(start, view[0]), min(end, view[1])
        if left >= right:
            continue
        axes.axvspan(start, end, color=_colour(phone), linewidth=0)
        axes.axvline(start, color="white", linewidth=0.8)
        if right - left > 0.021 * len(label) and label != SILENCE:
            axes.text((left + right) / 2, 0.5, label, ha="center", va="center", fontsize=7)
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def _colour(phone: str) -> Any:
    """A light colour that a phone has in every picture; grey for silence."""
    if phone == SILENCE:
        return "0.93"
    from matplotlib.colors import hsv_to_rgb

    number = zlib.crc32(phone.encode())
    return hsv_to_rgb((number % 360 / 360, 0.3 + 0.12 * (number // 360 % 3), 0.95))
