"""A small model, and where the recordings are."""

from pathlib import Path

import torch

from audiovq import AudioVQ, ModelConfig
from audiovq.audio import load_audio

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.flac"))

TINY = ModelConfig(
    strides=(40, 8),
    channels=(16, 24),
    encoder_blocks=(1, 1),
    decoder_channels=24,
    decoder_blocks=1,
    n_fft=960,
    n_codebooks=4,
    codebook_size=32,
    codebook_dim=8,
    block_frames=4,
)

UNITS: list[dict] = [
    {},
    {"unit_level": "residual"},
    {"unit_blocks": 1},
    {"unit_blocks": 1, "spectrum_size": 512},
    {"unit_blocks": 1, "spectrum_size": 512, "level_frames": 5},
    {"level_strides": (2, 4, 1, 2)},
]
"""Changes of `TINY`: the places where the units can stand, what they may see, and at what rate."""


def started_model(config: ModelConfig) -> AudioVQ:
    """A model with random weights whose codebooks fit real speech, so that its codes vary."""
    torch.manual_seed(0)
    model = AudioVQ(config, {"name": "test model"}).eval()
    wav = torch.from_numpy(load_audio(EXAMPLES[0], config.sample_rate))[None, None]
    with torch.no_grad():
        model.quantizer.start(model.latent(wav[:, :, : wav.shape[2] // 320 * 320]))
    return model
