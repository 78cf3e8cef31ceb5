"""Phone probabilities of all recordings, from a teacher's features and the labels of some.

    python recipes/speech_mix/posteriors.py FEATURES_DIR LABELS_DIR OUT_DIR MANIFEST...

A small network learns from the frames that have both what phone a teacher's features are, and says
it of all recordings with features: of those without a text too, and with what it doubts, which a
forced alignment does not say (Hinton et al., "Distilling the knowledge in a neural network", 2015).
FEATURES_DIR and LABELS_DIR are what `teacher.py` and `labels.py` write; OUT_DIR gets
`<recording id>.npy`, float16 [frames, 40], and is a data.labels_folder.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import nn

from audiovq.files import FileRefused, atomic_output
from audiovq.training.data import NO_LABEL, read_manifest

N_LABELS = 40
CONTEXT = 3
"""Frames on either side of the one that is named."""
WIDTH, DROPOUT = 512, 0.2
FRAMES = 300_000
"""Labelled frames that the network learns from, spread evenly over the recordings."""
HELD_OUT = 20
"""Of so many recordings with labels one is only for the figures at the end."""
EPOCHS, BATCH, LEARNING_RATE = 4, 2048, 1e-3


def main(
    features: Path, labels: Path, out: Path, manifests: Annotated[list[Path], typer.Argument()]
) -> None:
    """Write phone probabilities of all recordings of the manifests that have features."""
    torch.manual_seed(0)
    try:
        ids = [cut.id for path in manifests for cut in read_manifest(path)]
        ids = [name for name in ids if (features / f"{name}.npy").is_file()]
        known = [name for name in ids if (labels / f"{name}.npy").is_file()]
        held = known[::HELD_OUT]
        learnt = [name for name in known if name not in set(held)]
        if not learnt:
            raise FileRefused(
                f"No recording has features in {features} and labels in {labels}; give the "
                "folders that teacher.py and labels.py wrote, and their manifests."
            )
        network = fit(*labelled(features, labels, learnt))
        x, y = labelled(features, labels, held)
        for name in ids:
            frames = in_context(np.load(features / f"{name}.npy"))
            with torch.inference_mode():
                said = network(torch.from_numpy(frames)).softmax(dim=1)
            with atomic_output(out / f"{name}.npy", overwrite=True) as temporary:
                np.save(temporary, said.numpy().astype(np.float16))
    except FileRefused as error:
        sys.exit(str(error))
    with torch.inference_mode():
        right = (network(x.float()).argmax(dim=1) == y).float().mean()
    print(
        f"Wrote {len(ids)} recordings to {out}; name it as data.labels_folder. Of the frames of "
        f"{len(held)} recordings with labels that it did not learn from it names {right:.1%}."
    )


def in_context(frames: np.ndarray) -> np.ndarray:
    """Features [T, D] with those of the frames around: float32 [T, (2 * CONTEXT + 1) * D]."""
    padded = np.pad(frames.astype(np.float32), ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(frames)] for i in range(2 * CONTEXT + 1)], axis=1)


def labelled(features: Path, labels: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of these recordings and their labels, `FRAMES` at most: float16 [M, D] and [M]."""
    random = np.random.default_rng(0)

    def recordings() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in names:
            x, y = np.load(features / f"{name}.npy"), np.load(labels / f"{name}.npy")
            rows = np.flatnonzero(y[: len(x)] != NO_LABEL)
            rows = random.permutation(rows)[: -(-FRAMES // len(names))]
            yield in_context(x)[rows].astype(np.float16), y[rows].astype(np.int64)

    x, y = (np.concatenate(parts) for parts in zip(*recordings(), strict=True))
    return torch.from_numpy(x), torch.from_numpy(y)


def fit(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A network that says of features [M, D] which label they have, as log-odds [M, N_LABELS]."""
    network = nn.Sequential(
        nn.Linear(x.shape[1], WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, N_LABELS)
    )
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    n_steps = EPOCHS * -(-len(x) // BATCH)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, n_steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(network(x[rows].float()), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return network.eval()


if __name__ == "__main__":
    typer.run(main)
