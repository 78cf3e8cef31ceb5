"""Laws of the vocabulary: what goes in comes out, and every number has one meaning."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiovq.files import FileRefused
from audiovq.lm.vocabulary import (
    END,
    SPECIALS,
    TEXT,
    UNITS,
    VOCABULARY_FILE,
    Vocabulary,
    characters_of,
    plain,
    read_vocabulary,
)

SMALL = Vocabulary("test", "0" * 16, 16_000, 320, 32, 4, " abcé", max_duration=4)

unit_rows = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(unit_rows)
def test_units_come_back_from_tokens(units):
    assert SMALL.to_units(SMALL.of_units(np.array(units))).tolist() == units


@given(unit_rows)
def test_equal_units_follow_each_other_only_after_the_longest(units):
    symbols, durations = SMALL.split(SMALL.of_units(np.array(units)))
    for before, after, duration in zip(symbols, symbols[1:], durations):
        assert before != after or duration == SMALL.max_duration
    assert durations.min() >= 1
    assert durations.max() <= SMALL.max_duration


def test_every_token_is_one_symbol_with_one_duration():
    tokens = np.arange(SMALL.n_tokens)
    symbols, durations = SMALL.split(tokens)
    assert (SMALL.join(symbols, durations) == tokens).all()
    assert symbols.max() == SMALL.n_symbols - 1
    assert len({*zip(symbols.tolist(), durations.tolist())}) == SMALL.n_tokens


def test_the_parts_of_the_vocabulary_do_not_overlap():
    symbols, _ = SMALL.split(np.concatenate([SMALL.of_text("cab é"), SMALL.of_units(np.r_[0:32])]))
    assert symbols[:5].tolist() == [7, 5, 6, 4, 8]
    assert symbols[5:].tolist() == list(range(SMALL.first_unit, SMALL.n_symbols))
    assert SMALL.first_unit == len(SPECIALS) + 5


def test_an_utterance_is_text_units_and_its_end():
    symbols, durations = SMALL.split(SMALL.sequence(np.array([1, 1, 2]), "ab"))
    unit = SMALL.first_unit
    assert symbols.tolist() == [TEXT, 5, 6, UNITS, unit + 1, unit + 2, END]
    assert durations.tolist() == [1, 1, 1, 1, 2, 1, 1]
    assert SMALL.split(SMALL.sequence(np.array([3])))[0].tolist() == [UNITS, unit + 3, END]


def test_what_is_no_unit_has_no_frames():
    assert SMALL.to_units(SMALL.sequence(np.array([5, 5]), "a")).tolist() == [5, 5]


def test_texts_are_read_plainly():
    assert plain(" The\tCAFE\u0301\n ") == "the caf\u00e9"
    assert characters_of(["ba", "a c"]) == " abc"


@pytest.mark.parametrize(
    ("text", "match"), [("", "empty"), ("  ", "empty"), ("a b!x", r"'!' 'x'.*never")]
)
def test_a_text_that_cannot_be_read_is_refused(text, match):
    with pytest.raises(ValueError, match=match):
        SMALL.of_text(text)


def test_without_texts_none_can_be_read():
    mute = Vocabulary.from_dict(SMALL.to_dict() | {"characters": ""})
    with pytest.raises(ValueError, match="without texts"):
        mute.of_text("a")


def test_units_beyond_the_codebook_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.31, not 1\.\.32"):
        SMALL.of_units(np.array([1, 32]))


@pytest.mark.parametrize(
    "change",
    [
        {"max_duration": 0},
        {"max_duration": 256},
        {"max_duration": 1.5},
        {"characters": "ba"},
        {"characters": "aa"},
        {"characters": None},
        {"codebook_size": 0},
        {"fingerprint": 5},
        {"more": 1},
    ],
)
def test_values_that_are_not_possible_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        Vocabulary.from_dict(SMALL.to_dict() | change)


def test_a_vocabulary_comes_back_from_its_file(tmp_path):
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps(SMALL.to_dict()))
    assert read_vocabulary(tmp_path) == SMALL


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tokenizer": 1}', "[" * 5000])
def test_a_damaged_vocabulary_is_refused(tmp_path, content):
    (tmp_path / VOCABULARY_FILE).write_text(content)
    with pytest.raises(FileRefused, match="prepare the folder again"):
        read_vocabulary(tmp_path)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="lm prepare"):
        read_vocabulary(tmp_path)
