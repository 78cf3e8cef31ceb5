"""What a run says: lines for people, metrics.jsonl for programs, TensorBoard, alarms."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from audiovq.health import COLLAPSED, CodebookHealth, codebook_health
from audiovq.runs import Metrics
from audiovq.training.data import CropDataset
from audiovq.training.optimizers import generator_first, schedule
from audiovq.training.recipe import Recipe

logger = logging.getLogger("audiovq.train")

MIN_WAIT_STEPS = 20
"""Steps over which waiting for data is judged."""
MUCH_WAITING = 0.2
"""Share of the time that waiting for data may take."""


@dataclass
class Window:
    """What happened since the last log line."""

    counts: Tensor
    """Uses of each code, [n_codebooks, K]."""
    resets: Tensor
    """Of each codebook."""
    first_step: int
    started: float = field(default_factory=time.perf_counter)
    losses: dict[str, list[float]] = field(default_factory=dict)
    waited: float = 0.0
    skipped: int = 0
    """Steps that changed nothing, because a loss or gradient was not finite."""
    skipped_critic: int = 0
    """The same of the discriminators."""

    def note(self, name: str, value: Tensor) -> None:
        """Keep a value for the mean."""
        self.losses.setdefault(name, []).append(float(value.detach()))


class RunLog:
    """A run's log. Only rank 0 writes."""

    def __init__(self, recipe: Recipe, out: Path, fabric: Fabric, step: int) -> None:
        self.recipe, self.out, self.fabric = recipe, out, fabric
        self.writes = fabric.is_global_zero
        self.window = self._empty(step)
        self.unreadable: set[str] = set()
        self.metrics = Metrics(out, step) if self.writes else None

    def say(self, line: str) -> None:
        """A line for people."""
        if self.writes:
            logger.info(line)

    def say_start(self, dataset: CropDataset, model: nn.Module, step: int) -> None:
        """What a run begins or goes on with."""
        seconds = sum(cut.duration for part in dataset.corpora for cut in part.cuts)
        n_recordings = sum(len(part.cuts) for part in dataset.corpora)
        n_parameters = sum(p.numel() for p in model.parameters())
        self.say(
            f"Training on {seconds / 3600:.2f} h of audio in {n_recordings} recordings: "
            f"{n_parameters / 1e6:.1f} M parameters on {self.fabric.device}, step {step} of "
            f"{self.recipe.train.steps}, to {self.out}."
        )

    def alarm(self, line: str) -> None:
        """A line for people who must do something."""
        if self.writes:
            logger.warning(f"ALARM: {line}")

    def note_unreadable(self, reasons: list[str]) -> None:
        """List each recording that could not be read once, on the rank that drew it."""
        for reason in sorted(set(reasons) - self.unreadable):
            logger.warning("Skipped: %s", reason)
        self.unreadable |= set(reasons)

    def record(self, losses: dict[str, Tensor], output: dict[str, Any]) -> None:
        """Keep what a step gave."""
        for name, loss in losses.items():
            self.window.note(name, loss)
        if "codes" in output:
            size = self.recipe.model.codebook_size
            for level, codes in enumerate(output["codes"].unbind(1)):
                used = torch.bincount(codes.flatten().cpu(), minlength=size)
                self.window.counts[level] += used
                self.window.note(f"commitment_{level}", output["commitment"][level])
            self.window.resets[: len(output["resets"])] += output["resets"]

    def write_window(self, step: int) -> None:
        """The line and the metrics of the steps since the last one."""
        window, self.window = self.window, self._empty(step)
        counts = torch.as_tensor(self.fabric.all_reduce(window.counts, reduce_op="sum"))
        elapsed = time.perf_counter() - window.started
        values = self._values(window, step, elapsed)
        health: list[CodebookHealth] = []
        if counts.any():
            health = [codebook_health(level) for level in counts.cpu().numpy() if level.any()]
            values["perplexity"] = [round(level.perplexity, 1) for level in health]
            values["active"] = [level.active for level in health]
            values["resets"] = [int(n) for n in window.resets]
        self.write_metrics(step, values)
        passed = max(1, step - window.first_step)
        self.say(self._line(values, health, step, elapsed / passed))
        self._alarms(values, health, passed)

    def _values(self, window: Window, step: int, elapsed: float) -> dict[str, Any]:
        data, train = self.recipe.data, self.recipe.train
        # Where the discriminators alone learn, there is no gradient of the generator.
        n_steps = max(len(window.losses.get(k, [])) for k in ("gradient_norm", "discriminator"))
        done = max(0, step - 1)
        values: dict[str, Any] = {
            name: float(np.mean(losses)) for name, losses in window.losses.items()
        }
        values |= {
            "learning_rate": train.learning_rate
            * schedule(self.recipe, done, generator_first(self.recipe, done)),
            "audio_seconds_per_second": data.batch_size * data.crop_seconds * n_steps / elapsed,
            "data_wait_share": window.waited / elapsed,
            "skipped_steps": window.skipped,
        }
        if step > train.adversarial_from:
            values["skipped_critic_steps"] = window.skipped_critic
        return values

    def _line(
        self, values: dict[str, Any], health: list[CodebookHealth], step: int, seconds: float
    ) -> str:
        """seconds: of a step."""
        n_steps = self.recipe.train.steps
        named = (
            "mel waveform teacher labels code_labels code_context consistency agreement pitch "
            "discriminator adversarial feature"
        )
        line = " ".join(f"{name} {values[name]:.3f}" for name in named.split() if name in values)
        if health:
            line += " perplexity " + "/".join(f"{level.perplexity:.0f}" for level in health)
        return (
            f"step {step}/{n_steps} {line} | {values['audio_seconds_per_second']:.1f} s/s, "
            f"{(n_steps - step) * seconds / 60:.0f} min left"
        )

    def _alarms(self, values: dict[str, Any], health: list[CodebookHealth], passed: int) -> None:
        for level, state in enumerate(health):
            if state.active_share <= COLLAPSED and state.n_frames >= 4 * state.size:
                self.alarm(
                    f"codebook {level} has collapsed: {state.active} of {state.size} codes "
                    f"are used."
                )
        # The first steps wait for the processes that read to begin.
        judged = passed >= min(MIN_WAIT_STEPS, self.recipe.train.log_every)
        if values["data_wait_share"] > MUCH_WAITING and judged:
            self.alarm(
                f"{values['data_wait_share']:.0%} of the time goes to waiting for data; "
                "raise data.workers or put the recordings on a faster disk."
            )
        if self.unreadable:
            self.say(f"{len(self.unreadable)} recordings could not be read and were skipped.")

    def write_metrics(self, step: int, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and TensorBoard's scalars."""
        if self.metrics is not None:
            self.metrics.write(step, values)

    def write_sample(self, tag: str, wav: Tensor, mel: Tensor, step: int) -> None:
        """Sound [1, 1, N] and its log mel spectrogram [bands, frames], for TensorBoard."""
        if self.metrics is None or self.metrics.writer is None:
            return
        rate = self.recipe.model.sample_rate
        self.metrics.writer.add_audio(tag, wav[0].clamp(-1, 1).cpu(), step, sample_rate=rate)
        low, high = mel.min(), mel.max()
        image = ((mel.flip(0) - low) / (high - low)).cpu()
        self.metrics.writer.add_image(tag, image[None], step)

    def _empty(self, step: int) -> Window:
        model = self.recipe.model
        counts = torch.zeros(model.n_codebooks, model.codebook_size)
        return Window(counts, torch.zeros(model.n_codebooks), step)
