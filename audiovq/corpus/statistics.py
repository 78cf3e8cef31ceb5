"""What is in a corpus: hours, tokens, the use of every codebook, n-grams of units, duplicates."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.corpus.dataset import Example, Groups
from audiovq.corpus.layout import read_corpus, read_index
from audiovq.health import codebook_health

LISTED = 10
"""N-grams and duplicates that are named."""


class NGrams:
    """Counts of n units in a row, repeats of a unit taken for one.

    The distinct ones are held, 16 bytes each. Raises `ValueError` where codebook_size ** n is
    beyond 64 bits.
    """

    def __init__(self, n: int, codebook_size: int) -> None:
        if not 1 <= n or codebook_size**n >= 1 << 63:
            raise ValueError(f"n-grams of {codebook_size} units must be of 1 or more, not {n}.")
        self.n, self._size = n, codebook_size
        self._keys = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._new: list[np.ndarray] = []
        self._n_new = 0

    def add(self, units: np.ndarray) -> None:
        """Count those of one recording [T]."""
        merged = units[np.flatnonzero(np.diff(units.astype(np.int64), prepend=-1))]
        if len(merged) < self.n:
            return
        windows = np.lib.stride_tricks.sliding_window_view(merged.astype(np.int64), self.n)
        self._new.append(windows @ (self._size ** np.arange(self.n - 1, -1, -1, dtype=np.int64)))
        self._n_new += len(windows)
        if self._n_new > 1 << 20:
            self._merge()

    def _merge(self) -> None:
        keys, counts = np.unique(np.concatenate([*self._new, self._keys[:0]]), return_counts=True)
        every, place = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        summed = np.bincount(place, np.concatenate([self._counts, counts]), len(every))
        self._keys, self._counts = every, summed.astype(np.int64)
        self._new, self._n_new = [], 0

    def facts(self) -> dict[str, Any]:
        """How many, how many distinct ones, their entropy in bits, and the most frequent."""
        self._merge()
        total = int(self._counts.sum())
        shares = self._counts / max(1, total)
        top = np.lexsort((self._keys, -self._counts))[:LISTED]
        return {
            "n": self.n,
            "total": total,
            "distinct": len(self._keys),
            "entropy_bits": float(-(shares * np.log2(shares)).sum()) + 0.0,
            "most_frequent": [
                {"units": self._units(int(self._keys[i])), "count": int(self._counts[i])}
                for i in top
            ],
        }

    def _units(self, key: int) -> list[int]:
        units = []
        for _ in range(self.n):
            key, unit = divmod(key, self._size)
            units.append(unit)
        return units[::-1]


def _hash(example: Example) -> int:
    """64 bits that tell the codes of a recording from others'."""
    data = np.ascontiguousarray(example.codes).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def statistics(
    folder: str | Path, *, n: int = 2, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The figures of a corpus; see `docs/how_to/corpora.md`.

    n: length of the longest n-grams. progress: called with row groups read and their number.

    Raises `FileRefused` when it is not complete, and `ValueError` for n.
    """
    corpus, groups = read_corpus(folder), Groups(folder)
    settings, size = corpus.settings, corpus.settings.codebook_size
    counts = np.zeros((settings.n_q, size), dtype=np.int64)
    grams = [NGrams(k, size) for k in range(1, n + 1)]
    hashes, seconds, speakers = array("Q"), array("d"), Counter[str | None]()
    frames = 0
    for number in range(len(groups.places)):
        for example in groups.read(number):
            frames += example.codes.shape[1]
            seconds.append(example.n_samples / settings.sample_rate)
            speakers[example.speaker] += 1
            hashes.append(_hash(example))
            for gram in grams:
                gram.add(example.codes[0])
            for level, stride in enumerate(settings.frames_per_code):
                counts[level] += np.bincount(example.codes[level, ::stride], minlength=size)
        if progress is not None:
            progress(number + 1, len(groups.places))
    entries = read_index(folder)
    lengths = np.frombuffer(seconds, dtype=np.float64)
    return {
        "model": settings.model,
        "fingerprint": settings.fingerprint,
        "recordings": len(lengths),
        "refused": sum(len(entry.refused) for entry in entries),
        "speakers": len(speakers.keys() - {None}),
        "hours": float(lengths.sum()) / 3600,
        "shortest_s": float(lengths.min(initial=np.inf)) if len(lengths) else 0.0,
        "median_s": float(np.median(lengths)) if len(lengths) else 0.0,
        "longest_s": float(lengths.max(initial=0.0)),
        "frames": frames,
        "tokens": int(counts.sum()),
        "shards": len(entries),
        "bytes": sum(entry.bytes for entry in entries),
        "units_per_second": grams[0].facts()["total"] / max(1e-9, float(lengths.sum())),
        "levels": [_level(level, used) for level, used in enumerate(counts)],
        "ngrams": [gram.facts() for gram in grams],
        "duplicates": _duplicates(groups, np.frombuffer(hashes, dtype=np.uint64)),
    }


def _level(level: int, used: np.ndarray) -> dict[str, Any]:
    health = codebook_health(used)
    return {
        "level": level,
        "active": health.active,
        "perplexity": health.perplexity,
        "entropy_bits": health.entropy,
        "verdict": health.verdict,
    }


def _duplicates(groups: Groups, hashes: np.ndarray) -> dict[str, Any]:
    """How many recordings have the codes of one before them, and the ids of the first few."""
    values, counts = np.unique(hashes, return_counts=True)
    doubled = values[counts > 1].tolist()
    named: dict[int, list[str]] = {key: [] for key in doubled[:LISTED]}
    if named:
        for number in range(len(groups.places)):
            for example in groups.read(number):
                if (key := _hash(example)) in named:
                    named[key].append(example.id)
    return {"recordings": len(hashes) - len(values), "groups": [*named.values()]}
