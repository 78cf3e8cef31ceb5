"""`audiovq evaluate`: how good decoded speech is."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .failures import plain, tell
from .options import Device, DeviceOption, Force, Model, load_model, print_table
from .plan import check_picture


def evaluate(
    reference: Annotated[
        Path, typer.Argument(metavar="REF", help="Original audio: file or folder.")
    ],
    decoded: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DECODED]",
            help="The same, decoded by any codec: file or folder with the same names. "
            "Without it the model encodes and decodes the originals.",
        ),
    ] = None,
    n_q: Annotated[
        str | None,
        typer.Option(
            help="Numbers of levels to run the model at, as 1,3,5,9; none to leave the model out. "
            "Without it and without DECODED: those at which the bitrate doubles, and all."
        ),
    ] = None,
    peers: Annotated[
        str,
        typer.Option(
            help="Other codecs: opus:KBIT/S and codec2:BIT/S, as opus:6,opus:12,codec2:3200."
        ),
    ] = "",
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Measures, as pesq,stoi: distillmos harmonicity_1k harmonicity_2k "
            "harmonicity_4k pesq stoi speaker estoi si_sdr mel lsd dnsmos (the default) and visqol."
        ),
    ] = None,
    asr: Annotated[
        str | None,
        typer.Option(
            help="Add the word error rate by this recogniser: moonshine, pocketsphinx, or a "
            "command that prints the text, with {} where the WAV file goes."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="What is said, for the word error rate: a file of lines NAME TEXT, or a folder of "
            "LibriSpeech's .trans.txt. Without it, what the recogniser hears in the original."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Take so many files, spread evenly over the folder.", min=1)
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Processes. Speeds are fair with 1.", min=1)
    ] = 1,
    per_file: Annotated[bool, typer.Option("--per-file", help="A line for every clip.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the measures against the bitrate, PNG.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Write a folder with index.html: players, spectrograms, scores."),
    ] = None,
    force: Force = False,
) -> None:
    """Measure decoded speech against the original, beside other codecs.

    The table has the mean over the files and under it half the 95 % bootstrap interval. Bitrates
    are those of the files on disk, headers included; enc and dec are seconds of audio encoded and
    decoded in a second.

    Example: audiovq evaluate recordings/ --n-q 3,9 --peers opus:6,codec2:3200 --plot quality.png
    """
    from audiovq.quality.evaluate import evaluate as run
    from audiovq.quality.report import page_folder, plot_rate_quality, write_page

    if plot is not None:
        check_picture(plot, overwrite=force)
    codec, levels = _model_and_levels(model, device, n_q, given=decoded is not None)
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = None
        if page is not None:
            made_of = [path for path in (reference, decoded) if path is not None]
            folder = stack.enter_context(page_folder(page, sources=made_of, overwrite=force))
        with Progress(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar:
            task = bar.add_task("files", total=None)
            found = run(
                reference,
                decoded,
                model=codec,
                n_q=levels,
                peers=_split(peers),
                metrics=None if metrics is None else _split(metrics),
                asr=asr,
                texts=texts,
                limit=limit,
                jobs=jobs,
                audio_dir=None if folder is None else folder / "audio",
                progress=lambda done, n: bar.update(task, completed=done, total=n),
            )
        if folder is not None:
            write_page(found, folder)
        if plot is not None:
            plot_rate_quality(found, plot, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        for table in _tables(found, per_file=per_file):
            print_table(table)
    for note in found.notes:
        tell(note, err=True)
    if plot is not None:
        tell(f"Wrote {plot}", err=True)
    if page is not None:
        tell(f"Wrote {page / 'index.html'}", err=True)


def _model_and_levels(
    name: str, device: Device, n_q: str | None, *, given: bool
) -> tuple[Any, list[int]]:
    """The model and the levels to run it at; neither where it is not asked for."""
    if n_q == "none" or (n_q is None and given):
        return None, []
    model = load_model(name, device)
    n_codebooks = model.config.n_codebooks
    if n_q is None:
        return model, model.config.doubling_levels()
    try:
        return model, [model.check_n_q(int(k)) for k in _split(n_q)]
    except ValueError as error:
        raise typer.BadParameter(
            f"--n-q is {n_q}; give levels in 1..{n_codebooks}, as 1,2,{n_codebooks}, or none."
        ) from error


def _tables(found: Any, *, per_file: bool) -> list[Table]:
    from audiovq.quality.report import format_value
    from audiovq.quality.results import TABLE

    def start(title: str | None, *first: str) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title=title)
        table.title_justify = "left"
        for column in first:
            is_name = column in ("file", "system")
            table.add_column(column, justify="left" if is_name else "right", no_wrap=True)
        for name in found.metrics:
            arrow = "↑" if TABLE[name].better == "higher" else "↓"
            table.add_column(f"{TABLE[name].label}\n{arrow}", justify="right", no_wrap=True)
        return table

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    tables = []
    if per_file:
        table = start(None, "file", "system", "kbit/s")
        for row in found.rows:
            rate = 8 * row.n_bytes / row.seconds / 1000 if row.n_bytes else None
            values = [row.values.get(name) for name in found.metrics]
            table.add_row(
                plain(row.file),
                plain(row.system),
                number(rate, ".2f"),
                *(
                    "" if value is None else format_value(name, value)
                    for name, value in zip(found.metrics, values, strict=True)
                ),
            )
        tables.append(table)
    summaries = found.summary()
    n = max(summary.n_files for summary in summaries)
    table = start(f"mean of {n} files", "system", "kbit/s", "enc", "dec")
    for summary in summaries:
        cells = []
        for name in found.metrics:
            mean = summary.metrics[name]
            cell = "" if mean is None else format_value(name, mean.mean)
            if mean is not None and mean.low is not None:
                cell += f"\n[dim]±{format_value(name, (mean.high - mean.low) / 2)}[/dim]"
            cells.append(cell)
        table.add_row(
            plain(summary.system),
            number(None if summary.bitrate is None else summary.bitrate / 1000, ".2f"),
            number(summary.encode_speed, ".0f"),
            number(summary.decode_speed, ".0f"),
            *cells,
        )
    return [*tables, table]


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
