"""What befalls speech stays in line with it, as loud as it says."""

import numpy as np
import pytest

from audiovq.distortions import (
    band_limited,
    coloured_noise,
    decaying_response,
    has_opus,
    mix,
    power,
    reverberant,
    through_opus,
)
from audiovq.training.augment import LATE, augmented, with_voice

RATE = 16_000


@pytest.fixture(scope="module")
def wav(speech) -> np.ndarray:
    return speech[0, 0].numpy()


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which b is late, where the two correlate most."""
    spectrum = np.fft.rfft(a, 2 * len(a)).conj() * np.fft.rfft(b, 2 * len(a))
    return int(np.argmax(np.fft.irfft(spectrum)[:2000]))


@pytest.mark.parametrize("snr", [0, 10, 30])
def test_noise_is_as_far_below_the_speech_as_asked_for(wav, snr):
    noisy = mix(wav, np.random.default_rng(0).standard_normal(len(wav)), snr)
    assert 10 * np.log10(power(wav) / power(noisy - wav)) == pytest.approx(snr, abs=1e-3)


@pytest.mark.parametrize("slope", [0, 1, 2])
def test_noise_falls_by_its_slope(slope):
    spectrum = np.abs(np.fft.rfft(coloured_noise(1 << 16, slope, np.random.default_rng(0)))) ** 2
    low, high = spectrum[1000:2000].mean(), spectrum[8000:16000].mean()
    assert 10 * np.log10(low / high) / 3 == pytest.approx(3.01 * slope, abs=0.3)


def test_a_response_falls_by_60_db_and_starts_with_the_direct_sound(wav):
    response = decaying_response(0.5, 6, RATE, np.random.default_rng(0))
    assert response[0] == 1.0
    assert 10 * np.log10(1 / np.square(response[1:]).sum()) == pytest.approx(6)
    ends = [np.square(part).mean() for part in (response[1:801], response[-800:])]
    assert 10 * np.log10(ends[0] / ends[1]) == pytest.approx(54, abs=2)
    wet = reverberant(wav, response)
    assert power(wet) == pytest.approx(power(wav))
    assert lag(wav, wet) == 0


def test_a_filter_and_a_codec_delay_nothing(wav):
    assert lag(wav, band_limited(wav, 300, 3400, RATE)) == 0
    if has_opus():
        coded = through_opus(wav, 24, RATE)
        assert abs(len(coded) - len(wav)) <= 960
        assert lag(wav[: len(coded)], coded[: len(wav)]) == 0


def test_another_microphone_keeps_the_length_and_is_late_by_half_a_frame_at_most(wav):
    delays, most = set(), round(LATE * RATE)
    for seed in range(12):
        random = np.random.default_rng(seed)
        heard = augmented(wav, RATE, random, lambda: np.roll(wav, 5000))
        assert heard.shape == wav.shape
        assert heard.dtype == np.float32
        assert np.isfinite(heard).all()
        delays.add(lag(np.pad(wav, (0, 2 * most)), np.pad(heard, (most, most))) - most)
    assert all(-most - 2 <= delay <= most + 2 for delay in delays)
    assert len(delays) > 2


@pytest.mark.parametrize("semitones", [-3.0, 2.0])
def test_another_voice_is_higher_in_the_same_time(wav, semitones):
    tone = np.sin(2 * np.pi * 400 * np.arange(2 * RATE) / RATE).astype(np.float32)
    moved = with_voice(tone, semitones, RATE)
    hertz = np.abs(np.fft.rfft(moved)).argmax() / 2
    assert hertz == pytest.approx(400 * 2 ** (semitones / 12), rel=0.01)
    heard = with_voice(wav, semitones, RATE)
    assert heard.shape == wav.shape
    assert heard.dtype == np.float32
    loud = [np.convolve(x**2, np.ones(400), "same") for x in (wav, heard)]
    assert lag(*loud) <= 80 or lag(*loud[::-1]) <= 80
    assert np.corrcoef(*loud)[0, 1] > 0.8
    assert (with_voice(wav[:300], semitones, RATE) == wav[:300]).all()  # too short for a voice
