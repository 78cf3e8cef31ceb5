"""The pages about one level's codes: a folder that a browser opens from disk.

`index.html` with a map and a table of all codes, a page for each code with its concordance, and
`against.html` where other tokens are set beside these. Nothing in it leads out of the folder.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audiovq.audio import fit_length, load_audio, save_audio
from audiovq.exploration.against import Against
from audiovq.exploration.corpus import Recording, Runs, chosen_runs, evenly, find_runs
from audiovq.exploration.facts import CodeFacts, code_facts
from audiovq.exploration.sounds import alone
from audiovq.files import atomic_output
from audiovq.model import AudioVQ
from audiovq.pictures import new_figure, render, save_figure

GENERATOR = "audiovq explore"
"""By this a page is known."""
PAGE_FILES = Path(__file__).parent / "page"
SUFFIX = ".flac"
"""Of sounds. Opus and Vorbis take less room, but libsndfile encodes Opus at 19 times the speed of
sound only, and Chromium plays no Vorbis of half a second."""
CONTEXT_SECONDS = 0.3
"""Of sound before and after a stretch, where it is played."""
CONTEXT_RUNS = 5
"""Stretches before and after one, in a line of a concordance."""
MAP_SIZE = (1000, 620)
MAP_MARGIN = 16

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Labels:
    """The phones of the frames."""

    phones: list[str]
    frames: dict[str, np.ndarray]
    """Indices into `phones` by recording, int64 [T], -1 where it is not known."""
    shift: int = 0
    """Frames that the codes lag the sound, by which `frames` are shifted."""


class Line(NamedTuple):
    """A stretch of a code in its context."""

    name: str
    seconds: float
    """Where it begins in the recording."""
    start: float
    end: float
    """What is played, in seconds."""
    original: str | None
    decoded: str
    """Sounds, by their path below the page."""
    before: list[tuple[int, int]]
    after: list[tuple[int, int]]
    """Codes and frames of the stretches around it."""
    frames: int
    phone: str


def write_site(
    folder: Path,
    model: AudioVQ,
    recordings: Mapping[str, Recording],
    *,
    title: str,
    level: int = 0,
    labels: Labels | None = None,
    against: Against | None = None,
    lines: int = 8,
    kept: int = 500,
    progress: Progress = lambda what, done, n: None,
) -> None:
    """Write the pages of one level into `folder`, which is there and empty.

    title: what the tokens are called. lines: of each code's concordance at most. kept: recordings
    at most whose sound the page keeps and its concordances are from; the counts are of all.

    Raises `ValueError` for a level that the codes lack, and `FileRefused` for audio that cannot be
    read.
    """
    runs = find_runs(recordings, level)
    names = list(recordings)
    frames = None
    if labels is not None:
        parts = [labels.frames.get(n, _unknown(recordings[n])) for n in names]
        frames = np.concatenate(parts)
    progress("map", 0, 1)
    vectors = model.quantizer.tables()[level].detach().cpu().numpy()
    facts = code_facts(runs, vectors, labels.phones if labels else [], frames)
    heard = evenly(len(names), kept)
    chosen = chosen_runs(runs, heard, len(facts), lines)
    _write_recordings(folder, model, recordings, heard, progress)
    _write_alone(folder, model, level, progress)
    for file in ("style.css", "page.js"):
        shutil.copyfile(PAGE_FILES / file, folder / file)
    colours = phone_colours(labels.phones if labels else [])
    common = _common(model, title, facts, colours, against) | {
        "kept": int(heard.sum()),
        "n_recordings": len(names),
    }
    concordance = _Concordance(recordings, runs, labels, frames, model.config.frame_rate)
    _write_codes(folder / "codes", common, facts, chosen, concordance, progress)
    if against is not None:
        save_figure(confusion(against, facts), folder / "against.png")
        _write(folder / "against.html", render(PAGE_FILES / "against.html", **common))
    page = render(
        PAGE_FILES / "index.html",
        **common,
        level=level,
        n_frames=int(runs.duration.sum()),
        n_runs=len(runs),
        n_original=sum(r.audio is not None for r in recordings.values()),
        lines=lines,
        labels=labels,
        map_size=MAP_SIZE,
    )
    _write(folder / "index.html", page)


def phone_colours(phones: Sequence[str]) -> dict[str, str]:
    """A colour for each phone, as CSS has them: grey for the first, which is silence."""
    colours = {phone: "hsl(0 0% 62%)" for phone in phones[:1]}
    for number, phone in enumerate(phones[1:]):
        # Steps of the golden angle keep neighbours of the alphabet apart.
        colours[phone] = f"hsl({number * 137.508 % 360:.0f} {60 + number % 3 * 15}% 52%)"
    return colours


def confusion(against: Against, facts: Sequence[CodeFacts]) -> Any:
    """P(other code | code) as a picture. Rows are the codes in use, those of a phone together;
    columns the others', by where in the rows they are used, so that agreement is a diagonal. What
    is less likely than 5 % is left out."""
    order = sorted(
        (fact for fact in facts if against.table[fact.code].any()),
        key=lambda fact: (fact.phone or "", -fact.n_frames),
    )
    table = against.table[[fact.code for fact in order]].astype(np.float64)
    used = np.flatnonzero(table.any(axis=0))
    table = table[:, used]
    places = (np.arange(len(table))[:, None] * table).sum(axis=0) / table.sum(axis=0)
    table = table[:, np.argsort(places, kind="stable")]
    share = table / table.sum(axis=1, keepdims=True)
    figure = new_figure(9, 7.5)
    axes = figure.add_subplot()
    # Squares that are seen even where a code is less than a pixel, the likely ones on top.
    rows, columns = np.nonzero(share >= 0.05)
    shares = share[rows, columns]
    drawn = np.argsort(shares, kind="stable")
    image = axes.scatter(
        columns[drawn],
        rows[drawn],
        c=shares[drawn],
        s=max(2.5, 400 / max(share.shape)) ** 2,
        marker="s",
        linewidths=0,
        cmap="Blues",
        vmin=0,
        vmax=0.5,
    )
    axes.set_xlim(-0.5, share.shape[1] - 0.5)
    axes.set_ylim(share.shape[0] - 0.5, -0.5)
    axes.set_xlabel(f"{len(used)} codes of the others")
    axes.set_ylabel(f"{len(order)} codes")
    figure.colorbar(image, ax=axes, label="P(other | code)", extend="max", pad=0.01, fraction=0.03)
    return figure


class _Concordance:
    """Makes the lines of concordances."""

    def __init__(
        self,
        recordings: Mapping[str, Recording],
        runs: Runs,
        labels: Labels | None,
        frames: np.ndarray | None,
        frame_rate: float,
    ) -> None:
        self._names, self._recordings = list(recordings), list(recordings.values())
        self._runs, self._labels, self._frames, self._rate = runs, labels, frames, frame_rate
        self._shift = labels.shift if labels else 0
        lengths = [recording.indices.shape[1] for recording in self._recordings]
        self._first = np.cumsum([0, *lengths])  # frames before each recording

    def line(self, run: int) -> Line:
        """The line of a run."""
        runs, number = self._runs, int(self._runs.recording[run])
        start, n_frames = int(runs.start[run]), int(runs.duration[run])
        seconds = max(0.0, (start - self._shift) / self._rate)
        last = (start + n_frames - self._shift) / self._rate
        original = decoded = f"{number}{SUFFIX}"
        return Line(
            name=self._names[number],
            seconds=seconds,
            start=max(0.0, seconds - CONTEXT_SECONDS),
            end=last + CONTEXT_SECONDS,
            original=f"sound/original/{original}" if self._recordings[number].audio else None,
            decoded=f"sound/decoded/{decoded}",
            before=self._around(range(run - CONTEXT_RUNS, run), number),
            after=self._around(range(run + 1, run + 1 + CONTEXT_RUNS), number),
            frames=n_frames,
            phone=self._phone(self._first[number] + start, n_frames),
        )

    def _around(self, numbers: range, recording: int) -> list[tuple[int, int]]:
        runs = self._runs
        there = [n for n in numbers if 0 <= n < len(runs) and runs.recording[n] == recording]
        return [(int(runs.code[n]), int(runs.duration[n])) for n in there]

    def _phone(self, first: int, n_frames: int) -> str:
        """The phone that most of the frames have; empty when none is known."""
        if self._labels is None or self._frames is None:
            return ""
        labels = self._frames[first : first + n_frames]
        known = labels[labels >= 0]
        return self._labels.phones[np.bincount(known).argmax()] if len(known) else ""


def _common(
    model: AudioVQ,
    title: str,
    facts: list[CodeFacts],
    colours: dict[str, str],
    against: Against | None,
) -> dict[str, Any]:
    """What several templates use."""
    most = max(fact.n_frames for fact in facts) or 1

    def colour(code: int) -> str:
        phone = facts[code].phone
        return colours[phone] if phone else "hsl(210 15% 70%)"

    def heat(fact: CodeFacts) -> str:
        """By usage, on a scale of logarithms: the most used is darkest."""
        if not fact.n_frames:
            return "hsl(0 0% 85%)"
        depth = np.log1p(fact.n_frames) / np.log1p(most)
        return f"hsl({255 - 75 * (1 - depth):.0f} 65% {80 - 50 * depth:.0f}%)"

    width, height = (size - 2 * MAP_MARGIN for size in MAP_SIZE)
    return {
        "generator": GENERATOR,
        "title": title,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "frame_rate": model.config.frame_rate,
        "facts": facts,
        "colours": colours,
        "colour": colour,
        "heat": heat,
        "against": against,
        "sound_suffix": SUFFIX,
        "place": lambda fact: (MAP_MARGIN + fact.x * width, MAP_MARGIN + (1 - fact.y) * height),
        "radius": lambda fact: 3 + 9 * (fact.n_frames / most) ** 0.5,
    }


def _write_codes(
    folder: Path,
    common: dict[str, Any],
    facts: list[CodeFacts],
    chosen: list[np.ndarray],
    concordance: _Concordance,
    progress: Progress,
) -> None:
    """A page for each code."""
    folder.mkdir()
    used = [fact.code for fact in facts if fact.n_frames]
    for fact in facts:
        progress("pages", fact.code, len(facts))
        page = render(
            PAGE_FILES / "code.html",
            **common,
            fact=fact,
            rank=1 + sum(other.n_frames > fact.n_frames for other in facts),
            lines=[concordance.line(int(run)) for run in chosen[fact.code]],
            context_seconds=CONTEXT_SECONDS,
            previous=next((code for code in reversed(used) if code < fact.code), None),
            following=next((code for code in used if code > fact.code), None),
        )
        _write(folder / f"{fact.code}.html", page)


def _write_recordings(
    folder: Path,
    model: AudioVQ,
    recordings: Mapping[str, Recording],
    heard: np.ndarray,
    progress: Progress,
) -> None:
    """The sounds of the recordings that the page keeps: originals and decoded."""
    rate = model.config.sample_rate
    for number, recording in enumerate(recordings.values()):
        if not heard[number]:
            continue
        progress("recordings", number, len(recordings))
        indices = recording.indices.astype(np.int64)[None]
        wav = model.decode(indices).flatten().cpu().numpy()[: recording.n_samples]
        save_audio(folder / "sound" / "decoded" / f"{number}{SUFFIX}", wav, rate)
        if recording.audio is not None:
            original = fit_length(load_audio(recording.audio, rate), recording.n_samples)
            save_audio(folder / "sound" / "original" / f"{number}{SUFFIX}", original, rate)


def _write_alone(folder: Path, model: AudioVQ, level: int, progress: Progress) -> None:
    """What each code sounds like alone."""
    for code, wav in enumerate(alone(model, level)):
        progress("codes alone", code, model.config.codebook_size)
        path = folder / "sound" / "alone" / f"{code}{SUFFIX}"
        save_audio(path, wav, model.config.sample_rate)


def _unknown(recording: Recording) -> np.ndarray:
    return np.full(recording.indices.shape[1], -1, dtype=np.int64)


def _write(path: Path, text: str) -> None:
    with atomic_output(path) as temporary:
        # A name that is no UTF-8 is written as its bytes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
