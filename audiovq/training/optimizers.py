"""Optimizer, learning rate and gradients, of generator and discriminators alike."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from audiovq.training.recipe import Recipe


def make_optimizer(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW for the parameters that learn."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True
    )


def schedule(recipe: Recipe, step: int, first: int = 0) -> float:
    """Factor of the learning rates of what learns from step `first` on: up, level, down to 0."""
    settings = recipe.train
    n_decay = max(1, round(settings.decay_share * settings.steps))
    rise = min(1.0, max(0, step - first + 1) / max(1, settings.warmup_steps))
    return rise * min(1.0, (settings.steps - step) / n_decay)


def generator_first(recipe: Recipe, step: int) -> int:
    """The step from which on the generator learns, without the discriminators or again with them:
    later than `step` while it waits for them (`train.discriminator_head_start`)."""
    settings = recipe.train
    if step >= settings.heads_alone > 0:
        return settings.heads_alone
    if not settings.discriminator_head_start or step < settings.adversarial_from:
        return 0
    return settings.adversarial_from + settings.discriminator_head_start


def set_learning_rates(recipe: Recipe, step: int, generator: Any, discriminators: Any) -> None:
    """Give two optimizers their learning rates of a step."""
    settings = recipe.train
    for optimizer, rate, first in (
        (generator, settings.learning_rate, generator_first(recipe, step)),
        (discriminators, settings.discriminator_learning_rate, 0),
    ):
        optimizer.param_groups[0]["lr"] = rate * schedule(recipe, step, first)


def clip_gradients(fabric: Fabric, module: Any, optimizer: Any, max_norm: float) -> Tensor:
    """Scale gradients down to a norm; returns the norm they had, which may not be finite."""
    norm = fabric.clip_gradients(module, optimizer, max_norm=max_norm, error_if_nonfinite=False)
    assert norm is not None
    return norm


def all_finite(fabric: Fabric, *values: Tensor) -> bool:
    """Whether values are finite on every rank."""
    good = torch.stack([torch.isfinite(value.detach()).all() for value in values]).all()
    return bool(fabric.all_reduce(good.float(), reduce_op="mean") == 1.0)
