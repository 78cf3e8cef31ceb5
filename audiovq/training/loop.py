"""Training: one loop, on Lightning Fabric, from a recipe to a run's folder.

The run goes through three stages. First encoder and decoder learn as an autoencoder, then all
codebooks start from k-means of the latent and learn along, and last the discriminators join. Or
the decoder learns alone, from codes that were computed once. All randomness and the position in the
data are functions of the step, so that a run which stops and resumes is the run that did not stop.
"""

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
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
from torch import Tensor
from torch.utils.data import DataLoader

from audiovq.files import FileRefused
from audiovq.hardware import choose_precision, choose_threads, describe
from audiovq.interrupt import TrainingStopped, leave_to_parent, stop_wish
from audiovq.model import AudioVQ
from audiovq.quantize import SplitQuantizer
from audiovq.training.adversary import Adversary
from audiovq.training.cache import codes_folder, fill_codes, fill_pitch, pitch_folder
from audiovq.training.checkpoint import (
    BEST,
    Checkpoint,
    load_optimizer_tensors,
    matching,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from audiovq.training.data import Corpus, CropDataset, StepBatches, read_manifest
from audiovq.training.generator import Generator, dropout_levels
from audiovq.training.log import RunLog
from audiovq.training.losses import (
    MelLoss,
    consistency_loss,
    pitch_loss,
    sound_losses,
    unit_losses,
)
from audiovq.training.optimizers import all_finite, clip_gradients, make_optimizer, schedule
from audiovq.training.recipe import Recipe
from audiovq.training.run_files import save_recipe
from audiovq.training.start import find_start, initial_model, learns
from audiovq.training.validate import validate, validation_clips

logger = logging.getLogger("audiovq.train")
T = TypeVar("T")

START_CROPS = 240
"""Crops whose latents the k-means starts see."""
MAX_BAD_STEPS = 5
"""Steps in a row with losses that are not finite, after which a run stops."""
FIRST_LOGS = (1, 2, 5, 10, 20)
"""Steps that are logged besides every `train.log_every`: a start is soon seen to go well."""


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
    start = find_start(recipe, out, resume=resume, accept_changes=accept_changes)
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
    finally:
        run.close()
    return out


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
        generator = Generator(recipe)
        if settings.initial_model and start is None:
            self.quantize = True
            generator.model.load_state_dict(initial_model(recipe).state_dict())
        for name, parameter in generator.model.named_parameters():
            parameter.requires_grad_(learns(recipe, name))
        generator.model.encoder.unit_gradient = recipe.loss.unit_gradient
        self.module = generator
        self.generator, self.optimizer = fabric.setup(
            generator, make_optimizer(generator, settings.learning_rate)
        )
        self.adversary = Adversary(recipe, fabric)
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.mel_loss = MelLoss(recipe.model.sample_rate).to(fabric.device)
        self.reference: AudioVQ | None = None
        """Whose units stay, if any do."""
        if recipe.loss.consistency:
            self.reference = AudioVQ.from_pretrained(settings.initial_model, device=fabric.device)
        self.bad_steps = 0
        self.saved_step = -1
        self.close: Callable[[], object] = lambda: None
        """Ends the processes that read, if there are any."""
        if start is not None:
            self._load(start)
        self.log = RunLog(recipe, out, fabric, self.step)
        self._open_folder()
        if start is not None:
            self._say_resumed(start)
        self.dataset = make_dataset(recipe, self.model, fabric)
        self.validation = validation_clips(recipe)

    @property
    def model(self) -> AudioVQ:
        """The codec inside the generator."""
        return self.module.model

    def steps(self) -> Iterator[int]:
        """Train from the current step to the last one; yield the number of steps done."""
        settings = self.recipe.train
        self.log.say(self._start_line())
        self._start_units()
        self._train_mode()
        batches = self._batches()
        # They leave signals to this process, which would wait for them for ever when it ends.
        self.close = weakref.finalize(self, _end_readers, batches)
        while self.step < settings.steps:
            if not self.quantize and self.step >= settings.autoencoder_steps:
                self._start_quantizer()
            waiting = time.perf_counter()
            batch = _next_batch(batches)
            self.log.window.waited += time.perf_counter() - waiting
            self.log.note_unreadable(batch.pop("skipped"))
            self._train_step(batch)
            self.step += 1
            last = self.step == settings.steps
            if self.step % settings.log_every == 0 or self.step in FIRST_LOGS or last:
                self.log.write_window(self.step)
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
        self.log.say(line)
        raise TrainingStopped(line, signum)

    def _open_folder(self) -> None:
        """Make the run's folder that of this step, so that it holds no step twice."""
        if self.fabric.is_global_zero:
            save_recipe(self.out, self.recipe, self.step)

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
        elif self.reference is not None:
            assert isinstance(self.model.quantizer, SplitQuantizer)
            self.model.quantizer.units.eval()  # a unit stays what it is; the encoder follows

    def _train_step(self, batch: dict[str, Any]) -> None:
        recipe, step = self.recipe, self.step
        torch.manual_seed(_step_seed(recipe.train.seed, step))  # the same on every rank
        self._set_learning_rates(schedule(recipe, step))
        batch = self.fabric.to_device(batch)
        levels = self.fabric.to_device(
            dropout_levels(recipe, step, self.fabric.global_rank, len(batch["wav"]))
        )
        if recipe.train.learn == "units" and "clean" in batch:
            batch, levels = both_views(batch), levels.repeat(2)
        output = self.generator(batch["wav"], levels, self.quantize, batch.get("tokens"))
        losses, gradient = self._judge_sound(output.get("wav"), batch["wav"])
        other = unit_losses(output, batch, recipe.loss.unit_shift)
        if "pitch" in output:
            other["pitch"] = pitch_loss(output["pitch"], batch["pitch"])
        if self.reference is not None:
            other |= self._keep_units(output["unit_vectors"], batch)
        # The unit that is nearest may not be the one that consistency asks for.
        committed = output.get("commitment", [])[0 if self.reference is None else 1 :]
        if len(committed):
            other["commitment"] = committed.mean()
        total = self._weighted(other) + output.get("codebook", 0.0)
        if "wav" in output:
            total = total + (output["wav"] * gradient).sum()
        losses |= other
        if not all_finite(self.fabric, total, gradient, *losses.values()):
            bad = not all(torch.isfinite(loss).all() for loss in losses.values())
            self._skip(batch, losses if bad else {"the gradient": gradient})
            return
        self.fabric.backward(total)
        norm = clip_gradients(self.fabric, self.generator, self.optimizer, recipe.train.clip_norm)
        if not all_finite(self.fabric, norm):
            self._skip(batch, {"the gradient": norm})
            return
        self.bad_steps = 0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_ema()
        self.log.record(losses | {"gradient_norm": norm}, output)

    def _keep_units(self, vectors: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What keeps the units that `vectors` become those of the reference."""
        assert self.reference is not None
        table = self.model.quantizer.codebooks[0].vectors
        clean = batch.get("clean", batch["wav"])
        kept = consistency_loss(vectors[: len(clean)], table, self.reference.unit_vectors(clean))
        if len(clean) == len(vectors):
            return {"consistency": kept}
        as_clean, heard = vectors.chunk(2)
        return {"consistency": kept, "agreement": consistency_loss(heard, table, as_clean.detach())}

    def _judge_sound(self, wav: Tensor | None, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of decoded sound [B, 1, N] if any, and their weighted gradient there.

        The way from there to the weights is the same for all of them and is gone once.
        """
        if wav is None:
            return {}, torch.zeros(())
        leaf = wav.detach().float().requires_grad_()
        losses = sound_losses(leaf, target, self.mel_loss)
        (gradient,) = torch.autograd.grad(self._weighted(losses), leaf)
        losses = {name: loss.detach() for name, loss in losses.items()}
        if self.step < self.recipe.train.adversarial_from:
            return losses, gradient
        heard = slice(self.recipe.train.adversarial_items)
        judged = self.adversary.step(target[heard], leaf[heard], gradient[heard])
        for name, loss in judged.losses.items():
            self.log.window.note(name, loss)
        if judged.gradient is None:
            self.log.window.skipped_critic += 1
        else:
            gradient[heard] += judged.gradient
        return losses, gradient

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of losses by the weights of their names in `loss`."""
        weights = asdict(self.recipe.loss)
        terms = [weights[name] * loss for name, loss in losses.items()]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.fabric.device)

    def _optimizers(self) -> dict[str, Any]:
        """By their names in checkpoints."""
        return {"optimizer": self.optimizer, "critic_optimizer": self.adversary.optimizer}

    def _set_learning_rates(self, factor: float) -> None:
        settings = self.recipe.train
        for optimizer, rate in (
            (self.optimizer, settings.learning_rate),
            (self.adversary.optimizer, settings.discriminator_learning_rate),
        ):
            optimizer.param_groups[0]["lr"] = rate * factor

    def _start_units(self) -> None:
        """A start for the units' front that the initial model did not have."""
        encoder = self.model.encoder
        if encoder.level is None or encoder.unit_front.weight.any():
            return
        first = 1 << 40  # crops that the run will not see again, the same on every rank
        crops = [self.dataset[first + index]["wav"][None] for index in range(START_CROPS)]
        encoder.fit_front([self.fabric.to_device(wav) for wav in crops])
        for name, parameter in self.model.named_parameters():
            self.ema[name].copy_(parameter.detach())
        self.log.say("The units have a front of their own, the nearest to the convolutions.")

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
        self.log.say("The quantizer is on: every codebook started from k-means.")

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

    def _skip(self, batch: dict[str, Any], losses: dict[str, Tensor]) -> None:
        bad = [name for name, loss in losses.items() if not torch.isfinite(loss).all()]
        names, recordings = blame(self._gather((bad, batch["id"])))
        self.log.alarm(
            f"step {self.step} is skipped: {', '.join(names) or 'a loss'} is not finite; "
            f"its recordings are {', '.join(recordings)}."
        )
        self.optimizer.zero_grad()
        self.log.window.skipped += 1
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

    def _validate(self) -> None:
        """Quality on the validation recordings, with the averaged weights."""
        if not self.validation or not self.fabric.is_global_zero:
            return
        raw = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._set_weights(self.ema)
        self.model.eval()

        def keep_sample(index: int, n_q: int, decoded: Tensor) -> None:
            if index < 4:
                mel = self.mel_loss.log_mels(decoded)[-2][0]
                self.log.write_sample(f"clip {index}/n_q {n_q}", decoded, mel, self.step)

        values = validate(
            self.model,
            self.validation,
            self.mel_loss,
            quantize=self.quantize,
            on_decoded=keep_sample,
        )
        self._set_weights(raw)
        self._train_mode()
        self.log.write_metrics(self.step, values)
        self.log.say(
            f"step {self.step} validation: "
            + ", ".join(f"{k.removeprefix('validation_')} {v:.3f}" for k, v in values.items())
        )
        score = values.get(f"validation_mel_n_q_{self.recipe.model.n_codebooks}", math.inf)
        if score < self.best and self.recipe.train.learn != "units":  # which do not aim at it
            self.best = score
            self._write_checkpoint(self.out / BEST)

    @torch.no_grad()
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
        tensors |= {f"discriminator.{n}": p for n, p in self.adversary.module.named_parameters()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        for name, optimizer in self._optimizers().items():
            tensors |= optimizer_tensors(name, optimizer)
        values = {
            "step": self.step,
            "best": self.best,
            "quantize": self.quantize,
            "learn": self.recipe.train.learn,
            "config": asdict(self.recipe.model),
            "card": self.recipe.card,
            "adversarial_norms": self.adversary.norms,
        }
        save_checkpoint(path, tensors, values)

    def _load(self, start: Checkpoint) -> None:
        named = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        wanted = {f"generator.{name}": tensor for name, tensor in named.items()}
        critic = self.adversary.module
        wanted |= {f"discriminator.{name}": p for name, p in critic.named_parameters()}
        wanted |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        for name, tensor in matching(start.path, start.tensors, wanted).items():
            wanted[name].data = tensor.to(wanted[name].device)  # the reservoir's size may differ
        for name, optimizer in self._optimizers().items():
            load_optimizer_tensors(name, optimizer, start.tensors, start.path)
        values = start.values
        self.step, self.best, self.quantize = values["step"], values["best"], values["quantize"]
        self.adversary.norms = values.get("adversarial_norms", [])  # older ones have none
        self.saved_step = self.step

    def _say_resumed(self, start: Checkpoint) -> None:
        self.fabric.barrier()  # every rank has read before anything is renamed
        if self.fabric.is_global_zero:
            set_aside(start.damaged)
        for path in start.damaged:
            self.log.alarm(f"{path} is damaged; the run goes on from the one before it.")
        self.log.say(f"Resumed from {start.path} at step {self.step}.")


def both_views(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose first half is heard as it was recorded, and the second as it was changed."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    twice = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in tensors.items()}
    twice["wav"] = torch.cat([batch["clean"], batch["wav"]])
    return batch | twice | {"clean": batch["clean"]}


def blame(reports: list[tuple[list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """What was not finite, and the recordings of the ranks where it was.

    reports: for each rank the losses that are not finite and the recordings of its batch. Where no
    rank has such a loss, their sum is not finite, and every recording counts.
    """
    guilty = [report for report in reports if report[0]] or reports
    names = list(dict.fromkeys(name for bad, _ in guilty for name in bad))
    return names, [name for _, recordings in guilty for name in recordings]


def _end_readers(batches: Iterator[dict[str, Any]]) -> None:
    shut_down = getattr(batches, "_shutdown_workers", None)  # there are none without workers
    if shut_down is not None:
        shut_down()


def _next_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        return next(batches)
    except FileRefused as error:
        # Of a data worker's exception torch makes one whose message is a traceback.
        line = str(error).strip().splitlines()[-1]
        raise FileRefused(line.partition("FileRefused: ")[2] or line) from error


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def make_dataset(recipe: Recipe, model: AudioVQ, fabric: Fabric) -> CropDataset:
    """The crops of a recipe, what is computed once for them included."""
    data, config = recipe.data, recipe.model
    corpora = [Corpus(read_manifest(manifest.path), manifest.weight) for manifest in data.train]
    cuts = [cut for corpus in corpora for cut in corpus.cuts]
    tokens = pitch = ""
    if data.cache_folder:
        if recipe.train.learn == "decoder":
            tokens = str(codes_folder(data.cache_folder, model))
        if config.source_channels and recipe.train.learn != "units":
            pitch = str(pitch_folder(data.cache_folder, config.hop_length))
        if fabric.is_global_zero:
            if tokens:
                fill_codes(model, cuts, data.cache_folder)
            if pitch:
                fill_pitch(cuts, config.sample_rate, config.hop_length, data.cache_folder)
        fabric.barrier()
    return CropDataset(
        corpora,
        sample_rate=config.sample_rate,
        hop_length=config.hop_length,
        crop_frames=recipe.crop_frames,
        seed=recipe.train.seed,
        level_range_db=data.level_range_db,
        speed_range=data.speed_range,
        teacher_folder=data.teacher_folder,
        teacher_dim=data.teacher_dim,
        labels_folder=data.labels_folder,
        n_labels=data.n_labels,
        tokens_folder=tokens,
        n_codebooks=config.n_codebooks,
        pitch_folder=pitch,
        augment_share=data.augment_share,
    )


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        name: torch.stack([item[name] for item in items])
        for name, value in items[0].items()
        if isinstance(value, Tensor)
    }
    skipped = [reason for item in items for reason in item["skipped"]]
    return batch | {"id": [item["id"] for item in items], "skipped": skipped}
