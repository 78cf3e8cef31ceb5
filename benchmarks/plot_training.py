"""Curves of a training, from the metrics.jsonl in its folder.

    python benchmarks/plot_training.py runs/mine/metrics.jsonl -o training.png

Losses of each window of steps; perplexity and active codes of each level; mel distance and STOI of
the validation set, for each number of levels. The axis above counts hours of training: pauses
between one start of the run and the next are left out.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

LOSSES = {
    "mel": "mel distance",
    "waveform": "waveform L1",
    "commitment": "commitment",
    "teacher": "teacher, 1 - cosine",
    "labels": "labels, cross-entropy (nats)",
    "adversarial": "adversarial",
    "feature": "feature matching",
}
PAUSE = 600.0
"""Seconds between two lines after which the run must have been stopped in between."""


def main(
    metrics: Annotated[Path, typer.Argument(help="metrics.jsonl of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path(
        "training.png"
    ),
) -> None:
    """Draw the curves of a training."""
    lines = read_metrics(metrics)
    steps, hours = clock(lines)
    figure, axes = plt.subplots(3, 2, figsize=(12, 11), sharex=True, layout="constrained")
    draw_losses(
        axes[0, 0],
        lines,
        ("mel", "commitment", "adversarial", "feature"),
        "losses, before their weights",
    )
    draw_losses(
        axes[0, 1], lines, ("waveform", "teacher", "labels"), "losses, before their weights"
    )
    draw_levels(axes[1, 0], lines, "perplexity")
    draw_levels(axes[1, 1], lines, "active")
    draw_validation(axes[2, 0], lines, "mel", "mel distance")
    draw_validation(axes[2, 1], lines, "stoi", "STOI")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.margins(y=0.25)  # room for the legend
            axis.legend(fontsize=8, ncols=2)
        else:
            axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center", color="0.5")
    for axis in axes[2]:
        axis.set_xlabel("step")
    for axis in axes[0]:
        # Hours do not run evenly with steps: ticks stand where the hour was full.
        above = axis.twiny()
        above.spines[["right"]].set_visible(False)
        above.set_xlim(axis.get_xlim())
        ticks = hour_ticks(hours[-1])
        above.set_xticks(np.interp(ticks, hours, steps), [f"{tick:g}" for tick in ticks])
        above.set_xlabel("hours of training")
    figure.savefig(out, dpi=110)
    typer.echo(f"wrote {out}: {steps[-1]} steps, {hours[-1]:.2f} hours")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the file by rising step: what a resumed run did again replaces the first go."""
    lines: list[dict[str, Any]] = []
    try:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            while lines and lines[-1]["step"] > line["step"]:
                lines.pop()
            lines.append(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is not a run's metrics.jsonl ({error}).")
    if not lines:
        sys.exit(f"{path} holds no metrics yet.")
    return lines


def clock(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and hours of training of all lines, both rising."""
    steps = np.array([line["step"] for line in lines])
    passed = np.diff([line["time"] for line in lines])
    passed[(passed > PAUSE) | (passed < 0)] = 0
    # The first line comes after as long as the next window takes.
    first = steps[0] * passed.sum() / max(1, steps[-1] - steps[0])
    return steps, (first + np.concatenate([[0.0], np.cumsum(passed)])) / 3600


def hour_ticks(end: float) -> np.ndarray:
    """Round numbers of hours up to the end, not more than eight."""
    for distance in (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 24, 48):
        if end / distance <= 8:
            break
    return np.arange(0, end + 1e-9, distance)


def series(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[Any]]:
    """Steps at which a value was written, and the values."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def draw_losses(
    axis: Axes, lines: list[dict[str, Any]], names: tuple[str, ...], title: str
) -> None:
    """Losses before their weights, on a logarithmic axis."""
    for name in names:
        steps, values = series(lines, name)
        if steps:
            axis.plot(steps, values, label=LOSSES[name], linewidth=1.2)
    axis.set_yscale("log")
    for setter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        setter(FuncFormatter(_plain))
    axis.set_title(title, fontsize=10, loc="left")


def draw_levels(axis: Axes, lines: list[dict[str, Any]], name: str) -> None:
    """A value of each level of the codes; level 0 in black, since it holds the units."""
    steps, values = series(lines, name)
    if not steps:
        axis.set_title(name, fontsize=10, loc="left")
        return
    table = np.array(values)  # [lines, levels]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, table.shape[1]))
    for level in range(table.shape[1]):
        color, width = ("black", 1.8) if level == 0 else (colors[level], 1.0)
        axis.plot(steps, table[:, level], color=color, linewidth=width, label=f"level {level}")
    axis.set_ylim(0, 1.08 * table.max())
    title = "perplexity of each level" if name == "perplexity" else "active codes of each level"
    axis.set_title(f"{title}, over a window of steps", fontsize=10, loc="left")


def draw_validation(axis: Axes, lines: list[dict[str, Any]], name: str, title: str) -> None:
    """A validation measure for each number of levels, and without the quantizer."""
    prefix = f"validation_{name}_"
    kinds = sorted({key for line in lines for key in line if key.startswith(prefix)})
    counts = [int(kind.rsplit("_", 1)[1]) for kind in kinds if "_n_q_" in kind]
    colors = plt.get_cmap("viridis")(np.linspace(0.85, 0, max(1, len(counts))))
    steps, values = series(lines, f"{prefix}autoencoder")
    if steps:
        axis.plot(steps, values, "o--", color="0.5", markersize=3, label="not quantized")
    for color, n_q in zip(colors, sorted(counts), strict=False):
        steps, values = series(lines, f"{prefix}n_q_{n_q}")
        axis.plot(steps, values, "o-", color=color, markersize=3, label=_levels(n_q))
    axis.set_title(f"validation: {title}", fontsize=10, loc="left")


def _plain(value: float, _: object) -> str:
    """Labels of a logarithmic axis: 1, 2 and 5 of each power of ten."""
    digit = value / 10 ** np.floor(np.log10(value) + 1e-9)
    return f"{value:g}" if round(digit) in (1, 2, 5) else ""


def _levels(count: int) -> str:
    return "1 level" if count == 1 else f"{count} levels"


if __name__ == "__main__":
    typer.run(main)
