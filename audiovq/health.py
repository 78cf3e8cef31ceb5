"""Health of codebooks: how many codes are used, and how evenly."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiovq.codes import read_tokens
from audiovq.files import FileRefused

COLLAPSED = 0.125
"""Active share at which a codebook is called collapsed."""
HEALTHY = 0.9
"""Active share from which on a codebook is called healthy."""


@dataclass(frozen=True)
class CodebookHealth:
    """How one codebook was used over a window of many frames."""

    n_frames: int
    """Codes counted: frames, or with level_strides groups of them."""
    size: int
    """Codes of the codebook, K."""
    active: int
    """Codes used at least once."""
    entropy: float
    """Of the codes, in bits; log2 K when all are used equally."""

    @property
    def perplexity(self) -> float:
        """2 to the entropy: the number of equally used codes that would be as uncertain."""
        return float(2**self.entropy)

    @property
    def active_share(self) -> float:
        """Share of the codes that were used at all."""
        return self.active / self.size

    @property
    def verdict(self) -> str:
        """The health in a word or two."""
        if self.n_frames < self.size:
            return "too few frames to tell"
        if self.active_share <= COLLAPSED:
            return "collapsed"
        return "healthy" if self.active_share >= HEALTHY else "underused"


def codebook_health(counts: np.ndarray) -> CodebookHealth:
    """Health from the number of times that each code was used, [K]."""
    counts = np.asarray(counts, dtype=np.float64)
    shares = counts[counts > 0] / max(1.0, counts.sum())
    return CodebookHealth(
        n_frames=int(counts.sum()),
        size=len(counts),
        active=len(shares),
        entropy=float(-(shares * np.log2(shares)).sum()) + 0.0,
    )


def count_codes(paths: Iterable[str | Path], size: int) -> np.ndarray:
    """How often each code is used over token files: int64 [n_q, K].

    size: K for files that do not say it (`.npy`). Levels that a file lacks count nothing from it.
    Raises `FileRefused` for a file that is not tokens or of another model than those before, and
    `ValueError` for codes beyond K.
    """
    counts = np.zeros((0, size), dtype=np.int64)
    models: set[str] = set()
    for path in paths:
        tokens = read_tokens(path)
        if tokens.header is not None:
            models.add(tokens.header.fingerprint)
            if len(models) > 1:
                raise FileRefused(
                    f"{path} was made by another model than the files before it; count those of "
                    "one model."
                )
        if tokens.header is not None and tokens.header.codebook_size != counts.shape[1]:
            if counts.any():
                raise ValueError(
                    f"{path} has {tokens.header.codebook_size} codes a codebook; give that as "
                    "--size for the .npy files before it."
                )
            counts = np.zeros((0, tokens.header.codebook_size), dtype=np.int64)
        largest = int(tokens.indices.max())
        if largest >= counts.shape[1]:
            raise ValueError(f"{path} holds code {largest}; give the codebooks' --size.")
        missing = len(tokens.indices) - len(counts)
        counts = np.pad(counts, ((0, max(0, missing)), (0, 0)))
        for level, codes in enumerate(tokens.levels):
            counts[level] += np.bincount(codes, minlength=counts.shape[1])
    return counts
