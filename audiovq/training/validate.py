"""Quality on recordings that are not trained on."""

import contextlib
import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiovq.hearing import LONGEST_WINDOW
from audiovq.model import AudioVQ
from audiovq.training.data import read_crop, read_manifest
from audiovq.training.losses import MelLoss
from audiovq.training.recipe import Recipe

LONGEST_SECONDS = 12.0
"""Longest part of a validation recording that is used."""
DISTILLMOS_RATE = 16_000
"""The rate in Hz at which DistillMOS listens."""


def validation_clips(recipe: Recipe) -> list[Tensor]:
    """Validation recordings [1, 1, N], cut to `LONGEST_SECONDS`."""
    if not recipe.data.validation:
        return []
    rate = recipe.model.sample_rate
    cuts = read_manifest(recipe.data.validation)[: recipe.data.validation_clips]
    clips = []
    for cut in cuts:
        # The mel distance needs half a window; what is not there is silence.
        n_samples = max(LONGEST_WINDOW // 2 + 1, int(min(cut.duration, LONGEST_SECONDS) * rate))
        wav = read_crop(cut.path, round(cut.start * rate), n_samples, rate)
        clips.append(torch.from_numpy(wav)[None, None])
    return clips


@torch.no_grad()
def validate(
    model: AudioVQ,
    clips: list[Tensor],
    mel_loss: MelLoss,
    *,
    quantize: bool,
    on_decoded: Callable[[int, int, Tensor], None],
) -> dict[str, float]:
    """Mean mel distance, STOI and DistillMOS of decoded clips, by the number of levels.

    quantize: whether the codebooks are on; if not, the autoencoder is judged, at level 0.
    on_decoded: called with clip, levels and sound. STOI and DistillMOS are left out when their
    packages are missing or they are not defined for a clip.
    """
    levels = model.config.doubling_levels() if quantize else [0]
    values: dict[str, float] = {}
    for n_q in levels:
        scores: dict[str, list[float]] = {"mel": [], "stoi": [], "distillmos": []}
        for index, clip in enumerate(clips):
            wav = clip.to(model.device)
            decoded = _reconstruct(model, wav, n_q)
            scores["mel"].append(float(mel_loss(decoded, wav).sum()))
            scores["stoi"].append(_stoi(wav, decoded, model.config.sample_rate))
            scores["distillmos"].append(_distillmos(decoded, model.config.sample_rate))
            on_decoded(index, n_q, decoded)
        for name, found in scores.items():
            if not any(math.isnan(score) for score in found):
                label = f"n_q_{n_q}" if n_q else "autoencoder"
                values[f"validation_{name}_{label}"] = float(np.mean(found))
    return values


def _reconstruct(model: AudioVQ, wav: Tensor, n_q: int) -> Tensor:
    if n_q:
        return model.decode(model.encode(wav, n_q))
    padded = F.pad(wav, (0, -wav.shape[2] % model.config.hop_length))
    return model(padded, quantize=False).wav[:, :, : wav.shape[2]]


def _stoi(wav: Tensor, decoded: Tensor, sample_rate: int) -> float:
    try:
        from pystoi import stoi
    except ImportError:
        return math.nan
    return float(stoi(wav.flatten().cpu().numpy(), decoded.flatten().cpu().numpy(), sample_rate))


def _distillmos(decoded: Tensor, sample_rate: int) -> float:
    listener = _listener()
    if listener is None or sample_rate != DISTILLMOS_RATE:
        return math.nan
    return float(listener(decoded.flatten()[None].cpu().float().clamp(-1, 1)))


@lru_cache(maxsize=1)
def _listener() -> Any:
    try:
        from distillmos import ConvTransformerSQAModel
    except ImportError:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it says where its weights lie
        return ConvTransformerSQAModel().eval()
