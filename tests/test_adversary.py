"""The balance of the adversarial gradient, and both sides of the game in one step."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric

from audiovq.training.adversary import Adversary
from audiovq.training.recipe import DataSettings, LossSettings, ManifestSettings, Recipe

RECIPE = Recipe(data=DataSettings(train=(ManifestSettings("x.jsonl"),)))

pytestmark = pytest.mark.filterwarnings("ignore")  # Fabric's own, on every start


def adversary(precision="32-true", **loss) -> Adversary:
    torch.manual_seed(0)
    recipe = replace(RECIPE, loss=LossSettings(**loss))
    return Adversary(recipe, Fabric(accelerator="cpu", devices=1, precision=precision))


@pytest.fixture
def sounds():
    torch.manual_seed(1)
    real, fake, plain = 0.1 * torch.randn(3, 2, 1, 4000)
    return real, fake, plain


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("balance", [0.5, 2.0])
def test_the_gradient_has_the_share_that_is_asked_for(sounds, balance, precision):
    judged = adversary(precision, adversarial_balance=balance).step(*sounds)
    expected = balance * float(sounds[2].norm())
    assert float(judged.gradient.norm()) == pytest.approx(expected, rel=1e-4)


def test_the_balance_follows_running_norms(sounds):
    real, fake, plain = sounds
    critic = adversary()
    critic.step(real, fake, plain)
    first = list(critic.norms)
    critic.step(real, fake, 3 * plain)
    assert critic.norms[0] == pytest.approx(0.99 * first[0] + 0.01 * 3 * first[0])


def test_without_balance_the_weights_count(sounds):
    small = adversary(adversarial_balance=0.0, adversarial=1.0, feature=0.0).step(*sounds)
    large = adversary(adversarial_balance=0.0, adversarial=7.0, feature=0.0).step(*sounds)
    torch.testing.assert_close(large.gradient, 7 * small.gradient)


def test_the_discriminators_learn_and_the_generator_is_asked_to_fool_them(sounds):
    real, fake, plain = sounds
    critic = adversary(feature=0.0, adversarial_balance=0.0)
    before = [p.detach().clone() for p in critic.module.parameters()]
    losses = [float(critic.step(real, fake, plain).losses["discriminator"]) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, before, critic.module.parameters()))
    judged = critic.step(real, fake, plain)
    better = critic.step(real, fake - 1e-2 * judged.gradient / judged.gradient.abs().max(), plain)
    assert better.losses["adversarial"] < judged.losses["adversarial"]


def test_what_is_not_finite_leaves_no_trace(sounds):
    real, fake, plain = sounds
    critic = adversary()
    critic.step(real, fake, plain)
    before = [p.detach().clone() for p in critic.module.parameters()]
    norms = list(critic.norms)
    assert critic.step(real, fake * float("nan"), plain).gradient is None
    assert all(map(torch.equal, before, critic.module.parameters()))
    critic.step(real, fake, plain * float("nan"))
    assert critic.norms == norms
