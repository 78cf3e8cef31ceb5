"""The discriminators under training, and what they ask of the generator."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from audiovq.files import FileRefused
from audiovq.training.checkpoint import matching, read_newest
from audiovq.training.discriminator import Discriminator
from audiovq.training.losses import adversarial_loss, discriminator_loss, feature_loss
from audiovq.training.optimizers import all_finite, clip_gradients, make_optimizer
from audiovq.training.recipe import Recipe

CLIP_NORM = 10.0
"""Gradients of the discriminators are scaled down to this norm."""
NORM_DECAY = 0.99
"""Of the running norms that the balance compares."""


@dataclass
class Judgement:
    """What the discriminators say of a batch."""

    losses: dict[str, Tensor]
    """For the log: discriminator, adversarial, feature, adversarial_scale."""
    gradient: Tensor | None
    """What the generator is asked for, at its output [B, 1, N]; None when it was not finite."""


class Adversary:
    """Discriminators that learn to tell decoded from real sound, a step at a time.

    The gradient at the waveform is balanced (after the balancer of Defossez et al. 2022): its norm
    is made `loss.adversarial_balance` times that of the other losses on the sound, both as running
    averages. Without, either side drowns the other, by more than a factor of a hundred.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric) -> None:
        self.weights, self.fabric = recipe.loss, fabric
        self.module = Discriminator()
        self.wrapped, self.optimizer = fabric.setup(
            self.module, make_optimizer(self.module, recipe.train.discriminator_learning_rate)
        )
        self.norms: list[float] = []
        """Running norms of the gradient of the other losses and of this one; empty at first."""

    def go_on_from(self, folder: Path) -> None:
        """Take the weights of the discriminators of a run. Raises `FileRefused`."""
        start = read_newest(folder)
        if start is None:
            raise FileRefused(
                f"{folder} holds no checkpoint; name the folder of a run as "
                "train.initial_discriminators."
            )
        own = {f"discriminator.{name}": p for name, p in self.module.named_parameters()}
        with torch.no_grad():
            for name, tensor in matching(start.path, start.tensors, own).items():
                own[name].copy_(tensor)

    def step(self, wav: Tensor, fake: Tensor, plain: Tensor) -> Judgement:
        """Judge decoded sound, then learn from it.

        wav, fake: real and decoded sound [B, 1, N]. plain: the gradient of the other losses on it.
        """
        fake = fake.detach().requires_grad_()
        # In one call, as processes that wait for each other need it, but not as one batch: the
        # gradient at the decoded sound would go back through the real one too.
        real, decoded = self.wrapped(wav, fake)
        losses = {
            "discriminator": discriminator_loss(real, decoded),
            "adversarial": adversarial_loss(decoded),
            "feature": feature_loss(real, decoded),
        }
        asked = (
            self.weights.adversarial * losses["adversarial"]
            + self.weights.feature * losses["feature"]
        )
        self.fabric.backward(asked, retain_graph=True, inputs=[fake])
        assert fake.grad is not None
        gradient, fake.grad = fake.grad, None
        good = all_finite(self.fabric, losses["discriminator"], gradient)
        if good:
            self.fabric.backward(losses["discriminator"])
            norm = clip_gradients(self.fabric, self.wrapped, self.optimizer, CLIP_NORM)
            good = all_finite(self.fabric, norm)
        if good:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if not good:
            return Judgement(losses, None)
        scale = self._scale(plain, gradient)
        losses["adversarial_scale"] = torch.tensor(scale)
        return Judgement(losses, scale * gradient)

    def _scale(self, plain: Tensor, gradient: Tensor) -> float:
        if not self.weights.adversarial_balance:
            return 1.0
        norms = torch.stack([plain.norm(), gradient.norm()])
        found = torch.as_tensor(self.fabric.all_reduce(norms, reduce_op="mean")).tolist()
        if not all(map(math.isfinite, found)):
            return 1.0  # the step will be skipped, and shall leave no trace
        self.norms = [
            NORM_DECAY * before + (1 - NORM_DECAY) * now
            for before, now in zip(self.norms or found, found)
        ]
        return self.weights.adversarial_balance * self.norms[0] / max(self.norms[1], 1e-12)
