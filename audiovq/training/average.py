"""The moving average of a model's weights, which validation and export use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of a module's parameters, which start as they are.

    torch's AveragedModel copies or averages buffers too at every update; a codebook, which is
    buffers, is an average already and must be the one that the encoder learns with.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.tensors = {name: p.detach().clone() for name, p in module.named_parameters()}
        """By the names of the parameters."""

    def update(self, step: int) -> None:
        """Take in the parameters after `step` updates before."""
        decay = min(self.decay, (1 + step) / (10 + step))  # early on, over all steps so far
        parameters = [p.detach() for p in self.module.parameters()]
        torch._foreach_lerp_(list(self.tensors.values()), parameters, 1 - decay)

    @torch.no_grad()
    def restart(self, part: str = "") -> None:
        """Begin anew with the parameters as they are, those with `part` in their names."""
        for name, parameter in self.module.named_parameters():
            if part in name:
                self.tensors[name].copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averages inside the block, and its own parameters after it."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._set(self.tensors)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(tensors[name])  # not .data: streams must see that it changed
