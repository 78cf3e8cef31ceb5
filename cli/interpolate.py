"""`audiovq interpolate`: from one recording to another through the latent space."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Force, Model, load_model


def interpolate(
    first: Annotated[Path, typer.Argument(metavar="A", help="Recording to begin with.")],
    last: Annotated[Path, typer.Argument(metavar="B", help="Recording to end with.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    steps: Annotated[
        int, typer.Option(min=2, max=101, help="Steps, those of A and B included.")
    ] = 7,
    n_q: Annotated[
        int | None, typer.Option("--n-q", help="Levels of the codes; all if unset.")
    ] = None,
    model: Model = "default",
    force: Force = False,
) -> None:
    """Mix the latents of two recordings, aligned in time, and decode every step.

    The folder has sound (.flac) and tokens (.avq) of each step and a page, index.html. The first
    and the last step are the plain codes of the recordings.

    Example: audiovq interpolate a.wav b.wav --steps 7 -o steps/
    """
    import numpy as np
    import torch

    from audiovq.audio import load_audio
    from audiovq.exploration.interpolate import interpolate as run
    from audiovq.exploration.steps_page import GENERATOR, write_steps
    from audiovq.files import page_folder

    with page_folder(out, GENERATOR, sources=[first, last], overwrite=force) as folder:
        codec = load_model(model)
        codec.check_n_q(n_q)
        rate = codec.config.sample_rate
        a, b = (torch.from_numpy(load_audio(path, rate))[None, None] for path in (first, last))
        found = run(codec, a, b, np.linspace(0, 1, steps).tolist(), n_q=n_q)
        write_steps(folder, codec, found, (first.name, last.name))
    typer.echo(f"Wrote {out / 'index.html'}", err=True)
