"""Checkpoints of a training: safetensors files, written whole or not at all, never pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from audiovq.files import FileRefused, atomic_output

PATTERN = "checkpoint-*.safetensors"
BEST = "best.safetensors"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to `path`."""
    with atomic_output(path, overwrite=True) as temporary:
        safetensors.torch.save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"values": json.dumps(values)},
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote. Raises `FileRefused`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(file.metadata()["values"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FileRefused(f"{path} is not a checkpoint of audiovq, or damaged.") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in a run's folder."""
    return max(folder.glob(PATTERN), default=None)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in sorted(folder.glob(PATTERN))[:-keep]:
        path.unlink()


def optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as named tensors."""
    return {
        f"{prefix}.{index}.{key}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimizer_tensors(prefix: str, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
