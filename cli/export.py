"""`audiovq export`: a run or a model in the form that others need."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help='Run folder, model folder or "default".')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    newest: Annotated[
        bool, typer.Option("--newest", help="The newest checkpoint of a run, not the best one.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write encoder.onnx and decoder.onnx, with their state.")
    ] = False,
) -> None:
    """Strip a training run to the model that decoding needs, or write a model as ONNX.

    Example: audiovq export runs/mine -o models/mine
    """
    if source == "default" or (Path(source) / "config.json").is_file():
        if not onnx:
            raise typer.BadParameter(f"{source} is a model already; add --onnx or name a run.")
        from audiovq import AudioVQ

        model = AudioVQ.from_pretrained(source)
    else:
        from audiovq.train import export as export_run

        model = export_run(source, out, best=not newest)
        typer.echo(f"wrote {out}: {model.name}, {model.fingerprint}")
    if onnx:
        from audiovq.onnx import export_onnx

        export_onnx(model, out)
        typer.echo(f"wrote {out}/encoder.onnx and {out}/decoder.onnx")
