"""Laws of the discriminators and of their losses."""

import pytest
import torch
from torch import Tensor

from audiovq.discriminator import (
    PERIODS,
    STFT_SIZES,
    Discriminator,
    _phases,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)


def outputs(score: float, activation: float = 1.0) -> list[list[Tensor]]:
    """Two sub-discriminators with one layer and their scores."""
    return [[torch.full((2, 3), activation), torch.full((2, 3), score)] for _ in range(2)]


@pytest.mark.parametrize(
    ("real", "fake", "loss"), [(0, 0, 2), (1, -1, 0), (5, -5, 0), (-1, 1, 4), (0.5, -0.5, 1)]
)
def test_hinge_by_hand(real, fake, loss):
    assert discriminator_loss(outputs(real), outputs(fake)) == pytest.approx(loss)
    assert adversarial_loss(outputs(fake)) == pytest.approx(-fake)


def test_feature_loss_is_relative_and_hears_no_scores():
    assert feature_loss(outputs(1), outputs(-1)) == 0
    for scale in (1.0, 10.0):
        loss = feature_loss(outputs(0, scale), outputs(0, 1.5 * scale))
        assert loss == pytest.approx(0.5)


@pytest.mark.parametrize("period", PERIODS)
def test_phases_keep_every_sample(period):
    wav = torch.arange(1.0, 101).reshape(2, 1, 50)
    phases = _phases(wav, period)
    back = phases.reshape(2, period, -1).transpose(1, 2).reshape(2, 1, -1)[:, :, :50]
    assert torch.equal(back, wav)


def test_every_discriminator_hears_every_sample():
    torch.manual_seed(0)
    discriminator = Discriminator()
    wav = (0.1 * torch.randn(1, 1, 4_000)).requires_grad_()
    judged = discriminator(wav)
    assert len(judged) == len(PERIODS) + len(STFT_SIZES)
    for layers in judged:
        (gradient,) = torch.autograd.grad(layers[-1].sum(), wav, retain_graph=True)
        assert (gradient != 0).float().mean() > 0.95
