"""Recordings as codes, and where each code of one level occurs in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from audiovq.audio import load_audio
from audiovq.codes import TOKEN_SUFFIXES, read_tokens
from audiovq.files import FileRefused, files_below
from audiovq.model import AudioVQ
from audiovq.transcode import check_header


@dataclass(frozen=True)
class Recording:
    """The codes of one recording."""

    indices: np.ndarray
    """uint16 [n_q, T]."""
    n_samples: int
    """Samples at the model's rate that they stand for."""
    audio: Path | None = None
    """The original, where it is there."""


@dataclass(frozen=True)
class Runs:
    """Stretches of frames that share a code of one level, of all recordings in their order.

    Four int64 arrays [R]: the recording's number, the first frame, the number of frames, the code.
    """

    recording: np.ndarray
    start: np.ndarray
    duration: np.ndarray
    code: np.ndarray

    def __len__(self) -> int:
        return len(self.code)


def holds_tokens(folder: Path) -> bool:
    """Whether there is a token file in the folder or below it."""
    return any(path.suffix.lower() in TOKEN_SUFFIXES for path in files_below(folder))


def read_recordings(folder: str | Path, model: AudioVQ) -> dict[str, Recording]:
    """All token files in a folder and its subfolders, by their path below it without the suffix.

    Raises `FileRefused` when there is none, when one is refused, is of another model or does not
    fit this one, stands there in two formats, or has fewer levels than another.
    """
    folder = Path(folder)
    found: dict[str, Recording] = {}
    for path in files_below(folder):
        if path.suffix.lower() not in TOKEN_SUFFIXES:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise FileRefused(f"{path} is there in two formats; keep one of them in the folder.")
        tokens = read_tokens(path)
        n_samples = tokens.indices.shape[1] * model.config.hop_length
        if tokens.header is not None:
            check_header(model, tokens.header, str(path))
            n_samples = tokens.header.n_samples
        try:
            model.check_n_q(len(tokens.indices))
            model.check_range(0, int(tokens.indices.max()))
        except ValueError as error:
            raise FileRefused(f"{path} does not fit the model {model.name}: {error}") from error
        found[name] = Recording(tokens.indices, n_samples)
    if not found:
        kinds = " or ".join(TOKEN_SUFFIXES)
        raise FileRefused(f"{folder} holds no tokens; give a folder of {kinds} files.")
    levels = sorted({len(recording.indices) for recording in found.values()})
    if len(levels) > 1:
        raise FileRefused(f"{folder} mixes files of {levels[0]} and {levels[-1]} levels; keep one.")
    return found


def encode_recordings(
    audio: Mapping[str, Path],
    model: AudioVQ,
    *,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, Recording]:
    """Encode recordings, all levels. Raises `FileRefused` for one that cannot be read."""
    found = {}
    for number, (name, path) in enumerate(audio.items()):
        progress(number, len(audio))
        wav = load_audio(path, model.config.sample_rate)
        codes = model.encode(torch.from_numpy(wav)[None, None])
        indices = codes.indices[0].cpu().numpy().astype(np.uint16)
        found[name] = Recording(indices, len(wav), path)
    progress(len(audio), len(audio))
    return found


def find_runs(recordings: Mapping[str, Recording], level: int) -> Runs:
    """The stretches of every code at `level`; none goes over the end of a recording.

    Raises `ValueError` for a level that the codes lack.
    """
    n_levels = min(len(recording.indices) for recording in recordings.values())
    if not 0 <= level < n_levels:
        raise ValueError(f"level must be in 0..{n_levels - 1} for these tokens, not {level}.")
    parts = []
    for number, recording in enumerate(recordings.values()):
        codes = recording.indices[level].astype(np.int64)
        starts = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
        durations = np.diff(np.append(starts, len(codes)))
        parts.append(np.stack([np.full(len(starts), number), starts, durations, codes[starts]]))
    return Runs(*np.concatenate(parts, axis=1))


def chosen_runs(runs: Runs, kept: np.ndarray, n_codes: int, lines: int) -> list[np.ndarray]:
    """For each code the numbers of at most `lines` of its runs, evenly spread over the recordings.

    kept: bool [recordings], those from which runs are taken.
    """
    order = np.flatnonzero(kept[runs.recording])
    order = order[np.argsort(runs.code[order], kind="stable")]
    bounds = np.searchsorted(runs.code[order], np.arange(n_codes + 1))
    chosen = []
    for first, last in pairwise(bounds.tolist()):
        spread = np.linspace(first, last - 1, min(lines, last - first)).round().astype(np.int64)
        chosen.append(order[spread])
    return chosen


def evenly(n: int, limit: int) -> np.ndarray:
    """Bool [n], true for at most `limit` of them, evenly spread."""
    kept = np.zeros(n, dtype=bool)
    kept[np.linspace(0, n - 1, min(limit, n)).round().astype(np.int64)] = True
    return kept
