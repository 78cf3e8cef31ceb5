"""Whether a training that is killed at any moment leaves what it can go on from, bit for bit.

    python benchmarks/kills.py --kills 40

Trains a tiny model with `audiovq train` on the recordings in examples/, through all three stages, a
checkpoint every second step. Other runs of the same recipe are killed (SIGKILL) at random moments
and go on with `--resume`, up to three times each, and then end undisturbed. After each kill the
newest checkpoint, the best one and the recipe must be readable; at the end every tensor of the last
and of the best checkpoint must be that of the run which nobody disturbed, and no step may stand
twice in its metrics. A line a run says what is not so; the exit code is then 1.

Each training is a process of its own, forked from this one, which has imported all it needs:
imports take longer than the whole of so small a training, and kills are to fall into the work.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

import audiovq.training.loop  # noqa: F401 - as the command does
import audiovq_cli
from audiovq import ModelConfig
from audiovq.runs import METRICS_FILE
from audiovq.training.checkpoint import (
    BEST,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
)
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe, TrainSettings
from audiovq.training.recordings import find_recordings, write_manifest
from audiovq.training.run_files import RECIPE_FILE

EXAMPLES = Path(__file__).parent.parent / "examples"
IMPORTS = ["lhotse", "pystoi", "torch.utils.tensorboard"]
"""What a training imports on its way."""
MOST_KILLS = 3  # of a run


class WentWrong(Exception):  # noqa: N818 - it says what did
    """A run is not as it must be."""


def tiny_recipe(folder: Path, steps: int) -> Path:
    """A recipe of three stages in `folder`, and the manifests for it."""
    manifest, validation = folder / "examples.jsonl", folder / "validation.jsonl"
    cuts, _ = find_recordings(EXAMPLES)
    write_manifest(cuts, manifest)
    write_manifest([cuts[0].truncate(offset=0.5, duration=0.6)], validation)
    sizes = {"strides": (40, 8), "channels": (8, 8), "encoder_blocks": (1, 1), "n_fft": 640}
    decoder = {"decoder_channels": 8, "decoder_blocks": 1, "block_frames": 4}
    codebooks = {"n_codebooks": 2, "codebook_size": 8, "codebook_dim": 4}
    recipe = Recipe(
        model=ModelConfig(**sizes, **decoder, **codebooks),
        data=DataSettings(
            train=(ManifestSettings(str(manifest)),),
            validation=str(validation),
            validation_clips=1,
            batch_size=2,
            crop_seconds=0.2,
        ),
        train=TrainSettings(
            steps=steps,
            autoencoder_steps=steps // 4,
            adversarial_from=2 * steps // 3,
            adversarial_items=1,
            validate_every=steps // 2,
            checkpoint_every=2,
            log_every=1,
            precision="32-true",
            accelerator="cpu",
        ),
        card={"name": "tiny"},
    )
    path = folder / "tiny.json"
    path.write_text(json.dumps(asdict(recipe)))
    return path


def _train(arguments: list[str], log: Path) -> None:
    """`audiovq train` with these arguments, in this process."""
    warnings.simplefilter("ignore")
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    audiovq_cli.app(["train", *arguments])


def attempt(recipe: Path, run: Path, seconds: float | None = None) -> bool:
    """Train, or go on, for so long at most; whether the training was killed."""
    resume = newest_checkpoint(run) is not None
    arguments = [str(run), "--resume"] if resume else [str(recipe), "-o", str(run)]
    log = run.with_name(f"{run.name}.log")
    process = multiprocessing.get_context("fork").Process(target=_train, args=(arguments, log))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    if process.exitcode and not (killed and process.exitcode == -9):
        raise WentWrong(f"it ended with {process.exitcode}: {log.read_text()[-300:].strip()}")
    return process.exitcode != 0


def check(run: Path) -> bool:
    """Whether a killed run has a checkpoint; raises what readers raise when a file is damaged."""
    found = read_newest(run)
    if found is not None and found.damaged:
        raise WentWrong(f"{found.damaged[0]} is damaged")
    if (run / BEST).exists():
        read_checkpoint(run / BEST)
    if (run / RECIPE_FILE).exists():
        json.loads((run / RECIPE_FILE).read_text())
    return found is not None


def compare(run: Path, whole: Path) -> None:
    """Raise `WentWrong` when a run did not end as the undisturbed one."""
    for one, other in zip(_checkpoints(run), _checkpoints(whole), strict=True):
        if one.tensors.keys() != other.tensors.keys() or one.values != other.values:
            raise WentWrong(f"{one.path.name} is another one than the undisturbed run's")
        for name, tensor in one.tensors.items():
            if not torch.equal(tensor, other.tensors[name]):
                raise WentWrong(f"{name} of {one.path.name} differs from the undisturbed run's")
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    steps = [(line["step"], *sorted(line)) for line in lines]
    if len(steps) != len(set(steps)):
        raise WentWrong("its metrics hold a step twice")


def _checkpoints(run: Path) -> tuple[Checkpoint, Checkpoint]:
    """The last checkpoint of a run and the best one."""
    newest = read_newest(run)
    if newest is None:
        raise WentWrong("it ended without a checkpoint")
    return newest, read_checkpoint(run / BEST)


class Tally:
    """What was tried."""

    def __init__(self) -> None:
        self.kills = self.early = self.writing = 0

    def disturb(self, recipe: Path, run: Path, whole: Path, delays: list[float]) -> None:
        """Train a run, kill it after each of these seconds, let it end and look at it."""
        for delay in delays:
            if not attempt(recipe, run, delay):
                break
            self.kills += 1
            self.writing += any(run.glob(".*.audiovq-tmp*"))
            self.early += not check(run)
        attempt(recipe, run)
        compare(run, whole)


def main() -> None:
    """Kill, resume, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="of a training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not live on in a forked process
    for module in IMPORTS:
        importlib.import_module(module)
    sys.modules["distillmos"] = None  # type: ignore[assignment] # it takes longer than all the rest
    rng, tally = random.Random(arguments.seed), Tally()
    n_runs = n_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = tiny_recipe(folder, arguments.steps)
        start = time.monotonic()
        attempt(recipe, folder / "whole")
        lasts = time.monotonic() - start
        while tally.kills < arguments.kills:
            n_runs += 1
            before, said = tally.kills, "as the undisturbed one, bit for bit"
            n_kills = min(MOST_KILLS, arguments.kills - tally.kills)
            delays = [rng.uniform(0, lasts) for _ in range(n_kills)]
            try:
                tally.disturb(recipe, folder / f"run{n_runs}", folder / "whole", delays)
            except (WentWrong, ValueError) as error:
                n_wrong, said = n_wrong + 1, str(error)
            print(f"run {n_runs}, {tally.kills - before} kills: {said}", flush=True)
    print(
        f"{tally.kills} kills in {n_runs} runs of {lasts:.1f} s: {tally.early} before there was a "
        f"checkpoint, {tally.writing} while a file was being written"
    )
    print(f"{n_runs - n_wrong} of {n_runs} runs ended as the undisturbed one, bit for bit")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
