"""Fewer units: which are merged, and which one stands for the others."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from tiny import TINY, started_model

from audiovq.coarse import merges, standing_for


@pytest.fixture(scope="module")
def codes() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((60, 5)).astype(np.float32), random.uniform(0.1, 3, 60)


def stands(codes: tuple[np.ndarray, np.ndarray], n: int) -> np.ndarray:
    return standing_for(merges(*codes), *codes, n)


def test_so_many_units_are_left_and_each_stands_for_itself(codes):
    for n in (1, 2, 17, 59, 60):
        found = stands(codes, n)
        left = np.unique(found)
        assert len(left) == n
        assert (found[left] == left).all()
    assert (stands(codes, 60) == np.arange(60)).all()


def test_fewer_units_are_made_of_more(codes):
    for more, fewer in ((59, 30), (30, 12), (12, 1)):
        assert (stands(codes, fewer)[stands(codes, more)] == stands(codes, fewer)).all()


@pytest.mark.parametrize("n", [2, 9, 40])
def test_codes_used_alike_are_merged_as_ward_does(codes, n):
    vectors = codes[0]
    found = stands((vectors, np.ones(60)), n)
    wanted = fcluster(linkage(vectors.astype(np.float64), "ward"), n, "maxclust")
    assert len(set(zip(found, wanted))) == n  # one cluster there is one here


def test_a_code_counts_as_often_as_it_is_used():
    """One of weight 3 is three of weight 1 in one place."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((20, 3))
    weights = random.integers(1, 4, 20).astype(float)
    index = np.repeat(np.arange(20), weights.astype(int))
    for n in (3, 8, 15):
        found = stands((vectors, weights), n)
        often = stands((vectors[index], np.ones(len(index))), n)
        assert len(set(zip(found[index], index[often]))) == n


def test_the_nearest_to_the_mean_stands_for_all():
    vectors = np.array([[0.0], [1.0], [1.1], [9.0]])
    assert stands((vectors, np.ones(4)), 2).tolist() == [1, 1, 1, 3]
    assert stands((vectors, np.array([9.0, 1, 1, 1])), 2).tolist() == [0, 0, 0, 3]


def test_codes_in_one_place_are_merged_first():
    vectors = np.array([[0.0], [4.0], [0.0], [4.0], [9.0]])
    assert stands((vectors, np.ones(5)), 3).tolist() == [0, 1, 0, 1, 4]


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_model_names_its_coarse_units(codebook):
    model = started_model(TINY.__class__(**{**TINY.__dict__, "codebook": codebook}))
    size = model.config.codebook_size
    found = model.coarse_units(size // 2)
    assert found.shape == (size,)
    assert found.dtype == torch.int64
    assert len(found.unique()) == size // 2
    for n in (0, size + 1):
        with pytest.raises(ValueError, match=rf"n_units must be in 1\.\.{size}, .* not {n}"):
            model.coarse_units(n)
