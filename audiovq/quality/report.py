"""Pictures and pages of an `Evaluation`: the rate-quality plot and the listening page."""

import html
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from audiovq.audio import load_audio
from audiovq.files import FileRefused, atomic_output
from audiovq.quality.evaluate import ORIGINAL, TABLE, Evaluation, Row, Summary
from audiovq.quality.metrics import SAMPLE_RATE


def plot_rate_quality(evaluation: Evaluation, path: str | Path, *, overwrite: bool = False) -> None:
    """Draw each measure against the bitrate on disk, one line a codec, with the intervals.

    Raises `FileRefused` when matplotlib is missing or the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    except ImportError as error:
        raise FileRefused("Pictures need matplotlib: pip install '.[plot]'.") from error
    summaries = evaluation.summary()
    families = list(dict.fromkeys(s.family for s in summaries if s.system != ORIGINAL))
    colors = dict(zip(families, _COLORS * len(families), strict=False))
    n_columns = min(4, len(evaluation.metrics))
    n_rows = -(-len(evaluation.metrics) // n_columns)
    figure = Figure(figsize=(3.2 * n_columns, 2.7 * n_rows + 0.4), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    rates = [s.bitrate / 1000 for s in summaries if s.bitrate]
    for name, axes in zip(evaluation.metrics, panels, strict=False):
        metric = TABLE[name]
        for family in families:
            points = [
                (s.bitrate, mean)
                for s in summaries
                if s.family == family and (mean := s.metrics[name]) is not None
            ]
            for rate, mean in points:
                if rate is None:
                    axes.axhline(mean.mean, color=colors[family], ls=":", label=family)
            line = sorted((r / 1000, m.mean, m.low, m.high) for r, m in points if r is not None)
            if line:
                x, y, low, high = zip(*line, strict=True)
                axes.plot(x, y, "o-", color=colors[family], ms=4.5, lw=1.8, label=family)
                if None not in low:
                    axes.vlines(x, low, high, color=colors[family], lw=1.4, alpha=0.6)
        for s in summaries:
            mean = s.metrics[name]
            if s.system == ORIGINAL and mean is not None:
                axes.axhline(mean.mean, color="0.45", ls="--", lw=1, label=ORIGINAL)
        axes.set_title(f"{metric.label} ({metric.unit}), {metric.better} is better", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        if rates:
            axes.set_xscale("log")
            axes.set_xlim(min(rates) * 0.85, max(rates) * 1.18)
            axes.xaxis.set_major_locator(FixedLocator(_RATE_TICKS))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.set_xlabel("kbit/s on disk", fontsize=8)
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
            figure.savefig(temporary, dpi=130)
        except ValueError as error:
            raise FileRefused(f"{path} is not a picture that matplotlib writes: {error}") from error


_COLORS = ["#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#b45309", "#0e7490"]
_RATE_TICKS = [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256]


@contextmanager
def page_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` when the block succeeds.

    If the block raises, the temporary folder is removed and `folder` is as it was.

    Raises `FileRefused` when `folder` holds anything, unless `overwrite` and it is a page that
    `write_page` wrote.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileRefused(f"{folder} is a file; name a folder for the page.")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not overwrite:
        raise FileRefused(f"{folder} is not empty; add --force to overwrite it or name another.")
    if used and not _is_page(folder):
        raise FileRefused(f"{folder} holds something else than a listening page; name another.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise FileRefused(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner may read
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise FileRefused(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    plot = ""
    if any(summary.bitrate for summary in summaries):
        plot_rate_quality(evaluation, folder / "rate-quality.png", overwrite=True)
        plot = '<img class="plot" src="rate-quality.png" alt="Each measure against the bitrate">'
    clips: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        clips.setdefault(row.file, []).append(row)
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in evaluation.notes)
    body = "\n".join(_clip_section(evaluation, file, rows) for file, rows in clips.items())
    text = _PAGE.format(
        style=_STYLE,
        n_clips=f"{len(clips)} clip{'s' if len(clips) > 1 else ''}",
        seconds=sum(rows[0].seconds for rows in clips.values()),
        table=_summary_table(evaluation, summaries),
        notes=notes,
        plot=plot,
        clips=body,
    )
    with atomic_output(folder / "index.html", overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def format_value(name: str, value: float) -> str:
    """A value of the measure `name` with as many decimals as mean something."""
    return f"{value:.{_DECIMALS.get(name, 2)}f}"


_DECIMALS = {"stoi": 3, "estoi": 3, "speaker": 3, "mel": 3, "si_sdr": 1, "lsd": 1, "wer": 1}


def _summary_table(evaluation: Evaluation, summaries: list[Summary]) -> str:
    head = "".join(
        f"<th>{TABLE[name].label}<small>{TABLE[name].unit}, {TABLE[name].better}</small></th>"
        for name in evaluation.metrics
    )
    rows = []
    for summary in summaries:
        rate = "" if summary.bitrate is None else f"{summary.bitrate / 1000:.2f}"
        cells = []
        for name in evaluation.metrics:
            mean = summary.metrics[name]
            interval = ""
            if mean is not None and mean.low is not None and mean.high is not None:
                low, high = format_value(name, mean.low), format_value(name, mean.high)
                interval = f"<small>{low} to {high}</small>"
            value = "" if mean is None else format_value(name, mean.mean)
            cells.append(f"<td>{value}{interval}</td>")
        rows.append(
            f"<tr><th>{html.escape(summary.system)}</th><td>{rate}</td>{''.join(cells)}</tr>"
        )
    return (
        f"<table><tr><th></th><th>rate<small>kbit/s on disk</small></th>{head}</tr>"
        f"{''.join(rows)}</table>"
    )


def _clip_section(evaluation: Evaluation, file: str, rows: list[Row]) -> str:
    cards = []
    for row in rows:
        rate = f"{8 * row.n_bytes / row.seconds / 1000:.2f} kbit/s" if row.n_bytes else ""
        scores = " ".join(
            f"<span>{TABLE[name].label} <b>{format_value(name, value)}</b></span>"
            for name in evaluation.metrics
            if (value := row.values.get(name)) is not None
        )
        cards.append(
            f"<div class='card'><h3>{html.escape(row.system)}<small>{rate}</small></h3>"
            f"<div class='picture'><img src='{_url(_picture(row))}' alt='spectrogram'>"
            "<i>8 kHz</i></div>"
            f"<audio controls preload='metadata' src='{_url(Path('audio', str(row.audio)))}'>"
            "</audio>"
            f"<p class='scores'>{scores}</p></div>"
        )
    return (
        f"<section><h2>{html.escape(file)}<small>{rows[0].seconds:.1f} s</small></h2>"
        f"<div class='grid'>{''.join(cards)}</div></section>"
    )


def _picture(row: Row) -> Path:
    return Path("spectrograms") / Path(str(row.audio)).with_suffix(".png")


def _url(path: Path) -> str:
    return quote(path.as_posix())


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


def _is_page(folder: Path) -> bool:
    index = folder / "index.html"
    return index.is_file() and _MARK in index.read_text(encoding="utf-8", errors="replace")


_MARK = '<meta name="generator" content="audiovq evaluate">'
_PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
"""
    + _MARK
    + """
<title>Listening page</title>
<style>{style}</style>
</head>
<body>
<h1>Listening page</h1>
<p>{n_clips}, {seconds:.0f} s in all: the original, and what each codec makes of it. Means over the
clips with 95&nbsp;% bootstrap intervals. Spectrograms go from 0 to 8 kHz.</p>
<div class="wide">{table}</div>
{notes}
{plot}
{clips}
<script>
// One clip plays at a time.
document.addEventListener("play", (event) => {{
  for (const audio of document.querySelectorAll("audio")) {{
    if (audio !== event.target) audio.pause();
  }}
}}, true);
</script>
</body>
</html>
"""
)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --card: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .3rem }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .6rem; overflow-wrap: anywhere }
h3 { font-size: .95rem; margin: 0 0 .4rem; display: flex; justify-content: space-between }
small { color: var(--soft); font-weight: normal }
h2 small { margin-left: .6rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top }
th small, td small { display: block; font-size: .75rem }
tr > :first-child { text-align: left; padding-left: 0 }
.note { color: var(--soft); margin: .4rem 0 }
.plot { max-width: 100%; margin-top: 1.5rem; background: #fff; border-radius: 6px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(265px, 1fr)); gap: 1rem }
.card { background: var(--card); border-radius: 8px; padding: .7rem }
.picture { position: relative; line-height: 0 }
.picture img { width: 100%; height: 130px; border-radius: 4px }
.picture i { position: absolute; left: 6px; top: 5px; font: 10px/1 system-ui; color: #fff9 }
audio { width: 100%; height: 36px; margin-top: .5rem }
.scores { margin: .4rem 0 0; font-size: .8rem; color: var(--soft) }
.scores span { margin-right: .6rem; white-space: nowrap }
.scores b { color: CanvasText }
"""
