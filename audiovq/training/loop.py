"""Training: one loop, on Lightning Fabric, from a recipe to a run's folder.

The run goes through three stages. First encoder and decoder learn as an autoencoder, then all
codebooks start from k-means of the latent and learn along, and last the discriminators join. All
randomness and the position in the data are functions of the step, so that a run which stops and
resumes is the run that did not stop.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from audiovq.config import ModelConfig
from audiovq.files import FileRefused, refuse_existing
from audiovq.health import COLLAPSED, codebook_health
from audiovq.model import CONFIG_FILE, WEIGHTS_FILE, AudioVQ
from audiovq.training.checkpoint import (
    BEST,
    Checkpoint,
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
from audiovq.training.data import (
    NO_LABEL,
    Corpus,
    CropDataset,
    StepBatches,
    read_crop,
    read_manifest,
)
from audiovq.training.discriminator import (
    Discriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from audiovq.training.hardware import choose_precision, choose_threads, describe
from audiovq.training.interrupt import TrainingStopped, leave_to_parent, stop_wish
from audiovq.training.losses import SHORT_SCALES, MelLoss
from audiovq.training.recipe import Recipe
from audiovq.training.run_files import (
    METRICS_FILE,
    cut_metrics,
    differences,
    save_recipe,
    saved_recipe,
)

logger = logging.getLogger("audiovq.train")
T = TypeVar("T")

START_CROPS = 240
"""Crops whose latents the k-means starts see."""
MAX_BAD_STEPS = 5
"""Steps in a row with losses that are not finite, after which a run stops."""
VALIDATION_SECONDS = 12.0
"""Longest part of a validation recording that is used."""
CRITIC_CLIP_NORM = 10.0
"""Gradients of the discriminators are scaled down to this norm."""
MIN_WAIT_STEPS = 20
"""Steps over which waiting for data is judged."""
FIRST_LOGS = (1, 2, 5, 10, 20)
"""Steps that are logged besides every `train.log_every`: a start is soon seen to go well."""


class Generator(nn.Module):
    """The model and the heads that only training needs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = AudioVQ(recipe.model, dict(recipe.card))
        dim = recipe.model.codebook_dim
        self.teacher_head = None
        if recipe.data.teacher_folder:
            self.teacher_head = nn.Sequential(
                nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, recipe.data.teacher_dim)
            )
        self.label_head = (
            nn.Linear(dim, recipe.data.n_labels) if recipe.data.labels_folder else None
        )

    def forward(self, wav: Tensor, n_q: Tensor, quantize: bool) -> dict[str, Any]:
        output = self.model(wav, n_q, quantize=quantize)
        result: dict[str, Any] = {"wav": output.wav, "units": output.units}
        if output.quantized is not None:
            result |= {
                "codes": output.quantized.codes,
                "commitment": output.quantized.commitment,
                "codebook": output.quantized.codebook_loss,
                "resets": output.quantized.resets,
            }
        if self.teacher_head is not None:
            result["teacher"] = self.teacher_head(output.units)
        if self.label_head is not None:
            result["labels"] = self.label_head(output.units)
        return result


@dataclass
class Window:
    """What happened since the last log line."""

    losses: dict[str, list[float]]
    counts: Tensor
    resets: Tensor
    started: float
    first_step: int
    waited: float = 0.0
    skipped: int = 0
    """Steps that changed nothing, because a loss or gradient was not finite."""
    skipped_critic: int = 0
    """The same of the discriminators."""

    @classmethod
    def empty(cls, config: ModelConfig, step: int) -> "Window":
        """A window that starts now, with `step`."""
        counts = torch.zeros(config.n_codebooks, config.codebook_size)
        return cls({}, counts, torch.zeros(config.n_codebooks), time.perf_counter(), step)


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    console: Console | None = None,
) -> Path:
    """Run a recipe; checkpoints, logs and samples go to the folder `out`, which is returned.

    resume: go on from the newest checkpoint in `out` that can be read. Otherwise `out` must not
    hold a run already.
    accept_changes: go on although the recipe is not the one that the run had. What only says how
    long and where it runs may always differ.
    console: where to draw a progress bar, when it is a terminal.

    SIGINT and SIGTERM end the step under way, write a checkpoint and raise `TrainingStopped`.
    Raises `FileRefused` for missing or unreadable data, for a folder that is in use or holds
    nothing to go on from, and when the disk is full; `FloatingPointError` when losses are no
    longer finite.
    """
    out = Path(out)
    start = _find_start(recipe, out, resume=resume, accept_changes=accept_changes)
    settings = recipe.train
    precision = choose_precision(settings.precision, settings.accelerator)
    threads = choose_threads(settings.threads, settings.devices)
    ddp = DDPStrategy(
        broadcast_buffers=False,  # the codebooks keep themselves equal
        find_unused_parameters=recipe.model.codebook == "gradient",
    )
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=ddp if settings.devices > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    torch.set_num_threads(threads)
    if fabric.is_global_zero:
        logger.info("Training on %s.", describe(fabric.device, precision, threads))
    run = Run(recipe, out, fabric, start)
    del start  # its tensors are the run's now
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    quiet = console is None or not console.is_terminal or not fabric.is_global_zero
    try:
        with stop_wish() as wish, Progress(*columns, console=console, disable=quiet) as progress:
            task = progress.add_task("steps", total=recipe.train.steps, completed=run.step)
            for step in run.steps():
                progress.update(task, completed=step)
                if step < recipe.train.steps:
                    run.stop_if(wish.signum)
    except OSError as error:
        raise FileRefused(
            f"The training in {out} broke off: {error}; --resume goes on from its last checkpoint."
        ) from error
    return out


def _find_start(
    recipe: Recipe, out: Path, *, resume: bool, accept_changes: bool
) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin; raises `FileRefused`."""
    if out.exists() and not out.is_dir():
        raise FileRefused(f"{out} is a file; name a folder for the run.")
    if not resume:
        if newest_checkpoint(out):
            raise FileRefused(f"{out} holds a run already; add --resume or name another folder.")
        return None
    start = read_newest(out)
    if start is None:
        raise FileRefused(f"{out} holds no checkpoint to go on from; leave out --resume to begin.")
    _refuse_other_model(start, recipe)
    saved = saved_recipe(out)
    changed = [] if saved is None else differences(saved, recipe)
    grave = [str(change) for change in changed if not change.harmless]
    if grave and not accept_changes:
        raise FileRefused(
            f"{out} had another recipe: {'; '.join(grave)}; leave out what differs, or "
            "add --accept-changes to go on with it."
        )
    for change in changed:
        logger.info("Changed: %s.", change)
    return start


def _refuse_other_model(start: Checkpoint, recipe: Recipe) -> None:
    """Raise `FileRefused` when no flag can make a run go on with a recipe."""
    try:
        same = ModelConfig.from_dict(start.values["config"]) == recipe.model
    except (TypeError, ValueError):
        same = False
    if not same:
        raise FileRefused(f"{start.path} is of another model than the recipe's; use another --out.")
    learn = start.values.get("learn", "all")  # older checkpoints do not say
    if learn != recipe.train.learn:
        raise FileRefused(
            f'{start.path} is of a run with train.learn = "{learn}", and the recipe says '
            f'"{recipe.train.learn}"; export it, name that model as train.initial_model, '
            "and use another --out."
        )


class Run:
    """A training under way: everything that a checkpoint holds, and the loop."""

    def __init__(
        self, recipe: Recipe, out: Path, fabric: Fabric, start: Checkpoint | None = None
    ) -> None:
        self.recipe, self.out, self.fabric = recipe, out, fabric
        settings = recipe.train
        torch.manual_seed(settings.seed)
        self.step = 0
        self.best = math.inf
        self.quantize = False
        generator, discriminator = Generator(recipe), Discriminator()
        if settings.initial_model and start is None:
            self.quantize = True
            generator.model.load_state_dict(_initial_model(recipe).state_dict())
        if settings.learn == "decoder":
            for name, parameter in generator.model.named_parameters():
                parameter.requires_grad_(not AudioVQ.decides_tokens(name))
        generator.model.encoder.unit_gradient = recipe.loss.unit_gradient
        self.module, self.critic = generator, discriminator
        self.generator, self.optimizer = fabric.setup(
            generator, _optimizer(generator, settings.learning_rate)
        )
        self.discriminator, self.critic_optimizer = fabric.setup(
            discriminator, _optimizer(discriminator, settings.discriminator_learning_rate)
        )
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.mel_loss = MelLoss(recipe.model.sample_rate).to(fabric.device)
        self.dataset = _dataset(recipe)
        self.validation = _validation_clips(recipe)
        self.bad_steps = 0
        self.saved_step = -1
        self.skipped: set[str] = set()
        if start is not None:
            self._load(start)
        self.window = Window.empty(recipe.model, self.step)
        self._open_folder()
        self.writer = self._tensorboard()

    @property
    def model(self) -> AudioVQ:
        """The codec inside the generator."""
        return self.module.model

    def steps(self) -> Iterator[int]:
        """Train from the current step to the last one; yield the number of steps done."""
        settings = self.recipe.train
        self._say(self._start_line())
        self._train_mode()
        batches = self._batches()
        while self.step < settings.steps:
            if not self.quantize and self.step >= settings.autoencoder_steps:
                self._start_quantizer()
            waiting = time.perf_counter()
            batch = _next_batch(batches)
            self.window.waited += time.perf_counter() - waiting
            self._note_skipped(batch.pop("skipped"))
            self._train_step(batch)
            self.step += 1
            last = self.step == settings.steps
            if self.step % settings.log_every == 0 or self.step in FIRST_LOGS or last:
                self._log()
            if self.step % settings.validate_every == 0 or last:
                self._validate()
            if self.step % settings.checkpoint_every == 0 or last:
                self._save()
            yield self.step

    def stop_if(self, signum: int) -> None:
        """Write a checkpoint and raise `TrainingStopped` when a rank got a signal: not 0."""
        found = self.fabric.all_reduce(torch.tensor(signum), reduce_op="max")
        signum = int(torch.as_tensor(found))
        if not signum:
            return
        if self.saved_step != self.step:
            self._save()
        line = f"Stopped at step {self.step}; audiovq train {self.out} --resume goes on from there."
        self._say(line)
        raise TrainingStopped(line, signum)

    def _open_folder(self) -> None:
        """Make the run's folder that of this step, so that it holds no step twice."""
        if self.fabric.is_global_zero:
            save_recipe(self.out, self.recipe, self.step)
            cut_metrics(self.out, self.step)

    def _start_line(self) -> str:
        seconds = sum(cut.duration for part in self.dataset.corpora for cut in part.cuts)
        n_recordings = sum(len(part.cuts) for part in self.dataset.corpora)
        n_parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"Training on {seconds / 3600:.2f} h of audio in {n_recordings} recordings: "
            f"{n_parameters / 1e6:.1f} M parameters on {self.fabric.device}, step {self.step} of "
            f"{self.recipe.train.steps}, to {self.out}."
        )

    def _train_mode(self) -> None:
        self.generator.train()
        if self.recipe.train.learn == "decoder":
            self.model.quantizer.eval()  # its codebooks stay as they are

    def _train_step(self, batch: dict[str, Any]) -> None:
        recipe, step = self.recipe, self.step
        torch.manual_seed(_step_seed(recipe.train.seed, step))  # the same on every rank
        factor = _schedule(recipe, step)
        for optimizer, rate in (
            (self.optimizer, recipe.train.learning_rate),
            (self.critic_optimizer, recipe.train.discriminator_learning_rate),
        ):
            optimizer.param_groups[0]["lr"] = rate * factor
        batch = self.fabric.to_device(batch)
        wav = batch["wav"]
        levels = self.fabric.to_device(
            dropout_levels(recipe, step, self.fabric.global_rank, len(wav))
        )
        output = self.generator(wav, levels, self.quantize)
        distances = self.mel_loss(output["wav"], wav)
        losses = {
            "mel": distances.sum(),
            "mel_short": distances[:SHORT_SCALES].sum(),
            "waveform": F.l1_loss(output["wav"].float(), wav),
            **unit_losses(output, batch, recipe.loss.unit_shift),
        }
        if self.quantize:
            losses["commitment"] = output["commitment"].mean()
        weights = asdict(recipe.loss)
        if step >= recipe.train.adversarial_from:
            heard = slice(recipe.train.adversarial_items)
            losses |= self._adversarial_step(wav[heard], output["wav"][heard])
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        if self.quantize:
            total = total + output["codebook"]
        if not self._finite(total):
            self._skip(batch, losses)
            return
        self.fabric.backward(total)
        norm = self._clip(self.generator, self.optimizer, recipe.train.clip_norm)
        if not self._finite(norm):
            self._skip(batch, {"the gradient": norm})
            return
        self.bad_steps = 0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_ema()
        self._record(losses | {"gradient_norm": norm}, output)

    def _adversarial_step(self, wav: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Train the discriminators, then let them judge the generator's output."""
        loss = discriminator_loss(self.discriminator(wav), self.discriminator(fake.detach()))
        good = self._finite(loss)
        if good:
            self.fabric.backward(loss)
            norm = self._clip(self.discriminator, self.critic_optimizer, CRITIC_CLIP_NORM)
            good = self._finite(norm)
        if good:
            self.critic_optimizer.step()
        else:
            self.window.skipped_critic += 1
        self.critic_optimizer.zero_grad()
        self._note("discriminator", loss)
        # The module itself, not its wrapper: no gradient of these passes is for the discriminators.
        self.critic.requires_grad_(False)
        with self.fabric.autocast():
            with torch.no_grad():
                real = self.critic(wav)
            judged = self.critic(fake)
        self.critic.requires_grad_(True)
        return {"adversarial": adversarial_loss(judged), "feature": feature_loss(real, judged)}

    def _clip(self, module: Any, optimizer: Any, max_norm: float) -> Tensor:
        """Scale gradients down to a norm; returns the norm they had, which may not be finite."""
        norm = self.fabric.clip_gradients(
            module, optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        assert norm is not None
        return norm

    def _start_quantizer(self) -> None:
        """k-means starts of all codebooks, from crops that the run will not see again."""
        share = START_CROPS // self.fabric.world_size
        first = (1 << 40) + share * self.fabric.global_rank
        torch.manual_seed(_step_seed(self.recipe.train.seed, self.step))
        latents = []
        for index in range(first, first + share):
            wav = self.fabric.to_device(self.dataset[index]["wav"])
            with self.fabric.autocast():
                latents.append(self.model.latent(wav[None]))
        self.model.quantizer.start(torch.cat(latents, dim=1))
        self.quantize = True
        self._say("The quantizer is on: every codebook started from k-means.")

    def _batches(self) -> Iterator[dict[str, Any]]:
        """This rank's batches from the current step to the last one."""
        loader: DataLoader = DataLoader(
            self.dataset,
            batch_sampler=StepBatches(
                self.step,
                self.recipe.train.steps,
                self.recipe.data.batch_size,
                rank=self.fabric.global_rank,
                ranks=self.fabric.world_size,
            ),
            num_workers=self.recipe.data.workers,
            collate_fn=_collate,
            worker_init_fn=leave_to_parent,
        )
        return iter(loader)

    def _update_ema(self) -> None:
        # Early on, the average is over all steps so far.
        decay = min(self.recipe.train.ema_decay, (1 + self.step) / (10 + self.step))
        averages = list(self.ema.values())
        parameters = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def _finite(self, loss: Tensor) -> bool:
        """Whether a loss is finite on every rank."""
        good = torch.isfinite(loss.detach()).float()
        return bool(self.fabric.all_reduce(good, reduce_op="mean") == 1.0)

    def _skip(self, batch: dict[str, Any], losses: dict[str, Tensor]) -> None:
        bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        names, recordings = blame(self._gather((bad, batch["id"])))
        self._alarm(
            f"step {self.step} is skipped: {', '.join(names) or 'a loss'} is not finite; "
            f"its recordings are {', '.join(recordings)}."
        )
        self.optimizer.zero_grad()
        self.window.skipped += 1
        self.bad_steps += 1
        if self.bad_steps >= MAX_BAD_STEPS:
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

    def _note_skipped(self, reasons: list[str]) -> None:
        """List each recording that could not be read once, on the rank that drew it."""
        for reason in sorted(set(reasons) - self.skipped):
            logger.warning("Skipped: %s", reason)
        self.skipped |= set(reasons)

    def _note(self, name: str, value: Tensor) -> None:
        self.window.losses.setdefault(name, []).append(float(value.detach()))

    def _record(self, losses: dict[str, Tensor], output: dict[str, Any]) -> None:
        for name, loss in losses.items():
            self._note(name, loss)
        if self.quantize:
            for level, codes in enumerate(output["codes"].unbind(1)):
                size = self.recipe.model.codebook_size
                self.window.counts[level] += torch.bincount(codes.flatten().cpu(), minlength=size)
                self._note(f"commitment_{level}", output["commitment"][level])
            self.window.resets += output["resets"]

    def _log(self) -> None:
        recipe, window = self.recipe, self.window
        self.window = Window.empty(recipe.model, self.step)
        counts = torch.as_tensor(self.fabric.all_reduce(window.counts, reduce_op="sum"))
        elapsed = time.perf_counter() - window.started
        n_steps = len(window.losses.get("mel", []))
        seconds = recipe.data.batch_size * recipe.data.crop_seconds * n_steps
        values: dict[str, Any] = {
            name: float(np.mean(losses)) for name, losses in window.losses.items()
        }
        values |= {
            "learning_rate": recipe.train.learning_rate * _schedule(recipe, self.step),
            "audio_seconds_per_second": seconds / elapsed,
            "data_wait_share": window.waited / elapsed,
            "skipped_steps": window.skipped,
        }
        if self.step > recipe.train.adversarial_from:
            values["skipped_critic_steps"] = window.skipped_critic
        health = []
        if self.quantize:
            health = [codebook_health(level) for level in counts.cpu().numpy()]
            values["perplexity"] = [round(level.perplexity, 1) for level in health]
            values["active"] = [level.active for level in health]
            values["resets"] = [int(n) for n in window.resets]
        self._write_metrics(values)
        passed = self.step - window.first_step
        left = (recipe.train.steps - self.step) * elapsed / max(1, passed)
        line = " ".join(
            f"{name} {values[name]:.3f}"
            for name in ("mel", "waveform", "teacher", "labels", "adversarial", "feature")
            if name in values
        )
        if health:
            line += " perplexity " + "/".join(f"{level.perplexity:.0f}" for level in health)
        self._say(
            f"step {self.step}/{recipe.train.steps} {line} | "
            f"{values['audio_seconds_per_second']:.1f} s/s, {left / 60:.0f} min left"
        )
        for level, state in enumerate(health):
            if state.active_share <= COLLAPSED and state.n_frames >= 4 * state.size:
                self._alarm(
                    f"codebook {level} has collapsed: {state.active} of {state.size} codes "
                    f"are used."
                )
        # The first steps wait for the processes that read to begin.
        judged = passed >= min(MIN_WAIT_STEPS, recipe.train.log_every)
        if values["data_wait_share"] > 0.2 and judged:
            self._alarm(
                f"{values['data_wait_share']:.0%} of the time goes to waiting for data; "
                "raise data.workers or put the recordings on a faster disk."
            )
        if self.skipped:
            self._say(f"{len(self.skipped)} recordings could not be read and were skipped.")

    @torch.no_grad()
    def _validate(self) -> None:
        """Quality on the validation recordings, with the averaged weights."""
        if not self.validation or not self.fabric.is_global_zero:
            return
        raw = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._set_weights(self.ema)
        self.model.eval()
        n_codebooks = self.recipe.model.n_codebooks
        levels = validation_levels(n_codebooks) if self.quantize else [0]
        values: dict[str, float] = {}
        for n_q in levels:
            mels, stois = [], []
            for index, wav in enumerate(self.validation):
                wav = self.fabric.to_device(wav)
                decoded = self._reconstruct(wav, n_q)
                mels.append(float(self.mel_loss(decoded, wav).sum()))
                stois.append(_stoi(wav, decoded, self.recipe.model.sample_rate))
                if self.writer is not None and index < 4:
                    self._write_sample(f"clip {index}/n_q {n_q}", decoded)
            name = f"n_q_{n_q}" if n_q else "autoencoder"
            values[f"validation_mel_{name}"] = float(np.mean(mels))
            if not any(math.isnan(value) for value in stois):
                values[f"validation_stoi_{name}"] = float(np.mean(stois))
        self._set_weights(raw)
        self._train_mode()
        self._write_metrics(values)
        self._say(
            f"step {self.step} validation: "
            + ", ".join(f"{k.removeprefix('validation_')} {v:.3f}" for k, v in values.items())
        )
        score = values.get(f"validation_mel_n_q_{n_codebooks}", math.inf)
        if score < self.best:
            self.best = score
            self._write_checkpoint(self.out / BEST)

    def _reconstruct(self, wav: Tensor, n_q: int) -> Tensor:
        if n_q:
            return self.model.decode(self.model.encode(wav, n_q))
        padded = F.pad(wav, (0, -wav.shape[2] % self.recipe.model.hop_length))
        return self.model(padded, quantize=False).wav[:, :, : wav.shape[2]]

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])  # not .data: streams must see that it changed

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self._write_checkpoint(self.out / f"checkpoint-{self.step:08d}.safetensors")
            prune_checkpoints(self.out, self.recipe.train.keep)
        self.saved_step = self.step
        self.fabric.barrier()

    def _write_checkpoint(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {
            f"generator.{name}": p for name, p in self.module.named_parameters()
        }
        tensors |= {f"generator.{name}": b for name, b in self.module.named_buffers()}
        tensors |= {f"discriminator.{n}": p for n, p in self.critic.named_parameters()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        tensors |= optimizer_tensors("optimizer", self.optimizer)
        tensors |= optimizer_tensors("critic_optimizer", self.critic_optimizer)
        values = {
            "step": self.step,
            "best": self.best,
            "quantize": self.quantize,
            "learn": self.recipe.train.learn,
            "config": asdict(self.recipe.model),
            "card": self.recipe.card,
        }
        save_checkpoint(path, tensors, values)

    def _load(self, start: Checkpoint) -> None:
        named = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        wanted = {f"generator.{name}": tensor for name, tensor in named.items()}
        wanted |= {f"discriminator.{name}": p for name, p in self.critic.named_parameters()}
        wanted |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        for name, tensor in matching(start.path, start.tensors, wanted).items():
            wanted[name].data = tensor.to(wanted[name].device)  # the reservoir's size may differ
        load_optimizer_tensors("optimizer", self.optimizer, start.tensors, start.path)
        load_optimizer_tensors("critic_optimizer", self.critic_optimizer, start.tensors, start.path)
        values = start.values
        self.step, self.best, self.quantize = values["step"], values["best"], values["quantize"]
        self.saved_step = self.step
        self.fabric.barrier()  # every rank has read before anything is renamed
        if self.fabric.is_global_zero:
            set_aside(start.damaged)
        for path in start.damaged:
            self._alarm(f"{path} is damaged; the run goes on from the one before it.")
        self._say(f"Resumed from {start.path} at step {self.step}.")

    def _tensorboard(self) -> Any:
        if not self.fabric.is_global_zero:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(
            self.out / "tensorboard", purge_step=self.step + 1 if self.step else None
        )

    def _write_metrics(self, values: dict[str, Any]) -> None:
        if not self.fabric.is_global_zero:
            return
        with (self.out / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": self.step, "time": time.time(), **values}) + "\n")
        if self.writer is None:
            return
        for name, value in values.items():
            for level, part in enumerate(value if isinstance(value, list) else [value]):
                tag = f"{name}/{level}" if isinstance(value, list) else name
                self.writer.add_scalar(tag, part, self.step)

    def _write_sample(self, tag: str, wav: Tensor) -> None:
        rate = self.recipe.model.sample_rate
        self.writer.add_audio(tag, wav[0].clamp(-1, 1).cpu(), self.step, sample_rate=rate)
        spectrogram = self.mel_loss.log_mels(wav)[-2][0].flip(0)  # [bands, frames]
        low, high = spectrogram.min(), spectrogram.max()
        self.writer.add_image(tag, ((spectrogram - low) / (high - low))[None].cpu(), self.step)

    def _say(self, line: str) -> None:
        if self.fabric.is_global_zero:
            logger.info(line)

    def _alarm(self, line: str) -> None:
        if self.fabric.is_global_zero:
            logger.warning(f"ALARM: {line}")


def run_model(run: str | Path, *, best: bool = True) -> AudioVQ:
    """The model of a run's checkpoint: averaged weights, rounded to float16.

    best: the checkpoint with the best validation when there is one, or else the newest.
    Raises `FileRefused` when the run has no checkpoint, its quantizer is not on yet, or it holds
    weights that float16 does not.
    """
    run = Path(run)
    if best and (run / BEST).is_file():
        found: Checkpoint | None = read_checkpoint(run / BEST)
    else:
        found = read_newest(run)
    if found is None:
        raise FileRefused(f"{run} holds no checkpoint; train it first.")
    for damaged in found.damaged:
        logger.warning(f"{damaged} is damaged; {found.path} is taken instead.")
    path, tensors, values = found.path, found.tensors, found.values
    if not values["quantize"]:
        raise FileRefused(f"{path} is from before the quantizer was on; train on.")
    try:
        model = AudioVQ(ModelConfig.from_dict(values["config"]), dict(values["card"]))
    except (TypeError, ValueError) as error:
        raise FileRefused(f"{path} is of a model that is not possible: {error}") from error
    averaged = dict(model.named_parameters())
    sources = {
        name: f"ema.{name}" if name in averaged else f"generator.model.{name}"
        for name in model.state_dict()
    }
    wanted = {sources[name]: tensor for name, tensor in model.state_dict().items()}
    weights = matching(path, tensors, wanted)
    for name, source in sources.items():
        tensor = weights[source].half() if name in averaged else weights[source]
        if not torch.isfinite(tensor).all():
            raise FileRefused(
                f"{path} has weights in {name} that are not finite or beyond float16's 65504; "
                "export another checkpoint (--newest), or train again with a lower "
                "train.learning_rate."
            )
    model.load_state_dict({name: weights[source] for name, source in sources.items()})
    model.card["steps"] = values["step"]
    return model.eval().round_weights()


def export(
    run: str | Path, folder: str | Path, *, best: bool = True, overwrite: bool = False
) -> AudioVQ:
    """Turn a run's checkpoint into a model folder; see `run_model`.

    Raises `FileRefused` as it does, and when the folder holds a model and `overwrite` is false.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        refuse_existing(Path(folder) / name, overwrite=overwrite)
    model = run_model(run, best=best)
    model.save_pretrained(folder, overwrite=overwrite)
    return model


def _initial_model(recipe: Recipe) -> AudioVQ:
    """The model to go on from, grown to the recipe's `model.unit_blocks` and `spectrum_size`."""
    name = recipe.train.initial_model
    model = AudioVQ.from_pretrained(name)
    only_decoder = recipe.train.learn == "decoder"
    growth: dict[str, Any] = {
        size: getattr(recipe.model, size)
        for size in ("unit_blocks", "spectrum_size")
        if getattr(recipe.model, size) and not getattr(model.config, size) and not only_decoder
    }
    no_growth: dict[str, Any] = dict.fromkeys(growth, 0)
    expected = replace(recipe.model, **no_growth)
    if model.config != expected:
        wanted, found = asdict(expected), asdict(model.config)
        wrong = "; ".join(
            f"{key} is {found[key]} in the model and {wanted[key]} in the recipe"
            for key in found
            if found[key] != wanted[key]
        )
        raise FileRefused(
            f"{name} has other sizes than the recipe: {wrong}. Give the recipe the model's."
        )
    if only_decoder and not all(
        torch.equal(parameter, parameter.half().float())
        for tensor, parameter in model.named_parameters()
        if model.decides_tokens(tensor)
    ):
        raise FileRefused(
            f"{name} has weights that an export would round, which would change its tokens; name "
            "a model that `audiovq export` wrote."
        )
    return model.grown(**growth) if growth else model


def _optimizer(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True
    )


def _schedule(recipe: Recipe, step: int) -> float:
    """Factor of the learning rates: up at the start, level, down to 0 at the end."""
    settings = recipe.train
    n_decay = max(1, round(settings.decay_share * settings.steps))
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return rise * min(1.0, (settings.steps - step) / n_decay)


def unit_losses(output: dict[str, Any], batch: dict[str, Any], shift: int) -> dict[str, Tensor]:
    """What makes units phoneme-like; unit t is compared with teacher frame t - shift.

    output: `teacher` [B, T, D] and `labels` [B, T, n_labels], what the heads on the units say, each
    if there is such a head. batch: `teacher` [B, T, D] with `has_teacher` [B], `labels` [B, T].
    """
    losses = {}
    if "teacher" in output:
        n_frames = output["teacher"].shape[1] - shift
        distance = 1 - F.cosine_similarity(
            output["teacher"][:, shift:].float(), batch["teacher"][:, :n_frames], dim=-1
        )
        mask = batch["has_teacher"][:, None].float().expand_as(distance)
        losses["teacher"] = (distance * mask).sum() / mask.sum().clamp(min=1)
    if "labels" in output:
        logits = output["labels"][:, shift:].float()
        labels = batch["labels"][:, : logits.shape[1]]
        summed = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        losses["labels"] = summed / (labels != NO_LABEL).sum().clamp(min=1)
    return losses


def dropout_levels(recipe: Recipe, step: int, rank: int, n_items: int) -> Tensor:
    """Levels that each item of a rank's batch keeps, int64 [n_items]: quantizer dropout."""
    settings, n_codebooks = recipe.train, recipe.model.n_codebooks
    rng = np.random.default_rng([settings.seed, step, rank])
    levels = rng.integers(1, n_codebooks + 1, n_items)
    levels[rng.random(n_items) >= settings.quantizer_dropout] = n_codebooks
    return torch.from_numpy(levels)


def validation_levels(n_codebooks: int) -> list[int]:
    """Numbers of levels that validation tries."""
    return sorted({1, min(2, n_codebooks), max(1, n_codebooks // 2), n_codebooks})


def blame(reports: list[tuple[list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """What was not finite, and the recordings of the ranks where it was.

    reports: for each rank the losses that are not finite and the recordings of its batch. Where no
    rank has such a loss, their sum is not finite, and every recording counts.
    """
    guilty = [report for report in reports if report[0]] or reports
    names = list(dict.fromkeys(name for bad, _ in guilty for name in bad))
    return names, [name for _, recordings in guilty for name in recordings]


def _next_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        return next(batches)
    except FileRefused as error:
        # Of a data worker's exception torch makes one whose message is a traceback.
        line = str(error).strip().splitlines()[-1]
        raise FileRefused(line.partition("FileRefused: ")[2] or line) from error


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _dataset(recipe: Recipe) -> CropDataset:
    data = recipe.data
    corpora = [Corpus(read_manifest(manifest.path), manifest.weight) for manifest in data.train]
    return CropDataset(
        corpora,
        sample_rate=recipe.model.sample_rate,
        hop_length=recipe.model.hop_length,
        crop_frames=recipe.crop_frames,
        seed=recipe.train.seed,
        level_range_db=data.level_range_db,
        speed_range=data.speed_range,
        teacher_folder=data.teacher_folder,
        teacher_dim=data.teacher_dim,
        labels_folder=data.labels_folder,
        n_labels=data.n_labels,
    )


def _validation_clips(recipe: Recipe) -> list[Tensor]:
    """Validation recordings [1, 1, N], cut to `VALIDATION_SECONDS`."""
    if not recipe.data.validation:
        return []
    rate = recipe.model.sample_rate
    cuts = read_manifest(recipe.data.validation)[: recipe.data.validation_clips]
    clips = []
    for cut in cuts:
        n_samples = max(1, int(min(cut.duration, VALIDATION_SECONDS) * rate))
        wav = read_crop(cut.path, round(cut.start * rate), n_samples, rate)
        clips.append(torch.from_numpy(wav)[None, None])
    return clips


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        name: torch.stack([item[name] for item in items])
        for name, value in items[0].items()
        if isinstance(value, Tensor)
    }
    skipped = [reason for item in items for reason in item["skipped"]]
    return batch | {"id": [item["id"] for item in items], "skipped": skipped}


def _stoi(wav: Tensor, decoded: Tensor, sample_rate: int) -> float:
    """STOI of a decoded recording; NaN when pystoi is not installed."""
    try:
        from pystoi import stoi
    except ImportError:
        return math.nan
    return float(stoi(wav.flatten().cpu().numpy(), decoded.flatten().cpu().numpy(), sample_rate))
