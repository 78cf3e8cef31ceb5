"""`audiovq units`: how phoneme-like units are, and units as text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiovq.audio import load_audio
from audiovq.codes import TOKEN_SUFFIXES
from audiovq.files import FileRefused, atomic_output, refuse_existing, write_standard_output
from audiovq.segment import run_lengths, to_text, write_segments
from audiovq.units.abx import require_fastabx
from audiovq.units.alignments import TimeUnit, find, read_alignments
from audiovq.units.compare import SAMPLE_RATE, Comparison, compare, encode_units, segment_files
from audiovq.units.files import (
    SEGMENT_SUFFIX,
    discophon_phones,
    find_audio,
    read_unit_file,
    read_units,
    write_discophon,
)
from audiovq.units.report import (
    described,
    heatmap,
    png_bytes,
    report_html,
    table_rows,
    utterance_picture,
    written,
)

from .failures import plain, tell
from .options import Force, Json, Model, Quiet, Recursive, know_tables, print_table
from .plan import check_picture, plan
from .work import Done, OnProgress, work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audiovq.units.robust import Robustness, Tokenizer

units = typer.Typer(no_args_is_help=True, help="Measure units against phones; write them as text.")

TokensFolder = Annotated[Path, typer.Argument(help="Folder of .npy, .avq or segment files.")]
AlignmentFolder = Annotated[
    Path, typer.Option("--alignments", help="Folder of .TextGrid, .phn, .lab or .ctm files.")
]
Level = Annotated[int, typer.Option(help="Level of the codes; 0 are the units.")]
FrameRate = Annotated[
    float,
    typer.Option(
        min=0.001, help="Frames a second of .npy, and units a second of .tsv, which do not say it."
    ),
]
Shift = Annotated[str, typer.Option(help="Frames that the codes lag the sound, or auto.")]
Speakers = Annotated[
    str | None,
    typer.Option(
        metavar="RULE|TSV",
        help="Who speaks: parent (folder), before:TEXT or first:N (of the name), or a table of "
        "path and speaker.",
    ),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline", metavar="mfcc|permuted|NAME=DIR", help="Compare with; may be repeated."
    ),
]
FitAudio = Annotated[
    Path | None,
    typer.Option(help="Recordings that mfcc is fitted to, instead of the measured ones."),
]
WithAbx = Annotated[bool, typer.Option("--abx", help="Also ABX error rates (fastabx).")]
Tier = Annotated[str | None, typer.Option(help="TextGrid tier, if it is not called phones.")]
Times = Annotated[
    TimeUnit, typer.Option("--times", help="What whole numbers in .phn and .lab files count.")
]


@units.command("evaluate")
def evaluate_command(
    tokens: TokensFolder,
    alignments: AlignmentFolder,
    level: Level = 0,
    frame_rate: FrameRate = 50.0,
    model: Model = "default",
    codebook_size: Annotated[
        int | None, typer.Option(min=1, help="K, where the files do not say it.")
    ] = None,
    shift: Shift = "auto",
    speakers: Speakers = None,
    baseline: Baselines = None,
    audio: Annotated[
        Path | None, typer.Option(help="The recordings, for mfcc and pictures.")
    ] = None,
    fit_audio: FitAudio = None,
    abx: WithAbx = False,
    tier: Tier = None,
    times: Times = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    heatmap_to: Annotated[
        Path | None, typer.Option("--heatmap", help="Picture of phones by units (.png).")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture of one utterance (.png); needs --audio.")
    ] = None,
    utterance: Annotated[
        str | None, typer.Option(help="Name of that utterance; the first by default.")
    ] = None,
    discophon: Annotated[
        Path | None, typer.Option(help="Write DiscoPhon's JSONL, and phones beside it.")
    ] = None,
    force: Force = False,
) -> None:
    """Measure how phoneme-like the units of token files are.

    Files belong together when their paths below the folders are the same, suffixes aside.

    Example: audiovq units evaluate tokens/ --alignments phones/ --speakers parent
    --baseline mfcc --baseline permuted --audio wavs/
    """
    if picture is not None and audio is None:
        raise typer.BadParameter("--picture needs the recordings; add --audio DIR.")
    phones_to = discophon_phones(discophon) if discophon is not None else None
    for path in (heatmap_to, picture):
        if path is not None:
            check_picture(path, overwrite=force)
    for path in (discophon, phones_to):
        if path is not None:
            refuse_existing(path, overwrite=force)
    know_tables(model)
    files = read_units(tokens, level=level, frame_rate=frame_rate)
    found = compare(
        files.units,
        read_alignments(alignments, tier=tier, unit=times),
        name=tokens.resolve().stem,
        frame_rate=files.frame_rate,
        file_rate=frame_rate,
        codebook_size=codebook_size or files.codebook_size,
        level=level,
        speakers=speakers,
        shift=_shift(shift),
        baselines=baseline or (),
        audio=audio,
        fit_audio=fit_audio,
        with_abx=abx,
    )
    if utterance is not None and utterance not in found.names:
        raise typer.BadParameter(f"--utterance {utterance} is not among the evaluated files.")
    first = next(iter(found.evaluations))
    if as_json:
        about = {"tokens": str(tokens), "level": level, "unmatched": found.unmatched}
        print(json.dumps({**about, "systems": found.as_dict()}))
    else:
        _print_tables(found)
    for line in _left_out(found):
        _say(line)
    if heatmap_to is not None:
        _write_png(heatmap_to, heatmap(found.evaluations[first], title=first), force)
    if picture is not None and audio is not None:
        _write_png(picture, _picture(found, audio, utterance or found.names[0]), force)
    if discophon is not None:
        phones = write_discophon(
            discophon,
            found.units[first],
            found.alignments,
            frame_rate=files.frame_rate,
            shift=found.evaluations[first].shift,
            overwrite=force,
        )
        _say(f"{discophon}: units of {len(found.names)} utterances; {phones}: their phones")


@units.command("report")
def report_command(
    model: Annotated[str, typer.Argument(help="Name or folder of a model.")],
    audio: Annotated[Path, typer.Option(help="Folder of recordings.")],
    alignments: AlignmentFolder,
    output: Annotated[Path, typer.Option("-o", "--out", "--output", help="HTML page to write.")],
    level: Level = 0,
    shift: Shift = "auto",
    speakers: Speakers = None,
    baseline: Baselines = None,
    fit_audio: FitAudio = None,
    abx: WithAbx = False,
    tier: Tier = None,
    times: Times = "auto",
    segment: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="RATE", help="Also segmented units, about RATE a second (level 0)."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Utterances to draw.")] = 3,
    force: Force = False,
) -> None:
    """Encode recordings and write one HTML page with tables and pictures of their units.

    Example: audiovq units report default --audio wavs/ --alignments phones/ --speakers parent
    --baseline mfcc -o report.html
    """
    refuse_existing(output, overwrite=force)
    lag = _shift(shift)
    if abx:
        if speakers is None:
            raise typer.BadParameter("--abx needs to know who speaks; add --speakers.")
        require_fastabx()
    for name in baseline or ():
        if name not in ("mfcc", "permuted") and not all(name.partition("=")):
            raise typer.BadParameter(f"--baseline is mfcc, permuted or NAME=DIR, not {name!r}.")
    from audiovq import AudioVQ

    phones = read_alignments(alignments, tier=tier, unit=times)
    codec = AudioVQ.from_pretrained(model)
    recordings = find_audio(audio)
    console = Console(stderr=True)
    encoded = {
        name: encode_units(codec, path, level=level)
        for name, path in track(recordings.items(), "Encoding", console=console, transient=True)
    }
    others = {}
    if segment is not None:
        others["segments"] = segment_files(codec, recordings, segment)
    found = compare(
        encoded,
        phones,
        name=codec.name,
        frame_rate=codec.config.level_rate(level),
        file_rate=codec.config.frame_rate,
        codebook_size=codec.config.codebook_size,
        level=level,
        speakers=speakers,
        shift=lag,
        others=others,
        other_rate=codec.config.level_rate(0),
        baselines=baseline or (),
        audio=audio,
        fit_audio=fit_audio,
        with_abx=abx,
    )
    images = {
        f"P(phone | unit), {name}": png_bytes(heatmap(evaluation))
        for name, evaluation in found.evaluations.items()
        if name == codec.name or name != "permuted"
    }
    step = max(1, len(found.names) // max(1, pictures))
    for name in found.names[::step][:pictures]:
        images[name] = png_bytes(_picture(found, audio, name))
    tokens = f"Level {level} of the codes. Fingerprint of the tokens: {codec.fingerprint}."
    page = report_html(
        f"Units of {codec.name}",
        found.evaluations,
        abx=found.abx,
        pictures=images,
        notes=[tokens, *_left_out(found)],
    )
    with atomic_output(output, overwrite=force) as temporary:
        temporary.write_text(page, encoding="utf-8")
    for line in _left_out(found):
        _say(line)
    _say(f"{output}: units of {len(found.names)} utterances")


@units.command("text")
def text_command(
    tokens: TokensFolder,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", "--output", help="Text file; stdout by default.")
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Merge repeats.")] = False,
    names: Annotated[bool, typer.Option("--names", help="Begin each line with `name|`.")] = False,
    durations: Annotated[
        bool, typer.Option("--durations", help="Merge repeats and write each as unit:frames.")
    ] = False,
    level: Level = 0,
    frame_rate: FrameRate = 50.0,
    model: Model = "default",
    force: Force = False,
) -> None:
    """Write units as text, one line an utterance, for language-model training.

    Lines are in the order of the files' names.

    Example: audiovq units text tokens/ --dedup -o units.txt
    """
    if output is not None:
        refuse_existing(output, overwrite=force)
    know_tables(model)
    files = read_units(tokens, level=level, frame_rate=frame_rate)
    lines = [
        (f"{name}|" if names else "") + to_text(unit, dedup=dedup, durations=durations)
        for name, unit in sorted(files.units.items())
    ]
    text = "\n".join(lines) + "\n"  # of names that may be no UTF-8
    if output is None:
        write_standard_output(text.encode(errors="backslashreplace"))
        return
    with atomic_output(output, overwrite=force) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    _say(f"{output}: {len(lines)} utterances")


@units.command("merge")
def merge_command(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|DIR...", help="Tokens, .npy or .avq.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--out", help="Segment file (.tsv) or folder to write.")
    ],
    level: Level = 0,
    frame_rate: FrameRate = 50.0,
    model: Model = "default",
    force: Force = False,
    recursive: Recursive = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge repeated units and keep how long each lasts: tables of unit, start and duration.

    This takes tokens as they are; `encode --segment` listens again, for fewer and longer units.

    Example: audiovq units merge tokens/ -o segments/
    """

    know_tables(model)

    def rename(path: Path) -> str:
        return path.stem + SEGMENT_SUFFIX

    def convert(source: str, target: str, on_progress: OnProgress) -> Done:
        refuse_existing(target, overwrite=force)
        unit, rate, _ = read_unit_file(source, level=level, frame_rate=frame_rate)
        segments = run_lengths(unit)
        write_segments(target, segments, frame_rate=rate, overwrite=force)
        line = f"{source} -> {target}: {len(segments)} segments of {len(unit)} frames"
        facts = {"segments": len(segments), "frames": len(unit)}
        return Done(line, facts, len(unit) / rate)

    todo = plan(
        sources,
        output,
        TOKEN_SUFFIXES,
        rename,
        (SEGMENT_SUFFIX,),
        recursive=recursive,
        what="token files",
    )
    work(todo, convert, quiet=quiet, as_json=as_json)


@units.command("robust")
def robust_command(
    audio: Annotated[Path, typer.Argument(metavar="AUDIO_DIR", help="Folder of clean recordings.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help='Name or folder of a model; "default" without --command.'),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="'PROG {in} {out}'",
            help="Another tokenizer: a program that encodes a folder of WAV files to token files.",
        ),
    ] = None,
    level: Level = 0,
    n_units: Annotated[
        str | None,
        typer.Option(
            metavar="K,K...", help="Also with so many units of the model told apart, as 256,128."
        ),
    ] = None,
    frame_rate: FrameRate = 50.0,
    alignments: Annotated[
        Path | None,
        typer.Option(help="Phone alignments, for the accuracy on other speakers: --speakers too."),
    ] = None,
    speakers: Speakers = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="mfcc|mfcc-cmn[:K]",
            help="K-means on MFCC, without and with cepstral mean normalisation; may be repeated.",
        ),
    ] = None,
    fit_audio: FitAudio = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME...", help="Conditions to measure; all by default, clean for none."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take so many recordings, evenly spaced.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Take the beginning of each recording.")
    ] = None,
    tier: Tier = None,
    times: Times = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png).")] = None,
    force: Force = False,
) -> None:
    """Measure how far units change with level, noise, rooms, filters, codecs, time and pitch.

    And with --speakers, how well a linear classifier names the speaker from the units.

    Example: audiovq units robust wavs/ --alignments phones/ --speakers parent
    --baseline mfcc --baseline mfcc-cmn --conditions level-20,white-20,opus-24 --plot robust.png
    """
    from audiovq.units.robust import load_speech, robustness, robustness_picture

    if plot is not None:
        check_picture(plot, overwrite=force)
    chosen, left_out = _conditions(conditions)
    phones = None if alignments is None else read_alignments(alignments, tier=tier, unit=times)
    speech = load_speech(audio, alignments=phones, speakers=speakers, limit=limit, seconds=seconds)
    fit = None if fit_audio is None else load_speech(fit_audio).wavs
    if len(speech.wavs) < 2:  # babble is made of the others
        left_out += [f"{name} needs two recordings." for name in chosen if "babble" in name]
        chosen = [name for name in chosen if "babble" not in name]
    with Console(stderr=True).status("Encoding") as status:
        found = robustness(
            speech,
            _tokenizers(model, command, level, frame_rate, n_units),
            chosen,
            baselines=baseline or (),
            fit=fit,
            on_progress=lambda name: status.update(f"Encoding: {name}"),
        )
    if speakers is not None and not found.probes:
        left_out.append(
            "No probe for the speaker: two speakers need pieces of 10 s from two recordings each."
        )
    if as_json:
        print(json.dumps({"audio": str(audio), "left_out": left_out, **found.as_dict()}))
    else:
        _print_robustness(found)
    for line in left_out:
        _say(line)
    if plot is not None:
        _write_png(plot, robustness_picture(found), force)


def _conditions(text: str | None) -> tuple[list[str], list[str]]:
    """The conditions to measure, and why others cannot be: only those not asked for are left."""
    from audiovq.units.augment import CONDITIONS, missing

    names = text.split(",") if text is not None else list(CONDITIONS)
    asked = [name.strip() for name in names if name.strip() != "clean"]  # which always stands there
    absent = {name: said for name in asked if (said := missing(name))}
    if absent and text is not None:
        raise FileRefused(next(iter(absent.values())))
    return [name for name in dict.fromkeys(asked) if name not in absent], list(absent.values())


def _tokenizers(
    model: str | None, command: str | None, level: int, frame_rate: float, n_units: str | None
) -> "list[Tokenizer]":
    """The model, unless a command alone is named, and the command."""
    numbers = [] if n_units is None else n_units.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"--n-units are numbers of units, as 256,128, not {n_units!r}.")
    if numbers and (level or (model is None and command is not None)):
        raise ValueError("--n-units is for the units of a model, level 0; leave it out.")
    from audiovq import AudioVQ
    from audiovq.units.robust import command_tokenizer, model_tokenizer

    tokenizers = []
    if model is not None or command is None:
        codec = AudioVQ.from_pretrained(model or "default")
        coarse = [int(number) for number in numbers]
        tokenizers.append(model_tokenizer(codec, level=level, n_units=coarse))
    if command is not None:
        tokenizers.append(command_tokenizer(command, level=level, frame_rate=frame_rate))
    return tokenizers


def _print_robustness(found: "Robustness") -> None:
    Console().print(
        f"{found.n_recordings} recordings, {found.seconds:.0f} s", highlight=False, soft_wrap=True
    )
    titles = {
        "changed": "Share of frames whose unit changes",
        "edit_distance": "Edit distance of merged units, for each of the clean recording",
        "accuracy": "Accuracy on other speakers, speech alone",
    }
    for measure, title in titles.items():
        table = Table(title=title, title_justify="left")
        table.add_column("condition", no_wrap=True)
        for kind in found.scores:
            table.add_column(plain(kind), justify="right", no_wrap=True)
        for condition in next(iter(found.scores.values())):
            cells = [getattr(scores[condition], measure) for scores in found.scores.values()]
            if None not in cells and (condition != "clean" or measure == "accuracy"):
                table.add_row(condition, *(written(cell, 3) for cell in cells))
        if measure == "accuracy" and found.majority is not None:
            table.add_row("majority phone", *[f"{found.majority:.3f}"] * len(found.scores))
        if table.row_count:
            print_table(table)
    for kind, probe in found.probes.items():
        line = f"{kind}: a linear classifier names {written(probe.accuracy, 2)} of the speakers"
        chance = f"of 10 s ({probe.n_speakers} of them, chance {probe.chance:.2f})"
        Console().print(plain(f"{line} {chance}"), soft_wrap=True)


def _shift(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"--shift is a number of frames or auto, not {text!r}.") from error


def _left_out(found: Comparison) -> list[str]:
    """A line on the files that no alignment belongs to, if there are any."""
    if not found.unmatched:
        return []
    n_files = len(found.names) + len(found.unmatched)
    return [
        f"{len(found.unmatched)} of {n_files} files are left out, {found.unmatched[0]} among them: "
        "no alignment has their name, or it fits several files."
    ]


def _print_tables(found: Comparison) -> None:
    console = Console()
    for name, evaluation in found.evaluations.items():
        console.print(plain(described(name, evaluation)), soft_wrap=True)
    for silence, title in ((False, "Speech alone"), (True, "With silence as a phone")):
        table = Table(title=title, title_justify="left")
        table.add_column("measure", no_wrap=True)
        for name in found.evaluations:
            table.add_column(plain(name), justify="right", no_wrap=True)
        for row in table_rows(found.evaluations, silence=silence, abx=found.abx):
            table.add_row(*row)
        print_table(table)


def _picture(found: Comparison, audio: Path, name: str) -> "Figure":
    """The picture of one utterance, with a row for each system."""
    recordings = find_audio(audio)
    matches = find(found.names, recordings)  # of all names: one alone would not be ambiguous
    if name not in matches:
        raise FileRefused(f"{audio} has no recording for {name}, or several.")
    tracks = {system: units[name] for system, units in found.units.items()}
    return utterance_picture(
        load_audio(recordings[matches[name]], SAMPLE_RATE),
        SAMPLE_RATE,
        found.alignments[name],
        tracks,
        found.evaluations,
        title=name,
    )


def _write_png(path: Path, figure: "Figure", force: bool) -> None:
    with atomic_output(path, overwrite=force) as temporary:
        temporary.write_bytes(png_bytes(figure))
    _say(f"{path}: picture")


def _say(line: str) -> None:
    tell(line, err=True)
