"""A small model, and where the recordings are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from audiovq import AudioVQ, ModelConfig
from audiovq.audio import load_audio
from audiovq.entropy import Tables

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


@contextmanager
def full_disk(n_bytes: int = 4096) -> Iterator[None]:
    """Within the block files get as large as that and no larger, as on a disk that is full then."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def random_tables(fingerprint: str = "f", levels: int = 3, n_codes: int = 7) -> Tables:
    """Tables in which everything that comes before has a say."""
    rng = np.random.default_rng(0)
    bits = max(1, (n_codes - 1).bit_length())
    slots, groups, decay = 1 << bits, 1 << bits // 2, np.array([0, 1, 4], np.uint8)
    code, frame, hidden = 5, 6, 4

    def some(*shape: int, spread: float = 60, kind: type = np.int8) -> np.ndarray:
        return rng.normal(0, spread, shape).clip(-127, 127).astype(kind)

    return Tables(
        fingerprint=fingerprint,
        slots=np.stack([rng.permutation(slots)[:n_codes] for _ in range(levels)]).astype(np.uint16),
        code=some(levels, slots, code),
        mix=some(levels, code, frame),
        decay=decay,
        past=some(len(decay), frame, levels, hidden),
        below=some(levels, levels, code, hidden),
        start=some(levels, hidden, kind=np.int16),
        group=some(levels, groups, hidden),
        group_bias=some(levels, groups, kind=np.int16),
        member=some(levels, slots, hidden),
        member_bias=some(levels, slots, kind=np.int16),
        repeat=some(levels, 2, hidden),
        repeat_bias=some(levels, 2, kind=np.int16),
    )
