"""Where a run begins: at a checkpoint of its own, at another model, or at random weights."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from audiovq.config import CODEBOOK_SETTINGS, SOURCE_SETTINGS, ModelConfig
from audiovq.files import FileRefused
from audiovq.model import AudioVQ
from audiovq.quantize import SplitQuantizer
from audiovq.training.checkpoint import Checkpoint, newest_checkpoint, read_newest
from audiovq.training.data import CropDataset
from audiovq.training.recipe import Recipe, TrainSettings
from audiovq.training.run_files import differences, saved_recipe

logger = logging.getLogger("audiovq.train")

START_CROPS = 240
"""Crops that what starts from data sees."""
FIRST_CROP = 1 << 40
"""The number of the first of them; a run never sees them again."""


def find_start(
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
    grave = [
        str(change)
        for change in changed
        if not change.harmless
        and not (change.name == "train.adversarial_from" and _never(saved, recipe))
    ]
    if grave and not accept_changes:
        raise FileRefused(
            f"{out} had another recipe: {'; '.join(grave)}; leave out what differs, or "
            "add --accept-changes to go on with it."
        )
    for change in changed:
        logger.info("Changed: %s.", change)
    return start


def _never(saved: dict[str, Any] | None, recipe: Recipe) -> bool:
    """Whether a run had no discriminators and is to have none."""
    before = asdict(TrainSettings()) | ((saved or {}).get("train") or {})
    return bool(
        before["adversarial_from"] >= before["steps"]
        and recipe.train.adversarial_from >= recipe.train.steps
    )


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


def learns(recipe: Recipe, name: str) -> bool:
    """Whether the model's tensor of that name changes in a run."""
    if recipe.train.learn == "decoder":
        return not AudioVQ.decides_tokens(name)
    if recipe.train.learn == "sound":
        return not AudioVQ.decides_units(name)
    return recipe.train.learn == "all" or AudioVQ.decides_units(name)


def initial_model(recipe: Recipe) -> AudioVQ:
    """The model to go on from, grown to the recipe's `unit_blocks`, `spectrum_size`,
    `level_frames`, `level_floor`, `unit_extra_blocks` and `unit_labels`, or, when the decoder
    learns alone, with the recipe's source, or with codebooks that are still to be started."""
    name = recipe.train.initial_model
    model = AudioVQ.from_pretrained(name)
    if recipe.train.new_codebooks and recipe.train.learn == "all":
        model = with_new_codebooks(model, recipe.model)
    only_decoder = recipe.train.learn == "decoder"
    grows = recipe.train.learn in ("all", "units")
    source = {setting: getattr(recipe.model, setting) for setting in SOURCE_SETTINGS}
    if only_decoder and any(getattr(model.config, key) != value for key, value in source.items()):
        model = model.with_source(**source)
    growth: dict[str, Any] = {
        size: wanted
        for size in (
            "unit_blocks",
            "spectrum_size",
            "level_frames",
            "level_floor",
            "unit_extra_blocks",
            "unit_labels",
        )
        if grows and (wanted := getattr(recipe.model, size)) != (has := getattr(model.config, size))
        if wanted and (not has or size == "level_floor")
    }
    no_growth = {size: getattr(model.config, size) for size in growth}
    expected = replace(recipe.model, **no_growth)
    if model.config != expected:
        wanted, found = asdict(expected), asdict(model.config)
        wrong = "; ".join(
            f"{key} is {found[key]} in the model and {wanted[key]} in the recipe"
            for key in found
            if found[key] != wanted[key]
        )
        raise FileRefused(
            f"{name} has other sizes than the recipe: {wrong}. Give the recipe the model's"
            + (
                ", or set train.new_codebooks."
                if recipe.train.learn == "all"
                and any(key in CODEBOOK_SETTINGS and found[key] != wanted[key] for key in found)
                else "."
            )
        )
    if recipe.train.learn != "all" and not all(
        torch.equal(parameter, parameter.half().float())
        for tensor, parameter in model.named_parameters()
        if model.decides_tokens(tensor) and not learns(recipe, tensor)
    ):
        raise FileRefused(
            f"{name} has weights that an export would round, which would change its tokens; name "
            "a model that `audiovq export` wrote."
        )
    return model.grown(**growth) if growth else model


def with_new_codebooks(model: AudioVQ, like: ModelConfig) -> AudioVQ:
    """A model with codebooks as in another configuration, which have not begun."""
    sizes = {setting: getattr(like, setting) for setting in CODEBOOK_SETTINGS}
    new = AudioVQ(replace(model.config, **sizes), model.card)
    kept = {
        name: x
        for name, x in model.state_dict().items()
        if not (".codebooks." in name or name.endswith("units.labels"))
    }
    new.load_state_dict(new.state_dict() | kept)
    return new


def reference_model(
    recipe: Recipe, start: Checkpoint | None, device: torch.device
) -> AudioVQ | None:
    """The model whose units stay, where `loss.consistency` keeps them.

    Raises `FileRefused` when it is another one than that which the run began with.
    """
    if not recipe.loss.consistency:
        return None
    name = recipe.train.initial_model
    model = AudioVQ.from_pretrained(name, device=device)
    before = None if start is None else start.values.get("reference")  # older ones do not say
    if before not in (None, model.fingerprint):
        raise FileRefused(
            f"{name} is the model {model.fingerprint} now, and the run keeps the units of "
            f"{before}; put that one back."
        )
    return model


def start_front(model: AudioVQ, dataset: CropDataset, fabric: Fabric) -> bool:
    """Fit the units' front, if the model should have one and it is not yet; whether it was done."""
    encoder = model.encoder
    if encoder.level is None or encoder.unit_front.weight.any():
        return False
    crops = [dataset[FIRST_CROP + index]["wav"][None] for index in range(START_CROPS)]
    encoder.fit_front([fabric.to_device(wav) for wav in crops])  # the same on every rank
    return True


def start_codebooks(recipe: Recipe, model: AudioVQ, dataset: CropDataset, fabric: Fabric) -> None:
    """Start all codebooks that learn from k-means of the latents of some crops, of each rank its
    share."""
    share = START_CROPS // fabric.world_size
    first = FIRST_CROP + share * fabric.global_rank
    latents = []
    for index in range(first, first + share):
        wav = fabric.to_device(dataset[index]["wav"])
        with fabric.autocast():
            latents.append(model.latent(wav[None]))
    quantizer, z = model.quantizer, torch.cat(latents, dim=1)
    if isinstance(quantizer, SplitQuantizer) and recipe.train.learn == "units":
        quantizer.start_units(z)
    else:
        quantizer.start(z)
