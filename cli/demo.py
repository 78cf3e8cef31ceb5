"""`audiovq demo`: the codec as a page in the browser."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Model, load_model

if TYPE_CHECKING:
    import numpy as np

    from audiovq.demo.page import Others


def demo(
    model: Model = "default",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="Longest recording that is taken.")
    ] = 60.0,
) -> None:
    """Serve a page to record, look at and listen to speech and its tokens.

    Nothing leaves this machine, and what visitors send is deleted when the server ends (Ctrl-C).
    Opus is there to compare with where opusenc and opusdec are installed.

    Example: audiovq demo
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from audiovq.demo.server import serve
    from audiovq.demo.work import Limits

    codec = load_model(model)
    typer.echo(f"{codec.name} is at http://{host}:{port} (Ctrl-C ends it)")
    serve(codec, Limits(seconds=seconds), _others(), host=host, port=port)


def _others() -> "Others":
    """Opus, where it is installed. The page knows no other codec, nor how to run one."""
    from audiovq.hearing import SAMPLE_RATE
    from audiovq.quality.peers import missing_programs, parse_peer, run_peer

    peer = parse_peer("opus:6")
    if missing_programs(peer) is not None:
        return {}

    def opus(wav: "np.ndarray") -> "tuple[np.ndarray, float]":
        made = run_peer(peer, wav)
        return made.wav, made.n_bytes * 8 / 1000 / (len(wav) / SAMPLE_RATE)

    return {"Opus at 6 kbit/s": opus}
