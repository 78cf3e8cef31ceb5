"""How good decoded speech is: files or folders, a model at several rates, and other codecs.

`evaluate` gives an `Evaluation`: a row for each clip of each system, and means with intervals.
"""

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from audiovq.audio import audio_suffixes, fit_length, load_audio, save_audio
from audiovq.codes import pack_avq
from audiovq.files import FileRefused, files_below, read_text
from audiovq.model import AudioVQ
from audiovq.quality.metrics import (
    METRICS,
    SAMPLE_RATE,
    Metric,
    missing_packages,
    transcribe,
    word_errors,
)
from audiovq.quality.peers import missing_programs, parse_peer, run_peer

ORIGINAL = "original"
"""The system that leaves the clip as it is; it has the measures that need no reference."""

_MAX_LENGTH_ERROR = 0.1  # seconds by which a decoded file may be longer or shorter in silence


def _no_asr(reference: np.ndarray, decoded: np.ndarray) -> float:
    raise ValueError("the word error rate needs a recogniser; give asr.")


WER = Metric(_no_asr, "WER", "%", "lower", by_default=False)
"""Words that a recogniser gets wrong in the decoded clip.

Right is what the text says, or what the recogniser hears in the original where there is no text.
The mean is over words: all errors by all words of the originals.
"""

TABLE = {**METRICS, "wer": WER}
"""Every measure that `evaluate` takes, by name."""


@dataclass(frozen=True)
class Row:
    """One clip through one system."""

    file: str
    """The original, below the folder that was given."""
    system: str
    seconds: float
    """Length of the original."""
    values: dict[str, float | None]
    """Measure by name; None where it is not defined for the clip."""
    n_bytes: int | None = None
    """Size of the coded file; None where it is not known."""
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    n_words: int | None = None
    """Words of the original, where a recogniser was named."""
    audio: str | None = None
    """The decoded clip, below the folder that `evaluate` was told to write to."""


@dataclass(frozen=True)
class Mean:
    """Mean of n clips with the 95 % bootstrap interval (none for fewer than two clips)."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Summary:
    """All clips of one system.

    `bitrate` is in bit/s as stored on disk, headers included. The speeds are seconds of audio for
    a second of work (the real-time factor of Défossez et al. 2022; above 1 is faster than sound).
    """

    system: str
    n_files: int
    seconds: float
    bitrate: float | None
    encode_speed: float | None
    decode_speed: float | None
    metrics: dict[str, Mean | None]

    @property
    def family(self) -> str:
        """The system's name without its rate: "opus" of "opus:6"."""
        return self.system.split(":")[0].split(" n_q=")[0]


@dataclass
class Evaluation:
    """What `evaluate` found. `notes` are sentences on what was left out and why."""

    metrics: list[str]
    systems: list[str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None

    def summary(self) -> list[Summary]:
        """One `Summary` a system, in the order in which they were asked for."""
        return [self._summarise(system) for system in self.systems]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON's types: means under "systems", clips under "files"."""
        return {
            "model": self.model,
            "metrics": {
                name: {
                    "label": TABLE[name].label,
                    "unit": TABLE[name].unit,
                    "better": TABLE[name].better,
                }
                for name in self.metrics
            },
            "systems": [asdict(summary) for summary in self.summary()],
            "files": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }

    def _summarise(self, system: str) -> Summary:
        rows = [row for row in self.rows if row.system == system]
        seconds = sum(row.seconds for row in rows)

        def total(name: str) -> float | None:
            values = [getattr(row, name) for row in rows]
            return None if None in values or not values else sum(values)

        n_bytes = total("n_bytes")
        encode, decode = total("encode_seconds"), total("decode_seconds")
        return Summary(
            system,
            len(rows),
            seconds,
            None if n_bytes is None else 8 * n_bytes / seconds,
            seconds / encode if encode else None,
            seconds / decode if decode else None,
            {name: self._mean(name, rows) for name in self.metrics},
        )

    def _mean(self, name: str, rows: list[Row]) -> Mean | None:
        pairs = [
            (value, row.n_words if name == "wer" else 1)
            for row in rows
            if (value := row.values.get(name)) is not None
        ]
        if not pairs:
            return None
        values, weights = (
            np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)
        )
        return bootstrap_mean(values, weights)


def bootstrap_mean(
    values: np.ndarray, weights: np.ndarray | None = None, n_resamples: int = 1000
) -> Mean:
    """Weighted mean of values [n] with the 95 % percentile bootstrap interval over them.

    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979. The
    resamples are the same in every call.
    """
    weights = np.ones(len(values)) if weights is None else weights
    mean = float(np.average(values, weights=weights))
    if len(values) < 2:
        return Mean(mean, None, None, len(values))
    draws = np.random.default_rng(0).integers(len(values), size=(n_resamples, len(values)))
    means = (values * weights)[draws].sum(axis=1) / weights[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(mean, float(low), float(high), len(values))


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
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}.")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}.")
    if texts is not None and asr is None:
        raise ValueError("texts are for the word error rate; give asr, a recogniser.")
    levels = [model.check_n_q(k) for k in n_q] if model is not None else []
    if decoded is None and not levels and not peers:
        raise ValueError("there is nothing to compare; give decoded files, a model or peers.")
    found = Evaluation([], [])
    found.metrics = _usable_metrics(metrics, asr, found.notes)
    peers = _usable_peers(peers, found.notes)
    root, files = _list_audio(Path(reference))
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    spoken = None if texts is None else _match_texts(root, files, read_texts(texts), found.notes)
    matches = _match(root, files, Path(decoded), found.notes) if decoded is not None else {}
    decoded_name = (Path(decoded).name or "decoded") if decoded is not None else None
    if model is not None and levels:
        config = model.config
        found.model = {"name": model.name, "fingerprint": model.fingerprint, **asdict(config)}
        warm = torch.zeros(1, 1, config.sample_rate)
        _through_model(model, warm, max(levels))  # the first call is slower than the rest
    model_names = [f"{model.name} n_q={k}" for k in levels] if model is not None else []
    names = [ORIGINAL, *([decoded_name] if decoded_name else []), *model_names, *peers]
    if not any(_of_original(name, spoken is not None) for name in found.metrics):
        names.remove(ORIGINAL)
    found.systems = list(dict.fromkeys(names))

    refused: list[str] = []

    def tasks() -> Iterator[_Task]:
        for index, path in enumerate(files):
            name = path.relative_to(root).as_posix()
            try:
                wav = load_audio(path, SAMPLE_RATE)
                clips = [_Clip(ORIGINAL, wav)] if ORIGINAL in found.systems else []
                if path in matches and decoded_name:
                    clips.append(_read_decoded(decoded_name, matches[path], wav, found.notes))
                if model is not None and levels:
                    clips += _model_clips(model, levels, model_names, path, wav)
            except FileRefused as error:
                refused.append(str(error))
                continue
            folder = None if audio_dir is None else Path(audio_dir)
            slug = f"{index + 1:03d}-{path.stem}"
            text = None if spoken is None else spoken.get(path, "")
            yield _Task(name, wav, clips, tuple(peers), found.metrics, asr, text, folder, slug)

    for done, rows in enumerate(_run(tasks(), jobs), 1):
        found.rows += rows
        if progress is not None:
            progress(done + len(refused), len(files))
    if not found.rows:
        raise FileRefused(refused[0])
    if refused:
        found.notes.append(f"{len(refused)} of {len(files)} files were left out: {refused[0]}")
    found.notes += _undefined(found)
    return found


@dataclass(frozen=True)
class _Clip:
    """A decoded clip that waits for its measures."""

    system: str
    wav: np.ndarray  # float32 [n] at 16 kHz, as long as the original
    n_bytes: int | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None


@dataclass(frozen=True)
class _Task:
    """One original with everything that a process needs to measure it."""

    file: str
    wav: np.ndarray
    clips: list[_Clip]
    peers: tuple[str, ...]
    metrics: list[str]
    asr: str | None
    text: str | None  # None to hear it in the original, "" where there is none
    audio_dir: Path | None
    slug: str


def _measure(task: _Task) -> list[Row]:
    clips = list(task.clips)
    for name in task.peers:
        result = run_peer(parse_peer(name), task.wav)
        clips.append(
            _Clip(name, result.wav, result.n_bytes, result.encode_seconds, result.decode_seconds)
        )
    spoken = task.text
    if spoken is None:
        spoken = transcribe(task.wav, task.asr) if "wer" in task.metrics and task.asr else ""
    rows = []
    for clip in clips:
        values: dict[str, float | None] = {}
        n_words = None
        for name in task.metrics:
            if clip.system == ORIGINAL and not _of_original(name, task.text is not None):
                continue
            if name == "wer" and task.text == "":
                continue
            if name == "wer" and task.asr:
                errors, n_words = word_errors(spoken, transcribe(clip.wav, task.asr))
                value = 100 * errors / n_words if n_words else math.nan
            else:
                value = TABLE[name].function(task.wav, clip.wav)
            values[name] = value if math.isfinite(value) else None
        audio = None
        if task.audio_dir is not None:
            audio = f"{task.slug}/{clip.system.replace(':', '-').replace(' ', '-')}.flac"
            save_audio(task.audio_dir / audio, clip.wav, SAMPLE_RATE)
        rows.append(
            Row(
                task.file,
                clip.system,
                len(task.wav) / SAMPLE_RATE,
                values,
                clip.n_bytes,
                clip.encode_seconds,
                clip.decode_seconds,
                n_words,
                audio,
            )
        )
    return rows


def _run(tasks: Iterable[_Task], jobs: int) -> Iterator[list[Row]]:
    """Measure the tasks in order, at most a few of them in memory."""
    if jobs == 1:
        yield from map(_measure, tasks)
        return
    # A fork would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: deque[Future[list[Row]]] = deque()
        for task in tasks:
            waiting.append(pool.submit(_measure, task))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _model_clips(
    model: AudioVQ, levels: list[int], names: list[str], path: Path, wav: np.ndarray
) -> Iterator[_Clip]:
    rate = model.config.sample_rate
    own = wav if rate == SAMPLE_RATE else load_audio(path, rate)
    for n_q, name in zip(levels, names, strict=True):
        out, n_bytes, encode_seconds, decode_seconds = _through_model(
            model, torch.from_numpy(own)[None, None], n_q
        )
        if rate != SAMPLE_RATE:
            out = fit_length(soxr.resample(out, rate, SAMPLE_RATE), len(wav))
        yield _Clip(name, out, n_bytes, encode_seconds, decode_seconds)


@torch.no_grad()
def _through_model(
    model: AudioVQ, wav: torch.Tensor, n_q: int
) -> tuple[np.ndarray, int, float, float]:
    """Decoded samples [n], bytes of the `.avq` file, seconds to encode, seconds to decode."""
    start = time.perf_counter()
    codes = model.encode(wav, n_q=n_q)
    indices = codes.indices[0].cpu().numpy()
    encoded = time.perf_counter()
    out = model.decode(codes)[0, 0].cpu().numpy()
    decoded = time.perf_counter()
    n_bytes = len(pack_avq(indices, model.header(n_q, wav.shape[-1])))
    return out, n_bytes, encoded - start, decoded - encoded


def _read_decoded(system: str, path: Path, wav: np.ndarray, notes: list[str]) -> _Clip:
    decoded = load_audio(path, SAMPLE_RATE)
    off = (len(decoded) - len(wav)) / SAMPLE_RATE
    if abs(off) > _MAX_LENGTH_ERROR:
        notes.append(
            f"{path} is {abs(off):.2f} s {'longer' if off > 0 else 'shorter'} than it was."
        )
    return _Clip(system, fit_length(decoded, len(wav)))


def _of_original(name: str, with_texts: bool) -> bool:
    """Whether the original itself has this measure."""
    return not TABLE[name].needs_reference or (name == "wer" and with_texts)


def read_texts(path: str | Path) -> dict[str, str]:
    """Text by name from a file of lines, each a name, a space or a tab, and the text.

    LibriSpeech's `.trans.txt` files are of that form. Of a folder all `.trans.txt` files below it
    are read.

    Raises `FileRefused` when there is nothing to read.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [file for file in files_below(path) if file.name.endswith(".trans.txt")]
    texts = {}
    for file in files:
        for line in filter(str.strip, read_text(file).splitlines()):
            name, *text = line.split(maxsplit=1)
            if text:
                texts[name] = text[0]
    if not texts:
        raise FileRefused(
            f"{path} holds no texts; give a file of lines that are a name, a space and the text."
        )
    return texts


def _match_texts(
    root: Path, files: list[Path], texts: dict[str, str], notes: list[str]
) -> dict[Path, str]:
    """The text of each original, by its path below the folder or by its own name if one has it."""
    by_stem: dict[str, list[str]] = {}
    for name, text in texts.items():
        by_stem.setdefault(Path(name).stem, []).append(text)
    found = {}
    for path in files:
        below = path.relative_to(root)
        named = texts.get(below.as_posix()) or texts.get(below.with_suffix("").as_posix())
        others = by_stem.get(path.stem, [])
        if named or len(others) == 1:
            found[path] = named or others[0]
    if not found:
        raise FileRefused(
            f"the texts name no original, such as {files[0].relative_to(root).with_suffix('')}; "
            "begin each line with a file's name."
        )
    if len(found) < len(files):
        notes.append(f"{len(files) - len(found)} of {len(files)} originals have no text.")
    return found


def _list_audio(path: Path) -> tuple[Path, list[Path]]:
    """The folder that the names are below, and the audio files in order."""
    if not path.exists():
        raise FileRefused(f"{path} does not exist; check the name.")
    if path.is_file():
        return path.parent, [path]
    suffixes = audio_suffixes()
    files = [file for file in files_below(path) if file.suffix.lower() in suffixes]
    if not files:
        raise FileRefused(f"{path} holds no audio; give a folder of WAV, FLAC, OGG, ... files.")
    return path, files


def _match(root: Path, files: list[Path], decoded: Path, notes: list[str]) -> dict[Path, Path]:
    """The decoded file of each original that has one."""
    below, candidates = _list_audio(decoded)
    if decoded.is_file():
        if len(files) > 1:
            raise FileRefused(f"{decoded} is one file and the originals are {len(files)}.")
        return {files[0]: decoded}
    by_name = {p.relative_to(below).with_suffix(""): p for p in candidates}
    matches = {
        path: by_name[name]
        for path in files
        if (name := path.relative_to(root).with_suffix("")) in by_name
    }
    if not matches:
        raise FileRefused(
            f"{decoded} holds no file named like an original, such as "
            f"{files[0].relative_to(root).with_suffix('')}; keep the tree and the names."
        )
    if len(matches) < len(files):
        notes.append(f"{len(files) - len(matches)} of {len(files)} originals have no decoded file.")
    return matches


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
    return usable


def _undefined(found: Evaluation) -> Iterator[str]:
    for name in found.metrics:
        n = sum(name in row.values and row.values[name] is None for row in found.rows)
        if n:
            yield (
                f"{TABLE[name].label} has no value for {n} decoded clips (too short, or an "
                "original without speech or without harmonics)."
            )
