"""`audiovq explore`: pages about what the codes of one level mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Force, Model, Quiet, load_model

if TYPE_CHECKING:
    from audiovq import AudioVQ
    from audiovq.exploration.against import Against
    from audiovq.exploration.corpus import Recording
    from audiovq.exploration.site import Labels, Progress


def explore(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TOKENS_DIR|AUDIO_DIR",
            help="Folder of .npy or .avq files, or of recordings to encode.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the page to.")],
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the recordings that the tokens were made from.")
    ] = None,
    alignments: Annotated[
        Path | None, typer.Option(help="Folder of .TextGrid, .phn, .lab or .ctm files.")
    ] = None,
    level: Annotated[int, typer.Option(min=0, help="Level of the codes; 0 are the units.")] = 0,
    shift: Annotated[
        str, typer.Option(help="Frames that the codes lag the sound, or auto, from the alignments.")
    ] = "auto",
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of other tokens of the same recordings, to set beside these."),
    ] = None,
    against_level: Annotated[int, typer.Option(min=0, help="Level of those.")] = 0,
    frame_rate: Annotated[
        float, typer.Option(min=0.001, help="Frames a second of those, if they do not say it.")
    ] = 50.0,
    lines: Annotated[
        int, typer.Option(min=1, help="Stretches of sound for each code, at most.")
    ] = 8,
    recordings: Annotated[
        int, typer.Option(min=1, help="Recordings whose sound the page keeps, at most.")
    ] = 500,
    model: Model = "default",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a folder of pages about the codes of one level, to look at and listen to.

    For each code its usage, its duration, its phones, its nearest codes, what it sounds like alone
    and where it occurs; a map of all codes. It opens from disk in any browser: OUT/index.html.

    Example: audiovq explore wavs/ --alignments phones/ -o page/
    """
    from audiovq.exploration.site import GENERATOR, write_site
    from audiovq.files import FileRefused, page_folder

    if not source.is_dir():
        raise FileRefused(f"{source} is no folder; name a folder of tokens or of recordings.")
    lag = _shift(shift, aligned=alignments is not None)
    made_of = [path for path in (source, audio, alignments, against) if path is not None]
    with (
        page_folder(out, GENERATOR, sources=made_of, overwrite=force) as folder,
        _Bar(quiet) as bar,
    ):
        codec = load_model(model)
        if level >= (n_levels := codec.config.n_codebooks):  # before all is encoded
            raise typer.BadParameter(
                f"--level is {level}; {codec.name} has levels 0 to {n_levels - 1}."
            )
        found = _recordings(source, audio, codec, bar.show)
        write_site(
            folder,
            codec,
            found,
            title=source.resolve().name,
            level=level,
            labels=_labels(found, alignments, level, codec, lag) if alignments else None,
            against=_against(found, against, against_level, frame_rate, level, codec),
            lines=lines,
            kept=recordings,
            progress=bar.show,
        )
    typer.echo(f"Wrote {out / 'index.html'}", err=True)


def _recordings(
    source: Path, audio: Path | None, model: "AudioVQ", progress: "Progress"
) -> "dict[str, Recording]":
    """The recordings of a folder of tokens, with their sound, or of audio."""
    from dataclasses import replace

    from audiovq.exploration.corpus import encode_recordings, holds_tokens, read_recordings
    from audiovq.units.files import find_audio

    if holds_tokens(source):
        found = read_recordings(source, model)
        if audio is None:
            return found
        paths = find_audio(audio, found)
        return {name: replace(found[name], audio=paths[name]) for name in found}
    if audio is not None:
        raise typer.BadParameter(
            f"--audio goes with tokens, and {source} holds none; leave it out."
        )
    paths = find_audio(source)
    return encode_recordings(paths, model, progress=lambda done, n: progress("encoding", done, n))


def _labels(
    recordings: "dict[str, Recording]",
    alignments: Path,
    level: int,
    model: "AudioVQ",
    shift: int | Literal["auto"],
) -> "Labels":
    """The phones of the frames of those recordings that an alignment belongs to."""
    from audiovq.exploration.site import Labels
    from audiovq.files import FileRefused
    from audiovq.units.alignments import find, read_alignments
    from audiovq.units.measures import best_shift, frame_labels, phone_set

    intervals = read_alignments(alignments)
    matches = find(recordings, intervals)
    if not matches:
        raise FileRefused(
            f"none of the {len(recordings)} recordings has an alignment of its name in "
            f"{alignments} that fits no other; the first are {next(iter(recordings))!r} and "
            f"{next(iter(intervals))!r}."
        )
    aligned = {name: intervals[match] for name, match in matches.items()}
    rate, phones = model.config.frame_rate, phone_set(list(aligned.values()))
    if shift == "auto":
        units = [recordings[name].indices[level].astype("int64") for name in aligned]
        size = model.config.codebook_size
        shift = best_shift(units, list(aligned.values()), frame_rate=rate, n_units=size)
    frames = {
        name: frame_labels(alignment, recordings[name].indices.shape[1], rate, phones, shift=shift)
        for name, alignment in aligned.items()
    }
    return Labels(phones, frames, shift)


def _against(
    recordings: "dict[str, Recording]",
    folder: Path | None,
    other_level: int,
    frame_rate: float,
    level: int,
    model: "AudioVQ",
) -> "Against | None":
    """The other tokens, by the names of these recordings."""
    if folder is None:
        return None
    from audiovq.exploration.against import set_against
    from audiovq.units.alignments import find
    from audiovq.units.files import read_units

    files = read_units(folder, level=other_level, frame_rate=frame_rate)
    matches = find(recordings, files.units)
    return set_against(
        recordings,
        level,
        model.config.codebook_size,
        model.config.frame_rate,
        folder.resolve().name,
        {name: files.units[match] for name, match in matches.items()},
        files.frame_rate,
    )


def _shift(text: str, *, aligned: bool) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not aligned:
        raise typer.BadParameter("--shift goes with --alignments; add them or leave it out.")
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"--shift is a number of frames or auto, not {text!r}.") from error


class _Bar:
    """Progress on a terminal."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("reading", total=None)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, n: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=n)
