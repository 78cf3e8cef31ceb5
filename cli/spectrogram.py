"""`audiovq spectrogram`: original, reconstruction and tokens in one picture."""

from pathlib import Path
from typing import Annotated

import typer

from .failures import tell
from .options import Force, Model, know_tables
from .plan import check_picture, refuse_sources


def spectrogram(
    recordings: Annotated[
        list[str],
        typer.Argument(metavar="A.wav [B.wav]", help="The original, and what was decoded from it."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Picture to write, PNG.")],
    tokens: Annotated[Path | None, typer.Option(help="Tokens to draw under them.")] = None,
    sample_rate: Annotated[
        int, typer.Option(min=1000, max=768_000, help="Rate to draw at, in Hz.")
    ] = 16_000,
    frame_rate: Annotated[
        float, typer.Option(min=0.001, help="Frames a second of tokens that do not say it (.npy).")
    ] = 50.0,
    model: Model = "default",
    force: Force = False,
) -> None:
    """Draw spectrograms side by side, with the tokens under them on the same time axis.

    Example: audiovq spectrogram speech.wav speech.decoded.wav --tokens speech.npy -o speech.png
    """
    if len(recordings) > 2:
        raise typer.BadParameter("give one or two recordings.")
    refuse_sources([*recordings, *([str(tokens)] if tokens else [])], [str(out)])
    check_picture(out, overwrite=force)
    from audiovq import read_tokens
    from audiovq.audio import AudioReader
    from audiovq.pictures import draw_spectrograms

    wavs = {name: AudioReader(name, sample_rate) for name in recordings}
    know_tables(model)
    codes = read_tokens(tokens) if tokens is not None else None
    if codes is not None and codes.header is not None:
        frame_rate = codes.header.frame_rate
    draw_spectrograms(
        wavs, sample_rate, codes.indices if codes else None, frame_rate, out, overwrite=force
    )
    tell(f"wrote {out}")
