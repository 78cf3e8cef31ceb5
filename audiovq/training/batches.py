"""Batches of a run: its crops, read by processes of their own, step after step."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from audiovq.files import FileRefused
from audiovq.interrupt import leave_to_parent
from audiovq.model import AudioVQ
from audiovq.training.cache import codes_folder, fill_codes, fill_pitch, pitch_folder
from audiovq.training.data import Corpus, CropDataset, Cut, StepBatches, read_manifest
from audiovq.training.recipe import Recipe


def make_dataset(recipe: Recipe, model: AudioVQ, fabric: Fabric) -> CropDataset:
    """The crops of a recipe, what is computed once for them included."""
    data, config = recipe.data, recipe.model
    corpora = [Corpus(read_manifest(manifest.path), manifest.weight) for manifest in data.train]
    cuts = [cut for corpus in corpora for cut in corpus.cuts]
    _check_features(recipe, cuts)
    tokens = pitch = ""
    if data.cache_folder:
        if recipe.train.learn == "decoder":
            tokens = str(codes_folder(data.cache_folder, model))
        if config.source_channels and recipe.train.learn != "units":
            pitch = str(pitch_folder(data.cache_folder, config.hop_length, config.sample_rate))
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
        voice_range=data.voice_range,
    )


def _check_features(recipe: Recipe, cuts: Sequence[Cut]) -> None:
    """Raise `FileRefused` when what is found by a recording's id is not there, or another's."""
    data = recipe.data
    for name in ("teacher_folder", "labels_folder"):
        folder = getattr(data, name)
        if folder and next(Path(folder).rglob("*.npy"), None) is None:
            raise FileRefused(
                f"data.{name} is {folder}, which holds no .npy files; make them or leave it out."
            )
    if not (data.cache_folder or data.teacher_folder or data.labels_folder):
        return
    known: dict[str, Cut] = {}
    for cut in cuts:
        other = known.setdefault(cut.id, cut)
        if other != cut:
            raise FileRefused(
                f"{cut.path} and {other.path} have one id, {cut.id}, by which features and caches "
                "are found; prepare them in one folder, or rename one."
            )


def batches_from(
    step: int, dataset: CropDataset, recipe: Recipe, fabric: Fabric
) -> Iterator[dict[str, Any]]:
    """This rank's batches from a step to the last one; give them to `next_batch`."""
    sampler = StepBatches(
        step,
        recipe.train.steps,
        recipe.data.batch_size,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=recipe.data.workers,
        collate_fn=_collate,
        worker_init_fn=leave_to_parent,
    )
    return iter(loader)


def next_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The next batch. Raises `FileRefused` when its data cannot be read."""
    try:
        return next(batches)
    except FileRefused as error:
        # Of a data worker's exception torch makes one whose message is a traceback.
        line = str(error).strip().splitlines()[-1]
        raise FileRefused(line.partition("FileRefused: ")[2] or line) from error


def both_views(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose first half is heard as it was recorded, and the second as it was changed."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    twice = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in tensors.items()}
    twice["wav"] = torch.cat([batch["clean"], batch["wav"]])
    return batch | twice | {"clean": batch["clean"]}


def end_readers(batches: Iterator[dict[str, Any]]) -> None:
    """End the processes that read, if there are any."""
    shut_down = getattr(batches, "_shutdown_workers", None)  # there are none without workers
    if shut_down is not None:
        shut_down()


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        name: torch.stack([item[name] for item in items])
        for name, value in items[0].items()
        if isinstance(value, Tensor)
    }
    skipped = [reason for item in items for reason in item["skipped"]]
    return batch | {"id": [item["id"] for item in items], "skipped": skipped}
