"""`audiovq export`: a run or a model in the form that others need."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audiovq.files import FileRefused

from .failures import tell
from .options import Force


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help='Run folder, model folder or "default".')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    newest: Annotated[
        bool, typer.Option("--newest", help="The newest checkpoint of a run, not the best one.")
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Write encoder.onnx and decoder.onnx, with their state."),
    ] = False,
    force: Force = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Strip a training run to the model that decoding needs, or write a run or model as ONNX.

    Example: audiovq export runs/mine -o models/mine
    """
    is_model = source == "default" or (Path(source) / "config.json").is_file()
    if is_model and not onnx:
        raise typer.BadParameter(f"{source} is a model already; add --onnx or name a run.")
    _refuse_other_kind(out, onnx)
    if is_model:
        from audiovq import AudioVQ

        model = AudioVQ.from_pretrained(source)
    elif onnx:
        from audiovq.training.export import run_model

        model = run_model(source, best=not newest)
    else:
        from audiovq.training.export import export as export_run

        model = export_run(source, out, best=not newest, overwrite=force)
    names = ["config.json", "model.safetensors"]
    if onnx:
        from audiovq.onnx import export_onnx

        export_onnx(model, out, overwrite=force)
        names = ["config.json", "decoder.onnx", "encoder.onnx"]
    facts = {"folder": str(out), "model": model.name, "fingerprint": model.fingerprint}
    if as_json:
        typer.echo(json.dumps({**facts, "files": names}))
    elif not quiet:
        tell(f"wrote {out}: {model.name}, {model.fingerprint} ({', '.join(names)})")


def _refuse_other_kind(out: Path, onnx: bool) -> None:
    """A model and its graphs have a config.json each, so they cannot share a folder."""
    other = "model.safetensors" if onnx else "encoder.onnx"
    if (out / other).is_file():
        raise FileRefused(
            f"{out} holds {other}, to which its config.json belongs; name another folder."
        )
