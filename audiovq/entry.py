"""What every call of a model or a stream goes through before it computes.

Sound and codes are brought into one form, or refused in a sentence, and whatever the program around
does (autocast, torch.compile, forks) the computation is the same.
"""

import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from audiovq.audio import HIGHEST_LEVEL
from audiovq.config import ModelConfig

P = ParamSpec("P")
T = TypeVar("T")

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def entry(function: Callable[P, T]) -> Callable[P, T]:
    """`function` as other programs call it: eager, in full precision, and safe after a fork."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # The threads of OpenMP do not live on in a forked process, which waits for them for ever.
        if _forked and torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        run = function
        # torch.compile orders sums anew, and has no use for packed weights. A program that uses it
        # has loaded this module, which takes seconds.
        if "torch._dynamo" in sys.modules:
            run = _uncompiled(function)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return run(*args, **kwargs)
        return run(*args, **kwargs)

    return call


@functools.cache
def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(function)


def as_wav(wav: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Samples [B, 1, N] of any floating-point type as float32 on `device`, without gradients.

    Raises `ValueError` for another shape or type, and for samples that are not finite or beyond
    `audio.HIGHEST_LEVEL`.
    """
    if isinstance(wav, np.ndarray) and wav.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinities are refused below
            wav = torch.from_numpy(wav.astype(np.float32))
    if not isinstance(wav, Tensor) or not wav.is_floating_point():
        raise ValueError(
            f"wav must be floating-point samples in -1..1, a tensor or an array, not {_kind(wav)}; "
            "divide 16-bit samples by 32768."
        )
    if wav.dim() != 3 or wav.shape[1] != 1:
        raise ValueError(f"wav must have the shape [B, 1, N], not {list(wav.shape)}.")
    wav = wav.detach().to(device, torch.float32)
    peak = float(wav.abs().amax()) if wav.numel() else 0.0
    if not math.isfinite(peak):
        raise ValueError("wav holds samples that are not finite (NaN or infinity).")
    if peak > HIGHEST_LEVEL:
        raise ValueError(
            f"wav reaches {peak:g}, and samples must be in -1..1 (a little more is taken, up to "
            f"{HIGHEST_LEVEL:g}); divide it by its full scale, which is 32768 for 16-bit samples."
        )
    return wav


def as_codes(codes: Tensor | np.ndarray, config: ModelConfig, device: torch.device) -> Tensor:
    """Codes [B, n_q, T] of any type of whole numbers as int64 on `device`.

    Raises `ValueError` for another shape or type, and for codes or levels that `config` lacks.
    """
    if isinstance(codes, np.ndarray) and codes.dtype.kind in "iu":
        codes = torch.from_numpy(codes.astype(np.int64))
    if (
        not isinstance(codes, Tensor)
        or codes.is_floating_point()
        or codes.is_complex()
        or codes.dtype == torch.bool
        or codes.dim() != 3
    ):
        raise ValueError(
            "codes must be whole numbers [B, n_q, T], a tensor or an array, not "
            f"{_kind(codes)} {list(getattr(codes, 'shape', []))}."
        )
    codes = codes.detach().to(device, torch.int64)  # few operations know uint16
    config.check_n_q(codes.shape[1])
    if codes.numel():
        config.check_range(int(codes.min()), int(codes.max()))
    return codes


def _kind(value: object) -> str:
    return str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
