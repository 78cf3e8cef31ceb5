"""Fewer units: those that mean nearly the same, told apart no more.

Ward's clustering (Ward, "Hierarchical grouping to optimize an objective function", 1963) of one
vector for each unit, its code or what it stands for, weighted by how often it is used: step by step
the two clusters are merged that the mean squared distance of units from their cluster's mean
suffers least from. So the clusters of
fewer units are made of those of more. Every sum has one order, so that all machines agree.
"""

import numpy as np


def merges(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The order in which clusters of vectors [K, D] with weights [K] above 0 are merged.

    int64 [K - 1, 2]: each row's second cluster joins its first, and both are named by the least
    index in them.
    """
    weights = np.array(weights, dtype=np.float64)
    shares = np.multiply.outer(weights, weights) / np.add.outer(weights, weights)
    costs = shares * _squared_distances(vectors, vectors)
    np.fill_diagonal(costs, np.inf)
    order = np.empty((len(weights) - 1, 2), dtype=np.int64)
    for row in order:
        first, second = sorted(np.unravel_index(costs.argmin(), costs.shape))
        a, b = weights[first], weights[second]
        # What merging the new cluster with each other one costs (Lance and Williams 1967).
        both = (a + weights) * costs[first] + (b + weights) * costs[second]
        new = (both - weights * costs[first, second]) / (a + b + weights)
        new[first] = np.inf
        costs[first], costs[:, first] = new, new
        costs[second], costs[:, second] = np.inf, np.inf
        weights[first] += b
        row[:] = first, second
    return order


def standing_for(
    order: np.ndarray, vectors: np.ndarray, weights: np.ndarray, n_clusters: int
) -> np.ndarray:
    """For each of vectors [K, D] the one that stands for its cluster: int64 [K].

    order: that of `merges`, of which so many are done that `n_clusters` are left, 1 to K. The one
    that stands for a cluster is the nearest to its mean.
    """
    cluster = np.arange(len(vectors))
    for first, second in order[: len(vectors) - n_clusters]:
        cluster[cluster == second] = first
    total, weight = np.zeros(vectors.shape), np.zeros(len(vectors))
    np.add.at(total, cluster, weights[:, None] * vectors.astype(np.float64))
    np.add.at(weight, cluster, weights)
    names = np.unique(cluster)
    away = _squared_distances(total[names] / weight[names, None], vectors)  # [clusters, K]
    away[cluster != names[:, None]] = np.inf
    return away.argmin(axis=1)[np.searchsorted(names, cluster)]


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rows of a [M, D] and b [N, D]: [M, N], summed in the order of the dimensions."""
    total = np.zeros((len(a), len(b)))
    for x, y in zip(a.T.astype(np.float64), b.T.astype(np.float64)):
        total += np.square(np.subtract.outer(x, y))
    return total
