"""The picture of a recording: two spectrograms, and a track of units to click on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiovq.pictures import new_figure, save_figure, spectrogram_db
from audiovq.segment import run_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_SECOND = 250
"""Pixels that a second is wide, while the picture has no more than `WIDEST`."""
WIDEST = 6000
DPI = 100
_LEFT, _RIGHT, _BOTTOM, _GAP = 48, 12, 40, 8  # pixels around the rows
_ROWS = (("units", 44), ("decoded", 170), ("original", 170))  # from below, with their heights
_NUMBERED = 12  # pixels of a run of one unit that holds its number, written upwards


@dataclass(frozen=True)
class TimeAxis:
    """Where the frames stand in a picture."""

    per_frame: float
    """Pixels that a frame is wide."""

    def frame_at(self, x: float) -> int:
        """The frame at column `x`; beside the frames it is below 0 or beyond the last."""
        return int((x - _LEFT) // self.per_frame)

    def column_of(self, frame: int) -> float:
        """The column of the middle of a frame."""
        return _LEFT + (frame + 0.5) * self.per_frame


def draw(
    path: Path,
    original: np.ndarray,
    decoded: np.ndarray,
    units: np.ndarray,
    sample_rate: int,
    frame_rate: float,
) -> TimeAxis:
    """Draw sound [N], what was decoded from it [N], and its units [T] as PNG.

    Raises `FileRefused` when matplotlib is not installed.
    """
    from matplotlib.ticker import MaxNLocator

    seconds = len(units) / frame_rate
    inner = round(min(PER_SECOND * seconds, WIDEST))
    width = inner + _LEFT + _RIGHT
    height = _BOTTOM + sum(rows + _GAP for _, rows in _ROWS)
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")  # a click must be found again: the rows stand where we say
    bottom = _BOTTOM
    for name, rows in _ROWS:
        axes = figure.add_axes((_LEFT / width, bottom / height, inner / width, rows / height))
        if name == "units":
            _draw_units(axes, units, frame_rate, inner / len(units))
            axes.set_xlabel("seconds")
        else:
            spectrogram_db(original if name == "original" else decoded, sample_rate).draw(axes)
            axes.yaxis.set_major_locator(MaxNLocator(5, prune="upper"))  # the row above is near
            axes.tick_params(labelbottom=False)
            axes.annotate(
                name,
                (0, 1),
                (6, -6),
                "axes fraction",
                "offset points",
                va="top",
                color="white",
                bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2},
            )
        axes.set_xlim(0, seconds)
        bottom += rows + _GAP
    save_figure(figure, path, dpi=DPI)
    return TimeAxis(inner / len(units))


def _draw_units(axes: "Axes", units: np.ndarray, frame_rate: float, per_frame: float) -> None:
    """A box for every run of one unit, in a colour of its own, with the number where it fits."""
    from matplotlib import colormaps

    runs = run_lengths(units)
    hues = [unit * 0.618 % 1 for unit, _, _ in runs]  # neighbouring numbers mean nothing
    axes.broken_barh(
        [(start / frame_rate, duration / frame_rate) for _, start, duration in runs],
        (0, 1),
        facecolors=colormaps["hsv"](hues, alpha=0.45),
        edgecolors="white",
        linewidth=0.6,
    )
    for unit, start, duration in runs:
        if duration * per_frame >= _NUMBERED:
            middle = (start + duration / 2) / frame_rate
            axes.text(middle, 0.5, str(unit), rotation=90, ha="center", va="center", fontsize=7)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("units", fontsize=9)
