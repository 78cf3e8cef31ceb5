"""The folder of a stage: its config with the vocabulary, and its weights beside it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from audiovq.files import FileRefused, atomic_output
from audiovq.lm.acoustic import AcousticModel
from audiovq.lm.sizes import Sizes
from audiovq.lm.units import UnitModel
from audiovq.lm.vocabulary import Vocabulary
from audiovq.weights import check_finite, load_weights

UNITS_STAGE, ACOUSTIC_STAGE = "units", "acoustic"
STAGES = (UNITS_STAGE, ACOUSTIC_STAGE)
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MOST_CODE_DIM = 1 << 14

Stage = UnitModel | AcousticModel


def stage_name(model: Stage) -> str:
    """One of `STAGES`."""
    return UNITS_STAGE if isinstance(model, UnitModel) else ACOUSTIC_STAGE


def save_stage(model: Stage, folder: Path, card: dict[str, Any]) -> None:
    """Write a stage to `folder`, its weights rounded to float16. What is there is overwritten.

    card: what is to be known of the training. Raises `FileRefused`, and `ValueError` for weights
    that float16 does not hold.
    """
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    check_finite(tensors)
    config: dict[str, Any] = {
        "stage": stage_name(model),
        "vocabulary": model.vocabulary.to_dict(),
        "sizes": asdict(model.sizes),
        "card": card,
    }
    if isinstance(model, AcousticModel):
        config["code_dim"] = model.code_dim
    with atomic_output(folder / WEIGHTS_FILE, overwrite=True) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))
    with atomic_output(folder / CONFIG_FILE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_stage(folder: Path) -> tuple[Stage, dict[str, Any]]:
    """A stage in eval mode, and its card. Raises `FileRefused`."""
    path = folder / CONFIG_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = Vocabulary.from_dict(saved["vocabulary"])
        sizes = Sizes(**saved["sizes"])
        stage, card = saved["stage"], dict(saved["card"])
        whole = {name: value for name, value in asdict(sizes).items() if name != "dropout"}
        code_dim = whole["code_dim"] = saved.get("code_dim", 1)
        for name, value in whole.items():
            if type(value) is not int:
                raise ValueError(f"its {name} is no whole number")
        if stage not in STAGES or not 1 <= code_dim <= MOST_CODE_DIM:
            raise ValueError("it names no stage that there is")
        if stage == ACOUSTIC_STAGE and vocabulary.n_q < 2:
            raise ValueError("its tokens are units alone")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileRefused(f"{path} is not the config of a language model ({error}).") from error

    def make() -> nn.Module:
        if stage == UNITS_STAGE:
            return UnitModel(vocabulary, sizes)
        return AcousticModel(vocabulary, sizes, code_dim)

    weights = folder / WEIGHTS_FILE
    model = load_weights(make, weights)
    try:
        check_finite(model.state_dict())
    except ValueError as error:
        raise FileRefused(f"{weights} is damaged: {error}") from error
    assert isinstance(model, UnitModel | AcousticModel)
    return model.eval(), card
