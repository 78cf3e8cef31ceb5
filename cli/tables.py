"""`audiovq tables`: learn what a model's tokens are coded by."""

from pathlib import Path
from typing import Annotated

import typer

from audiovq.files import FileRefused

from .options import Force, Model, load_model


def tables(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of tokens of all levels (.avq, .npy); folders in it count."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="File to write; tables.safetensors in the model's folder if unset."
        ),
    ] = None,
    model: Model = "default",
    steps: Annotated[int, typer.Option(min=1, help="Of learning, 6,144 frames each.")] = 1500,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    force: Force = False,
) -> None:
    """Learn the tables that code a model's tokens in fewer bytes, from tokens of speech.

    Of every 20 recordings one is not learnt from, and what the tables save on these is said at the
    end. They are part of the model: what they coded is read with them alone.

    Example: audiovq tables tokens/ --model model/
    """
    from audiovq.entropy import TABLES_FILE, write_tables
    from audiovq.files import files_below, refuse_existing

    if out is None:
        if not Path(model).is_dir():
            raise typer.BadParameter(f"{model} is no folder; name the file to write with -o.")
        out = Path(model) / TABLES_FILE
    refuse_existing(out, overwrite=force)
    codec = load_model(model)
    from audiovq.training.tables import learn_tables, measure_tables, read_recordings

    if not folder.is_dir():
        raise FileRefused(f"{folder} is no folder of tokens; audiovq encode makes one.")
    recordings = read_recordings(codec, files_below(folder))
    kept = recordings[::20] if len(recordings) >= 20 else []
    learnt = [codes for i, codes in enumerate(recordings) if i % 20 or not kept]
    found = learn_tables(codec, learnt, steps=steps, seed=seed)
    write_tables(out, found, overwrite=force)
    typer.echo(f"{out}: {out.stat().st_size} bytes", err=True)
    packed = codec.header(1, 0).bits_per_code
    for n_q, bits in measure_tables(found, kept, codec.config.level_strides).items():
        typer.echo(
            f"n_q {n_q}: {bits:.2f} of {packed:g} bits a code, {100 - 100 * bits / packed:.1f} % "
            f"fewer, on {len(kept)} recordings that were not learnt from",
            err=True,
        )
