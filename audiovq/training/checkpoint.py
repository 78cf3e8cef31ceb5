"""Checkpoints of a codec's training."""

from pathlib import Path

from audiovq import runs
from audiovq.runs import (
    Checkpoint,
    Kinds,
    load_checkpoint,
    load_optimizer_tensors,
    matching,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)

__all__ = [
    "BEST",
    "Checkpoint",
    "load_checkpoint",
    "load_optimizer_tensors",
    "matching",
    "newest_checkpoint",
    "optimizer_tensors",
    "prune_checkpoints",
    "read_checkpoint",
    "read_newest",
    "save_checkpoint",
    "set_aside",
]

BEST = "best.safetensors"
KINDS: Kinds = {"step": int, "best": float | int, "quantize": bool, "config": dict, "card": dict}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a training's checkpoint. Raises `FileRefused`, also when it lacks what all have."""
    return runs.read_checkpoint(path, KINDS)


def read_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run's folder; see `audiovq.runs.read_newest`."""
    return runs.read_newest(folder, KINDS)
