"""Training of a stage: one loop, from a recipe to a folder that `LanguageModel` loads.

The folder of the language model has one for each stage: `units/` and `acoustic/`. In it are the
best model so far, the checkpoints, the recipe, metrics.jsonl and what TensorBoard shows. What a
step learns hangs on the step alone, so a run that stops and resumes is the run that did not stop.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track
from torch import Tensor

from audiovq.files import FileRefused, atomic_output
from audiovq.hardware import choose_precision, choose_threads, describe
from audiovq.interrupt import TrainingStopped, stop_wish
from audiovq.lm.acoustic import AcousticModel
from audiovq.lm.data import (
    VALIDATION,
    CodeBatches,
    TokenDataset,
    UnitBatches,
    whole_codes,
    whole_units,
)
from audiovq.lm.recipe import Recipe
from audiovq.lm.stage import UNITS_STAGE, WEIGHTS_FILE, Stage, save_stage
from audiovq.lm.units import UnitModel
from audiovq.lm.vocabulary import IGNORED, Vocabulary
from audiovq.model import AudioVQ
from audiovq.runs import (
    Checkpoint,
    Metrics,
    load_optimizer_tensors,
    matching,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    read_newest,
    save_checkpoint,
    set_aside,
)

logger = logging.getLogger("audiovq.lm")

RECIPE_FILE = "recipe.json"
KINDS = {"step": int, "best": float | int, "recipe": dict}
MAY_CHANGE = (
    "steps log_every validate_every validation_utterances checkpoint_every keep threads precision "
    "accelerator"
)
"""Settings of `train` that a run may go on with changed."""
FIRST_LOGS = (1, 2, 5, 10, 20)
MAX_BAD_STEPS = 5
"""Steps in a row with losses that are not finite, after which a run stops."""


def train(
    recipe: Recipe, out: str | Path, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Train the recipe's stage in the folder `out`; returns the folder of the stage in it.

    resume: go on from the newest checkpoint that can be read. Otherwise there must be none.
    console: where to draw a progress bar, when it is a terminal.

    SIGINT and SIGTERM end the step under way, write a checkpoint and raise `TrainingStopped`.
    Raises `FileRefused` for data that is missing, damaged or of another tokenizer, for a folder
    that holds a run already or none to go on with, and for another recipe; `FloatingPointError`
    when losses are no longer finite.
    """
    folder = Path(out) / recipe.stage.name
    start = _find_start(recipe, folder, resume=resume)
    settings = recipe.train
    precision = choose_precision(settings.precision, settings.accelerator)
    fabric = Fabric(accelerator=settings.accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    torch.set_num_threads(choose_threads(settings.threads, 1))
    logger.info("Training on %s.", describe(fabric.device, precision, torch.get_num_threads()))
    run = Run(recipe, folder, fabric, start)
    quiet = console is None or not console.is_terminal
    with stop_wish() as wish:
        left = settings.steps - run.step
        for step in track(run.steps(), "", left, console=console, disable=quiet):
            if wish.signum and step < settings.steps:
                run.stop(wish.signum)
    return folder


class Run:
    """A training under way."""

    def __init__(
        self, recipe: Recipe, folder: Path, fabric: Fabric, start: Checkpoint | None = None
    ) -> None:
        self.recipe, self.folder, self.fabric = recipe, folder, fabric
        settings = recipe.train
        n_q = recipe.stage.n_q or None
        data = TokenDataset(recipe.stage.data, n_q=n_q)
        self.held_out = TokenDataset(recipe.stage.data, VALIDATION, n_q)
        torch.manual_seed(settings.seed)
        self.stage = make_stage(recipe, data.vocabulary)
        self.module, self.optimizer = fabric.setup(self.stage, _optimizer(self.stage, recipe))
        self.module.mark_forward_method("log_likelihood")
        self.batches = _batches(recipe, data)
        self.step, self.best, self.bad_steps = 0, math.inf, 0
        if start is not None:
            self._load(start)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(folder / RECIPE_FILE, overwrite=True) as temporary:
            temporary.write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
        self.metrics = Metrics(folder, self.step)
        self.noted: dict[str, list[float]] = {}
        n_parameters = sum(p.numel() for p in self.stage.parameters())
        logger.info(
            f"The stage of {recipe.stage.name} learns from {data.seconds / 3600:.2f} h in "
            f"{len(data)} utterances: {n_parameters / 1e6:.1f} M parameters, step {self.step} of "
            f"{settings.steps}, to {folder}."
        )

    def steps(self) -> Iterator[int]:
        """Train from the current step to the last one; yield the number of steps done."""
        settings = self.recipe.train
        self.module.train()
        started, first = time.perf_counter(), self.step
        while self.step < settings.steps:
            self._train_step()
            self.step += 1
            last = self.step == settings.steps
            if self.step % settings.log_every == 0 or self.step in FIRST_LOGS or last:
                seconds = (time.perf_counter() - started) / (self.step - first)
                self._log(seconds)
                started, first = time.perf_counter(), self.step
            if self.step % settings.validate_every == 0 or last:
                self._validate()
            if self.step % settings.checkpoint_every == 0 or last:
                self._save()
            yield self.step

    def stop(self, signum: int) -> None:
        """Write a checkpoint and raise `TrainingStopped`."""
        self._save()
        line = f"Stopped at step {self.step}; --resume goes on from there."
        logger.info(line)
        raise TrainingStopped(line, signum)

    def _train_step(self) -> None:
        settings, step = self.recipe.train, self.step
        torch.manual_seed((settings.seed * 1_000_003 + step) % (1 << 63))  # of the dropout
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(self.recipe, step)
        batch = self.fabric.to_device(self.batches.batch(step))
        losses = stage_losses(self.module, batch, settings.wrong_frames)
        total = torch.stack(list(losses.values())).sum()
        self.fabric.backward(total)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
        )
        good = bool(torch.isfinite(torch.stack([total.detach(), torch.as_tensor(norm)])).all())
        if good:
            self.optimizer.step()
            for name, value in (losses | {"gradient_norm": torch.as_tensor(norm)}).items():
                self.noted.setdefault(name, []).append(float(value.detach()))
        self.optimizer.zero_grad()
        self.bad_steps = 0 if good else self.bad_steps + 1
        if not good:
            logger.warning(f"ALARM: step {step} is skipped: its loss or gradient is not finite.")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"Losses were not finite in {MAX_BAD_STEPS} steps in a row; the last good "
                f"checkpoint is {newest_checkpoint(self.folder)}. Lower train.learning_rate."
            )

    def _log(self, seconds: float) -> None:
        """seconds: of a step."""
        values = {name: float(np.mean(noted)) for name, noted in self.noted.items()}
        self.noted = {}
        rate = self.recipe.train.learning_rate * schedule(self.recipe, self.step)
        self.metrics.write(self.step, values | {"learning_rate": rate, "seconds_per_step": seconds})
        n_steps = self.recipe.train.steps
        told = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        left = (n_steps - self.step) * seconds / 60
        logger.info(
            f"step {self.step}/{n_steps} {told} | {seconds:.2f} s a step, {left:.0f} min left"
        )

    def _validate(self) -> None:
        """Write the model when it is the best so far, or when there is nothing to tell it by."""
        score = -float(self.step)  # the newest is the best
        if len(self.held_out):
            self.module.eval()
            values = validation_losses(self.module, self.held_out, self.recipe)
            self.module.train()
            score = sum(values.values())
            told = {f"validation_{name}": value for name, value in values.items()}
            if "units" in values:
                told["validation_perplexity"] = math.exp(values["units"])
            self.metrics.write(self.step, told)
            logger.info(
                f"step {self.step} validation: "
                + ", ".join(f"{n.removeprefix('validation_')} {v:.3f}" for n, v in told.items())
            )
        if score < self.best:
            self.best = score
            save_stage(self.stage, self.folder, self.recipe.card | {"steps": self.step})

    def _state(self) -> dict[str, Tensor]:
        return {f"stage.{name}": tensor for name, tensor in self.stage.state_dict().items()}

    def _save(self) -> None:
        path = self.folder / f"checkpoint-{self.step:08d}.safetensors"
        tensors = self._state() | optimizer_tensors("optimizer", self.optimizer)
        values = {"step": self.step, "best": self.best, "recipe": asdict(self.recipe)}
        save_checkpoint(path, tensors, values)
        prune_checkpoints(self.folder, self.recipe.train.keep)

    def _load(self, start: Checkpoint) -> None:
        found = matching(start.path, start.tensors, self._state())
        self.stage.load_state_dict({n.removeprefix("stage."): t for n, t in found.items()})
        load_optimizer_tensors("optimizer", self.optimizer, start.tensors, start.path)
        self.step, self.best = start.values["step"], start.values["best"]
        for path in start.damaged:
            logger.warning(f"ALARM: {path} is damaged; {start.path} is taken instead.")
        set_aside(start.damaged)


def make_stage(recipe: Recipe, vocabulary: Vocabulary) -> Stage:
    """The stage that a recipe names, as it begins."""
    if recipe.stage.name == UNITS_STAGE:
        return UnitModel(vocabulary, recipe.sizes)
    codec = AudioVQ.from_pretrained(recipe.stage.tokenizer)
    if codec.fingerprint != vocabulary.fingerprint:
        raise FileRefused(
            f"{recipe.stage.data} holds tokens of {vocabulary.tokenizer} "
            f"({vocabulary.fingerprint}), not of {codec.name} ({codec.fingerprint}); name that "
            "tokenizer as stage.tokenizer."
        )
    codebooks = torch.stack(codec.quantizer.tables()[: vocabulary.n_q]).detach()
    stage = AcousticModel(vocabulary, recipe.sizes, codebooks.shape[2])
    stage.start_from(codebooks)
    return stage


def schedule(recipe: Recipe, step: int) -> float:
    """Factor of the learning rate: up at the start, then down along a cosine."""
    settings = recipe.train
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / settings.steps)))


def stage_losses(
    module: Any, batch: tuple[Tensor, Tensor], wrong_frames: float = 0.0
) -> dict[str, Tensor]:
    """Losses of a batch of either stage, in nats, by name; their sum is what is learnt.

    wrong_frames: share of the frames before that the acoustic stage is told wrongly.
    """
    if isinstance(getattr(module, "module", module), UnitModel):
        tokens, targets = batch
        n_learnt = (targets != IGNORED).sum().clamp(min=1)
        units, durations = module.log_likelihood(tokens, targets)
        return {"units": -units.sum() / n_learnt, "durations": -durations.sum() / n_learnt}
    codes, there = batch
    learnt = there[:, None] & module.due(codes.shape[2])
    heard = with_wrong_frames(codes, there, wrong_frames) if wrong_frames else codes
    found = -(module.log_likelihood(codes, heard) * learnt).sum((0, 2)) / learnt.sum((0, 2))
    return {f"level_{i}": loss for i, loss in enumerate(found, 1)}


def with_wrong_frames(codes: Tensor, there: Tensor, share: float) -> Tensor:
    """Codes [B, n_q, T] of which a share of the frames, drawn at random, is another of the same
    utterance's; there: [B, T], which frames it has, from the first on."""
    frames = torch.arange(there.shape[1], device=there.device).expand_as(there)
    draws, others = torch.rand(2, *there.shape, device=there.device)
    others = (others * there.sum(1, keepdim=True)).long()
    frames = torch.where(draws < share, others, frames)
    return codes.gather(2, frames[:, None].expand_as(codes))


@torch.no_grad()
def validation_losses(module: Any, held_out: TokenDataset, recipe: Recipe) -> dict[str, float]:
    """Losses over validation utterances, each weighted by what is learnt from it."""
    n_items, context = recipe.train.validation_utterances, recipe.sizes.context
    units = recipe.stage.name == UNITS_STAGE
    device = next(module.parameters()).device
    batches = (whole_units if units else whole_codes)(held_out, context)
    sums: dict[str, float] = {}
    weight = 0.0
    for _, batch in zip(range(n_items), batches):
        batch = (batch[0].to(device), batch[1].to(device))
        n_learnt = float((batch[1] != IGNORED).sum() if units else batch[1].sum())
        for name, loss in stage_losses(module, batch).items():
            sums[name] = sums.get(name, 0.0) + n_learnt * float(loss)
        weight += n_learnt
    return {name: total / weight for name, total in sums.items()}


def _optimizer(stage: Stage, recipe: Recipe) -> torch.optim.Optimizer:
    settings = recipe.train
    return torch.optim.AdamW(
        stage.parameters(), settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay
    )


def _batches(recipe: Recipe, data: TokenDataset) -> UnitBatches | CodeBatches:
    context, size, seed = recipe.sizes.context, recipe.train.batch_size, recipe.train.seed
    if recipe.stage.name == UNITS_STAGE:
        return UnitBatches(data, context, size, seed, recipe.stage.text_share)
    return CodeBatches(data, context, size, seed)


def _find_start(recipe: Recipe, folder: Path, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin; raises `FileRefused`."""
    if not resume:
        if newest_checkpoint(folder) or (folder / WEIGHTS_FILE).exists():
            raise FileRefused(
                f"{folder} holds a run or a model already; add --resume or name another folder."
            )
        return None
    start = read_newest(folder, KINDS)
    if start is None:
        raise FileRefused(f"{folder} holds no checkpoint; leave out --resume to begin.")
    wanted, had = (_decisive(values) for values in (asdict(recipe), start.values["recipe"]))
    if wanted != had:
        names = sorted(name for name in wanted | had if wanted.get(name) != had.get(name))
        raise FileRefused(
            f"{folder} had another recipe: {', '.join(names)} differ; leave out what differs or "
            "name another folder."
        )
    return start


def _decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that a run must keep, flat."""
    may_change = {f"train.{name}" for name in MAY_CHANGE.split()}
    return {
        f"{section}.{name}": value
        for section, settings in recipe.items()
        if section != "card"
        for name, value in settings.items()
        if f"{section}.{name}" not in may_change
    }
