"""From recordings to training manifests, and a report of what the recordings are like.

Manifests are lhotse CutSets. Every file is read once from end to end, so that what training would
stumble over is found, listed and left out here.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audiovq.files import FileRefused, refuse_existing
from audiovq.training.recordings import (
    Scan,
    find_recordings,
    manifest_cuts,
    recording_cut,
    scan_file,
    write_manifest,
)
from audiovq.training.report import SHORTEST, Report
from audiovq.training.split import VALIDATION_SHARE, check_share, shuffled, split_validation

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

__all__ = [  # what recipes make a prepare.py of
    "VALIDATION_SHARE",
    "Report",
    "find_recordings",
    "main",
    "manifest_cuts",
    "prepare",
    "recording_cut",
    "scan_file",
    "scan_recordings",
    "shuffled",
    "split_validation",
    "write_manifest",
]

TRAIN_FILE = "train.jsonl.gz"
VALIDATION_FILE = "validation.jsonl.gz"
REPORT_FILE = "report.json"


def prepare(
    train: "Iterable[MonoCut]",
    out: str | Path,
    *,
    validation: "float | Iterable[MonoCut]" = VALIDATION_SHARE,
    unreadable: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> Report:
    """Scan recordings, split them, and write the manifests and the report to the folder `out`.

    train: cuts to train on. validation: the cuts to validate with, or the share of the hours of
    `train` to keep for it; see `split_validation`. unreadable: files that were left out before.
    progress: called with the number of recordings scanned and their total. overwrite: whether
    files that are there already may be replaced.

    Writes `train.jsonl.gz`, `validation.jsonl.gz` and `report.json`. Raises `FileRefused` when
    nothing is left to train on, and before the work when a file is in the way.
    """
    out = Path(out)
    if isinstance(validation, float | int):
        check_share(validation)
    for name in (TRAIN_FILE, VALIDATION_FILE, REPORT_FILE):
        refuse_existing(out / name, overwrite=overwrite)
    train = list(train)
    given = None if isinstance(validation, float | int) else list(validation)
    usable, report = scan_recordings([*train, *(given or [])], unreadable, progress)
    if given is not None:
        names = {cut.id for cut in train}
        train = [cut for cut in usable if cut.id in names]
        held = [cut for cut in usable if cut.id not in names]
        report.validation_split = "the corpus's own"
    else:
        train, held, report.validation_split = split_validation(usable, validation)  # type: ignore
    if not train:
        raise FileRefused(
            f"No recording is left to train on: {len(report.unreadable)} cannot be read and "
            f"{len(report.too_short)} are shorter than {SHORTEST} s."
        )
    report.train_recordings, report.validation_recordings = len(train), len(held)
    report.train_hours = sum(cut.duration for cut in train) / 3600
    report.validation_hours = sum(cut.duration for cut in held) / 3600
    write_manifest(train, out / TRAIN_FILE)
    write_manifest(shuffled(held), out / VALIDATION_FILE)
    report.save(out / REPORT_FILE)
    return report


def scan_recordings(
    cuts: "list[MonoCut]",
    unreadable: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "tuple[list[MonoCut], Report]":
    """Read all recordings, several at a time: the cuts that can be used, and what they are like.

    unreadable and progress: as for `prepare`.
    """
    report, scans = Report(unreadable=dict(unreadable or {})), {}

    def attempt(cut: "MonoCut") -> Scan | str:
        try:
            return scan_file(cut.recording.sources[0].source)
        except FileRefused as error:
            return str(error)

    # libsndfile and numpy let other threads run.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (cut, scan) in enumerate(zip(cuts, pool.map(attempt, cuts), strict=True), 1):
            path = str(cut.recording.sources[0].source)
            if progress is not None:
                progress(done, len(cuts))
            if isinstance(scan, str):
                report.unreadable[path] = scan
            elif scan.duration < SHORTEST:
                report.too_short.append(path)
            else:
                scans[cut.id] = scan
                if scan.silent >= scan.duration:
                    report.silent_recordings.append(path)
    usable = [cut for cut in cuts if cut.id in scans]
    report.describe(usable, scans)
    return usable, report


def main(prepare_corpus: Callable[[Path, Path], Report]) -> None:
    """The command line of a recipe's prepare.py: two folders in, the report out."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=inspect.getdoc(prepare_corpus))
    def command(
        corpus_dir: Annotated[
            Path, typer.Argument(metavar="CORPUS_DIR", help="Folder of the corpus.")
        ],
        out_dir: Annotated[
            Path, typer.Argument(metavar="OUT_DIR", help="Folder for the manifests.")
        ],
        force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    ) -> None:
        corpus_dir = corpus_dir.absolute()  # so that training may run from anywhere
        try:
            for path in (*sorted(out_dir.glob("*.jsonl.gz")), out_dir / REPORT_FILE):
                refuse_existing(path, overwrite=force)
            report = prepare_corpus(corpus_dir, out_dir)
        except FileRefused as error:
            sys.exit(str(error))
        except (AssertionError, KeyError, OSError, ValueError) as error:  # what lhotse raises
            sys.exit(
                f"{corpus_dir} could not be prepared; is it the corpus's own folder? ({error!r})"
            )
        print(report.summary())
        print(f"Wrote the manifests and report.json to {out_dir}.")

    app()
