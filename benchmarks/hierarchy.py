"""Levels at several rates against levels at one, at equal training time and equal bitrate.

    python benchmarks/hierarchy.py RUNS HELDOUT --phones PHONES [--minutes 60 | --steps 400]
        [--seeds 0] [--arms flat,pairs,mixed,coarse] [--limit 40] [--initial-model default]
        [--set loss.teacher=6 ...]

Trains each arm of recipes/hierarchy (its data have to be prepared) for so many minutes into RUNS,
and prints a table: at 1, 2 and 4 kbit/s the levels and tokens a second, mel distance, STOI and
DistillMOS on the recordings of HELDOUT, with half their 95 % intervals, and PNMI of the units on
the recordings with phone labels of PHONES. How many steps the minutes are is timed for each arm by
a few steps before. With --initial-model all arms begin as that model (one with a source needs
--set data.cache_folder too), with codebooks that begin anew, those of `flat` too: then minutes are
enough to tell them apart. A run in RUNS that is finished is only measured. A busy machine has no
time that could be equal: give it --steps, which cost the same in all arms but for the quantizer, a
small part of them.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from machine import describe, run_benchmark, table

from audiovq import AudioVQ
from audiovq.audio import audio_suffixes
from audiovq.quality.evaluate import evaluate
from audiovq.training.export import run_model
from audiovq.training.loop import train
from audiovq.training.recipe import Recipe, read_recipe
from audiovq.units.alignments import read_alignments
from audiovq.units.compare import compare, encode_units
from audiovq.units.files import find_audio

RECIPE = Path(__file__).parent.parent / "recipes" / "hierarchy" / "recipe.toml"
ARMS = {
    "flat": ["model.n_codebooks=8", "model.level_strides=[]"],
    "pairs": [],
    "mixed": ["model.n_codebooks=11", "model.level_strides=[2,4,4,1,2,2,1,1,1,1,1]"],
    "coarse": ["model.n_codebooks=11", "model.level_strides=[2,4,4,2,2,1,1,1,1,1,1]"],
}
"""What each arm changes of the recipe. All have prefixes of 1, 2 and 4 kbit/s."""
KBITS = (1, 2, 4)
METRICS = ("mel", "stoi", "distillmos")
PILOT = 40
"""Steps that the speed is taken from, the last half of them."""


def beginning(model: str) -> list[str]:
    """Settings of arms that begin as a model, or at random weights if there is none."""
    if not model:
        return []
    config = asdict(AudioVQ.from_pretrained(model).config)
    sizes = [
        f"model.{key}={json.dumps(value)}"
        for key, value in config.items()
        if key not in ("n_codebooks", "level_strides")
    ]
    return [*sizes, f"train.initial_model={model}", "train.new_codebooks=true"]


def levels_at(model: AudioVQ, kbit: float) -> int:
    """The number of levels with that bitrate, exactly."""
    rates = [model.config.bitrate(n_q) for n_q in range(1, model.config.n_codebooks + 1)]
    return rates.index(1000 * kbit) + 1


def steps_in(minutes: float, settings: list[str]) -> int:
    """Steps of a run of so many minutes."""
    own = [f"train.steps={PILOT}", *stages(PILOT, settings), f"train.log_every={PILOT // 2}"]
    with tempfile.TemporaryDirectory() as folder:
        recipe = read_recipe(RECIPE, [*settings, *own])
        train(recipe, Path(folder) / "run")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line).get("audio_seconds_per_second") for line in lines]
    seconds = recipe.data.batch_size * recipe.data.crop_seconds / [s for s in speeds if s][-1]
    return max(PILOT, round(60 * minutes / seconds))


def stages(steps: int, settings: list[str]) -> list[str]:
    """Settings for the stages of a run of so many steps: no discriminators, and no autoencoder
    where one has been trained already."""
    autoencoder = 0 if "train.new_codebooks=true" in settings else steps // 6
    return [
        f"train.autoencoder_steps={autoencoder}",
        f"train.adversarial_from={steps}",
        f"train.warmup_steps={min(200, steps // 10)}",
    ]


def trained(
    run: Path, settings: list[str], minutes: float, steps: int | None
) -> tuple[AudioVQ, Recipe]:
    """The model of an arm, trained if it is not yet."""
    done = run / "arm.json"
    if not done.exists():
        steps = steps or steps_in(minutes, settings)
        own = [f"train.steps={steps}", *stages(steps, settings)]
        train(read_recipe(RECIPE, [*settings, *own]), run)
        done.write_text(json.dumps(own))
    recipe = read_recipe(RECIPE, [*settings, *json.loads(done.read_text())])
    return run_model(run), recipe


def pnmi(model: AudioVQ, phones: Path) -> str:
    """Of the units, speech alone, with half its interval."""
    units = {name: encode_units(model, path) for name, path in find_audio(phones).items()}
    found = compare(
        units,
        read_alignments(phones),
        frame_rate=model.config.level_rate(0),
        codebook_size=model.config.codebook_size,
    )
    value = next(iter(found.evaluations.values())).without_silence["pnmi"]
    return with_half(value.value, value.low, value.high)


def with_half(value: float, low: float | None, high: float | None) -> str:
    """A value with half its interval, where there is one."""
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f}±{(high - low) / 2:.3f}"


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("runs", type=Path, help="folder of the arms' runs")
    parser.add_argument("heldout", type=Path, help=f"recordings ({', '.join(audio_suffixes())})")
    parser.add_argument("--phones", type=Path, help="recordings with phone labels, for PNMI")
    parser.add_argument("--minutes", type=float, default=60.0, help="training of each arm")
    parser.add_argument("--steps", type=int, help="so many instead, where no time can be measured")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--limit", type=int, help="recordings of HELDOUT to measure on")
    parser.add_argument("--initial-model", default="", help="what all arms begin as")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of all arms")
    given = parser.parse_args()
    rows = []
    for seed in given.seeds.split(","):
        for arm in given.arms.split(","):
            own = [*ARMS[arm], f"train.seed={seed}", *given.set]
            settings = [*beginning(given.initial_model), *own]
            run = given.runs / f"{arm}-{seed}"
            model, recipe = trained(run, settings, given.minutes, given.steps)
            n_q = [levels_at(model, kbit) for kbit in KBITS]
            found = evaluate(
                given.heldout, model=model, n_q=n_q, metrics=METRICS, limit=given.limit
            )
            units = pnmi(model, given.phones) if given.phones else "-"
            for kbit, n in zip(KBITS, n_q):
                summary = next(s for s in found.summary() if s.system.endswith(f" n_q={n}"))
                means = [summary.metrics.get(name) for name in METRICS]
                rows.append(
                    [arm, seed, str(recipe.train.steps), str(kbit), str(n)]
                    + [f"{model.config.codes_per_second(n):g}"]
                    + [with_half(m.mean, m.low, m.high) if m else "-" for m in means]
                    + [units]
                )
    print(describe())
    columns = ["arm", "seed", "steps", "kbit/s", "levels", "tokens/s", "mel", "STOI", "DistillMOS"]
    print(table([*columns, "PNMI"], rows))


if __name__ == "__main__":
    run_benchmark(main)
