"""Training: one loop, on Lightning Fabric, from a recipe to a run's folder.

The run goes through three stages. First encoder and decoder learn as an autoencoder, then all
codebooks start from k-means of the latent and learn along, and last the discriminators join. Or
the decoder learns alone, from codes that were computed once. All randomness and the position in the
data are functions of the step, so that a run which stops and resumes is the run that did not stop.
"""

import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from audiovq.files import FileRefused
from audiovq.interrupt import TrainingStopped, stop_wish
from audiovq.model import AudioVQ
from audiovq.training.adversary import Adversary
from audiovq.training.average import Average
from audiovq.training.bad_steps import BadSteps
from audiovq.training.batches import (
    batches_from,
    both_views,
    end_readers,
    make_dataset,
    next_batch,
)
from audiovq.training.checkpoint import (
    BEST,
    Checkpoint,
    load_optimizer_tensors,
    matching,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from audiovq.training.generator import Generator, dropout_levels, step_seed
from audiovq.training.launch import launch
from audiovq.training.log import RunLog
from audiovq.training.losses import MelLoss, other_losses, sound_losses
from audiovq.training.optimizers import (
    all_finite,
    clip_gradients,
    generator_first,
    make_optimizer,
    set_learning_rates,
)
from audiovq.training.recipe import Recipe
from audiovq.training.run_files import save_recipe
from audiovq.training.start import (
    find_start,
    initial_model,
    learns,
    reference_model,
    start_codebooks,
    start_front,
)
from audiovq.training.validate import validate, validation_clips

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
    fabric = launch(recipe)
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
            self.quantize = not settings.new_codebooks
            generator.model.load_state_dict(initial_model(recipe).state_dict())
            generator.begin_codes()
        for name, parameter in generator.model.named_parameters():
            parameter.requires_grad_(learns(recipe, name))
        generator.model.encoder.unit_gradient = recipe.loss.unit_gradient
        self.module = generator
        self.generator, self.optimizer = fabric.setup(
            generator, make_optimizer(generator, settings.learning_rate)
        )
        self.adversary = Adversary(recipe, fabric)
        if settings.initial_discriminators and start is None:
            self.adversary.go_on_from(Path(settings.initial_discriminators))
        self.average = Average(self.model, settings.ema_decay)
        self.mel_loss = MelLoss(recipe.model.sample_rate).to(fabric.device)
        self.reference = reference_model(recipe, start, fabric.device)
        """Whose units stay, if any do."""
        self.saved_step = -1
        self.close: Callable[[], object] = lambda: None
        """Ends the processes that read, if there are any."""
        if start is not None:
            self._load(start)
        self.log = RunLog(recipe, out, fabric, self.step)
        self.bad_steps = BadSteps(fabric, self.log, out)
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
        self.log.say_start(self.dataset, self.model, self.step)
        self._start_units()
        self._train_mode()
        batches = batches_from(self.step, self.dataset, self.recipe, self.fabric)
        # They leave signals to this process, which would wait for them for ever when it ends.
        self.close = weakref.finalize(self, end_readers, batches)
        while self.step < settings.steps:
            if not self.quantize and self.step >= settings.autoencoder_steps:
                self._start_quantizer()
            waiting = time.perf_counter()
            batch = next_batch(batches)
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

    def _train_mode(self) -> None:
        self.generator.train()
        self.module.train_mode(keep_units=self.reference is not None)

    def _train_step(self, batch: dict[str, Any]) -> None:
        recipe, step = self.recipe, self.step
        torch.manual_seed(step_seed(recipe, step))  # the same on every rank
        set_learning_rates(recipe, step, self.optimizer, self.adversary.optimizer)
        batch = self.fabric.to_device(batch)
        levels = self.fabric.to_device(
            dropout_levels(recipe, step, self.fabric.global_rank, len(batch["wav"]))
        )
        if recipe.loss.agreement and "clean" in batch:
            batch, levels = both_views(batch), levels.repeat(2)
        if waits := step < generator_first(recipe, step):
            self.model.quantizer.eval()  # its codebooks wait too
        with torch.set_grad_enabled(not waits):
            output = self.generator(batch["wav"], levels, self.quantize, batch.get("tokens"))
        losses, gradient = self._judge_sound(output.get("wav"), batch["wav"])
        if waits:
            self._train_mode()
            self.log.record(losses, output)
            return
        if self.reference is not None:
            batch["kept_vectors"] = self.reference.unit_vectors(batch.get("clean", batch["wav"]))
        agree = recipe.loss.agreement and not recipe.loss.code_labels
        if self.quantize and (self.reference is not None or agree):
            batch["unit_table"] = self.model.quantizer.codebooks[0].vectors
        other = other_losses(output, batch, recipe.loss.unit_shift)
        total = self._weighted(other) + output.get("codebook", 0.0)
        if "wav" in output:
            total = total + (output["wav"] * gradient).sum()
        losses |= other
        if not all_finite(self.fabric, total, gradient, *losses.values()):
            bad = not all(torch.isfinite(loss).all() for loss in losses.values())
            self._skip(batch, losses if bad else {"the gradient": gradient})
            return
        self.fabric.backward(total)
        if step < recipe.train.heads_alone:
            self.module.keep_model()
        norm = clip_gradients(self.fabric, self.generator, self.optimizer, recipe.train.clip_norm)
        if not all_finite(self.fabric, norm):
            self._skip(batch, {"the gradient": norm})
            return
        self.bad_steps.in_a_row = 0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.place_codes(output)
        self.average.update(step)
        self.log.record(losses | {"gradient_norm": norm}, output)

    def _skip(self, batch: dict[str, Any], losses: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad()
        self.bad_steps.note(self.step, batch["id"], losses)

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

    def _start_units(self) -> None:
        """A start for the units' front that the initial model did not have."""
        if start_front(self.model, self.dataset, self.fabric):
            self.average.restart()
            self.log.say("The units have a front of their own, the nearest to the convolutions.")

    def _start_quantizer(self) -> None:
        """k-means starts of all codebooks that learn."""
        torch.manual_seed(step_seed(self.recipe, self.step))
        start_codebooks(self.recipe, self.model, self.dataset, self.fabric)
        self.average.restart(".codebooks.")
        self.module.begin_codes()
        self.quantize = True
        self.log.say("The quantizer is on: every codebook that learns started from k-means.")

    def _validate(self) -> None:
        """Quality on the validation recordings, with the averaged weights."""
        if not self.validation or not self.fabric.is_global_zero:
            return
        self.model.eval()

        def keep_sample(index: int, n_q: int, decoded: Tensor) -> None:
            if index < 4:
                mel = self.mel_loss.log_mels(decoded)[-2][0]
                self.log.write_sample(f"clip {index}/n_q {n_q}", decoded, mel, self.step)

        with self.average.applied():
            values = validate(
                self.model,
                self.validation,
                self.mel_loss,
                quantize=self.quantize,
                on_decoded=keep_sample,
            )
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

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self._write_checkpoint(self.out / f"checkpoint-{self.step:08d}.safetensors")
            prune_checkpoints(self.out, self.recipe.train.keep)
        self.saved_step = self.step
        self.fabric.barrier()

    def _tensors(self) -> dict[str, Tensor]:
        """What learns, by its names in checkpoints; what optimizers hold is not among it."""
        critic = self.adversary.module
        tensors: dict[str, Tensor] = {
            f"generator.{name}": p for name, p in self.module.named_parameters()
        }
        tensors |= {f"generator.{name}": b for name, b in self.module.named_buffers()}
        tensors |= {f"discriminator.{name}": p for name, p in critic.named_parameters()}
        return tensors | {f"ema.{name}": average for name, average in self.average.tensors.items()}

    def _write_checkpoint(self, path: Path) -> None:
        tensors = self._tensors()
        for name, optimizer in self._optimizers().items():
            tensors |= optimizer_tensors(name, optimizer)
        values = {
            "step": self.step,
            "best": self.best,
            "quantize": self.quantize,
            "learn": self.recipe.train.learn,
            "config": asdict(self.recipe.model),
            "card": self.recipe.card,
            "reference": self.reference and self.reference.fingerprint,
            "adversarial_norms": self.adversary.norms,
        }
        save_checkpoint(path, tensors, values)

    def _load(self, start: Checkpoint) -> None:
        own = self._tensors()
        for name, tensor in matching(start.path, start.tensors, own).items():
            own[name].data = tensor.to(own[name].device)  # the reservoir's size may differ
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
