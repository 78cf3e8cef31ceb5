"""Pictures of tokens and of sound, and pages of them. They need the extra `plot`."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from audiovq.files import FileRefused, atomic_output, refuse_existing
from audiovq.health import codebook_health

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR_DB = -70.0
"""Level below the loudest at which a spectrogram is black."""
MAX_COLUMNS = 4096
"""Columns of a spectrogram: more than the widest picture has pixels. A multiple of `_WINDOWS`."""
_WINDOWS = 512


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Raises `FileRefused` when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FileRefused("Pictures need matplotlib; pip install '.[plot]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(
    figure: "Figure", path: str | Path, *, overwrite: bool = False, dpi: int = 110
) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_output(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def render(template: Path, **values: Any) -> str:
    """The HTML page of a jinja2 template; whatever text is among `values` is escaped."""
    return str(_compiled(template).render(values))


@functools.cache  # a site has a thousand pages of one template
def _compiled(template: Path) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(template.read_text(encoding="utf-8"))


class Spectrogram(NamedTuple):
    """Levels over time, in columns that are equally far apart."""

    frequencies: np.ndarray
    """Hz [F]."""
    times: np.ndarray
    """Seconds of the middle of each column [T]."""
    level: np.ndarray
    """dB below the loudest, float32 [F, T]."""
    seconds: float
    """Duration of the sound."""

    def draw(self, axes: "Axes", *, start: float = 0.0) -> None:
        """Draw it in kHz over seconds; `start`: the second at which the sound begins."""
        width = self.times[1] - self.times[0] if len(self.times) > 1 else 0.005
        height = self.frequencies[1] / 1000
        left = start + self.times[0] - width / 2
        axes.imshow(
            self.level,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=FLOOR_DB,
            vmax=0,
            extent=(
                left,
                left + len(self.times) * width,
                -height / 2,
                self.frequencies[-1] / 1000 + height / 2,
            ),
        )
        axes.set_ylim(0, self.frequencies[-1] / 1000)
        axes.set_ylabel("kHz")


def spectrogram_db(wav: np.ndarray | Iterable[np.ndarray], sample_rate: int) -> Spectrogram:
    """Levels of wav [N], whole or in blocks: windows of 20 ms, 5 ms apart.

    Of longer sounds 2, 4, 8, ... windows share a column, as the mean of their power, so that there
    are at most `MAX_COLUMNS`: memory does not grow with the length.

    Raises `ValueError` for a rate below 1 kHz.
    """
    if sample_rate < 1000:
        raise ValueError(f"a spectrogram needs a rate of at least 1000 Hz, not {sample_rate}.")
    n_fft, hop, n_samples = sample_rate // 50, sample_rate // 200, 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in [wav] if isinstance(wav, np.ndarray) else wav:
            n_samples += len(block)
            yield block

    pool = 1  # windows in a column
    power = rest = np.zeros((0, n_fft // 2 + 1), dtype=np.float32)
    for windows in _powers(counted(), n_fft, hop):
        rest = np.concatenate([rest, windows])
        n_full = len(rest) // pool
        full = rest[: n_full * pool].reshape(n_full, pool, -1).mean(axis=1)
        power, rest = np.concatenate([power, full]), rest[n_full * pool :]
        if len(power) == MAX_COLUMNS:
            power = power.reshape(MAX_COLUMNS // 2, 2, -1).mean(axis=1)
            pool *= 2
    if len(rest):
        power = np.concatenate([power, rest.mean(axis=0, keepdims=True)])
    level = 10 * np.log10(power.T / max(float(power.max()), 1e-12) + 1e-10)
    times = (np.arange(len(power)) * pool + (pool - 1) / 2) * hop / sample_rate
    frequencies = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    return Spectrogram(frequencies, times, level, n_samples / sample_rate)


def _powers(wav: Iterable[np.ndarray], n_fft: int, hop: int) -> Iterator[np.ndarray]:
    """Power [n, F] of the windows around samples 0, hop, .. N, `_WINDOWS` of them at a time."""
    shape = np.hanning(n_fft).astype(np.float32)
    size = (_WINDOWS - 1) * hop + n_fft  # samples under so many windows

    def power(samples: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[::hop]
        return (np.abs(np.fft.rfft(windows * shape, axis=1)) ** 2).astype(np.float32)

    n_samples = n_done = 0
    pending = np.zeros(n_fft // 2, dtype=np.float32)
    for block in wav:
        n_samples += len(block)
        pending = np.concatenate([pending, block])
        while len(pending) >= size:
            yield power(pending[:size])
            pending = pending[_WINDOWS * hop :]
            n_done += _WINDOWS
    n_left = n_samples // hop + 1 - n_done
    pending = np.pad(pending, (0, n_fft + hop))
    for start in range(0, n_left, _WINDOWS):
        n_windows = min(_WINDOWS, n_left - start)
        yield power(pending[start * hop : (start + n_windows - 1) * hop + n_fft])


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
    wavs: Mapping[str, np.ndarray | Iterable[np.ndarray]],
    sample_rate: int,
    codes: np.ndarray | None,
    frame_rate: float,
    path: str | Path,
    *,
    overwrite: bool = False,
) -> None:
    """Spectrograms of wavs [N] by name, and codes [n_q, T] under each on the same time axis.

    A wav may come in blocks, such as those of an `AudioReader`. A code is drawn as a colour;
    neighbouring numbers mean nothing, so the colours are scattered.
    """
    refuse_existing(path, overwrite=overwrite)
    heights = [3.2] + ([0.25 * len(codes) + 0.3] if codes is not None else [])
    figure = new_figure(1, 1)  # says at once when matplotlib is not there
    spectrograms = {name: spectrogram_db(wav, sample_rate) for name, wav in wavs.items()}
    longest = max(spectrogram.seconds for spectrogram in spectrograms.values())
    width = min(24.0, max(5.0, 1.6 * longest))
    figure.set_size_inches(width * len(wavs), sum(heights) + 0.6)
    grid = figure.subplots(
        len(heights), len(wavs), sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for column, (name, spectrogram) in enumerate(spectrograms.items()):
        axes = grid[0, column]
        spectrogram.draw(axes)
        axes.set_title(Path(name).name, fontsize=10, loc="left")
        if codes is not None:
            scattered = (codes.astype(np.int64) * 7919) % 1021
            extent = (0.0, codes.shape[1] / frame_rate, len(codes) - 0.5, -0.5)
            grid[1, column].imshow(
                scattered, aspect="auto", cmap="nipy_spectral", extent=extent, interpolation="none"
            )
            grid[1, column].set_yticks(range(len(codes)))
            grid[1, column].tick_params(axis="y", labelsize=7)
        axes.set_xlim(0, longest)
        grid[-1, column].set_xlabel("seconds")
    for axes in grid[0, 1:]:
        axes.set_ylabel("")
    if codes is not None:
        grid[1, 0].set_ylabel("level")
    save_figure(figure, path, overwrite=overwrite)
