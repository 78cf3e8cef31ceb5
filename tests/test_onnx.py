"""The exported graphs give the codes and the samples of the model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY, started_model

from audiovq import FileRefused, ModelConfig
from audiovq.onnx import OnnxModel, export_onnx

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

CONFIGS = {
    "residual": replace(TINY, unit_level="residual", lookahead=0, n_fft=1280),
    "split, levels at several rates": replace(TINY, level_strides=(2, 4, 1, 2)),
    "units of their own, and a source": replace(
        TINY,
        unit_blocks=1,
        spectrum_size=512,
        level_frames=9,
        level_floor=30,
        unit_extra_blocks=1,
        source_channels=16,
        pitch_channels=16,
        pitch_blocks=1,
    ),
}
"""An export takes seconds: what each part of a model may have stands in one of them."""


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A model and its graphs."""
    model, folder = started_model(CONFIGS[request.param]), tmp_path_factory.mktemp("onnx")
    export_onnx(model, folder)
    return model, OnnxModel(folder), folder


@pytest.mark.parametrize("n_samples", [1, 320, 1_281, 20_000, 47_000])
def test_codes_are_those_of_the_model(pair, speech, n_samples):
    model, exported, _ = pair
    wav = speech[:, :, :n_samples]
    expected = model.encode(wav).indices[0].numpy()
    got = exported.encode(wav[0, 0].numpy())
    assert got.shape == expected.shape
    assert (got != expected).sum() == 0


@pytest.mark.parametrize("n_frames", [1, 127, 128, 129, 140])
def test_samples_are_those_of_the_model(pair, speech, n_frames):
    model, exported, _ = pair
    codes = model.encode(speech).indices[:, :, :n_frames]
    expected = model.decode(codes)[0, 0].numpy()
    got = exported.decode(codes[0].numpy())
    assert got.shape == expected.shape
    # Pulses are steep, and their phase is a sum of fundamentals, each rounded in its last bits.
    atol = 1e-3 if model.config.source_channels else 2e-5
    np.testing.assert_allclose(got, expected, atol=atol)


def test_state_is_named_and_keeps_its_shape(pair):
    _, exported, _ = pair
    for session in (exported.encoder, exported.decoder):
        inputs, outputs = session.get_inputs()[1:], session.get_outputs()[1:]
        assert [i.name for i in inputs] == [f"state_{n}" for n in range(len(inputs))]
        assert [o.name for o in outputs] == [f"next_{n}" for n in range(len(inputs))]
        assert all(isinstance(size, int) for i in inputs for size in i.shape)


def test_the_numbers_beside_the_graphs(pair):
    model, _, folder = pair
    numbers = json.loads((folder / "config.json").read_text())
    assert numbers["fingerprint"] == model.fingerprint
    assert ModelConfig.from_dict(numbers["config"]) == model.config


def test_the_model_stays_as_it_was_and_files_are_kept(pair):
    model, _, folder = pair
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.encode(torch.zeros(1, 1, 10)).indices, torch.Tensor)
    with pytest.raises(FileRefused, match="exists"):
        export_onnx(model, folder)
