"""The mean of the weights of models with the same tokens (a model soup, Wortsman et al. 2022).

    python recipes/speech_mix/mean.py models/one models/other -o models/mean

Decoders of which one went on from the other, so that what lies between them is no worse.
The card is that of the first model, as are its tables. A model that is named twice counts twice.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from audiovq import AudioVQ
from audiovq.files import FileRefused


def main(
    models: Annotated[list[str], typer.Argument(help="Folders of models, two or more.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
) -> None:
    """Write the mean of models that have the same tokens."""
    try:
        mean = mean_of([(name, AudioVQ.from_pretrained(name)) for name in models])
        mean.save_pretrained(out)
    except (FileRefused, ValueError) as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from error
    typer.echo(f"wrote {out}: {mean.name}, {mean.fingerprint}")


def mean_of(models: list[tuple[str, AudioVQ]]) -> AudioVQ:
    """The mean of models with their names, in the first of them. Raises `ValueError` when they do
    not fit."""
    (name, first), *others = models
    if not others:
        raise ValueError(f"{name} is one model; name two or more.")
    for other, model in others:
        if model.fingerprint != first.fingerprint or model.config != first.config:
            raise ValueError(
                f"{other} has other tokens or sizes than {name}; name one with the same."
            )
    states = [model.state_dict() for _, model in models]
    mean = {}
    for key, x in states[0].items():
        found = torch.stack([state[key].double() for state in states])
        same = bool((found == found[0]).all())  # what decides the tokens stays to the bit
        mean[key] = x if same else found.mean(0).half().to(x.dtype)  # as `audiovq export` rounds
    first.load_state_dict(mean)
    return first


if __name__ == "__main__":
    typer.run(main)
