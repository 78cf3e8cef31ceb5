"""What validation hears; the runs of test_train.py have a listener that costs nothing."""

import math

import pytest
import torch
from lhotse import CutSet, MonoCut, Recording
from tiny import EXAMPLES

from audiovq.training.losses import MelLoss
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe
from audiovq.training.validate import DISTILLMOS_RATE, _distillmos, validation_clips


def test_a_clip_that_is_too_short_for_a_window_goes_on_in_silence(tmp_path):
    recording = Recording.from_file(EXAMPLES[0])
    cut = MonoCut(id="short", start=0.5, duration=0.02, channel=0, recording=recording)
    CutSet.from_cuts([cut]).to_file(tmp_path / "short.jsonl.gz")
    data = DataSettings(
        train=(ManifestSettings("t.jsonl"),), validation=str(tmp_path / "short.jsonl.gz")
    )
    (clip,) = validation_clips(Recipe(data=data))
    assert (MelLoss(16_000)(clip, 0.5 * clip) > 0).all()


@torch.no_grad()
def test_the_listener_likes_speech_better_than_noise(speech):
    pytest.importorskip("distillmos")
    clip = speech[:, :, :24_000]
    noise = clip.square().mean().sqrt() * torch.randn_like(clip)
    assert 1 <= _distillmos(noise, DISTILLMOS_RATE) < _distillmos(clip, DISTILLMOS_RATE) - 0.5 < 5
    assert math.isnan(_distillmos(clip, 8_000))
