"""What a crop may go through before the model hears it: noise, voices, rooms, filters, codecs."""

from collections.abc import Callable

import numpy as np

from audiovq.distortions import (
    band_limited,
    coloured_noise,
    decaying_response,
    has_opus,
    mix,
    reverberant,
    through_opus,
)

SHARE = 0.4
"""Of the changes, each of which comes to a crop on its own."""


def augmented(
    wav: np.ndarray,
    sample_rate: int,
    random: np.random.Generator,
    other: Callable[[], np.ndarray],
) -> np.ndarray:
    """Samples [n] as another microphone might have them, in line with the original, float32 [n].

    In a room, with noise or another voice behind, through a filter, and coded: each or none.
    other: gives samples [n] of another recording.
    """
    if random.random() < SHARE:
        rt60, direct_db = random.uniform(0.15, 0.8), random.uniform(0, 12)
        wav = reverberant(wav, decaying_response(rt60, direct_db, sample_rate, random))
    if random.random() < SHARE:
        wav = mix(wav, coloured_noise(len(wav), random.uniform(0, 2), random), _snr(random))
    elif random.random() < SHARE:
        wav = mix(wav, other(), _snr(random))
    if random.random() < SHARE / 2:
        low = random.uniform(20, 300)
        high = sample_rate / 2 * random.uniform(0.4, 0.95)
        wav = band_limited(wav, low, high, sample_rate)
    if random.random() < SHARE / 2 and has_opus() and sample_rate in OPUS_RATES:
        wav = through_opus(wav.astype(np.float32), random.uniform(8, 32), sample_rate)
    return wav.astype(np.float32)


OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""In Hz, those that Opus knows."""


def _snr(random: np.random.Generator) -> float:
    return random.uniform(5, 30)
