"""Laws of checkpoints: what is read is what was written, and nothing is unpickled."""

import math
import os
import pickle
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import full_disk
from torch import nn

from audiovq.files import FileRefused
from audiovq.training.checkpoint import (
    load_checkpoint,
    load_optimizer_tensors,
    matching,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    read_newest,
    save_checkpoint,
    set_aside,
)


def test_tensors_and_values_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.randn(3, 4).t(), "n": torch.tensor(7)}
    save_checkpoint(path, tensors, {"step": 5, "card": {"name": "é"}})
    read, values = load_checkpoint(path)
    assert values == {"step": 5, "card": {"name": "é"}}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        pickle.dumps({"step": 1}),
        safetensors.torch.save({}, metadata={"values": "[" * 100_000}),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileRefused, match="not a checkpoint"):
        load_checkpoint(path)


VALUES = {"step": 5, "best": math.inf, "quantize": True, "config": {}, "card": {}}


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, real_fsync, real_replace = [], os.fsync, os.replace

    def fsync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(*paths):
        done.append("rename")
        real_replace(*paths)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.replace", replace)
    save_checkpoint(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
    assert done == ["file", "rename", "folder"]


def test_a_full_disk_is_refused_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"x": torch.ones(3)}, {})
    with full_disk(), pytest.raises(FileRefused, match="written: File too large") as refusal:
        save_checkpoint(path, {"x": torch.ones(99_999)}, {})
    assert "\n" not in str(refusal.value)
    assert torch.equal(load_checkpoint(path)[0]["x"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def checkpoints(folder: Path) -> list[Path]:
    """Three checkpoints, the oldest first."""
    paths = [folder / f"checkpoint-{step:08d}.safetensors" for step in (5, 10, 15)]
    for step, path in enumerate(paths):
        save_checkpoint(path, {"x": torch.full((99,), step)}, VALUES)
    return paths


@pytest.mark.parametrize("damage", ["empty", "halved", "foreign"])
def test_the_newest_that_can_be_read_is_read(tmp_path, damage):
    assert read_newest(tmp_path) is None
    paths = checkpoints(tmp_path)
    found = read_newest(tmp_path)
    assert found is not None
    assert (found.path, found.damaged) == (paths[2], ())
    for path in paths[1:]:
        if damage == "foreign":
            save_checkpoint(path, {}, {"step": 5})  # a whole file, and no checkpoint of a training
        else:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if damage == "halved" else b"")
    found = read_newest(tmp_path)
    assert found is not None
    assert (found.path, found.damaged) == (paths[0], (paths[2], paths[1]))
    assert found.values["step"] == 5
    set_aside(found.damaged)
    assert newest_checkpoint(tmp_path) == paths[0]
    paths[0].write_bytes(b"")
    with pytest.raises(FileRefused, match="no older one"):
        read_newest(tmp_path)


@pytest.mark.parametrize("name", list(VALUES))
def test_a_checkpoint_without_a_value_that_all_have_is_refused(tmp_path, name):
    path = tmp_path / "a.safetensors"
    for wrong in ({}, {name: "text"}):
        values = {key: value for key, value in VALUES.items() if key != name}
        save_checkpoint(path, {}, values | wrong)
        with pytest.raises(FileRefused, match=f"lacks its {name}"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({}, "lacks x"),
        ({"x": torch.zeros(2, 3)}, r"its x is float32 \[2, 3\], and float32 \[2, 4\] is wanted"),
        ({"x": torch.zeros(2, 4, dtype=torch.int8)}, "its x is int8"),
        (
            {"x": torch.zeros(2, 4), "a.reservoir": torch.zeros(7, 3)},
            r"reservoir is float32 \[7, 3",
        ),
        ({"x": torch.zeros(2, 4), "a.reservoir": torch.zeros(())}, "reservoir"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensors, sentence):
    wanted = {"x": torch.zeros(2, 4), "a.reservoir": torch.zeros(0, 8)}
    good = {"x": torch.ones(2, 4), "a.reservoir": torch.zeros(7, 8), "more": torch.zeros(1)}
    assert matching(tmp_path, good, wanted).keys() == wanted.keys()
    with pytest.raises(FileRefused, match=sentence):
        matching(tmp_path, tensors, wanted)


def test_an_optimizer_of_other_shapes_is_refused(tmp_path):
    layer, other = nn.Linear(3, 2), nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors("o", optimizer)
    with pytest.raises(FileRefused, match=r"o\.0\.exp_avg is float32 \[2, 3\]"):
        load_optimizer_tensors("o", torch.optim.AdamW(other.parameters()), tensors, tmp_path)
    del tensors["o.0.exp_avg"]
    with pytest.raises(FileRefused, match=r"lacks o\.0\.exp_avg"):
        load_optimizer_tensors("o", torch.optim.AdamW(layer.parameters()), tensors, tmp_path)


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
    tensors = load_checkpoint(tmp_path / "a")[0]
    load_optimizer_tensors("o", other, tensors, tmp_path / "a")
    step(layer, optimizer)
    step(twin, other)
    assert torch.equal(layer.weight, twin.weight)
