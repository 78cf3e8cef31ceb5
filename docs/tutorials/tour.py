# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # From sound to units, and back
#
# A notebook in plain Python: `jupytext --to ipynb docs/tutorials/tour.py` makes it one, editors
# open it as it is, and `python docs/tutorials/tour.py` runs it from the checkout. It needs the
# extra `plot`.

# %%
from pathlib import Path

import numpy as np
import torch

from audiovq import AudioVQ, edit
from audiovq.audio import load_audio, save_audio
from audiovq.health import codebook_health
from audiovq.pictures import draw_spectrograms
from audiovq.segment import run_lengths

model = AudioVQ.from_pretrained()
config = model.config
out = Path("tour")


def listen(name: str, wav: torch.Tensor) -> None:
    """Write sound to tour/NAME.wav, and play it where this is a notebook."""
    save_audio(out / f"{name}.wav", wav.flatten().numpy(), config.sample_rate, overwrite=True)
    try:
        from IPython.display import Audio, display
    except ImportError:
        return
    display(Audio(wav.flatten().numpy(), rate=config.sample_rate))


# %% [markdown]
# ## Sound to codes
#
# Level 0 are the units, a code for 40 ms; most other levels have one for each frame of 20 ms.

# %%
path = Path("examples/sense_and_sensibility_01_austen_64kb-0880.flac")
wav = torch.from_numpy(load_audio(path, config.sample_rate))[None, None]  # [1, 1, N]
codes = model.encode(wav)
print(codes.indices.shape)  # [1, n_q, T]
print(codes.levels[0][0, :20].tolist())

# %% [markdown]
# Units that repeat are one stretch of sound.

# %%
for unit, start, frames in run_lengths(codes.indices[0, 0].numpy())[:8]:
    seconds, lasts = start / config.frame_rate, 1000 * frames / config.frame_rate
    print(f"{seconds:5.2f} s  unit {unit:4}  {lasts:.0f} ms")

# %% [markdown]
# How much of a codebook does a recording of a few seconds use?

# %%
for level in (0, 1):
    counts = np.bincount(codes.levels[level][0].numpy(), minlength=config.codebook_size)
    print(level, codebook_health(counts))

# %% [markdown]
# ## And back, with more and more levels

# %%
listen("original", wav)
for n_q in (1, 3, config.n_codebooks):
    listen(f"levels-{n_q}", model.decode(codes.indices[:, :n_q])[:, :, : wav.shape[2]])

# %% [markdown]
# Both in one picture, with the codes under them.

# %%
decoded = model.decode(codes)
draw_spectrograms(
    {"original": wav.flatten().numpy(), "decoded": decoded.flatten().numpy()},
    config.sample_rate,
    codes.indices[0].numpy(),
    config.frame_rate,
    out / "spectrograms.png",
    overwrite=True,
)

# %% [markdown]
# ## Editing
#
# The second second alone, at half the speed, and the whole with one unit replaced everywhere.

# %%
second = edit.take(codes, range(50, 100), config)
listen("second", model.decode(second))
listen("slow", model.decode(edit.take(second, np.repeat(range(50), 2), config)))

unit = int(codes.indices[0, 0, 60])
other = (unit + 1) % config.codebook_size
listen("replaced", model.decode(edit.replace(codes, unit, other, config)))
