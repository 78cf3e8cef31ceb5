"""Folders of tokens as units: reading them, who speaks, and export for other tools' scorers."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiovq.audio import audio_suffixes
from audiovq.codes import TOKEN_SUFFIXES, Header, read_tokens
from audiovq.files import FileRefused, atomic_output, files_below, read_text
from audiovq.segment import SEGMENT_SUFFIX, expand, read_segments
from audiovq.units.alignments import SILENCE, Interval, find
from audiovq.units.boundaries import fill_silence

UNIT_SUFFIXES = (*TOKEN_SUFFIXES, SEGMENT_SUFFIX)


@dataclass(frozen=True)
class UnitFiles:
    """Units of many files by name (the path below the folder, without its suffix)."""

    units: dict[str, np.ndarray]
    """int64 [T] each."""
    frame_rate: float
    """Units per second, in Hz: the frames, or with `level_strides` fewer."""
    codebook_size: int | None
    """K, where the files say it (`.avq`)."""


def read_units(folder: str | Path, *, level: int = 0, frame_rate: float = 50.0) -> UnitFiles:
    """Read one level of the codes of every token file in a folder and its subfolders.

    Reads `.npy`, `.avq` and segments (`.tsv`). `frame_rate` is that of files which do not carry
    one, of segments the units a second; `.avq` files do. `folder` may be a single file. Codes that
    stand for several frames are there once, at a rate so much lower.

    Raises `FileRefused` when there is none, when one is refused, has no such level, or when frame
    rates or the models of `.avq` files differ.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileRefused(f"{folder} does not exist; name a folder of token files.")
    root = folder if folder.is_dir() else folder.parent
    units: dict[str, np.ndarray] = {}
    headers: list[Header] = []
    rates: set[float] = set()
    for path in files_below(folder) if folder.is_dir() else [folder]:
        if path.suffix.lower() not in UNIT_SUFFIXES:
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in units:
            raise FileRefused(f"{path} is there in two formats; keep one of them in the folder.")
        units[name], rate, header = read_unit_file(path, level=level, frame_rate=frame_rate)
        rates.add(rate)
        if header is not None:
            headers.append(header)
    if not units:
        kinds = ", ".join(TOKEN_SUFFIXES)
        raise FileRefused(f"{folder} holds no tokens; give {kinds} or segment (.tsv) files.")
    if len(rates) > 1:
        listed = " and ".join(f"{rate:g}" for rate in sorted(rates))
        raise FileRefused(f"{folder} mixes files of {listed} frames a second; keep one rate.")
    models = {header.fingerprint: header.model for header in headers}
    if len(models) > 1:
        listed = " and ".join(f"{model} ({code})" for code, model in sorted(models.items())[:2])
        raise FileRefused(f"{folder} mixes tokens of {listed}; keep those of one model.")
    return UnitFiles(units, rates.pop(), headers[0].codebook_size if headers else None)


def read_unit_file(
    path: str | Path, *, level: int = 0, frame_rate: float = 50.0
) -> tuple[np.ndarray, float, Header | None]:
    """One level of the codes of a token file, int64 [T], its codes per second, and the header,
    which `.avq` alone has.

    Reads `.npy`, `.avq` and segments (`.tsv`), those at `frame_rate`. Raises `FileRefused` when
    the file is refused or has no such level.
    """
    path = Path(path)
    if path.suffix.lower() == SEGMENT_SUFFIX:
        if level:
            raise FileRefused(f"{path} has segments of units, level 0; there is no level {level}.")
        return expand(read_segments(path, frame_rate=frame_rate)), frame_rate, None
    tokens = read_tokens(path)
    if not 0 <= level < len(tokens.indices):
        raise FileRefused(
            f"{path} has levels 0 to {len(tokens.indices) - 1}; there is no level {level}."
        )
    if tokens.header is not None:
        frame_rate = tokens.header.frame_rate
    strides = tokens.level_strides or (1,) * len(tokens.indices)
    return tokens.levels[level].astype(np.int64), frame_rate / strides[level], tokens.header


def find_audio(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Path]:
    """The audio files of a folder and its subfolders, by name.

    With `names`, those that belong to them (see `alignments.find`), by these names. Raises
    `FileRefused` when there is none, or when a name has none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileRefused(f"{folder} is no folder; name a folder of recordings.")
    suffixes = audio_suffixes()
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise FileRefused(
                f"{path} and {found[name].name} have one name without suffix; keep one of them."
            )
        found[name] = path
    if not found:
        raise FileRefused(f"{folder} holds no audio; give WAV, FLAC, OGG, Opus or MP3 files.")
    if names is None:
        return found
    names = list(names)
    matches = find(names, found)
    missing = [name for name in names if name not in matches]
    if missing:
        raise FileRefused(
            f"{folder} has no recording for {missing[0]} and {len(missing) - 1} more; their names "
            "must be those of the token files."
        )
    return {name: found[match] for name, match in matches.items()}


def speakers_by_rule(names: Sequence[str], rule: str) -> list[str]:
    """The speaker of each file, from its name or from a table.

    - `parent`: the folder that the file is in;
    - `before:-`: what stands before the first `-` of its last part (LibriSpeech), any text for `-`;
    - `first:5`: the first 5 characters of its last part;
    - the path of a tab-separated table, with a header that has `path` and `speaker`, or without
      one, of those two columns. Paths are matched as `alignments.find` does, suffixes dropped.

    Raises `ValueError` for another rule and `FileRefused` when a file has no speaker.
    """
    if rule == "parent":
        missing = [name for name in names if "/" not in name]
        if missing:
            raise FileRefused(f"{missing[0]} is in no subfolder that could name its speaker.")
        return [name.rsplit("/", 2)[-2] for name in names]
    if rule.startswith("before:") and len(rule) > len("before:"):
        text = rule[len("before:") :]
        parts = [name.rsplit("/", 1)[-1].partition(text) for name in names]
        for name, (speaker, found, _) in zip(names, parts, strict=True):
            if not (speaker and found):
                raise FileRefused(f"{name} has nothing before {text!r} that could be a speaker.")
        return [speaker for speaker, _, _ in parts]
    if re.fullmatch(r"first:[1-9]\d*", rule):
        return [name.rsplit("/", 1)[-1][: int(rule[len("first:") :])] for name in names]
    if not Path(rule).is_file():
        raise ValueError(
            f"{rule!r} says no speakers; give parent, before:TEXT, first:N, or the path of a "
            "table (.tsv)."
        )
    table = _speaker_table(Path(rule))
    matches = find(names, table)
    for name in names:
        if name not in matches:
            raise FileRefused(f"{rule} names no speaker for {name}.")
    return [table[matches[name]] for name in names]


def _speaker_table(path: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in read_text(path).splitlines() if line.strip()]
    columns = (0, 1)
    if rows and "path" in rows[0] and "speaker" in rows[0]:
        columns = rows[0].index("path"), rows[0].index("speaker")
        rows = rows[1:]
    table: dict[str, str] = {}
    for row in rows:
        if len(row) <= max(columns):
            line = " ".join(row)[:80]
            raise FileRefused(f"{path} has the line {line!r}; each has a path, a tab, a speaker.")
        name, speaker = (row[column].strip() for column in columns)
        if not Path(name).name or not speaker:
            continue  # whoever asks for it is told that it has none
        name = Path(name).with_suffix("").as_posix()
        if table.setdefault(name, speaker) != speaker:
            raise FileRefused(f"{path} names two speakers for {name}: {table[name]}, {speaker}.")
    return table


def write_discophon(
    path: str | Path,
    units: Mapping[str, np.ndarray],
    alignments: Mapping[str, Sequence[Interval]],
    *,
    frame_rate: float = 50.0,
    shift: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write units as DiscoPhon's JSONL, and the phones that its scorer wants beside them.

    One object a line, `{"file": ..., "units": [...]}`. The phones go to the same name ending in
    `.alignment.txt` (returned): `#file onset offset #phone`, without gaps, on a grid of 10 ms.
    The scorer knows no lag, so the first `shift` units are dropped here and the last phones with
    them. Blanks in names become `_`. Both files are written, or neither.

    Raises `FileRefused` when one cannot be, or when two names become one.
    """
    path, phones_path = Path(path), discophon_phones(path)
    lines, rows = [], ["#file onset offset #phone"]
    names: dict[str, str] = {}
    for name, unit in units.items():
        file = re.sub(r"\s", "_", name)
        if names.setdefault(file, name) != name:
            raise FileRefused(f"{name!r} and {names[file]!r} are both {file!r} without blanks.")
        known = unit[shift:] if shift >= 0 else np.concatenate([[unit[0]] * -shift, unit])[:shift]
        if not len(known):
            continue
        lines.append(json.dumps({"file": file, "units": [int(u) for u in known]}))
        end = len(known) / frame_rate
        centis = round(end * 100)
        for start, stop, phone in fill_silence(alignments[name], end):
            first, last = (min(centis, round(time * 100)) for time in (start, stop))
            if first < last:
                label = re.sub(r"\s", "_", phone) or SILENCE
                rows.append(f"{file} {first / 100:.2f} {last / 100:.2f} {label}")
    with (
        atomic_output(path, overwrite=overwrite) as temporary,
        atomic_output(phones_path, overwrite=overwrite) as temporary_phones,
    ):
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary_phones.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return phones_path


def discophon_phones(path: str | Path) -> Path:
    """Where `write_discophon` puts the phones."""
    return Path(path).with_suffix(".alignment.txt")
