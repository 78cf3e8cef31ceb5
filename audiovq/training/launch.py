"""The start of a training's processes, as its recipe asks for them."""

import logging

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from audiovq.hardware import choose_precision, choose_threads, describe
from audiovq.training.recipe import Recipe

logger = logging.getLogger("audiovq.train")


def launch(recipe: Recipe) -> Fabric:
    """The processes and devices that a recipe asks for, started; says what they are."""
    settings = recipe.train
    precision = choose_precision(settings.precision, settings.accelerator)
    threads = choose_threads(settings.threads, settings.devices)
    ddp = DDPStrategy(
        broadcast_buffers=False,  # the codebooks keep themselves equal
        find_unused_parameters=recipe.model.codebook == "gradient",
    )
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=ddp if settings.devices > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
    except Exception as error:  # RuntimeError, MisconfigurationException
        raise ValueError(
            f'train.accelerator "{settings.accelerator}" with train.devices {settings.devices} '
            'cannot be had here; set train.accelerator to "auto" and train.devices to 1.'
        ) from error
    fabric.launch()
    torch.set_num_threads(threads)
    if fabric.is_global_zero:
        logger.info("Training on %s.", describe(fabric.device, precision, threads))
    return fabric
