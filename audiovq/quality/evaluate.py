"""How good decoded speech is: files or folders, a model at several rates, and other codecs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from audiovq.audio import load_audio
from audiovq.files import FileRefused
from audiovq.hearing import SAMPLE_RATE
from audiovq.model import AudioVQ
from audiovq.quality.clips import (
    Clip,
    Plan,
    Task,
    model_clips,
    of_original,
    read_decoded,
    run,
    through_model,
)
from audiovq.quality.files import list_audio, match_decoded, match_texts
from audiovq.quality.files import read_texts as read_texts  # it stood here, as did the results
from audiovq.quality.metrics import METRICS, missing_packages, transcribe
from audiovq.quality.peers import missing_programs, parse_peer
from audiovq.quality.results import ORIGINAL, TABLE, Evaluation
from audiovq.quality.results import Mean as Mean
from audiovq.quality.results import Row as Row
from audiovq.quality.results import Summary as Summary
from audiovq.quality.results import bootstrap_mean as bootstrap_mean


def evaluate(
    reference: str | Path,
    decoded: str | Path | None = None,
    *,
    model: AudioVQ | None = None,
    n_q: Sequence[int] = (),
    peers: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    asr: str | None = None,
    texts: str | Path | None = None,
    limit: int | None = None,
    jobs: int = 1,
    audio_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure decoded speech against the original.

    reference: an audio file or a folder of them.
    decoded: the same, decoded by any codec; in a folder, files are matched by their path below it,
        without the suffix. They are compared as they are: a delay counts against them.
    model, n_q: encode and decode the originals at each of these numbers of levels.
    peers: other codecs, as `audiovq.quality.peers.parse_peer` reads them.
    metrics: names of `METRICS`; those that are taken by default when None.
    asr: a recogniser for the word error rate; see `audiovq.quality.metrics.transcribe`.
    texts: what is said in the originals; see `read_texts`. Word errors then count against it, in
        the original too, and clips without a text have none. Otherwise they count against what the
        recogniser hears in the original.
    limit: take so many files, spread evenly over the folder.
    jobs: processes. Speeds are fair only with 1.
    audio_dir: a folder to write every clip to, as FLAC at 16 kHz.
    progress: called with the files done and the files in all.

    A measure whose package is missing, a peer whose program is missing and files that cannot be
    read are left out, and `notes` says so. With `jobs` above 1 a script must be guarded by
    `if __name__ == "__main__":`.

    Raises `FileRefused` when there is nothing to measure, `ValueError` for a bad argument.
    """
    # Twice the same would count every file twice.
    levels = list(dict.fromkeys(model.check_n_q(k) for k in n_q)) if model is not None else []
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}.")
    if texts is not None and asr is None:
        raise ValueError("texts are for the word error rate; give asr, a recogniser.")
    if decoded is None and not levels and not peers:
        raise ValueError("there is nothing to compare; give decoded files, a model or peers.")
    notes: list[str] = []
    names, peers = _usable_metrics(metrics, asr, notes), _usable_peers(peers, notes)
    if decoded is None and not levels and not peers:
        raise FileRefused(f"There is nothing left to compare. {' '.join(notes)}")
    root, files = list_audio(Path(reference), limit)
    spoken = None if texts is None else match_texts(root, files, read_texts(texts), notes)
    sources = [_original()] if any(of_original(name, spoken is not None) for name in names) else []
    if decoded is not None:
        sources.append(_decoded(root, files, Path(decoded), notes))
    if model is not None and levels:
        sources.append(_model(model, levels))
    systems = [system for source in sources for system in source.systems]
    found = Evaluation(names, list(dict.fromkeys([*systems, *peers])), notes=notes)
    if model is not None and levels:
        own = {"name": model.name, "fingerprint": model.fingerprint}
        found.model = {**own, **asdict(model.config)}
    plan = Plan(tuple(peers), names, asr, None if audio_dir is None else Path(audio_dir))
    refused: list[str] = []
    tasks = _tasks(root, files, sources, plan, spoken, refused)
    for done, rows in enumerate(run(tasks, jobs), 1):
        found.rows += rows
        if progress is not None:
            progress(done + len(refused), len(files))
    if not found.rows:
        raise FileRefused(refused[0])
    if refused:
        notes.append(f"{len(refused)} of {len(files)} files were left out: {refused[0]}")
    notes += _undefined(found)
    return found


class _Source(NamedTuple):
    """Where clips come from: the names of its systems, and their clips of an original."""

    systems: list[str]
    clips: Callable[[Path, np.ndarray], Iterable[Clip]]


def _tasks(
    root: Path,
    files: list[Path],
    sources: list[_Source],
    plan: Plan,
    spoken: dict[Path, str] | None,
    refused: list[str],
) -> Iterator[Task]:
    """A task for each original; why it cannot be read goes to `refused`."""
    for index, path in enumerate(files):
        try:
            wav = load_audio(path, SAMPLE_RATE)
            clips = [clip for source in sources for clip in source.clips(path, wav)]
        except FileRefused as error:
            refused.append(str(error))
            continue
        text = None if spoken is None else spoken.get(path, "")
        slug = f"{index + 1:03d}-{path.stem}"
        yield Task(path.relative_to(root).as_posix(), wav, clips, plan, text, slug)


def _original() -> _Source:
    return _Source([ORIGINAL], lambda path, wav: [Clip(ORIGINAL, wav)])


def _decoded(root: Path, files: list[Path], decoded: Path, notes: list[str]) -> _Source:
    matches, system = match_decoded(root, files, decoded, notes), decoded.name or "decoded"
    if system == ORIGINAL:  # which has no measures against itself
        system = f"{system} (decoded)"

    def clips(path: Path, wav: np.ndarray) -> Iterator[Clip]:
        if path in matches:
            yield read_decoded(system, matches[path], wav, notes)

    return _Source([system], clips)


def _model(model: AudioVQ, levels: list[int]) -> _Source:
    systems = [f"{model.name} n_q={k}" for k in levels]
    warm = torch.zeros(1, 1, model.config.sample_rate)
    through_model(model, warm, max(levels))  # the first call is slower than the rest
    return _Source(systems, partial(model_clips, model, levels, systems))


def _usable_metrics(metrics: Sequence[str] | None, asr: str | None, notes: list[str]) -> list[str]:
    names = [name for name, m in METRICS.items() if m.by_default] if metrics is None else metrics
    usable = []
    for name in dict.fromkeys(names):
        if name == "wer":
            if asr is None:
                raise ValueError("wer needs a recogniser; give asr.")
            continue
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is not known; choose from {', '.join(TABLE)}.")
        absent = missing_packages(name)
        if absent:
            notes.append(absent)
        else:
            usable.append(name)
    if asr is not None:
        try:
            transcribe(np.zeros(SAMPLE_RATE, dtype=np.float32), asr)
            usable.append("wer")
        except ImportError as error:
            notes.append(str(error))
    if not usable:
        raise FileRefused(f"No measure can be taken. {' '.join(notes)}")
    return usable


def _usable_peers(peers: Sequence[str], notes: list[str]) -> list[str]:
    usable = []
    for peer in map(parse_peer, peers):
        absent = missing_programs(peer)
        if absent:
            notes.append(absent)
        else:
            usable.append(peer.name)
    return list(dict.fromkeys(usable))


def _undefined(found: Evaluation) -> Iterator[str]:
    for name in found.metrics:
        n = sum(name in row.values and row.values[name] is None for row in found.rows)
        if n:
            yield (
                f"{TABLE[name].label} has no value for {n} decoded clips (too short, or an "
                "original without speech or without harmonics)."
            )
