"""Spectrograms: the same in blocks as at once, and bounded however long the sound is."""

import numpy as np
import pytest

from audiovq import pictures
from audiovq.pictures import MAX_COLUMNS, draw_spectrograms, spectrogram_db

RATE = 16_000


def plain(wav: np.ndarray) -> np.ndarray:
    """Levels of all windows at once, [F, T]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, (160, 320)), 320)
    frames = frames[: len(wav) + 1 : 80] * np.hanning(320)
    power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
    return 10 * np.log10(power / max(power.max(), 1e-12) + 1e-10)


@pytest.mark.parametrize("n", [1, 79, 80, 319, 16_000, 41_039, 41_040, 41_200, 90_001])
def test_blocks_give_the_spectrogram_of_the_whole(rng: np.random.Generator, n: int) -> None:
    wav = rng.normal(size=n).astype(np.float32)
    whole = spectrogram_db(wav, RATE)
    assert whole.level.shape == (161, n // 80 + 1) == plain(wav).shape
    assert (whole.seconds, whole.times[-1]) == (n / RATE, n // 80 * 80 / RATE)
    assert np.abs(whole.level - plain(wav)).max() < 0.1
    blocks = np.split(wav, sorted(rng.integers(0, n, size=7)))
    again = spectrogram_db(iter(blocks), RATE)
    assert np.array_equal(again.level, whole.level)
    assert again.seconds == whole.seconds


def test_long_sounds_share_columns(rng: np.random.Generator, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_COLUMNS", 1024)
    n = 80 * 9000
    wav = rng.normal(size=n).astype(np.float32)
    wav[: n // 2] *= 0.1
    found = spectrogram_db(np.array_split(wav, 50), RATE)
    assert 512 <= len(found.times) <= 1024
    power = 10 ** (plain(wav) / 10)
    pooled = power[:, : 9001 // 16 * 16].reshape(161, -1, 16).mean(axis=2)
    want = 10 * np.log10(pooled / pooled.max())
    assert np.abs(found.level[:, : want.shape[1]] - want).max() < 0.1
    assert found.times[1] - found.times[0] == pytest.approx(16 * 0.005)
    assert found.times[-1] <= found.seconds == n / RATE
    assert MAX_COLUMNS % pictures._WINDOWS == 0


def test_a_rate_too_low_for_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1000"):
        spectrogram_db(np.zeros(100, np.float32), 100)


def test_wavs_may_come_in_blocks(tmp_path, rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    wav = rng.normal(size=RATE).astype(np.float32)
    codes = rng.integers(0, 8, (2, 50))
    draw_spectrograms({"a": wav, "b": wav}, RATE, codes, 50.0, tmp_path / "a.png")
    parts = {"a": np.array_split(wav, 7), "b": iter([wav])}
    draw_spectrograms(parts, RATE, codes, 50.0, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    never = iter([])  # what exists is refused before anything is read
    with pytest.raises(ValueError, match="--force"):
        draw_spectrograms({"a": never}, RATE, None, 50.0, tmp_path / "a.png")
