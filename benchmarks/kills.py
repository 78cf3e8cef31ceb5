"""Whether a training that is killed at any moment leaves what it can go on from, bit for bit.

    python benchmarks/kills.py --kills 40

Trains a tiny model on the recordings in examples/ through all three stages, a checkpoint every
second step. Other runs of the same recipe are killed (SIGKILL) at random moments and resumed, up to
three times each, and then left to end. After each kill the newest checkpoint, the best one and the
recipe must be readable; at the end every tensor must be that of the run which nobody disturbed, and
no step may stand twice in its metrics. A line a run says what is not so; the exit code is then 1.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from audiovq import ModelConfig
from audiovq.files import FileRefused
from audiovq.runs import METRICS_FILE
from audiovq.training.checkpoint import BEST, newest_checkpoint, read_checkpoint, read_newest
from audiovq.training.loop import train
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe, TrainSettings
from audiovq.training.recordings import find_recordings, write_manifest
from audiovq.training.run_files import RECIPE_FILE

EXAMPLES = Path(__file__).parent.parent / "examples"
IMPORTS = ["audiovq.training.loop", "lhotse"]
"""Done once for all processes, so that the kills fall into the work."""
MOST_KILLS = 3  # of a run


def tiny_recipe(folder: Path, steps: int) -> Recipe:
    """A recipe of three stages, and the manifest for it in `folder`."""
    manifest = folder / "examples.jsonl"
    write_manifest(find_recordings(EXAMPLES)[0], manifest)
    sizes = {"strides": (40, 8), "channels": (8, 8), "encoder_blocks": (1, 1), "n_fft": 640}
    decoder = {"decoder_channels": 8, "decoder_blocks": 1, "block_frames": 4}
    codebooks = {"n_codebooks": 2, "codebook_size": 8, "codebook_dim": 4}
    return Recipe(
        model=ModelConfig(**sizes, **decoder, **codebooks),
        data=DataSettings(
            train=(ManifestSettings(str(manifest)),),
            validation=str(manifest),
            validation_clips=1,
            batch_size=2,
            crop_seconds=0.3,
            workers=0,
        ),
        train=TrainSettings(
            steps=steps,
            autoencoder_steps=steps // 4,
            adversarial_from=2 * steps // 3,
            log_every=1,
            validate_every=5,
            checkpoint_every=2,
            precision="32-true",
            accelerator="cpu",
        ),
        card={"name": "tiny"},
    )


def _train(recipe: Recipe, run: Path, resume: bool) -> None:
    warnings.simplefilter("ignore")
    train(recipe, run, resume=resume)


def attempt(recipe: Recipe, run: Path, seconds: float) -> bool:
    """Train, or go on, for so long at most; whether the training was killed."""
    resume = newest_checkpoint(run) is not None
    server = multiprocessing.get_context("forkserver")
    process = server.Process(target=_train, args=(recipe, run, resume))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    if not killed and process.exitcode:
        raise FileRefused(f"the training ended with {process.exitcode}")
    return killed


def check(run: Path) -> None:
    """Raise `FileRefused` or `ValueError` when a file of a killed run cannot be read."""
    found = read_newest(run)
    if found is not None and found.damaged:
        raise FileRefused(f"{found.damaged[0]} is damaged")
    if (run / BEST).exists():
        read_checkpoint(run / BEST)
    if (run / RECIPE_FILE).exists():
        json.loads((run / RECIPE_FILE).read_text())


def compare(run: Path, whole: Path) -> None:
    """Raise `ValueError` when a run did not end as the undisturbed one."""
    one, other = read_newest(run), read_newest(whole)
    assert one is not None and other is not None  # noqa: PT018 - both ended
    if one.tensors.keys() != other.tensors.keys() or one.values["step"] != other.values["step"]:
        raise ValueError("its last checkpoint is another one")
    for name, tensor in one.tensors.items():
        if not torch.equal(tensor, other.tensors[name]):
            raise ValueError(f"{name} differs from the undisturbed run's")
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    steps = [(line.get("kind"), line["step"], *sorted(line)) for line in lines]
    if len(steps) != len(set(steps)):
        raise ValueError("its metrics hold a step twice")


def main() -> None:
    """Kill, resume, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=24, help="of a training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTS)
    rng = random.Random(arguments.seed)
    n_kills = n_runs = n_early = n_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = tiny_recipe(folder, arguments.steps)
        attempt(recipe, folder / "warm", 1e6)
        start = time.monotonic()
        attempt(recipe, folder / "whole", 1e6)
        lasts = time.monotonic() - start
        while n_kills < arguments.kills:
            run = folder / f"run{n_runs}"
            n_runs += 1
            before, said = n_kills, "as the undisturbed one, bit for bit"
            try:
                for _ in range(min(MOST_KILLS, arguments.kills - n_kills)):
                    if not attempt(recipe, run, rng.uniform(0, lasts)):
                        break
                    n_kills += 1
                    n_early += newest_checkpoint(run) is None
                    check(run)
                attempt(recipe, run, 1e6)
                compare(run, folder / "whole")
            except ValueError as error:
                n_wrong, said = n_wrong + 1, str(error)
            print(f"run {n_runs}, {n_kills - before} kills: {said}", flush=True)
    print(f"{n_kills} kills in {n_runs} runs of {lasts:.1f} s, {n_early} before a checkpoint")
    print(f"{n_runs - n_wrong} of {n_runs} runs ended as the undisturbed one, bit for bit")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
