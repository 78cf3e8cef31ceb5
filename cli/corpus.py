"""`audiovq corpus`: many hours of audio to shards of tokens."""

import enum
import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from audiovq.files import refuse_existing

from .failures import EXIT_CODES, REFUSED, printable
from .options import Device, Force, Model, Quiet

if TYPE_CHECKING:
    from audiovq.corpus.pool import Event
    from audiovq.corpus.progress import Progress as Run

LISTED = 5
"""Refused recordings that are named at the end; all are in a file."""

corpus = typer.Typer(
    no_args_is_help=True,
    help="Many hours of audio to shards of tokens, for trainers.",
    epilog=EXIT_CODES,
)


class Engine(enum.StrEnum):
    """What runs the workers."""

    POOL = "pool"
    RAY = "ray"


class ShardFormat(enum.StrEnum):
    """Kinds of shards."""

    PARQUET = "parquet"
    WEBDATASET = "webdataset"


class ExportFormat(enum.StrEnum):
    """What a corpus can become."""

    DATASETS = "datasets"
    LHOTSE = "lhotse"
    NPY = "npy"
    TEXT = "text"


CorpusFolder = Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder of shards.")]
OneJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@corpus.command("encode", epilog=EXIT_CODES)
def encode_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folder, table (.csv, .tsv, .parquet), lhotse cuts (.jsonl.gz), WebDataset .tar "
            "or a Hugging Face dataset's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the shards.")],
    n_q: Annotated[int | None, typer.Option("--n-q", help="Levels; all if unset.")] = None,
    model: Model = "default",
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.CPU,
    shard_format: Annotated[
        ShardFormat, typer.Option("--format", help="Kind of the shards.")
    ] = ShardFormat.PARQUET,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Recordings a shard: what a kill loses at most.")
    ] = 1000,
    segments: Annotated[
        bool, typer.Option("--segments", help="Also the units' segments, as columns.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a segment; the model's if unset.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="A column of the table, as path=audio_file."),
    ] = None,
    audio_root: Annotated[
        Path | None, typer.Option(help="Folder that paths of tables and cuts are below.")
    ] = None,
    prefix_ids: Annotated[
        bool, typer.Option("--prefix-ids", help="Begin ids with the name of the tar or table.")
    ] = False,
    engine: Annotated[
        Engine | None, typer.Option(help="pool: this machine; ray: with --address, a cluster.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, or ray://host:10001.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Workers; one a core or GPU if unset.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Encode anew what sources or settings changed.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Encode shards anew in which something was refused.")
    ] = False,
    log_every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two lines, where no terminal is.")
    ] = 60.0,
    quiet: Quiet = False,
    as_json: OneJson = False,
) -> None:
    """Encode a corpus to shards of tokens, or go on where that was stopped.

    Run the same command again after whatever has ended it. Recordings that cannot be read are
    listed in `_refused.jsonl`, and the exit code is then 1.

    Example: audiovq corpus encode recordings/ -o corpus
    """
    from audiovq.corpus.encode import encode_corpus

    if engine is Engine.POOL and address is not None:
        raise typer.BadParameter("--address is a Ray cluster's; leave out --engine pool.")
    if price is not None and not segments:
        raise typer.BadParameter("--price goes with --segments.")
    with _Screen(quiet=quiet, log_every=log_every) as screen:
        run = encode_corpus(
            sources,
            out,
            model=model,
            device=_device(device),
            n_q=n_q,
            segments=segments if price is None else price,
            format=shard_format.value,
            shard_rows=shard_rows,
            columns=_columns(column or []),
            audio_root=audio_root,
            prefix_ids=prefix_ids,
            engine="ray" if address is not None or engine is Engine.RAY else "pool",
            address=address,
            jobs=jobs,
            update=update,
            retry=retry,
            on_event=screen.on_event,
        )
    facts = run.summary()
    _say_refused(out, facts["refused"] + facts["problems_of_sources"])
    if as_json:
        typer.echo(json.dumps(facts))
    if not quiet:
        typer.echo(printable(_summary(out, facts)), err=True)
    if facts["refused"] or facts["problems_of_sources"]:
        raise typer.Exit(REFUSED)


def _device(device: Device) -> str:
    import torch

    if device is Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no CUDA device; use --device cpu.")
    cuda = device is not Device.CPU and torch.cuda.is_available()
    return "cuda" if cuda else "cpu"


def _columns(named: list[str]) -> dict[str, str]:
    columns = {}
    for text in named:
        name, is_given, column = text.partition("=")
        if not is_given or not name or not column:
            raise typer.BadParameter(f"--column is NAME=COLUMN, as path=audio_file, not {text!r}.")
        columns[name] = column
    return columns


def _say_refused(out: Path, n_refused: int) -> None:
    """Name the first of what was refused; errors are said even when all else is quiet."""
    from audiovq.corpus.layout import REFUSED_FILE

    with (out / REFUSED_FILE).open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(LISTED)):
            item = json.loads(line)
            why = item["why"]
            named = why if item["source"] in why else f"{item['source']}: {why}"
            typer.echo(printable(f"audiovq: {named}"), err=True)
    if n_refused > LISTED:
        typer.echo(f"audiovq: and {n_refused - LISTED} more, in {out / REFUSED_FILE}.", err=True)


def _summary(out: Path, facts: dict[str, Any]) -> str:
    now = facts["this_run"]
    line = (
        f"{out}: {facts['encoded']} of {facts['recordings']} recordings in {facts['shards']} "
        f"shards, {facts['hours']:.2f} h, {facts['bytes'] / 1e6:.1f} MB"
    )
    if not now["load"]:
        return f"{line}; nothing was left to do."
    line += f"; in this run {now['hours_of_audio']:.2f} h, {now['hours_an_hour']:.1f} h an hour"
    loads = ", ".join(f"{load['busy']:.0%}" for load in now["load"].values())
    replaced = f", {now['workers_replaced']} replaced" if now["workers_replaced"] else ""
    return f"{line}, load of the workers {loads}{replaced}."


class _Screen:
    """How far the work is: a bar on terminals, else a line now and then; nothing when quiet."""

    def __init__(self, *, quiet: bool, log_every: float) -> None:
        console = Console(stderr=True)
        self._quiet, self._every = quiet, log_every
        self._said = time.monotonic()
        self._bar = Progress(
            BarColumn(20),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("planning", total=None)

    def __enter__(self) -> "_Screen":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_event(self, run: "Run", event: "Event | None") -> None:
        """Show it; see `encode_corpus`."""
        if self._quiet:
            return
        if not self._bar.disable:
            self._bar.update(
                self._task, total=run.corpus.rows, completed=run.rows, description=run.line()
            )
        elif event is None or time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            print(run.line(), file=sys.stderr, flush=True)


@corpus.command("verify", epilog=EXIT_CODES)
def verify_command(folder: CorpusFolder, quiet: Quiet = False, as_json: OneJson = False) -> None:
    """See that a corpus is whole: every recording, every shard, every checksum.

    What is missing or damaged is named, and the exit code is then 1.

    Example: audiovq corpus verify corpus
    """
    from audiovq.corpus.checking import verify
    from audiovq.corpus.layout import read_corpus

    wrong = verify(folder)
    about = read_corpus(folder)
    if as_json:
        typer.echo(json.dumps({"whole": not wrong, "shards": about.n_shards, "wrong": wrong}))
    for line in wrong:
        typer.echo(printable(f"audiovq: {line}"), err=True)
    if wrong:
        raise typer.Exit(REFUSED)
    if not quiet and not as_json:
        typer.echo(f"{folder} is whole: {about.rows} recordings in {about.n_shards} shards.")


@corpus.command("info", epilog=EXIT_CODES)
def info_command(
    folder: CorpusFolder,
    ngrams: Annotated[int, typer.Option(min=1, help="Length of the longest n-grams.")] = 2,
    as_json: OneJson = False,
) -> None:
    """Say what is in a corpus: hours, tokens, use of the codebooks, n-grams of units, duplicates.

    Repeats of a unit count once in n-grams.

    Example: audiovq corpus info corpus
    """
    from audiovq.corpus.statistics import statistics

    facts = statistics(folder, n=ngrams)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(_about(facts))
    table = Table()
    for name in ("level", "active", "perplexity", "entropy, bits", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for level in facts["levels"]:
        table.add_row(
            str(level["level"]),
            str(level["active"]),
            f"{level['perplexity']:.0f}",
            f"{level['entropy_bits']:.2f}",
            level["verdict"],
        )
    Console().print(table)
    for gram in facts["ngrams"]:
        top = ", ".join(
            f"{' '.join(map(str, item['units']))} ({item['count']})"
            for item in gram["most_frequent"][:5]
        )
        typer.echo(
            f"{gram['n']}-grams: {gram['total']}, {gram['distinct']} distinct, "
            f"{gram['entropy_bits']:.2f} bits; {top}"
        )
    for group in facts["duplicates"]["groups"][:LISTED]:
        typer.echo(printable(f"the same tokens: {', '.join(group[:LISTED])}"))


def _about(facts: dict[str, Any]) -> str:
    bits = 8 * facts["bytes"] / max(1, facts["tokens"])
    return "\n".join(
        [
            f"{facts['recordings']} recordings, {facts['hours']:.2f} h, {facts['speakers']} "
            f"speakers; {facts['refused']} refused, {facts['duplicates']['recordings']} duplicates",
            f"{facts['shortest_s']:.2f} to {facts['longest_s']:.2f} s, the median "
            f"{facts['median_s']:.2f} s",
            f"{facts['tokens']} tokens in {facts['frames']} frames, "
            f"{facts['units_per_second']:.1f} units a second without repeats",
            f"{facts['shards']} shards, {facts['bytes'] / 1e6:.2f} MB, {bits:.2f} bits a token",
            f"model {printable(facts['model'])} ({facts['fingerprint']})",
        ]
    )


@corpus.command("export", epilog=EXIT_CODES)
def export_command(
    folder: CorpusFolder,
    out: Annotated[Path, typer.Option("-o", "--out", help="File (text) or folder to write.")],
    to: Annotated[ExportFormat, typer.Option("--to", help="What it becomes.")],
    level: Annotated[int, typer.Option(min=0, help="Level of text.")] = 0,
    dedup: Annotated[bool, typer.Option("--dedup", help="Merge repeats in text.")] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Begin each line of text with `id|`.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a corpus in another tool's form: a Hugging Face dataset, lhotse cuts with codes, a
    tree of .npy files, or units as text.

    Example: audiovq corpus export corpus --to text --dedup -o units.txt
    """
    from audiovq.corpus import export

    if to is not ExportFormat.TEXT and (level or dedup or names):
        raise typer.BadParameter("--level, --dedup and --names are of --to text.")
    if to is ExportFormat.TEXT:
        refuse_existing(out, overwrite=force)
        export.export_text(folder, out, level=level, dedup=dedup, names=names, overwrite=force)
    elif to is ExportFormat.NPY:
        export.export_npy(folder, out, overwrite=force)
    elif to is ExportFormat.LHOTSE:
        export.export_lhotse(folder, out, overwrite=force)
    else:
        export.export_datasets(folder, out, overwrite=force)
    if not quiet:
        typer.echo(f"wrote {out}", err=True)
