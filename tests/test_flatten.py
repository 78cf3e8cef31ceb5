"""Levels at several rates as one sequence, and back."""

import numpy as np
import pytest

from audiovq.flatten import checked_strides, compact, count_codes, flatten, spread, unflatten


def random_levels(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...], int]:
    """Codes [n_q, T] of random strides, and their K."""
    group = int(rng.choice([1, 2, 4, 6, 12, 32]))
    divisors = [s for s in range(1, group + 1) if group % s == 0]
    strides = (*rng.choice(divisors, size=rng.integers(1, 9)).tolist(), group)
    n_frames, size = int(rng.integers(1, 100)), int(rng.choice([2, 5, 1024]))
    rows = rng.integers(size, size=(len(strides), n_frames))
    codes = np.stack([np.repeat(r[::s], s)[:n_frames] for r, s in zip(rows, strides)])
    return codes, strides, size


@pytest.fixture(params=range(40))
def levels(request):
    return random_levels(np.random.default_rng(request.param))


def test_every_code_is_there_once_and_comes_back(levels):
    codes, strides, _ = levels
    n_frames = codes.shape[1]
    once = compact(codes, strides)
    assert once.shape == (count_codes(n_frames, strides),)
    assert len(once) == sum(len(row[::stride]) for row, stride in zip(codes, strides))
    np.testing.assert_array_equal(spread(once, n_frames, strides), codes)


def test_unflatten_is_the_inverse(levels):
    codes, strides, size = levels
    tokens = flatten(codes, strides, size)
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() <= tokens.max() < len(strides) * size
    back = unflatten(tokens, strides, size, n_q=len(strides))
    np.testing.assert_array_equal(back[:, : codes.shape[1]], codes)
    assert back.shape[1] == -(-codes.shape[1] // min(strides)) * min(strides)
    np.testing.assert_array_equal(tokens % size, compact(codes, strides))


def test_what_is_known_so_far_is_the_beginning(levels):
    """The order is causal in groups: more sound later changes nothing before."""
    codes, strides, size = levels
    group = max(strides)
    n_frames = codes.shape[1] // group * group
    whole, part = flatten(codes, strides, size), flatten(codes[:, :n_frames], strides, size)
    np.testing.assert_array_equal(whole[: len(part)], part)


def test_an_unfinished_frame_is_refused_or_left_out(levels):
    codes, strides, size = levels
    tokens = flatten(codes, strides, size)
    for length in range(len(tokens)):
        back = unflatten(tokens[:length], strides, size, n_q=len(strides), cut=True)
        np.testing.assert_array_equal(back, codes[:, : back.shape[1]])
        kept = count_codes(back.shape[1], strides)
        assert kept <= length < count_codes(back.shape[1] + 1, strides)
        if kept < length:
            with pytest.raises(ValueError, match="within frame"):
                unflatten(tokens[:length], strides, size, n_q=len(strides))


def test_the_order_is_that_of_snac():
    codes = np.array([[0, 0, 0, 0], [1, 1, 4, 4], [2, 3, 5, 6]])  # numbered in that order
    assert flatten(codes, (4, 2, 1), 10).tolist() == [0, 11, 22, 23, 14, 25, 26]
    assert flatten(codes[:2], (4, 2, 1), 10).tolist() == [0, 11, 14]  # a prefix of the levels


def test_levels_of_one_rate_are_interleaved():
    codes = np.array([[0, 1], [2, 3]])
    for strides in ((), (1, 1)):
        assert flatten(codes, strides, 4).tolist() == [0, 6, 1, 7]
        np.testing.assert_array_equal(unflatten([0, 6, 1, 7], strides, 4, n_q=2), codes)


def test_no_tokens_are_no_frames():
    assert unflatten([], (2, 1), 4, n_q=2).shape == (2, 0)
    assert flatten(np.zeros((2, 0), np.int64), (2, 1), 4).shape == (0,)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 3, 6], "token 1 is 3, but a code of level 1 stands there, 4..7"),
        ([0, 8, 6], "token 1 is 8"),
        ([-1, 4, 6], "token 0 is -1"),
        ([0], "1 tokens end within frame 0, whose last one would be number 1"),
    ],
)
def test_what_is_no_such_sequence_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        unflatten(tokens, (2, 1), 4, n_q=2)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [0, 0]], "level 0 change within their 2 frames"),
        ([[4, 4], [0, 0]], "in 0..3"),
        ([[-1, -1], [0, 0]], "in 0..3"),
        ([[0.5, 0.5]], "whole numbers"),
        ([0, 1], "whole numbers"),
    ],
)
def test_codes_that_cannot_be_flattened_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        flatten(np.array(codes), (2, 1), 4)


@pytest.mark.parametrize("strides", [(1,), (2, 0), (2, 3), (64, 1), (2.0, 1), (True, 2), ("2", 1)])
def test_strides_that_do_not_fit_are_refused(strides):
    with pytest.raises(ValueError, match="level_strides must be 2 whole numbers"):
        checked_strides(strides, 2)


def test_strides_of_one_are_none():
    assert checked_strides((1, 1), 2) == checked_strides([], 2) == ()
    assert checked_strides([4, 2], 2) == (4, 2)
