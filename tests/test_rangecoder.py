"""Range coding gives back every symbol, in as many bytes as their shares say."""

import math
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.rangecoder import MOST_TOTAL, Decoder, encode_symbols

quickly = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def symbols(draw):
    """(start, size, total), extreme shares among them."""
    total = draw(st.one_of(st.integers(1, 40), st.sampled_from([1 << 21, MOST_TOTAL])))
    size = draw(st.one_of(st.integers(1, total), st.sampled_from([1, total])))
    start = draw(st.one_of(st.integers(0, total - size), st.sampled_from([0, total - size])))
    return start, size, total


def decoded(data: bytes, expected: list[tuple[int, int, int]]) -> bool:
    decoder = Decoder(data)
    for start, size, total in expected:
        if not start <= decoder.target(total) < start + size:
            return False
        decoder.take(start, size, total)
    return True


@quickly
@given(st.lists(symbols(), max_size=60))
def test_every_symbol_comes_back(coded):
    data = encode_symbols(coded)
    assert decoded(data, coded)
    assert not data.endswith(b"\0")


@quickly
@given(st.lists(symbols(), max_size=60))
def test_the_bytes_are_those_that_the_shares_take_and_less_than_one_more(coded):
    bits = sum(math.log2(total / size) for _, size, total in coded)
    lost = len(coded) * 2e-2 + 1e-6  # a total of 2^32 beside a width of 40 bits
    assert len(encode_symbols(coded)) <= (bits + lost) / 8 + 2
    small = [symbol for symbol in coded if symbol[2] <= 40]
    bits = sum(math.log2(total / size) for _, size, total in small)
    assert len(encode_symbols(small)) <= bits / 8 + 1.13


@quickly
@given(st.lists(symbols().filter(lambda symbol: symbol[2] <= 40), max_size=20))
def test_the_number_lies_where_exact_fractions_put_it(coded):
    low, width = Fraction(0), Fraction(1)
    for start, size, total in coded:
        low, width = low + width * Fraction(start, total), width * Fraction(size, total)
    data = encode_symbols(coded)
    number = Fraction(int.from_bytes(data, "big"), 256 ** len(data))
    # The steps are whole numbers, so that up to 2^-34 of a share is left unused at its end.
    assert low - len(coded) * Fraction(1, 1 << 30) * (low + width) <= number <= low + width


def test_a_carry_runs_through_all_bytes_that_are_full():
    total = MOST_TOTAL
    nearly = (total // 2 - 1, 2, total)  # 0.0111... to 0.1000...
    after = [(1, 1, 2)] * 40
    coded = [nearly, *after]
    assert decoded(encode_symbols(coded), coded)


@quickly
@given(st.binary(max_size=40), st.lists(symbols(), max_size=60))
def test_any_bytes_are_some_symbols(data, others):
    decoder = Decoder(data)
    for _, _, total in others:
        target = decoder.target(total)
        assert 0 <= target < total
        decoder.take(target, 1, total)


def test_no_symbols_take_no_bytes():
    assert encode_symbols([]) == b""
    assert encode_symbols([(0, 5, 5)] * 100) == b""
