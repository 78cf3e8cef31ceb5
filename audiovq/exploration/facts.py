"""What is known of each code of a level, and where the codes lie beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audiovq.exploration.corpus import Runs


@dataclass(frozen=True)
class CodeFacts:
    """What the recordings and the codebook say of a code."""

    code: int
    n_frames: int
    share: float
    """Of all frames."""
    n_runs: int
    mean_frames: float
    """Mean duration of its runs; 0 when it is not used."""
    phones: list[tuple[str, float]]
    """Phones and the shares of the code's labelled frames that they have, largest first."""
    nearest: list[tuple[int, float]]
    """Other codes and their distances, nearest first."""
    x: float
    y: float
    """Its place on the map, in 0..1."""

    @property
    def phone(self) -> str | None:
        """The phone it stands for most often; None when none of its frames is labelled."""
        return self.phones[0][0] if self.phones else None


def code_facts(
    runs: Runs,
    vectors: np.ndarray,
    phones: Sequence[str],
    labels: np.ndarray | None,
    *,
    n_nearest: int = 8,
) -> list[CodeFacts]:
    """The facts of every code of a codebook, used or not.

    vectors: float32 [K, D]. labels: the phone of every frame of all recordings on end, indices into
    `phones`, -1 for none; None without alignments.
    """
    n_codes = len(vectors)
    counts = np.bincount(runs.code, weights=runs.duration, minlength=n_codes).astype(np.int64)
    n_runs = np.bincount(runs.code, minlength=n_codes)
    table = np.zeros((len(phones), n_codes), dtype=np.int64)
    if labels is not None:
        codes, known = np.repeat(runs.code, runs.duration), labels >= 0
        np.add.at(table, (labels[known], codes[known]), 1)
    neighbours, distances = nearest_codes(vectors, n_nearest)
    places = places_of(vectors)
    found = []
    for code in range(n_codes):
        column = table[:, code]
        order = [p for p in np.argsort(-column, kind="stable").tolist() if column[p]]
        found.append(
            CodeFacts(
                code=code,
                n_frames=int(counts[code]),
                share=float(counts[code] / max(1, counts.sum())),
                n_runs=int(n_runs[code]),
                mean_frames=float(counts[code] / max(1, n_runs[code])),
                phones=[(phones[p], float(column[p] / column.sum())) for p in order],
                nearest=list(zip(neighbours[code].tolist(), distances[code].tolist())),
                x=float(places[code, 0]),
                y=float(places[code, 1]),
            )
        )
    return found


def nearest_codes(vectors: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `n` nearest other codes of each [K, n] and their Euclidean distances [K, n]."""
    n = min(n, len(vectors) - 1)
    wide = vectors.astype(np.float64)
    norms = (wide * wide).sum(axis=1)
    squares = np.maximum(norms[:, None] - 2 * wide @ wide.T + norms, 0)
    np.fill_diagonal(squares, np.inf)
    order = np.argsort(squares, axis=1, kind="stable")[:, :n]
    return order, np.sqrt(np.take_along_axis(squares, order, axis=1))


def places_of(vectors: np.ndarray) -> np.ndarray:
    """Places of code vectors [K, D] on a map, [K, 2] in 0..1: near ones near each other.

    scikit-learn's t-SNE (van der Maaten and Hinton 2008), started from the principal components so
    that the same vectors always give the same map. Of fewer than 8 codes, the components alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < 8 or vectors.shape[1] < 2:
        wide = np.pad(vectors, ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
        n = min(2, len(wide) - 1)
        places = np.zeros((len(wide), 2))
        if n:
            places[:, :n] = PCA(n, svd_solver="full").fit_transform(wide)
    else:
        perplexity = min(30.0, (len(vectors) - 1) / 4)
        tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=0)
        places = tsne.fit_transform(vectors.astype(np.float32))
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.where(high > low, high - low, 1)
