"""From a run's folder to a model's."""

import logging
from pathlib import Path

from audiovq.config import ModelConfig
from audiovq.files import FileRefused, refuse_existing
from audiovq.model import CONFIG_FILE, WEIGHTS_FILE, AudioVQ
from audiovq.training.checkpoint import BEST, Checkpoint, matching, read_checkpoint, read_newest

logger = logging.getLogger("audiovq.train")


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
    model.load_state_dict({name: weights[source] for name, source in sources.items()})
    model.card["steps"] = values["step"]
    try:
        model.eval().round_weights().check_weights()
    except ValueError as error:
        raise FileRefused(
            f"{path} cannot be exported: {error} Take another checkpoint (--newest), or train "
            "again with a lower train.learning_rate."
        ) from error
    return model


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
