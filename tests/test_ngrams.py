"""Laws of the n-grams that language models are compared with."""

import pytest

from benchmarks.ngrams import BEGIN, KneserNey

SEQUENCES = [[0, 1, 2, 0, 1, 3], [1, 2, 0, 1, 2], [3, 3, 0]]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("before", [[], [0], [0, 1], [3, 3, 3], [4, 4]])
def test_the_probabilities_of_all_symbols_are_one(order, before):
    model = KneserNey(SEQUENCES, order, 6)
    shares = [model.probability(symbol, before) for symbol in range(6)]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0


def test_a_bigram_is_what_the_formula_says():
    model = KneserNey([[0, 1, 0, 1, 0, 2]], 2, 3)
    # Seen twice: 01, 10; once: BEGIN 0, 02. Discount 2 / (2 + 2 * 2).
    assert model.discounts[1] == pytest.approx(1 / 3)
    # Contexts before 0: BEGIN, 1; before 1: 0; before 2: 0. Two ones and one two: 2 / (2 + 2).
    assert model.discounts[0] == pytest.approx(1 / 2)
    lower = (1 - 1 / 2) / 4 + (1 / 2 * 3 / 4) / 3
    assert model.probability(1, [0]) == pytest.approx((2 - 1 / 3) / 3 + (1 / 3 * 2 / 3) * lower)
    assert BEGIN not in range(3)


def test_more_context_is_better_where_there_is_order():
    pattern = [[0, 1, 0, 2] * 20]
    perplexities = [KneserNey(pattern, order, 3).perplexity(pattern) for order in (1, 2, 3)]
    assert perplexities[0] > perplexities[1] > perplexities[2]
    assert perplexities[2] < 1.3
