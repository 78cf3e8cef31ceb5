"""What every training writes: checkpoints and metrics.

Checkpoints are safetensors files, written whole or not at all, never pickled. Metrics are lines of
JSON, and scalars for TensorBoard where it is installed.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from audiovq.files import FileRefused, atomic_output

PATTERN = "checkpoint-*.safetensors"
METRICS_FILE = "metrics.jsonl"

Kinds = Mapping[str, type | UnionType]
"""Values that a checkpoint must have, and their types."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to `path`; they are on the disk when it returns.

    Raises `FileRefused` when that fails, as on a full disk; `path` is then as it was.
    """
    with atomic_output(path, overwrite=True, durable=True) as temporary:
        try:
            safetensors.torch.save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata={"values": json.dumps(values)},
            )
        except safetensors.SafetensorError as error:  # which is no OSError
            reason = str(error).rpartition("error: ")[2]
            raise FileRefused(f"{path} cannot be written: {reason}.") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote. Raises `FileRefused`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(file.metadata()["values"])
    except (
        *(OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError),
        RecursionError,  # brackets without end
    ) as error:
        raise FileRefused(f"{path} is not a checkpoint of audiovq, or damaged.") from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a training that was read and has what every one must have."""

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """What the training noted."""
    damaged: tuple[Path, ...] = ()
    """Newer checkpoints of the folder that cannot be read."""


def read_checkpoint(path: Path, kinds: Kinds) -> Checkpoint:
    """Read a training's checkpoint. Raises `FileRefused`, also when it lacks a value of `kinds`."""
    tensors, values = load_checkpoint(path)
    for name, kind in kinds.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise FileRefused(f"{path} is not a checkpoint of a training: it lacks its {name}.")
    return Checkpoint(path, tensors, values)


def read_newest(folder: Path, kinds: Kinds) -> Checkpoint | None:
    """The newest checkpoint of a run's folder that can be read; None when there is none at all.

    Raises `FileRefused` when there are some and none can be read.
    """
    damaged: list[Path] = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            found = read_checkpoint(path, kinds)
        except FileRefused:
            damaged.append(path)
            continue
        return Checkpoint(found.path, found.tensors, found.values, tuple(damaged))
    if damaged:
        raise FileRefused(
            f"{damaged[0]} is damaged, and {folder} holds no older one to go back to."
        )
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in a run's folder."""
    return max(folder.glob(PATTERN), default=None)


def set_aside(paths: tuple[Path, ...]) -> None:
    """Rename damaged checkpoints, so that they are neither read again nor kept for good ones."""
    for path in paths:
        path.replace(path.with_name(f"{path.name}.damaged"))


def matching(
    path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the checkpoint `path` that `wanted` names, checked against its shapes.

    A codebook's reservoir may have any number of rows. Raises `FileRefused`.
    """
    for name, tensor in wanted.items():
        if name not in tensors:
            raise FileRefused(
                f"{path} lacks {name}: the recipe's losses or audiovq's discriminators have "
                "changed since. Export it and name that model as train.initial_model."
            )
        found = tensors[name]
        free = int(name.endswith(".reservoir"))
        if (
            found.shape[free:] != tensor.shape[free:]
            or found.dim() != tensor.dim()
            or found.dtype != tensor.dtype
        ):
            raise FileRefused(
                f"{path} does not fit the recipe: its {name} is {_kind(found)}, and "
                f"{_kind(tensor)} is wanted."
            )
    return {name: tensors[name] for name in wanted}


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


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


def load_optimizer_tensors(
    prefix: str, optimizer: Optimizer, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer of the same parameters.

    path: the checkpoint they are from, for the sentence of the `FileRefused` that they raise when
    they do not fit.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = {
        f"{prefix}.{index}.{key}": tensor
        for index, parameter in enumerate(parameters)
        # A parameter that never had a gradient has no state.
        if f"{prefix}.{index}.step" in tensors
        for key, tensor in (
            ("step", torch.tensor(0.0)),
            ("exp_avg", parameter),
            ("exp_avg_sq", parameter),
        )
    }
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in matching(path, tensors, wanted).items():
        index, key = name.removeprefix(f"{prefix}.").split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def cut_metrics(folder: Path, step: int) -> None:
    """Drop the lines of a run's metrics beyond `step`, which is where the run goes on."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a line of metrics; of one that a kill has halved, infinity."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")


class Metrics:
    """The metrics of a run in the folder `out`, from `step` on: what is there beyond it goes."""

    def __init__(self, out: Path, step: int) -> None:
        self.out = out
        cut_metrics(out, step)
        self.writer = _tensorboard(out, step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, and TensorBoard's scalars."""
        with (self.out / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        if self.writer is None:
            return
        for name, value in values.items():
            for level, part in enumerate(value if isinstance(value, list) else [value]):
                tag = f"{name}/{level}" if isinstance(value, list) else name
                self.writer.add_scalar(tag, part, step)


def _tensorboard(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(out / "tensorboard", purge_step=step + 1 if step else None)
