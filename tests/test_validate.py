"""What validation hears; the runs of test_train.py have a listener that costs nothing."""

import math

import pytest
import torch

from audiovq.training.validate import DISTILLMOS_RATE, _distillmos


@torch.no_grad()
def test_the_listener_likes_speech_better_than_noise(speech):
    pytest.importorskip("distillmos")
    clip = speech[:, :, :24_000]
    noise = clip.square().mean().sqrt() * torch.randn_like(clip)
    assert 1 <= _distillmos(noise, DISTILLMOS_RATE) < _distillmos(clip, DISTILLMOS_RATE) - 0.5 < 5
    assert math.isnan(_distillmos(clip, 8_000))
