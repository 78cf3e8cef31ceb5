"""Codes that learn which phone they stand for, and move to where they say it best."""

import torch
from torch import Tensor, nn

from audiovq.quantize import EMACodebook
from audiovq.training.losses import CONTEXT, SHARPNESS, neighbour_distance, squared_distances

STEP = 20.0
"""By how much more than a weight a code moves in a step, in distances between neighbours."""
LEARN = 40.0
"""By how much more than a weight its log-odds of labels do."""


class LabelledCodes(nn.Module):
    """The codes of a codebook [K, D] as prototypes of phone labels (soft learning vector
    quantization, Seo and Obermayer 2003).

    A vector is each code with a probability that falls with its squared distance, and each code
    has probabilities of labels: so vectors and codes learn from labels by gradients, whereas
    nearest codes have none. k-means spends codes on whatever varies, these on what is asked for:
    on the labels around too, since a phone sounds by its neighbours.
    """

    start: Tensor
    scale: Tensor

    def __init__(self, size: int, dim: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("start", torch.zeros(size, dim))
        self.register_buffer("scale", torch.ones(()))
        self.moved = nn.Parameter(torch.zeros(size, dim))
        self.odds = nn.Parameter(torch.zeros(len(CONTEXT), size, n_labels))

    @torch.no_grad()
    def begin(self, codebook: EMACodebook) -> None:
        """Start where the codes of a codebook are."""
        self.start.copy_(codebook.vectors)
        self.scale.copy_(neighbour_distance(self.start))
        self.moved.zero_()

    @property
    def vectors(self) -> Tensor:
        """Where the codes are, [K, D]."""
        return self.start + STEP * self.scale.sqrt() * self.moved

    def forward(self, x: Tensor) -> Tensor:
        """Vectors [B, T, D] -> log-probabilities of the codes [B, T, K]."""
        distances = squared_distances(x.float().flatten(0, 1), self.vectors, self.scale)
        return (-SHARPNESS * distances).log_softmax(dim=1).unflatten(0, x.shape[:2])

    @property
    def own_labels(self) -> Tensor:
        """What each code says of its own frame: probabilities [K, n_labels]."""
        return (LEARN * self.odds[0]).softmax(dim=1)

    def labels(self, log_codes: Tensor) -> Tensor:
        """Log-probabilities of codes [B, T, K] -> those of labels, of each frame of `CONTEXT`:
        [3, B, T, n_labels]."""
        said = log_codes.exp() @ (LEARN * self.odds).softmax(dim=2)[:, None]
        return said.clamp(min=1e-6).log()
