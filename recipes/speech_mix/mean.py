"""The mean of the weights of models of one origin (a model soup, Wortsman et al. 2022).

    python recipes/speech_mix/mean.py models/one models/other -o models/mean [--new-tokens]

Of models of which one went on from the other, or both from a third, so that what lies between them
is no worse: their decoders, or with --new-tokens their encoders and codebooks too, where code k of
each began as that of the others. The card is that of the first model, as are its tables while the
tokens stay. A model that is named twice counts twice.
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
    new_tokens: Annotated[
        bool, typer.Option("--new-tokens", help="The models' tokens may differ.")
    ] = False,
) -> None:
    """Write the mean of models of one origin."""
    try:
        loaded = [(name, AudioVQ.from_pretrained(name)) for name in models]
        mean = mean_of(loaded, new_tokens=new_tokens)
        mean.save_pretrained(out)
    except (FileRefused, ValueError) as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from error
    typer.echo(f"wrote {out}: {mean.name}, {mean.fingerprint}")


def mean_of(models: list[tuple[str, AudioVQ]], *, new_tokens: bool = False) -> AudioVQ:
    """The mean of models with their names, in the first of them.

    new_tokens: their tokens may differ. Raises `ValueError` when they do not fit.
    """
    (name, first), *others = models
    if not others:
        raise ValueError(f"{name} is one model; name two or more.")
    for other, model in others:
        if model.config != first.config:
            raise ValueError(f"{other} has other sizes than {name}; name one with the same.")
        if model.fingerprint != first.fingerprint and not new_tokens:
            raise ValueError(
                f"{other} has other tokens than {name}; name one with the same, or add "
                "--new-tokens for a mean that has its own."
            )
    states = [model.state_dict() for _, model in models]
    weights = dict(first.named_parameters())
    mean = {}
    for key, x in states[0].items():
        found = torch.stack([state[key].double() for state in states])
        same = bool((found == found[0]).all())  # what decides the tokens stays to the bit
        average = found.mean(0).half() if key in weights else found.mean(0)  # as exports round
        mean[key] = x if same else average.to(x.dtype)
    first.load_state_dict(mean)
    return first


if __name__ == "__main__":
    typer.run(main)
