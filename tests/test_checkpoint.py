"""Laws of checkpoints: what is read is what was written, and nothing is unpickled."""

import pickle

import pytest
import torch
from torch import nn

from audiovq.checkpoint import (
    load_checkpoint,
    load_optimizer_tensors,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from audiovq.files import FileRefused


def test_tensors_and_values_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.randn(3, 4).t(), "n": torch.tensor(7)}
    save_checkpoint(path, tensors, {"step": 5, "card": {"name": "é"}})
    read, values = load_checkpoint(path)
    assert values == {"step": 5, "card": {"name": "é"}}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps({"step": 1})])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileRefused, match="not a checkpoint"):
        load_checkpoint(path)


def test_the_newest_stay(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (900, 1000, 99_000):
        (tmp_path / f"checkpoint-{step:08d}.safetensors").touch()
    prune_checkpoints(tmp_path, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-00099000.safetensors"


def test_an_optimizer_goes_on_as_if_never_stopped(tmp_path):
    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(3):
        step(layer, optimizer)
    save_checkpoint(tmp_path / "a", optimizer_tensors("o", optimizer), {})
    twin = nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    other = torch.optim.AdamW(twin.parameters())
    load_optimizer_tensors("o", other, load_checkpoint(tmp_path / "a")[0])
    step(layer, optimizer)
    step(twin, other)
    assert torch.equal(layer.weight, twin.weight)
