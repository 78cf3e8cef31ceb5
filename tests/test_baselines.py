"""The baselines: MFCC that line up with frames, k-means on them, and the permuted control."""

import numpy as np
import pytest

from audiovq.units.baselines import kmeans_units, mfcc, mfcc_units, permuted_units

pytest.importorskip("sklearn")


@pytest.mark.parametrize("n", [1, 319, 320, 321, 5000])
@pytest.mark.parametrize("frame_rate", [50.0, 25.0, 100.0])
def test_mfcc_have_a_row_for_each_frame(n: int, frame_rate: float) -> None:
    wav = np.random.default_rng(0).normal(size=n).astype(np.float32) * 0.1
    hop = int(16_000 / frame_rate)
    features = mfcc(wav, frame_rate=frame_rate)
    assert features.shape == (-(-n // hop), 39)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_mfcc_stand_on_the_centres_of_frames() -> None:
    # A click in the middle of frame 10 is loudest there, and as loud one frame either side.
    wav = np.zeros(6400, dtype=np.float32)
    wav[10 * 320 + 160] = 1.0
    energy = mfcc(wav)[:, 0]
    assert energy.argmax() == 10
    assert energy[9] == pytest.approx(energy[11], abs=1e-3)


def test_a_rate_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        mfcc(np.zeros(1000, dtype=np.float32), frame_rate=37.0)


def test_kmeans_finds_clusters_that_are_there() -> None:
    random = np.random.default_rng(0)
    true = [random.integers(0, 4, n) for n in (50, 80)]
    centres = random.normal(size=(4, 3)) * 20
    features = [(centres[t] + random.normal(size=(len(t), 3))).astype(np.float32) for t in true]
    units = kmeans_units(features, 4)
    assert [len(u) for u in units] == [50, 80]
    pairs = {
        (int(t), int(u)) for t, u in zip(np.concatenate(true), np.concatenate(units), strict=True)
    }
    assert len(pairs) == 4  # one unit a cluster
    again = kmeans_units(features, 4)
    assert all((a == b).all() for a, b in zip(units, again, strict=True))


def test_kmeans_can_be_fitted_elsewhere() -> None:
    fit = [np.repeat([[0.0], [10.0]], 20, axis=0)]
    units = kmeans_units([np.array([[1.0], [2.0], [9.0]])], 2, fit=fit)[0]
    assert units[0] == units[1] != units[2]
    with pytest.raises(ValueError, match="too few"):
        kmeans_units([np.zeros((3, 2))], 4)


def test_mfcc_units_tell_sounds_apart() -> None:
    t = np.arange(16_000) / 16_000
    low, high = np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 3000 * t)
    wav = (0.3 * np.concatenate([low, high])).astype(np.float32)
    (units,) = mfcc_units([wav], 2)
    assert len(units) == 100
    assert len(set(units[5:45].tolist())) == 1
    assert len(set(units[55:95].tolist())) == 1
    assert units[20] != units[80]


def test_permuted_units_are_the_same_units_elsewhere() -> None:
    units = [np.arange(100) % 7, np.arange(50) % 5]
    permuted = permuted_units(units)
    assert [len(u) for u in permuted] == [100, 50]
    before, after = np.concatenate(units), np.concatenate(permuted)
    assert (np.bincount(before) == np.bincount(after)).all()
    assert (before != after).mean() > 0.5
