"""`audiovq demo`: the codec as a page in the browser."""

import os
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from audiovq.files import FileRefused

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
    at = _listening(host, port)  # before all else is loaded for nothing
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from audiovq.demo.server import serve
    from audiovq.demo.work import Limits

    codec = load_model(model)
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"{codec.name} is at http://{address}:{port} (Ctrl-C ends it)")
    serve(codec, Limits(seconds=seconds), _others(), at)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # the second of what can be no name
        said = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise FileRefused(
            f"the page cannot be served at {host}:{port} ({said}); give another --port, of 1024 to "
            "65535, or as --host an address of this machine."
        ) from error


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
