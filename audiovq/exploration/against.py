"""Two tokenizers on the same recordings: which code of one goes with which of the other."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from audiovq.exploration.corpus import Recording
from audiovq.files import FileRefused

LARGEST = 1 << 24
"""Cells of the table of both codebooks."""


@dataclass(frozen=True)
class Against:
    """How often each code stood beside each code of the other tokens."""

    name: str
    """Of the other tokens."""
    table: np.ndarray
    """Frames, int64 [K, K of the others]."""
    n_recordings: int
    """That both have."""

    def others(self) -> list[tuple[int, int]]:
        """The others' codes in use, with their frames."""
        return [(code, n) for code, n in enumerate(self.table.sum(axis=0).tolist()) if n]

    def others_of(self, code: int, n: int = 5) -> list[tuple[int, float]]:
        """The others' codes in the frames of `code`, with the shares of those they have."""
        return _largest(self.table[code], n)

    def codes_of(self, other: int, n: int = 5) -> list[tuple[int, float]]:
        """The codes in the frames of `other`, a code of the others, with their shares."""
        return _largest(self.table[:, other], n)

    def known(self) -> tuple[float, float]:
        """How much of the uncertainty about the others' codes these codes take away, and the other
        way round: mutual information over either entropy, 0..1. Both rise by themselves with the
        number of codes and fall with the number of frames."""
        share = self.table / max(1, self.table.sum())
        own, other = _entropy(share.sum(axis=1)), _entropy(share.sum(axis=0))
        information = max(0.0, own + other - _entropy(share))
        return (information / other if other else 0.0), (information / own if own else 0.0)


def set_against(
    recordings: Mapping[str, Recording],
    level: int,
    n_codes: int,
    frame_rate: float,
    name: str,
    others: Mapping[str, np.ndarray],
    other_rate: float,
) -> Against:
    """Count both codes of every frame of the recordings that both have.

    others: units [T'] by the names of `recordings`, at `other_rate` frames a second; a frame is set
    beside the other's frame at its centre. Raises `FileRefused` when no recording is in both or the
    codebooks are too large for a table.
    """
    both = [shared for shared in recordings if shared in others]
    if not both:
        raise FileRefused(
            f"{name} has none of the recordings; the first are {next(iter(recordings))!r} and "
            f"{next(iter(others))!r}."
        )
    n_others = max(int(others[shared].max(initial=0)) for shared in both) + 1
    if n_codes * n_others > LARGEST:
        raise FileRefused(f"{name} has {n_others} codes; a table of {LARGEST} cells is the most.")
    table = np.zeros((n_codes, n_others), dtype=np.int64)
    for shared in both:
        codes, other = recordings[shared].indices[level].astype(np.int64), others[shared]
        at = ((np.arange(len(codes)) + 0.5) * other_rate / frame_rate).astype(np.int64)
        heard = at < len(other)
        np.add.at(table, (codes[heard], other[at[heard]]), 1)
    return Against(name, table, len(both))


def _largest(counts: np.ndarray, n: int) -> list[tuple[int, float]]:
    order = np.argsort(-counts, kind="stable")[:n]
    total = max(1, int(counts.sum()))
    return [(int(at), float(counts[at] / total)) for at in order if counts[at]]


def _entropy(share: np.ndarray) -> float:
    """In bits, of shares of any shape that sum to 1."""
    used = share[share > 0]
    return float(-(used * np.log2(used)).sum())
