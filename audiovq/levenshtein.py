"""How far two sequences are apart: words that were said and heard, units before and after."""

from collections.abc import Sequence

import numpy as np


def edit_distance(a: Sequence[int] | Sequence[str], b: Sequence[int] | Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that make `b` of `a` (Levenshtein)."""
    target = np.asarray(b)
    steps = np.arange(len(target) + 1)
    row = steps
    for i, symbol in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (target != symbol))
        # An insertion costs 1 more than the cell to the left: a running minimum, less the steps.
        row = np.minimum.accumulate(np.concatenate(([i], best)) - steps) + steps
    return int(row[-1])
