"""`audiovq codebook`: how the codes of token files are used."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from audiovq.codes import TOKEN_SUFFIXES

from .failures import tell
from .options import Force, Model, know_tables
from .plan import check_picture, find_sources, refuse_sources

if TYPE_CHECKING:
    from audiovq.health import CodebookHealth


def codebook(
    sources: Annotated[
        list[str], typer.Argument(metavar="TOKENS|DIR...", help="Token files or folders of them.")
    ],
    size: Annotated[
        int, typer.Option(min=1, help="Codes of a codebook, for .npy files that do not say it.")
    ] = 1024,
    picture: Annotated[
        Path | None, typer.Option("--plot", help="Write a picture of the usage, PNG.")
    ] = None,
    force: Force = False,
    recursive: Annotated[
        bool,
        typer.Option("--recursive/--no-recursive", "-r", help="Also the folders inside folders."),
    ] = True,
    model: Model = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how evenly the codes of each level are used over many token files.

    A codebook of which an eighth or less is used has collapsed; from nine tenths on it is healthy.

    Example: audiovq codebook tokens/ --plot usage.png
    """
    from audiovq.files import FileRefused
    from audiovq.health import codebook_health, count_codes

    found = find_sources(sources, TOKEN_SUFFIXES, recursive=recursive, what="tokens")
    if found.refused:
        raise FileRefused(" ".join(why for _, why in found.refused))
    for note in found.notes:
        tell(note, err=True)
    files = [source for source, _ in found.pairs]
    if picture is not None:
        refuse_sources(files, [str(picture)])
        check_picture(picture, overwrite=force)
    know_tables(model)
    counts = count_codes(files, size)
    healths = [codebook_health(level) for level in counts]
    if picture is not None:
        from audiovq.pictures import draw_usage

        draw_usage(counts, picture, overwrite=force)
        tell(f"wrote {picture}", err=as_json)
    if as_json:
        levels = [_facts(level, health) for level, health in enumerate(healths)]
        typer.echo(json.dumps({"files": len(files), "levels": levels}))
    else:
        _print_table(healths, len(files))


def _facts(level: int, health: "CodebookHealth") -> dict[str, Any]:
    return {
        "level": level,
        "frames": health.n_frames,
        "size": health.size,
        "active": health.active,
        "active_share": health.active_share,
        "perplexity": health.perplexity,
        "entropy_bits": health.entropy,
        "verdict": health.verdict,
    }


def _print_table(healths: "list[CodebookHealth]", n_files: int) -> None:
    table = Table(title=f"{n_files} files, {max(h.n_frames for h in healths)} frames")
    for column in ("level", "active", "share", "perplexity", "entropy, bits", "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for level, health in enumerate(healths):
        table.add_row(
            str(level),
            f"{health.active} of {health.size}",
            f"{health.active_share:.1%}",
            f"{health.perplexity:.0f}",
            f"{health.entropy:.2f}",
            health.verdict,
        )
    Console().print(table)
