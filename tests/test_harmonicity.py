"""Harmonicity: what is kept of a voice made of pulses, what noise gives, what does not matter."""

import math
from functools import lru_cache

import numpy as np
import pytest

from audiovq.hearing import SAMPLE_RATE
from audiovq.quality.harmonicity import harmonicity

N = 24000
TIME = np.arange(N) / SAMPLE_RATE
PITCHES = {
    "low": np.full(N, 90.0),
    "high": np.full(N, 230.0),
    "glide": np.linspace(100, 250, N),
    "vibrato": 150 + 15 * np.sin(2 * np.pi * 4 * TIME),
}


def vowel(wav: np.ndarray) -> np.ndarray:
    """wav [n] with the formants of a vowel, as float32."""
    frequency = np.fft.rfftfreq(len(wav), 1 / SAMPLE_RATE)
    gain = np.full(len(frequency), 0.03)
    for centre, width in ((700, 100), (1200, 110), (2600, 160), (3500, 200)):
        gain += 1 / (1 + ((frequency - centre) / width) ** 2) / (centre / 700)
    shaped = np.fft.irfft(np.fft.rfft(wav) * gain, len(wav))
    return (0.3 * shaped / np.abs(shaped).max()).astype(np.float32)


@lru_cache
def pulses(name: str, scale: float = 1.0) -> np.ndarray:
    pitch = PITCHES[name] * scale
    turns = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    harmonics = range(1, int(8000 / pitch.min()))
    return sum(np.where(k * pitch < 7900, np.cos(k * turns), 0) for k in harmonics)


def noise_like(wav: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(len(wav)) * wav.std()


def below(wav: np.ndarray, cut: float) -> np.ndarray:
    lines = np.fft.rfft(wav)
    lines[int(cut * len(wav) / SAMPLE_RATE) :] = 0
    return np.fft.irfft(lines, len(wav))


@pytest.mark.parametrize("name", PITCHES)
def test_the_same_sound_keeps_all_and_noise_of_its_envelope_nothing(name):
    voice = pulses(name)
    original, noise = vowel(voice), noise_like(voice)
    assert harmonicity(original, original.copy()) == (1, 1, 1)
    assert max(harmonicity(original, vowel(noise))) < 0.2
    half_voiced = below(voice, 1000) + noise - below(noise, 1000)
    low, middle, high = harmonicity(original, vowel(half_voiced))
    assert low > 0.95
    assert max(middle, high) < 0.2


@pytest.mark.parametrize("name", PITCHES)
def test_a_band_that_is_half_noise_keeps_half(name):
    voice = pulses(name)
    assert harmonicity(vowel(voice), vowel(voice + noise_like(voice))) == pytest.approx(
        (0.5, 0.5, 0.5), abs=0.1
    )


@pytest.mark.parametrize("gain", [1e-3, -1, 4])
def test_the_level_of_either_clip_does_not_matter(gain):
    voice = pulses("glide")
    original, decoded = vowel(voice), vowel(voice + 0.5 * noise_like(voice))
    expected = pytest.approx(harmonicity(original, decoded), abs=0.01)
    gain = np.float32(gain)
    assert harmonicity(original, gain * decoded) == expected
    assert harmonicity(gain * original, decoded) == expected


def test_phases_a_short_delay_and_a_pitch_slightly_off_do_not_matter():
    original = vowel(pulses("vibrato"))
    lines = np.fft.rfft(original)
    frequency = np.fft.rfftfreq(N, 1 / SAMPLE_RATE)
    late = np.fft.irfft(lines * np.exp(-2j * np.pi * frequency * 0.6 / SAMPLE_RATE), N)
    turned = np.fft.irfft(lines * np.exp(1j * np.cos(frequency / 300)), N)
    for decoded in (late, turned, vowel(pulses("vibrato", 1.01))):
        assert min(harmonicity(original, decoded.astype(np.float32))) > 0.9


def test_another_pitch_is_not_kept():
    assert max(harmonicity(vowel(pulses("low")), vowel(pulses("low", 1.37)))[1:]) < 0.3


def test_a_band_that_is_cut_off_is_lost_though_its_rest_is_harmonic():
    voice = vowel(pulses("high"))
    quiet = below(voice, 2000) + 0.01 * (voice - below(voice, 2000))
    low, middle, high = harmonicity(voice, quiet.astype(np.float32))
    assert min(low, middle) > 0.95
    assert high < 0.1


def test_pauses_do_not_count():
    voice = vowel(pulses("high"))
    pause = np.random.default_rng(1).normal(0, 1e-5, N).astype(np.float32)
    original = np.concatenate([pause, voice, pause])
    decoded = np.concatenate([pause, vowel(pulses("high") + noise_like(voice)), pause[::-1]])
    assert harmonicity(original, decoded) == pytest.approx(
        harmonicity(voice, decoded[N : 2 * N]), abs=0.05
    )


@pytest.mark.parametrize("n", [1, 100, 1023, 1024, 1200])
def test_what_is_silent_unvoiced_or_too_short_has_no_value(n):
    voice = vowel(pulses("low"))
    noise = noise_like(voice).astype(np.float32)
    for original in (np.zeros(N, np.float32), noise, voice[:n]):
        assert all(map(math.isnan, harmonicity(original, original)))


def test_silence_for_a_voice_keeps_nothing():
    assert harmonicity(vowel(pulses("low")), np.zeros(N, np.float32)) == (0, 0, 0)


def test_a_long_clip_is_all_heard():
    voice = pulses("glide")
    clean, noisy = vowel(voice), vowel(noise_like(voice))
    original = np.tile(clean, 16)  # 24 s: pieces of 12
    half = np.concatenate([np.tile(clean, 8), np.tile(noisy, 8)])
    # Half of the frames keep all: the root of a half.
    assert harmonicity(original, half) == pytest.approx((0.7, 0.7, 0.7), abs=0.05)
