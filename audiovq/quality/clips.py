"""Clips through codecs, and their measures: the work of `audiovq.quality.evaluate`."""

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from audiovq.audio import fit_length, load_audio, save_audio
from audiovq.codes import pack_avq
from audiovq.hearing import SAMPLE_RATE
from audiovq.model import AudioVQ
from audiovq.quality.metrics import transcribe, word_errors
from audiovq.quality.peers import parse_peer, run_peer
from audiovq.quality.results import ORIGINAL, TABLE, Row

_MAX_LENGTH_ERROR = 0.1  # seconds by which a decoded file may be longer or shorter in silence


@dataclass(frozen=True)
class Clip:
    """A decoded clip that waits for its measures."""

    system: str
    wav: np.ndarray  # float32 [n] at 16 kHz, as long as the original
    n_bytes: int | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done with every original."""

    peers: tuple[str, ...]
    metrics: list[str]
    asr: str | None
    audio_dir: Path | None


@dataclass(frozen=True)
class Task:
    """One original with everything that a process needs to measure it."""

    file: str
    wav: np.ndarray
    clips: list[Clip]
    plan: Plan
    text: str | None  # None to hear it in the original, "" where there is none
    slug: str


def measure(task: Task) -> list[Row]:
    """A row for each clip of the task and for each of its peers."""
    plan, clips = task.plan, list(task.clips)
    for name in plan.peers:
        result = run_peer(parse_peer(name), task.wav)
        clips.append(
            Clip(name, result.wav, result.n_bytes, result.encode_seconds, result.decode_seconds)
        )
    spoken = task.text
    if spoken is None:
        spoken = transcribe(task.wav, plan.asr) if "wer" in plan.metrics and plan.asr else ""
    rows: list[Row] = []
    for clip in clips:
        values, n_words = _values(task, clip, spoken)
        audio = None
        if plan.audio_dir is not None:
            name = clip.system.replace(":", "-").replace(" ", "-")
            audio = f"{task.slug}/{name}.flac"
            if any(row.audio == audio for row in rows):  # a folder opus-6 beside opus:6
                audio = f"{task.slug}/{len(rows)}-{name}.flac"
            save_audio(plan.audio_dir / audio, clip.wav, SAMPLE_RATE)
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


def _values(task: Task, clip: Clip, spoken: str) -> tuple[dict[str, float | None], int | None]:
    """Measure by name, and how many words were spoken, where they were counted."""
    values: dict[str, float | None] = {}
    n_words = None
    for name in task.plan.metrics:
        if clip.system == ORIGINAL and not of_original(name, task.text is not None):
            continue
        if name == "wer" and task.text == "":
            continue
        if name == "wer" and task.plan.asr:
            errors, n_words = word_errors(spoken, transcribe(clip.wav, task.plan.asr))
            value = 100 * errors / n_words if n_words else math.nan
        else:
            value = TABLE[name].function(task.wav, clip.wav)
        values[name] = value if math.isfinite(value) else None
    return values, n_words


def run(tasks: Iterable[Task], jobs: int) -> Iterator[list[Row]]:
    """Measure the tasks in order, at most a few of them in memory."""
    if jobs == 1:
        yield from map(measure, tasks)
        return
    # A fork would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: deque[Future[list[Row]]] = deque()
        for task in tasks:
            waiting.append(pool.submit(measure, task))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def model_clips(
    model: AudioVQ, levels: list[int], names: list[str], path: Path, wav: np.ndarray
) -> Iterator[Clip]:
    """What the model makes of an original, at each number of levels."""
    rate = model.config.sample_rate
    own = wav if rate == SAMPLE_RATE else load_audio(path, rate)
    for n_q, name in zip(levels, names, strict=True):
        out, n_bytes, encode_seconds, decode_seconds = through_model(
            model, torch.from_numpy(own)[None, None], n_q
        )
        if rate != SAMPLE_RATE:
            out = fit_length(soxr.resample(out, rate, SAMPLE_RATE), len(wav))
        yield Clip(name, out, n_bytes, encode_seconds, decode_seconds)


@torch.no_grad()
def through_model(
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


def read_decoded(system: str, path: Path, wav: np.ndarray, notes: list[str]) -> Clip:
    """A decoded file as long as its original; a note where it was not."""
    decoded = load_audio(path, SAMPLE_RATE)
    off = (len(decoded) - len(wav)) / SAMPLE_RATE
    if abs(off) > _MAX_LENGTH_ERROR:
        notes.append(
            f"{path} is {abs(off):.2f} s {'longer' if off > 0 else 'shorter'} than it was."
        )
    return Clip(system, fit_length(decoded, len(wav)))


def of_original(name: str, with_texts: bool) -> bool:
    """Whether the original itself has this measure."""
    return not TABLE[name].needs_reference or (name == "wer" and with_texts)
