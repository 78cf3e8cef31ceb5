"""Segmentation against brute force, and segments as text and back."""

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from audiovq.files import FileRefused
from audiovq.segment import (
    MAX_FRAMES,
    DistanceBlocks,
    Segment,
    code_distances,
    expand,
    from_text,
    price_for_rate,
    read_segments,
    run_lengths,
    segment,
    to_text,
    write_segments,
)


def cost(distances: np.ndarray, units, price: float) -> float:
    """What the paper minimises: distances, less price * (d - 1) for each segment of d frames."""
    fit = sum(distances[t, k] for t, k in enumerate(units))
    durations = [len(list(run)) for _, run in itertools.groupby(units)]
    return fit - price * sum(d - 1 for d in durations)


@pytest.mark.parametrize("price", [0.0, 0.05, 0.3, 1.0, 10.0])
def test_no_other_path_is_cheaper(price: float) -> None:
    for seed in range(8):
        distances = np.random.default_rng(seed).random((7, 3))
        best = min(cost(distances, path, price) for path in itertools.product(range(3), repeat=7))
        assert cost(distances, segment(distances, price).tolist(), price) == pytest.approx(best)


def plain(distances: np.ndarray, price: float) -> np.ndarray:
    """Viterbi's algorithm with all of its tables."""
    n_frames, n_codes = distances.shape
    before = np.zeros((n_frames, n_codes), dtype=np.int64)
    cost = distances[0].astype(np.float64)
    for t in range(1, n_frames):
        best = int(cost.argmin())
        moves = cost[best] + price < cost
        before[t] = np.where(moves, best, np.arange(n_codes))
        cost = np.where(moves, cost[best] + price, cost) + distances[t]
    units = [int(cost.argmin())]
    for t in range(n_frames - 1, 0, -1):
        units.append(int(before[t, units[-1]]))
    return np.array(units[::-1])


@pytest.mark.parametrize("price", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("n_codes", [1, 3, 8, 13, 300])
def test_blocks_and_bits_give_the_path_of_the_plain_algorithm(n_codes: int, price: float) -> None:
    random = np.random.default_rng(n_codes)
    for distances in (random.random((90, n_codes)), random.integers(0, 4, (90, n_codes)) * 1.0):
        want = plain(distances, price)  # the second has ties
        assert (segment(distances, price) == want).all()
        blocks = [distances[:1], distances[1:8], distances[8:]]
        assert (segment(blocks, price) == want).all()
        assert (segment(iter(blocks), price) == want).all()


def test_a_long_recording_is_not_held_in_distances() -> None:
    random = np.random.default_rng(0)
    z, codes = random.normal(size=(20_000, 4)), random.normal(size=(256, 4))
    tracemalloc.start()
    units = segment(DistanceBlocks(z, codes), 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(units) == 20_000
    assert peak < 15e6  # the distances alone are 41 MB


def test_the_ends_of_the_price() -> None:
    distances = np.random.default_rng(0).random((50, 10))
    assert (segment(distances, 0.0) == distances.argmin(axis=1)).all()
    one = segment(distances, 1e6)
    assert set(one.tolist()) == {int(distances.sum(axis=0).argmin())}


def test_more_price_never_gives_more_segments() -> None:
    distances = np.random.default_rng(1).random((200, 20))
    counts = [len(run_lengths(segment(distances, p))) for p in np.linspace(0, 3, 25)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 5 * counts[-1]


def test_flicker_is_removed_and_real_changes_stay() -> None:
    random = np.random.default_rng(0)
    codes = random.normal(size=(16, 8)) * 3
    true = np.repeat([3, 7, 1, 9, 3], [6, 4, 9, 5, 8])
    z = codes[true] + random.normal(size=(len(true), 8)) * 0.5
    z[2] = codes[4]  # one frame far off
    distances = code_distances(z, codes)
    assert len(run_lengths(distances.argmin(axis=1))) == 7
    # The frame far off costs its distance; a detour would cost two more segments.
    assert (segment(distances, distances[2, 3]) == true).all()


def test_distances_are_squared_euclidean() -> None:
    random = np.random.default_rng(0)
    z, codes = random.normal(size=(5, 3)), random.normal(size=(4, 3))
    want = ((z[:, None] - codes) ** 2).sum(axis=2)
    np.testing.assert_allclose(code_distances(z, codes), want, atol=1e-12)
    assert code_distances(codes, codes).min() >= 0.0


def test_the_price_for_a_rate() -> None:
    random = np.random.default_rng(0)
    distances = [random.random((100, 8)) for _ in range(3)]
    price = price_for_rate(distances, 12.0)
    count = sum(len(run_lengths(segment(d, price))) for d in distances)
    below = sum(len(run_lengths(segment(d, 0.98 * price))) for d in distances)
    assert count / 6.0 <= 12.0 < 1.2 * below / 6.0
    assert price_for_rate(distances, 50.0) == 0.0
    assert price_for_rate([[d[:30], d[30:]] for d in distances], 12.0) == price
    # Fewer than a segment an utterance cannot be: that many it is.
    few = price_for_rate(distances, 0.01)
    assert all(len(run_lengths(segment(d, few))) == 1 for d in distances)


def test_runs_and_text() -> None:
    units = np.array([5, 5, 2, 2, 2, 5], dtype=np.uint16)
    runs = run_lengths(units)
    assert runs == [Segment(5, 0, 2), Segment(2, 2, 3), Segment(5, 5, 1)]
    assert (expand(runs) == units).all()
    assert to_text(units) == "5 5 2 2 2 5"
    assert to_text(units, dedup=True) == "5 2 5"
    assert to_text(units, durations=True) == "5:2 2:3 5:1"
    assert (from_text("5:2 2:3 5:1") == units).all()
    assert (from_text(to_text(units)) == units).all()
    assert from_text("").tolist() == []
    assert run_lengths(np.zeros(0, dtype=int)) == []
    assert expand([]).tolist() == []
    assert expand([]).dtype == np.int64


def test_units_as_text_may_last_so_long_together_and_no_longer(monkeypatch) -> None:
    monkeypatch.setattr("audiovq.segment.MAX_FRAMES", 10)
    for line in ("1:10", "1:3 2:3 1:4"):
        assert len(from_text(line)) == 10
    for line in ("1:11", "1:3 2:3 1:5", "1:9 2 3"):
        with pytest.raises(ValueError, match="ends after frame 10"):
            from_text(line)
    assert from_text("1:2 2", 3).tolist() == [1] * 6 + [2] * 3
    with pytest.raises(ValueError, match="ends after frame 10"):
        from_text("1:2 2:2", 3)


@pytest.mark.parametrize(
    "line", ["a", "1.5", "-1", "1:0", "1:", "1\n2", ":1", "65536", f"1:{MAX_FRAMES}  1", "9" * 5000]
)
def test_text_that_is_not_units_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"unit|frame"):
        from_text(line)


@pytest.mark.parametrize("frame_rate", [50.0, 75.0, 12.5, 86.1328125])
def test_segment_files_round_trip(tmp_path: Path, frame_rate: float) -> None:
    segments = run_lengths(np.random.default_rng(0).integers(0, 4, 500))
    path = tmp_path / "a.tsv"
    write_segments(path, segments, frame_rate=frame_rate)
    assert path.read_text().splitlines()[0] == "unit\tstart\tduration"
    assert read_segments(path, frame_rate=frame_rate) == segments
    with pytest.raises(FileRefused, match="--force"):
        write_segments(path, segments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a segment file"),
        ("a\tb\tc\n1\t0\t1\n", "not a segment file"),
        ("unit\tstart\tduration\n", "holds no segments"),
        ("unit\tstart\tduration\n1\t0\n", "want unit"),
        ("unit\tstart\tduration\nx\t0\t1\n", "want unit"),
        ("unit\tstart\tduration\n1\t0\tinf\n", "want unit"),
        ("unit\tstart\tduration\n1\t0.5\t1\n", "does not follow"),
        ("unit\tstart\tduration\n1\t0\t0\n", "lasts none"),
        ("unit\tstart\tduration\n1\t0\t1000000000\n", "ends after frame"),
        ("unit\tstart\tduration\n65536\t0\t1\n", "out of range"),
        ("unit\tstart\tduration\n-1\t0\t1\n", "out of range"),
        ("unit\tstart\tduration\n1\t0\t" + "1" * 200_000, "not a segment file: field larger"),
        ("unit\tstart\tduration\n1\r0\t1\n", "want unit"),
    ],
)
def test_foreign_segment_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(FileRefused, match=says) as refused:
        read_segments(path)
    assert str(path) in str(refused.value)
    with pytest.raises(FileRefused, match="does not exist"):
        read_segments(tmp_path / "none.tsv")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=">= 0"):
        segment(np.ones((3, 2)), -1.0)
    with pytest.raises(ValueError, match=">= 0"):
        segment(np.ones((3, 2)), float("nan"))
    with pytest.raises(ValueError, match="finite"):
        segment(np.full((3, 2), np.nan), 1.0)
    with pytest.raises(ValueError, match="T, K"):
        segment(np.ones(3), 1.0)
    with pytest.raises(ValueError, match="at least one frame"):
        segment([], 1.0)
    with pytest.raises(ValueError, match="3 and 2 codes"):
        segment([np.ones((2, 3)), np.ones((2, 2))], 1.0)
    for rate in (0.0, float("nan")):
        with pytest.raises(ValueError, match="> 0"):
            price_for_rate([np.ones((3, 2))], rate)
    with pytest.raises(ValueError, match="no utterances"):
        price_for_rate([], 10.0)
