"""What training computes once: codes that are the model's, and the fundamental."""

import numpy as np
import pytest
import torch
from tiny import EXAMPLES, TINY, started_model

from audiovq.audio import load_audio
from audiovq.training.cache import codes_folder, fill_codes, fill_pitch, fundamental, pitch_folder
from audiovq.training.data import Corpus, CropDataset, Cut

pytest.importorskip("swift_f0")


@pytest.fixture(scope="module")
def cuts():
    return [
        Cut(path.stem, str(path), 0.0, len(load_audio(path, 16_000)) / 16_000)
        for path in EXAMPLES[:2]
    ]


def test_cached_codes_are_the_models_and_are_computed_once(cuts, tmp_path):
    model = started_model(TINY)
    fill_codes(model, cuts, tmp_path)
    for cut in cuts:
        rows = np.load(codes_folder(tmp_path, model) / f"{cut.id}.npy")
        wav = torch.from_numpy(load_audio(cut.path, 16_000))
        assert rows.dtype == np.uint16
        assert np.array_equal(rows.T, model.encode(wav[None, None]).indices[0].numpy())
    kept = codes_folder(tmp_path, model) / f"{cuts[0].id}.npy"
    np.save(kept, np.zeros((3, 4), np.uint16))
    fill_codes(model, cuts, tmp_path)
    assert len(np.load(kept)) == 3
    other = started_model(TINY)
    with torch.no_grad():
        other.encoder.norm.bias.add_(1.0)
    assert codes_folder(tmp_path, other) != codes_folder(tmp_path, model)


def test_a_manifest_that_says_too_long_a_time_takes_no_memory(cuts, tmp_path):
    model = started_model(TINY)
    long = Cut(cuts[0].id, cuts[0].path, 0.0, 1e7)
    fill_codes(model, [long, Cut("none", cuts[0].path, 1e6, 1.0)], tmp_path)
    rows = np.load(codes_folder(tmp_path, model) / f"{long.id}.npy")
    assert len(rows) == -(-len(load_audio(long.path, 16_000)) // 320)
    assert not (codes_folder(tmp_path, model) / "none.npy").exists()


def test_a_crop_has_the_codes_and_the_fundamental_of_its_own_frames(cuts, tmp_path):
    model = started_model(TINY)
    fill_codes(model, cuts, tmp_path)
    fill_pitch(cuts, 16_000, 320, tmp_path)
    data = CropDataset(
        [Corpus(cuts, 1.0)],
        sample_rate=16_000,
        hop_length=320,
        crop_frames=20,
        seed=0,
        tokens_folder=str(codes_folder(tmp_path, model)),
        n_codebooks=4,
        pitch_folder=str(pitch_folder(tmp_path, 320, 16_000)),
    )
    item = data[3]
    wav = torch.from_numpy(load_audio(next(c.path for c in cuts if c.id == item["id"]), 16_000))
    starts = range(0, len(wav) - 6400, 320)
    first = next(s for s in starts if torch.equal(wav[s : s + 6400], item["wav"][0])) // 320
    codes = model.encode(wav[None, None]).indices[0][:, first : first + 20]
    assert torch.equal(item["tokens"], codes)
    whole = fundamental(wav.numpy(), 16_000, 320)
    np.testing.assert_array_equal(item["pitch"].numpy(), whole[first : first + 20])


@pytest.mark.parametrize(("rate", "hop"), [(16_000, 320), (24_000, 480)])
def test_the_fundamental_is_that_at_the_end_of_each_frame(rate, hop):
    """A glide of an octave a second: 20 ms too early or late would be 24 cents."""
    time = np.arange(2 * rate) / rate
    hertz = 100 * 2**time
    phase = 2 * np.pi * np.cumsum(hertz) / rate
    wav = sum(np.sin(k * phase) / k for k in range(1, 12)).astype(np.float32) / 4
    found = fundamental(wav, rate, hop)
    assert found.shape == (100,)
    ends = 100 * 2 ** (np.arange(1, 101) * hop / rate)
    middle = slice(10, 90)
    assert (found[middle] > 0).mean() > 0.9
    voiced = found[middle] > 0
    cents = 1200 * np.log2(found[middle][voiced] / ends[middle][voiced])
    assert abs(np.median(cents)) < 10


def test_silence_and_noise_have_no_fundamental():
    rng = np.random.default_rng(0)
    assert not fundamental(np.zeros(16_000, np.float32), 16_000, 320).any()
    noise = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    assert (fundamental(noise, 16_000, 320) > 0).mean() < 0.1
