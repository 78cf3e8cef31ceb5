"""Tokens of the examples, prepared, and a tiny language model of them."""

from dataclasses import replace
from pathlib import Path

from tiny import EXAMPLES

from audiovq import AudioVQ
from audiovq.lm.prepare import prepare
from audiovq.lm.recipe import Recipe, StageSettings, TrainSettings
from audiovq.lm.sizes import Sizes
from audiovq.transcode import encode_file

TEXTS = ["Was it so?", "it was", "So it was!", "it so was", "was so it"]


def write_tokens(codec: AudioVQ, folder: Path) -> Path:
    """The examples as .avq files, and what is said in them beside the folder; returns it."""
    for path in EXAMPLES:
        encode_file(codec, path, folder / f"{path.stem}.avq", token_format="avq")
    rows = [f"wavs/{path.name}\t{text}" for path, text in zip(EXAMPLES, TEXTS)]
    (folder.parent / "texts.tsv").write_text("path\ttext\n" + "\n".join(rows) + "\n")
    return folder


def prepared(codec: AudioVQ, folder: Path) -> Path:
    """A prepared folder of the examples, one of which is for validation."""
    tokens = write_tokens(codec, folder / "tokens")
    prepare(tokens, folder / "data", texts=folder / "texts.tsv", validation=0.2)
    return folder / "data"


def tiny_recipe(name: str, data: Path, codec: Path, **train: object) -> Recipe:
    """A recipe that takes a second."""
    settings = replace(TrainSettings(steps=4, batch_size=2, validate_every=2), **train)  # type: ignore[arg-type]
    sizes = Sizes(width=32, layers=1, heads=2, expansion=2, context=64, dropout=0.1)
    return Recipe(StageSettings(name, str(data), str(codec)), sizes, settings, {"name": "tiny"})
