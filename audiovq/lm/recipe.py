"""Recipes of the two stages: TOML files read into typed settings, as those of the codec."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from audiovq.lm.sizes import Sizes
from audiovq.settings import (
    Choice,
    Count,
    Range,
    Rate,
    Share,
    Steps,
    check_card,
    check_ranges,
    read_settings,
)


@dataclass(frozen=True)
class StageSettings:
    """What to learn, from what."""

    name: Annotated[str, Choice(("units", "acoustic"))] = "units"
    """"units" or "acoustic"."""
    data: str = ""
    """Folder that `audiovq lm prepare` wrote."""
    tokenizer: str = "default"
    """The codec that made the tokens, from whose codebooks the acoustic stage begins: "default" or
    a folder."""
    n_q: Steps = 0
    """Levels that the acoustic stage writes, the units among them; 0: all that the tokens have. The
    highest are nearly noise, to code and to draw."""
    text_share: Share = 0.5
    """Of the utterances whose text is known, the share that the units' stage learns with it."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train."""

    steps: Count = 20_000
    """Steps of the whole run."""
    batch_size: Count = 8
    """Rows of `sizes.context` tokens, or crops of as many frames."""
    learning_rate: Rate = 1e-3
    """Of AdamW, at its highest."""
    warmup_steps: Steps = 200
    """Steps over which it rises from 0; from there on it falls to 0 along a cosine."""
    weight_decay: Share = 0.1
    """Of AdamW."""
    clip_norm: Annotated[float, Range(0, above=True)] = 1.0
    """Gradients are scaled down to this norm."""
    wrong_frames: Share = 0.0
    """Of the frames before, the share that the acoustic stage is told wrongly, as another frame of
    the utterance: what it draws is not always right either, and then the units are to be heard."""
    precision: Annotated[str, Choice(("auto", "bf16-mixed", "32-true"))] = "auto"
    """As the codec's."""
    accelerator: Annotated[str, Choice(("auto", "cpu", "cuda", "gpu", "mps"))] = "auto"
    """"auto", "cpu", "cuda", or another of Fabric's names."""
    threads: Steps = 1
    """CPU threads; 0 takes the cores that are idle at the start."""
    seed: Annotated[int, Range(0, 2**53)] = 0
    """Of the weights, the order of the data and the dropout."""
    log_every: Count = 50
    """Steps between log lines."""
    validate_every: Count = 500
    """Steps between validations, after which the best model so far is written."""
    validation_utterances: Count = 200
    """Of the validation set, the first ones."""
    checkpoint_every: Count = 500
    """Steps between checkpoints: what a crash can cost."""
    keep: Count = 2
    """Checkpoints to keep."""


@dataclass(frozen=True)
class Recipe:
    """The training of one stage: the sections of a recipe file."""

    stage: StageSettings = field(default_factory=StageSettings)
    sizes: Sizes = field(default_factory=Sizes)
    train: TrainSettings = field(default_factory=TrainSettings)
    card: dict[str, Any] = field(default_factory=dict)
    """What is to be known of the model: name, licence, data, and whatever else."""

    def __post_init__(self) -> None:
        for name in ("stage", "train"):
            check_ranges(getattr(self, name), name)
        check_card(self.card)
        if not self.stage.data:
            raise ValueError("stage.data names no folder; audiovq lm prepare makes one.")


def read_recipe(path: str | Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe file; see `audiovq.settings.read_settings`."""
    return read_settings(Recipe, path, changes)
