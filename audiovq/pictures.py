"""Pictures of tokens and of sound. They need matplotlib, the extra `plot`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiovq.files import FileRefused, atomic_output
from audiovq.health import codebook_health

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR_DB = -70.0
"""Level below the loudest at which a spectrogram is black."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Raises `FileRefused` when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FileRefused("Pictures need matplotlib; pip install '.[plot]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: str | Path, *, overwrite: bool = False) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_output(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def spectrogram_db(wav: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies in Hz [F], times in s [T] and levels in dB below the loudest [F, T] of wav [N].

    Windows of 20 ms, 5 ms apart.
    """
    n_fft, hop = sample_rate // 50, sample_rate // 200
    padded = np.pad(wav, (n_fft // 2, n_fft))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[: len(wav) + 1 : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1)).T ** 2
    level = 10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-10)
    times = np.arange(frames.shape[0]) * hop / sample_rate
    return np.fft.rfftfreq(n_fft, 1 / sample_rate), times, level


def draw_usage(counts: np.ndarray, path: str | Path, *, overwrite: bool = False) -> None:
    """How often each code of each level [n_q, K] is used, the most used one first."""
    figure = new_figure(10, 1.2 + 1.1 * len(counts))
    rows = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
    for level, (axes, used) in enumerate(zip(rows, counts, strict=True)):
        health = codebook_health(used)
        shares = np.sort(used)[::-1] / max(1, used.sum()) * len(used)  # 1: fair use
        axes.fill_between(np.arange(len(used)), shares, step="mid", color="tab:blue", linewidth=0)
        axes.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_ylabel(f"level {level}", rotation=0, ha="right", va="center", fontsize=9)
        axes.set_xlim(0, len(used))
        axes.set_ylim(0, max(2.0, float(np.quantile(shares, 0.98)) * 1.1))
        axes.text(
            0.995,
            0.85,
            f"{health.active} of {health.size} active, perplexity {health.perplexity:.0f}: "
            f"{health.verdict}",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=9,
        )
    rows[0].set_title("Use of each code, 1 = fair share, most used first", fontsize=10, loc="left")
    rows[-1].set_xlabel("codes, sorted by use")
    save_figure(figure, path, overwrite=overwrite)


def draw_spectrograms(
    wavs: Mapping[str, np.ndarray],
    sample_rate: int,
    codes: np.ndarray | None,
    frame_rate: float,
    path: str | Path,
    *,
    overwrite: bool = False,
) -> None:
    """Spectrograms of wavs [N] by name, and codes [n_q, T] under each on the same time axis.

    A code is drawn as a colour; neighbouring numbers mean nothing, so the colours are scattered.
    """
    longest = max(len(wav) for wav in wavs.values()) / sample_rate
    width = min(24.0, max(5.0, 1.6 * longest))
    heights = [3.2] + ([0.25 * len(codes) + 0.3] if codes is not None else [])
    figure = new_figure(width * len(wavs), sum(heights) + 0.6)
    grid = figure.subplots(
        len(heights), len(wavs), sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for column, (name, wav) in enumerate(wavs.items()):
        frequencies, times, level = spectrogram_db(wav, sample_rate)
        axes = grid[0, column]
        axes.pcolormesh(times, frequencies / 1000, level, cmap="magma", vmin=FLOOR_DB, vmax=0)
        axes.set_title(Path(name).name, fontsize=10, loc="left")
        axes.set_xlim(0, longest)
        if codes is not None:
            scattered = (codes.astype(np.int64) * 7919) % 1021
            extent = (0.0, codes.shape[1] / frame_rate, len(codes) - 0.5, -0.5)
            grid[1, column].imshow(
                scattered, aspect="auto", cmap="nipy_spectral", extent=extent, interpolation="none"
            )
            grid[1, column].set_yticks(range(len(codes)))
            grid[1, column].tick_params(axis="y", labelsize=7)
        grid[-1, column].set_xlabel("seconds")
    grid[0, 0].set_ylabel("kHz")
    if codes is not None:
        grid[1, 0].set_ylabel("level")
    save_figure(figure, path, overwrite=overwrite)
