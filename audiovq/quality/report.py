"""Pictures and pages of an `Evaluation`: the rate-quality plot and the listening page."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from audiovq import files
from audiovq.audio import load_audio
from audiovq.files import FileRefused, atomic_output
from audiovq.hearing import SAMPLE_RATE
from audiovq.pictures import new_figure, render
from audiovq.quality.results import ORIGINAL, TABLE, Evaluation, Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rate_quality(evaluation: Evaluation, path: str | Path, *, overwrite: bool = False) -> None:
    """Draw each measure against the bitrate on disk, one line a codec, with the intervals.

    Raises `FileRefused` when matplotlib is missing or the picture cannot be written.
    """
    summaries = evaluation.summary()
    families = list(dict.fromkeys(s.family for s in summaries if s.system != ORIGINAL))
    colors = dict(zip(families, _COLORS * len(families), strict=False))
    n_columns = min(4, len(evaluation.metrics))
    n_rows = -(-len(evaluation.metrics) // n_columns)
    figure = new_figure(3.2 * n_columns, 2.7 * n_rows + 0.4)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    rates = [s.bitrate / 1000 for s in summaries if s.bitrate]
    for name, axes in zip(evaluation.metrics, panels, strict=False):
        _draw_measure(axes, name, summaries, colors)
        if rates:
            _draw_rates(axes, min(rates), max(rates))
    for axes in panels[len(evaluation.metrics) :]:
        axes.set_visible(False)
    labelled: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(
        list(labelled.values()),
        list(labelled),
        loc="outside upper center",
        ncols=len(labelled),
        frameon=False,
        fontsize=9,
    )
    with atomic_output(path, overwrite=overwrite) as temporary:
        try:
            named = Path(path).suffix[1:2].isalpha()  # not the .5 of run-0.5
            figure.savefig(temporary, dpi=130, format=None if named else "png")
        except ValueError as error:
            raise FileRefused(f"{path} is not a picture that matplotlib writes: {error}") from error


def _draw_measure(
    axes: "Axes", name: str, summaries: list[Summary], colors: dict[str, str]
) -> None:
    """One measure of every family against the rate in kbit/s; a level where there is no rate."""
    metric = TABLE[name]
    for family, color in colors.items():
        points = [
            (s.bitrate, mean)
            for s in summaries
            if s.family == family and (mean := s.metrics[name]) is not None
        ]
        for rate, mean in points:
            if rate is None:
                axes.axhline(mean.mean, color=color, ls=":", label=family)
        line = sorted((r / 1000, m.mean, m.low, m.high) for r, m in points if r is not None)
        if line:
            x, y, low, high = zip(*line, strict=True)
            axes.plot(x, y, "o-", color=color, ms=4.5, lw=1.8, label=family)
            if None not in low:
                axes.vlines(x, low, high, color=color, lw=1.4, alpha=0.6)
    for s in summaries:
        mean = s.metrics[name]
        if s.system == ORIGINAL and mean is not None:
            axes.axhline(mean.mean, color="0.45", ls="--", lw=1, label=ORIGINAL)
    axes.set_title(f"{metric.label} ({metric.unit}), {metric.better} is better", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _draw_rates(axes: "Axes", lowest: float, highest: float) -> None:
    """The axis of rates in kbit/s, logarithmic."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(lowest * 0.85, highest * 1.18)
    axes.xaxis.set_major_locator(FixedLocator(_RATE_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("kbit/s on disk", fontsize=8)


_GENERATOR = "audiovq evaluate"  # by this a page is known
_COLORS = ["#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#b45309", "#0e7490"]
_RATE_TICKS = [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256]


def page_folder(
    folder: str | Path, *, sources: Iterable[str | Path] = (), overwrite: bool = False
) -> AbstractContextManager[Path]:
    """A folder for `write_page`; see `files.page_folder`."""
    return files.page_folder(folder, _GENERATOR, sources=sources, overwrite=overwrite)


def write_page(evaluation: Evaluation, folder: str | Path) -> None:
    """Write `index.html` with players, spectrograms and scores of every clip into `folder`.

    `evaluate` must have been given `folder / "audio"` as its audio_dir. The page links to nothing
    outside the folder, and needs no server.

    Raises `FileRefused` when matplotlib is missing or a file cannot be read or written.
    """
    folder = Path(folder)
    summaries = evaluation.summary()
    for row in evaluation.rows:
        if row.audio is None:
            raise ValueError("the evaluation kept no audio; evaluate with audio_dir.")
        _draw_spectrogram(folder / "audio" / row.audio, folder / _picture(row))
    plot = None
    if any(summary.bitrate for summary in summaries):
        plot = "rate-quality.png"
        plot_rate_quality(evaluation, folder / plot, overwrite=True)
    clips: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        clips.setdefault(row.file, []).append(row)
    page = render(
        Path(__file__).with_name("page.html"),
        generator=_GENERATOR,
        evaluation=evaluation,
        summaries=summaries,
        measures=TABLE,
        clips=clips,
        seconds=sum(rows[0].seconds for rows in clips.values()),
        plot=plot,
        written=format_value,
        picture=_picture,
        sound=_sound,
        url=lambda path: quote(path.as_posix()),
    )
    with atomic_output(folder / "index.html", overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")


def format_value(name: str, value: float) -> str:
    """A value of the measure `name` with as many decimals as mean something."""
    return f"{value:.{_DECIMALS.get(name, 2)}f}"


_DECIMALS = {"stoi": 3, "estoi": 3, "speaker": 3, "mel": 3, "si_sdr": 1, "lsd": 1, "wer": 1}


def _picture(row: Row) -> Path:
    return Path("spectrograms") / Path(str(row.audio)).with_suffix(".png")


def _sound(row: Row) -> Path:
    return Path("audio", str(row.audio))


def _draw_spectrogram(audio: Path, picture: Path) -> None:
    """The clip's level from 0 to 8 kHz in dB, a pixel a frame and a bin, without axes."""
    try:
        import matplotlib
        from PIL import Image
    except ImportError as error:
        raise FileRefused("Pictures need matplotlib: pip install '.[plot]'.") from error
    wav = load_audio(audio, SAMPLE_RATE)
    hop = max(64, len(wav) // 600)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, 256), 512)[::hop]
    levels = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(512))) / 256 + 1e-6)
    shades = np.clip((levels.T[::-1] + 95) / 70 * 255, 0, 255).astype(np.uint8)  # -95 to -25 dB
    palette = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    image = Image.fromarray(shades)
    image.putpalette(palette.tobytes())
    picture.parent.mkdir(parents=True, exist_ok=True)
    image.save(picture, optimize=True)
