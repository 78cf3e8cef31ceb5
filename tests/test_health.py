"""Laws of the codebooks' health."""

import numpy as np
import pytest

from audiovq.codes import Header, write_avq, write_npy
from audiovq.files import FileRefused
from audiovq.health import codebook_health, count_codes


@pytest.mark.parametrize("size", [1, 2, 100, 1024])
def test_equal_use_has_the_perplexity_of_the_size(size):
    health = codebook_health(np.full(size, 7))
    assert health.perplexity == pytest.approx(size)
    assert (health.active, health.active_share, health.verdict) == (size, 1.0, "healthy")


def test_one_code_alone_is_a_collapse():
    health = codebook_health(np.eye(64)[3] * 1000)
    assert (health.perplexity, health.active, health.verdict) == (1.0, 1, "collapsed")


def test_nothing_counted():
    health = codebook_health(np.zeros(8))
    assert (health.n_frames, health.active, health.perplexity) == (0, 0, 1.0)
    assert health.verdict == "too few frames to tell"


def test_perplexity_is_between_one_and_the_active_codes(rng):
    for _ in range(20):
        counts = rng.integers(0, 9, size=50)
        health = codebook_health(counts)
        assert 1 <= health.perplexity <= health.active + 1e-9
        twice = codebook_health(2 * counts)
        assert twice.perplexity == pytest.approx(health.perplexity)


def test_counts_add_up_over_files(tmp_path, rng):
    codes = [rng.integers(0, 16, size=(levels, 40)) for levels in (1, 3)]
    paths = [tmp_path / f"{number}.npy" for number in range(2)]
    for path, some in zip(paths, codes):
        np.save(path, some.astype(np.uint16))
    counts = count_codes(paths, 16)
    assert counts.shape == (3, 16)
    assert counts.sum(axis=1).tolist() == [80, 40, 40]
    expected = np.bincount(np.concatenate([codes[0][0], codes[1][0]]), minlength=16)
    assert (counts[0] == expected).all()
    with pytest.raises(ValueError, match="--size"):
        count_codes(paths, 4)


def test_codes_of_two_models_are_not_added_up(tmp_path):
    for name in ("a", "b"):
        header = Header("m", f"fingerprint {name}", 16_000, 320, 8, 1, 640)
        write_avq(tmp_path / f"{name}.avq", np.zeros((1, 2), int), header)
    files = sorted(tmp_path.iterdir())
    assert count_codes(files[:1], 1024).tolist() == [[2, *[0] * 7]]
    with pytest.raises(FileRefused, match="another model"):
        count_codes(files, 1024)
    write_npy(tmp_path / "0.npy", np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="give that as --size"):
        count_codes([tmp_path / "0.npy", files[0]], 1024)
