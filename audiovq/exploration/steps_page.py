"""A folder with the steps of an interpolation: sound, tokens, and a page to listen to them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.audio import save_audio
from audiovq.codes import pack_avq
from audiovq.exploration.interpolate import Step
from audiovq.exploration.site import PAGE_FILES
from audiovq.files import FileRefused, atomic_output
from audiovq.model import AudioVQ
from audiovq.pictures import FLOOR_DB, render, spectrogram_db

GENERATOR = "audiovq interpolate"
"""By this a page is known."""


def write_steps(
    folder: Path, model: AudioVQ, steps: Sequence[Step], names: tuple[str, str]
) -> None:
    """Write `index.html`, and for each step sound (.flac), tokens (.avq) and two pictures.

    folder: is there and empty. names: of the two recordings. Raises `FileRefused` without
    matplotlib.
    """
    rate, shown = model.config.sample_rate, []
    for number, step in enumerate(steps):
        stem = f"{number:02}"
        wav = step.wav.flatten().cpu().numpy()
        save_audio(folder / f"{stem}.flac", wav, rate)
        indices = step.codes.indices[0].cpu().numpy()
        header = model.header(len(indices), step.codes.lengths[0])
        with atomic_output(folder / f"{stem}.avq") as temporary:
            temporary.write_bytes(pack_avq(indices, header))
        level = spectrogram_db(wav, rate).level
        _picture(folder / f"{stem}.png", level[::-1], (FLOOR_DB, 0), "magma")
        _picture(
            folder / f"{stem}-units.png", indices[:1] * 7919 % 1021, (0, 1021), "nipy_spectral"
        )
        shown.append(
            {
                "share": step.share,
                "seconds": len(wav) / rate,
                "units_of": step.units_of,
                "sound": f"{stem}.flac",
                "tokens": f"{stem}.avq",
                "picture": f"{stem}.png",
                "units": f"{stem}-units.png",
            }
        )
    for file in ("style.css", "page.js"):
        shutil.copyfile(PAGE_FILES / file, folder / file)
    page = render(
        PAGE_FILES / "steps.html",
        generator=GENERATOR,
        names=names,
        model=model.name,
        n_q=steps[0].codes.indices.shape[1],
        sample_rate=rate,
        steps=shown,
    )
    with atomic_output(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _picture(path: Path, values: np.ndarray, span: tuple[float, float], colours: str) -> None:
    """Values [H, W] as colours, a pixel each."""
    try:
        import matplotlib
        from PIL import Image
    except ImportError as error:
        raise FileRefused("Pictures need matplotlib: pip install '.[plot]'.") from error
    low, high = span
    shades: Any = np.clip((values - low) / (high - low), 0, 1)
    pixels = matplotlib.colormaps[colours](shades, bytes=True)[..., :3]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, optimize=True)
