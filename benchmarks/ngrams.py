"""N-grams with interpolated Kneser-Ney smoothing, to compare language models of units with."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

BEGIN = -1
"""Before the first symbol of a sequence."""


class KneserNey:
    """An n-gram model of sequences of numbers 0 .. n_symbols - 1.

    Kneser and Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995, interpolated
    and with one discount an order, as Chen and Goodman ("An empirical study of smoothing
    techniques for language modeling", 1999) have it. `order` 1 is the unigram.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], order: int, n_symbols: int) -> None:
        self.order, self.n_symbols = order, n_symbols
        grams: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            padded = [BEGIN] * (order - 1) + list(sequence)
            grams.update(tuple(padded[i - order : i]) for i in range(order, len(padded) + 1))
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = []
        self.discounts: list[float] = []
        while True:
            ones, twos = (sum(count == n for count in grams.values()) for n in (1, 2))
            # Where nothing stands once there is nothing to go by.
            self.discounts.insert(0, ones / (ones + 2 * twos) if ones else 0.5)
            by_context: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
            for gram, count in grams.items():
                by_context[gram[:-1]][gram[-1]] = count
            self.counts.insert(0, dict(by_context))
            if len(self.counts) == order:
                break
            # Of lower orders it counts in how many contexts an n-gram stands, not how often.
            grams = Counter(gram[1:] for gram in grams)

    def probability(self, symbol: int, before: Sequence[int]) -> float:
        """That of a symbol after others, of which the last `order - 1` matter."""
        padded = [BEGIN] * (self.order - 1) + list(before)
        found = 1 / self.n_symbols
        for n, (counts, discount) in enumerate(zip(self.counts, self.discounts)):
            seen = counts.get(tuple(padded[len(padded) - n :]))
            if seen is None:
                break
            total = seen.total()
            found *= discount * len(seen) / total
            found += max(seen[symbol] - discount, 0.0) / total
        return found

    def perplexity(self, sequences: Iterable[Sequence[int]]) -> float:
        """Of all symbols of sequences."""
        logs = [
            math.log(self.probability(symbol, sequence[:i]))
            for sequence in sequences
            for i, symbol in enumerate(sequence)
        ]
        return math.exp(-math.fsum(logs) / len(logs))
