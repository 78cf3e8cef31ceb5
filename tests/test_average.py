"""The moving average of weights."""

import pytest
import torch
from torch import nn

from audiovq.training.average import Average


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@torch.no_grad()
def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.fill_(value)


def test_what_does_not_change_is_its_own_average(module):
    average = Average(module, 0.9)
    for step in range(5):
        average.update(step)
    for mean, own in zip(average.tensors.values(), values(module), strict=True):
        assert torch.allclose(mean, own)


def test_a_part_may_begin_anew(module):
    average = Average(module, 0.9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    average.restart("weight")
    for name, parameter in module.named_parameters():
        assert torch.equal(average.tensors[name], parameter) == ("weight" in name)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (10_000, 0.9)])
def test_early_on_the_average_is_short_and_later_as_long_as_was_asked_for(module, step, decay):
    fill(module, 1.0)
    average = Average(module, 0.9)
    fill(module, 0.0)
    average.update(step)
    for mean in average.tensors.values():
        assert torch.allclose(mean, torch.full_like(mean, decay))


def test_a_module_has_the_averages_for_a_while_and_keeps_its_buffers(module):
    average = Average(module, 0.9)
    before = values(module)
    fill(module, 2.0)
    module[1].running_mean.fill_(5)
    versions = [p._version for p in module.parameters()]
    with pytest.raises(KeyError), average.applied():
        for own, mean in zip(values(module), before, strict=True):
            assert torch.equal(own, mean)
        assert all(p._version > v for p, v in zip(module.parameters(), versions, strict=True))
        assert (module[1].running_mean == 5).all()
        raise KeyError  # whatever ends the block
    assert all((p == 2).all() for p in module.parameters())
