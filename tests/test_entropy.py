"""Codes that tables code come back, on every machine, in the bytes that the tables say."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import full_disk, random_tables

from audiovq.entropy import (
    ONE,
    Tables,
    find,
    frequencies,
    read_tables,
    register,
    write_tables,
)
from audiovq.files import FileRefused
from audiovq.flatten import count_codes

quickly = settings(max_examples=40, deadline=None, derandomize=True, database=None)
TABLES = random_tables()
FULL = random_tables(n_codes=8)  # a code in each slot
LARGE = random_tables(levels=2, n_codes=1024)


@st.composite
def recordings(draw, most_frames: int = 12):
    """Codes [n_q, T] of `TABLES`, with repeats."""
    n_q = draw(st.integers(1, len(TABLES.slots)))
    frame = st.lists(st.integers(0, TABLES.n_codes - 1), min_size=n_q, max_size=n_q)
    frames = draw(st.lists(frame, min_size=1, max_size=most_frames))
    lasts = draw(st.lists(st.integers(1, 3), min_size=len(frames), max_size=len(frames)))
    return np.repeat(np.array(frames, np.uint16).T, lasts, axis=1)


@st.composite
def strided(draw):
    """Codes as of `recordings`, and level_strides by which they repeat."""
    codes = draw(recordings())
    strides = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=len(codes), max_size=len(codes)))
    t = np.arange(codes.shape[1])
    rows = [row[t - t % stride] for row, stride in zip(codes, strides)]
    return np.stack(rows), strides


@quickly
@given(strided(), st.lists(st.integers(1, 9), max_size=8))
def test_codes_come_back_however_they_are_cut(strided, cuts):
    codes, strides = strided
    encoder, decoder = (TABLES.coder(len(codes), strides) for _ in range(2))
    for part in np.split(codes, np.cumsum(cuts), axis=1):
        decoded = decoder.decode(encoder.encode(part), part.shape[1])
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded, part)


@quickly
@given(strided(), st.integers(1, 9))
def test_what_codes_are_worth_does_not_hang_on_the_cutting(strided, size):
    codes, strides = strided
    whole = TABLES.coder(len(codes), strides).shares(codes)
    assert len(whole) == 2 * count_codes(codes.shape[1], strides)  # a group and a place each
    coder = TABLES.coder(len(codes), strides)
    parts = [coder.shares(codes[:, at : at + size]) for at in range(0, codes.shape[1], size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_long_recordings_of_large_codebooks_come_back(rng):
    codes = rng.integers(1024, size=(2, 1100), dtype=np.uint16)
    codes[:, 200:300] = codes[:, 199:200]
    data = LARGE.coder(2).encode(codes)
    np.testing.assert_array_equal(LARGE.coder(2).decode(data, 1100), codes)
    shares = LARGE.coder(2).shares(codes)
    bits = np.log2(shares[:, 2] / shares[:, 1]).sum()
    assert bits / 8 <= len(data) < bits / 8 * 1.001 + 2


@quickly
@given(recordings(most_frames=4))
def test_the_shares_of_all_codes_are_a_whole(codes):
    """Whatever came before, the codes that can come next share out the totals between them."""
    level, t = len(codes) - 1, codes.shape[1] - 1
    shares = Fraction(0)
    for code in range(FULL.n_codes):
        codes[level, t] = code
        group, place = FULL.coder(len(codes)).shares(codes)[-2:].tolist()
        shares += Fraction(group[1], group[2]) * Fraction(place[1], place[2])
    assert shares == 1


def slow_shares(tables: Tables, codes: np.ndarray) -> list[tuple[int, int]]:
    """(size, total) of every symbol, number by number in Python, as the module's page says it."""
    n_q, n_frames = codes.shape
    arrays = {name: array.tolist() for name, array in tables.arrays().items()}
    n_groups, size = tables.group.shape[1], tables.code.shape[1] // tables.group.shape[1]
    width, n_hidden = tables.mix.shape[2], tables.start.shape[1]
    averages = [[0] * width for _ in arrays["decay"]]
    before: list[int] | None = None
    found = []
    for t in range(n_frames):
        slots = [arrays["slots"][level][codes[level, t]] for level in range(n_q)]
        vectors = [arrays["code"][level][slot] for level, slot in enumerate(slots)]
        for level, slot in enumerate(slots):
            hidden = []
            for h in range(n_hidden):
                past = sum(
                    max(-(1 << 15), min(1 << 15, averages[d][x] >> 4))
                    * arrays["past"][d][x][level][h]
                    for d in range(len(averages))
                    for x in range(width)
                )
                below = sum(
                    number * arrays["below"][lower][level][e][h]
                    for lower in range(level)
                    for e, number in enumerate(vectors[lower])
                )
                total = (arrays["start"][level][h] << 6) + (past >> 2) + below
                hidden.append(max(-ONE, min(ONE, total >> 4)))

            def score(row: list[int], bias: int, hidden: list[int] = hidden) -> int:
                return bias + (sum(a * b for a, b in zip(row, hidden)) >> 8)

            group, place = divmod(slot, size)
            bonus = [
                score(arrays["repeat"][level][i], arrays["repeat_bias"][level][i]) for i in (0, 1)
            ]
            of_groups = [
                score(arrays["group"][level][i], arrays["group_bias"][level][i])
                for i in range(n_groups)
            ]
            of_places = [
                score(arrays["member"][level][i], arrays["member_bias"][level][i])
                for i in range(group * size, (group + 1) * size)
            ]
            if before is not None:
                of_groups[before[level] // size] += bonus[0]
                if before[level] // size == group:
                    of_places[before[level] % size] += bonus[1]
            for scores, symbol in ((of_groups, group), (of_places, place)):
                sizes = [frequencies()[max(0, min(2048, s + 1024))] for s in scores]
                found.append((int(sizes[symbol]), int(sum(sizes))))
        frame = [
            sum(
                number * arrays["mix"][level][e][x]
                for level in range(n_q)
                for e, number in enumerate(vectors[level])
            )
            for x in range(width)
        ]
        for d, decay in enumerate(arrays["decay"]):
            averages[d] = [a + (f - a >> decay) for a, f in zip(averages[d], frame)]
        before = slots
    return found


@settings(quickly, max_examples=8)
@given(recordings(most_frames=5))
def test_shares_are_those_of_the_description(codes):
    shares = TABLES.coder(len(codes)).shares(codes)
    assert [(size, total) for _, size, total in shares.tolist()] == slow_shares(TABLES, codes)


def test_frequencies_are_powers_of_two_rounded():
    table = frequencies()
    assert table[0] == 1
    assert table[1024] == 1 << 16
    assert table[2048] == 1 << 32
    expected = [2.0 ** (i / 64) for i in range(2049)]
    np.testing.assert_allclose(table, np.maximum(1, np.rint(expected)), rtol=1e-12)
    assert all(math.isqrt(int(a)) > 0 for a in table)


@quickly
@given(st.binary(max_size=30), st.integers(0, 20), st.integers(1, 3))
def test_any_bytes_are_codes_or_an_error(data, n_frames, n_q):
    try:
        codes = TABLES.coder(n_q).decode(data, n_frames)
    except ValueError:
        return
    assert codes.shape == (n_q, n_frames)
    assert not codes.size or codes.max() < TABLES.n_codes


@pytest.mark.parametrize("n_q", [0, 4])
def test_levels_that_the_tables_lack_are_refused(n_q):
    with pytest.raises(ValueError, match=r"n_q must be in 1\.\.3"):
        TABLES.coder(n_q)


def test_a_file_of_tables_is_what_was_written(tmp_path):
    path = tmp_path / "tables.safetensors"
    write_tables(path, TABLES)
    read = read_tables(path)
    assert read.fingerprint == TABLES.fingerprint
    assert read.key == TABLES.key
    for name, array in TABLES.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)
    with pytest.raises(FileRefused, match="--force"):
        write_tables(path, TABLES)
    with full_disk(64), pytest.raises(FileRefused, match="written: File too large"):
        write_tables(path, TABLES, overwrite=True)
    assert read_tables(path).key == TABLES.key


def test_the_key_is_of_every_number():
    assert replace(TABLES, fingerprint="g").key != TABLES.key
    for name, array in TABLES.arrays().items():
        if name in ("slots", "decay"):
            continue
        other = array.copy()
        other.flat[-1] ^= 1
        assert replace(TABLES, **{name: other}).key != TABLES.key, name


@pytest.mark.parametrize(
    "change",
    [
        {"slots": np.zeros((3, 7), np.uint16)},
        {"slots": TABLES.slots + 8},
        {"slots": TABLES.slots[0]},
        {"code": TABLES.code[:, :-1]},
        {"code": TABLES.code.astype(np.int16)},
        {"decay": np.array([0, 1, 60], np.uint8)},
        {"group": TABLES.group[:, :0], "group_bias": TABLES.group_bias[:, :0]},
    ],
)
def test_arrays_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"slot|dimensions|is int|is uint"):
        replace(TABLES, **change)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(40), b"\x02\0\0\0\0\0\0\0{}"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "tables.safetensors"
    with pytest.raises(FileRefused, match="no file of tables"):
        read_tables(path)
    path.write_bytes(content)
    with pytest.raises(FileRefused, match="no file of tables"):
        read_tables(path)


def test_registered_tables_are_found():
    tables = random_tables("registered")
    assert find(tables.key) is None
    register(tables)
    assert find(tables.key) is tables
