"""Phone alignments: TextGrid, `.phn`, `.lab` and CTM files as lists of intervals.

An alignment is a list of `Interval`, sorted by time and without overlap. Whatever it leaves
uncovered is silence. Labels are kept as they stand, but for two things that would split one phone
into many: the stress digit of ARPABET vowels is dropped (`AH0`, `AH1`, `AH2` are `AH`), and the
names of silence are one name, `SIL`.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from audiovq.files import FileRefused, files_below, read_text

SILENCE = "SIL"
"""The one label of silence, pauses, and noise that no phone is given to."""

SILENCE_NAMES = frozenset(
    {"", "sil", "silence", "<sil>", "<eps>", "sp", "spn", "nsn", "pau", "epi", "h#", "#", "_"}
)
"""Labels read as silence, in lower case: those of TIMIT, HTK, Kaldi, MFA, Festival and MAUS."""

ALIGNMENT_SUFFIXES = (".textgrid", ".phn", ".lab", ".ctm")

TimeUnit = Literal["auto", "seconds", "samples"]

MAX_SECONDS = 1e6
"""The latest time that an alignment may hold, in s."""

EPSILON = 1e-6
"""Seconds by which two times may differ and be one: a grid of 10 ms is not exact in binary."""

_STRESSED = re.compile(r"[A-Z]{2}[012]")
_WHOLE = re.compile(r"[+-]?\d+")
_ROUNDING = 0.0151  # seconds that two neighbours may overlap: files are rounded to 10 ms
_TIERS = ("phones", "phone", "phonemes", "mau", "segments")


class Interval(NamedTuple):
    """One phone: start and end in seconds, and its label."""

    start: float
    end: float
    phone: str


def read_alignment(
    path: str | Path,
    *,
    tier: str | None = None,
    unit: TimeUnit = "auto",
    sample_rate: int = 16_000,
) -> list[Interval]:
    """Read the alignment of one utterance; its suffix names the format.

    - `.TextGrid` (Praat, MFA): the interval tier named `tier`, or the one whose name says phones,
      or the only one there is. Needs the package praatio.
    - `.phn`: `start end phone` a line. With `unit="auto"` times are samples at `sample_rate` when
      every one of them is a whole number (TIMIT), and seconds when any has a decimal point.
    - `.lab`: the same three columns, where whole numbers are HTK's 100 ns; or, after a line `#`,
      `end colour phone` a line in seconds (Festival, XWaves).

    Raises `FileRefused` when the file is missing, in no such format, or not in order of time.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".textgrid":
        return _tidy(_textgrid(path, tier), path)
    if suffix == ".phn":
        return _tidy(_columns(path, _lines(path), 1 / sample_rate, unit), path)
    if suffix == ".lab":
        lines = _lines(path)
        header = next((i for i, fields in enumerate(lines) if fields[0] == "#"), None)
        if header is not None:
            return _tidy(_xlabel(path, lines[header + 1 :]), path)
        whole = 1 / sample_rate if unit == "samples" else 1e-7
        return _tidy(_columns(path, lines, whole, unit), path)
    if suffix == ".ctm":
        alignments = read_ctm(path)
        if len(alignments) == 1:
            return next(iter(alignments.values()))
        raise FileRefused(f"{path} holds {len(alignments)} utterances; read it with read_ctm.")
    raise FileRefused(f"{path} is no alignment; give .TextGrid, .phn, .lab or .ctm files.")


def read_ctm(path: str | Path) -> dict[str, list[Interval]]:
    """Read a CTM file: `utterance channel start duration phone` a line, times in seconds.

    Returns the alignments by utterance. Raises `FileRefused` as `read_alignment` does.
    """
    path = Path(path)
    found: dict[str, list[Interval]] = {}
    for fields in _lines(path):
        if fields[0].startswith(";;"):
            continue
        if len(fields) < 5:
            raise _malformed(path, fields, "utterance channel start duration phone")
        start = _number(path, fields, 2)
        duration = _number(path, fields, 3)
        phone = re.sub(r"_[BIES]$", "", fields[4])  # Kaldi's position in the word
        found.setdefault(fields[0], []).append(Interval(start, start + duration, phone))
    return {name: _tidy(sorted(intervals), path) for name, intervals in found.items()}


def read_alignments(
    source: str | Path,
    *,
    tier: str | None = None,
    unit: TimeUnit = "auto",
    sample_rate: int = 16_000,
) -> dict[str, list[Interval]]:
    """Read every alignment in a folder and its subfolders, or those of one file.

    Returns them by name: the path below the folder without its suffix (`speaker/utterance`), or
    the utterance of a CTM line. `find` looks them up for token or audio files.
    Raises `FileRefused` when there is none, or when one is refused.
    """
    source = Path(source)
    if not source.exists():
        raise FileRefused(f"{source} does not exist; name a folder of alignments.")
    root = source if source.is_dir() else source.parent
    paths = files_below(source) if source.is_dir() else [source]
    found: dict[str, list[Interval]] = {}
    for path in paths:
        if path.suffix.lower() not in ALIGNMENT_SUFFIXES:
            continue
        if path.suffix.lower() == ".ctm":
            read = read_ctm(path)
        else:
            name = path.relative_to(root).with_suffix("").as_posix()
            read = {name: read_alignment(path, tier=tier, unit=unit, sample_rate=sample_rate)}
        if twice := found.keys() & read.keys():
            raise FileRefused(
                f"{path} has another alignment of {min(twice)}; keep one of each utterance."
            )
        found.update(read)
    if not found:
        raise FileRefused(f"{source} holds no alignments; give .TextGrid, .phn, .lab or .ctm.")
    return found


def find(names: Iterable[str], alignments: Iterable[str]) -> dict[str, str]:
    """Match files to alignments, by their paths without suffix.

    Equal paths match. So do a path and its own end (`s1/u1` and `u1`, `corpus/s1/u1` and `s1/u1`)
    where neither fits another file. Only when nothing matches so, the folders say nothing: then
    equal last parts match, if none of them stands twice on either side.

    Returns the alignment's name for each of `names` that has one. What is ambiguous matches
    nothing, rather than the wrong one: give all names at once, since one alone is never ambiguous.
    """
    order = list(dict.fromkeys(names))
    wanted, known = set(order), set(alignments)
    fitting: dict[str, set[str]] = {name: set() for name in order}
    fitted: dict[str, set[str]] = {alignment: set() for alignment in known}
    for path in wanted | known:
        for end in _ends(path):
            for name, alignment in ((path, end), (end, path)):
                if name in wanted and alignment in known:
                    fitting[name].add(alignment)
                    fitted[alignment].add(name)
    matches = {}
    for name in order:
        alignment = name if name in known else min(fitting[name], default="")
        if name in known or (len(fitting[name]) == 1 and len(fitted[alignment]) == 1):
            matches[name] = alignment
    if any(fitting.values()):
        return matches
    by_end = {path.rsplit("/", 1)[-1]: path for path in known}
    ends = [name.rsplit("/", 1)[-1] for name in order]
    if len(by_end) < len(known) or len(set(ends)) < len(ends):
        return {}
    return {name: by_end[end] for name, end in zip(order, ends, strict=True) if end in by_end}


def _ends(path: str) -> Iterator[str]:
    """`a/b/c`, `b/c` and `c`."""
    yield path
    while "/" in path:
        path = path.split("/", 1)[1]
        yield path


def is_silence(phone: str) -> bool:
    """Whether a label names silence, a pause, or noise that is no phone."""
    return phone.strip().lower() in SILENCE_NAMES


def _tidy(intervals: Iterable[Interval], path: Path) -> list[Interval]:
    """Fold labels, drop empty intervals, cut overlaps of rounding, refuse longer ones."""
    tidy: list[Interval] = []
    for start, end, phone in intervals:
        label = phone.strip()
        if is_silence(label):
            label = SILENCE
        elif _STRESSED.fullmatch(label):
            label = label[:2]
        if not 0 <= start <= end <= MAX_SECONDS:
            raise FileRefused(
                f"{path} has an interval from {start:g} to {end:g} s; times are >= 0 and rise, to "
                f"{MAX_SECONDS:.0f} s at most."
            )
        while tidy and start < tidy[-1].end:
            if tidy[-1].end - start > _ROUNDING:
                raise FileRefused(
                    f"{path} has overlapping intervals at {start:g} s; give one tier, in order."
                )
            tidy[-1] = tidy[-1]._replace(end=start)
            if tidy[-1].end <= tidy[-1].start:
                tidy.pop()
        if end > start:
            tidy.append(Interval(start, end, label))
    if not tidy:
        raise FileRefused(f"{path} holds no intervals.")
    return tidy


def _textgrid(path: Path, tier: str | None) -> list[Interval]:
    try:
        from praatio import textgrid  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise FileRefused(f"{path} needs the package praatio; pip install '.[units]'.") from error
    if not path.is_file():
        raise FileRefused(f"{path} does not exist; check the name.")
    try:
        grid = textgrid.openTextgrid(
            str(path), includeEmptyIntervals=True, duplicateNamesMode="rename"
        )
    except Exception as error:  # praatio lets errors of many kinds through for a broken file
        raise FileRefused(f"{path} is not a TextGrid that praatio reads.") from error
    tiers = [t for t in grid.tiers if isinstance(t, textgrid.IntervalTier)]
    if tier is not None:
        chosen = [t for t in tiers if t.name == tier]
    else:
        # MFA names the tiers of several speakers "speaker - phones".
        chosen = [t for t in tiers if t.name.lower().rsplit(" - ", 1)[-1] in _TIERS]
        chosen = chosen or (tiers if len(tiers) == 1 else [])
    if len(chosen) != 1:
        names = ", ".join(repr(t.name) for t in tiers) or "none"
        raise FileRefused(
            f"{path} has no single tier of {tier or 'phones'}; name one of its interval tiers "
            f"({names})."
        )
    return [Interval(entry.start, entry.end, entry.label) for entry in chosen[0].entries]


def _columns(
    path: Path, lines: list[list[str]], whole: float, unit: TimeUnit
) -> Iterable[Interval]:
    """`start end phone` a line; `whole` is how many seconds a time without decimals counts."""
    for fields in lines:
        if len(fields) == 2:
            fields.append("")  # an empty label
        if len(fields) < 3:
            raise _malformed(path, fields, "start end phone")
    if unit == "auto":
        whole_numbers = all(_WHOLE.fullmatch(field) for fields in lines for field in fields[:2])
        scale = whole if whole_numbers else 1.0
    else:
        scale = whole if unit == "samples" else 1.0
    for fields in lines:
        start, end = _number(path, fields, 0), _number(path, fields, 1)
        yield Interval(start * scale, end * scale, fields[2])


def _xlabel(path: Path, lines: list[list[str]]) -> Iterable[Interval]:
    """`end colour phone` a line; each phone starts where the one before it ends."""
    start = 0.0
    for fields in lines:
        if len(fields) < 2:
            raise _malformed(path, fields, "end colour phone")
        end = _number(path, fields, 0)
        yield Interval(start, end, fields[2] if len(fields) > 2 else "")
        start = end


def _lines(path: Path) -> list[list[str]]:
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise FileRefused(f"{path} is empty.")
    return lines


def _number(path: Path, fields: list[str], column: int) -> float:
    try:
        return float(fields[column])
    except ValueError as error:
        raise FileRefused(
            f"{path} has {fields[column][:40]!r} where a time should be, in {_quoted(fields)}."
        ) from error


def _malformed(path: Path, fields: list[str], columns: str) -> FileRefused:
    return FileRefused(f"{path} has the line {_quoted(fields)}; each line is `{columns}`.")


def _quoted(fields: list[str]) -> str:
    return repr(" ".join(fields)[:80])
