"""Steps whose losses are not finite: skipped, said aloud, and too many of them end a run."""

from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from audiovq.training.checkpoint import newest_checkpoint
from audiovq.training.log import RunLog

T = TypeVar("T")

MAX_BAD_STEPS = 5
"""Steps in a row with losses that are not finite, after which a run stops."""


class BadSteps:
    """How many steps in a row were bad."""

    def __init__(self, fabric: Fabric, log: RunLog, out: Path) -> None:
        self.fabric, self.log, self.out = fabric, log, out
        self.in_a_row = 0

    def note(self, step: int, recordings: list[str], losses: dict[str, Tensor]) -> None:
        """Say which losses, and whose, are not finite on any rank; every rank calls this.

        Raises `FloatingPointError` when there are too many such steps.
        """
        bad = [name for name, loss in losses.items() if not torch.isfinite(loss).all()]
        names, guilty = blame(self._gather((bad, recordings)))
        self.log.alarm(
            f"step {step} is skipped: {', '.join(names) or 'a loss'} is not finite; "
            f"its recordings are {', '.join(guilty)}."
        )
        self.log.window.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"Losses or gradients were not finite in {MAX_BAD_STEPS} steps in a row; the last "
                f"good checkpoint is {newest_checkpoint(self.out)}. Lower train.learning_rate."
            )

    def _gather(self, item: T) -> list[T]:
        """An object of every rank."""
        items = [item] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(items, item)
        return items


def blame(reports: list[tuple[list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """What was not finite, and the recordings of the ranks where it was.

    reports: for each rank the losses that are not finite and the recordings of its batch. Where no
    rank has such a loss, their sum is not finite, and every recording counts.
    """
    guilty = [report for report in reports if report[0]] or reports
    names = list(dict.fromkeys(name for bad, _ in guilty for name in bad))
    return names, [name for _, recordings in guilty for name in recordings]
