"""All laws of a codec for models whose levels have several rates, drawn at random."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import TINY, started_model

from audiovq import AudioVQ, ModelConfig, edit, read_tokens, write_avq
from audiovq.flatten import flatten, unflatten
from audiovq.health import count_codes
from audiovq.transcode import decode_file, encode_file, repack_file, unit_distances

HOP = TINY.hop_length


def random_config(seed: int) -> ModelConfig:
    """Strides, block, lookahead and place of the units at random; the coarsest level is coarse."""
    rng = np.random.default_rng(seed)
    group = int(rng.choice([2, 3, 4, 8]))
    divisors = [stride for stride in range(1, group + 1) if group % stride == 0]
    strides = [group, *rng.choice(divisors, size=3).tolist()]
    rng.shuffle(strides)
    blocks = int(rng.integers(1, 3)) if group > 2 else 2
    return replace(
        TINY,
        level_strides=tuple(strides),
        block_frames=group * blocks,
        lookahead=int(rng.integers(0, 3)),
        unit_level=str(rng.choice(["split", "residual"])),
        n_fft=int(rng.choice([640, 960, 1280])),
    )


@pytest.fixture(scope="module", params=range(4))
def model(request) -> AudioVQ:
    return started_model(random_config(request.param))


@pytest.fixture(scope="module")
def wav(speech):
    """0.9 s."""
    return speech[:, :, 8_000:22_123]


def test_codes_stand_in_all_their_frames(model, wav):
    codes = model.encode(wav)
    assert codes.level_strides == model.config.level_strides
    for level, stride in enumerate(model.config.level_strides):
        once = codes.levels[level]
        assert once.shape[1] == model.config.n_codes(level, wav.shape[2])
        repeated = once.repeat_interleave(stride, dim=1)[:, : codes.indices.shape[2]]
        assert torch.equal(codes.indices[:, level], repeated)
        assert once.unique().numel() > 1


@pytest.mark.parametrize("n_samples", [1, 319, 320, 321, 1_279, 1_281, 2_561, 5_000])
def test_shapes(model, wav, n_samples):
    codes = model.encode(wav[:, :, :n_samples])
    assert codes.indices.shape == (1, 4, -(-n_samples // HOP))
    assert model.decode(codes).shape == (1, 1, n_samples)


def test_fewer_levels_are_a_prefix(model, wav):
    whole = model.encode(wav)
    for n_q in range(1, 5):
        codes = model.encode(wav, n_q)
        assert torch.equal(codes.indices, whole.indices[:, :n_q])
        assert codes.level_strides == model.config.level_strides[:n_q]


def test_a_stream_gives_the_tokens_of_the_file(model, wav, rng):
    whole = model.encode(wav)
    for largest in (50, 700, 5_000):
        stream, codes, wavs = model.stream(), [], []
        left = wav
        while left.shape[2]:
            n = int(rng.integers(0, largest + 1))
            piece, left = left[:, :, :n], left[:, :, n:]
            codes.append(stream.encode(piece))
            assert codes[-1].shape[2] % model.config.group_frames == 0
            wavs.append(stream.decode(codes[-1]))
        last = stream.flush()
        assert torch.equal(torch.cat([*codes, last[0]], dim=2), whole.indices)
        decoded = torch.cat([*wavs, last[1]], dim=2)[:, :, : wav.shape[2]]
        assert torch.equal(decoded, model.decode(whole))


def test_sound_comes_out_after_the_delay(model, wav):
    """The longest that a sample stays in the codec, frame by frame, is what the config says."""
    stream, n_out, longest = model.stream(), 0, 0
    for n_in in range(HOP, wav.shape[2], HOP):
        # Sample n_out is not out before this frame is in.
        longest = max(longest, n_in - n_out)
        n_out += stream.decode(stream.encode(wav[:, :, n_in - HOP : n_in])).shape[2]
    assert longest == model.config.delay


def test_an_item_of_a_padded_batch_gets_the_tokens_it_gets_alone(model, wav, monkeypatch):
    lengths = [wav.shape[2], 7_777, 321, 1]
    batch = wav.repeat(4, 1, 1)
    codes = model.encode(batch, lengths=lengths)
    decoded = model.decode(codes)
    for item, length in enumerate(lengths):
        alone = model.encode(batch[item : item + 1, :, :length])
        n_frames = alone.indices.shape[2]
        assert torch.equal(codes.indices[item : item + 1, :, :n_frames], alone.indices)
        assert torch.equal(decoded[item : item + 1, :, :length], model.decode(alone))
    monkeypatch.setattr("audiovq.model.BATCH_FRAMES", 9)  # as a GPU does it
    at_once = model._encode_batch(batch, lengths, 4)
    assert (at_once != codes.indices).float().mean() < 0.01


def test_a_slice_at_whole_groups_has_the_tokens_of_the_whole(model, speech):
    config = model.config
    field = -(-config.receptive_field // (HOP * config.group_frames)) * config.group_frames
    whole = model.encode(speech[:, :, : (3 * field + 20) * HOP]).indices
    start = config.group_frames * 2
    alone = model.encode(speech[:, :, start * HOP : (3 * field + 20) * HOP]).indices
    assert torch.equal(alone[:, :, field:], whole[:, :, start + field :])


def test_what_comes_later_changes_no_code(model, wav):
    config, at = model.config, 24
    end = (at + config.lookahead) * HOP
    changed = wav.clone()
    changed[:, :, end:] = torch.randn(wav.shape[2] - end)
    before, after = model.encode(wav).indices, model.encode(changed).indices
    assert torch.equal(before[:, :, :at], after[:, :, :at])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("n_frames", [32, 33])
def test_forward_chooses_the_codes_of_encode(model, speech, n_frames):
    wav = speech[:, :, 8_000 : 8_000 + n_frames * HOP]
    with torch.no_grad():
        output = model(wav)
    codes = model.encode(wav).indices
    chosen = output.quantized.codes[:, :, :n_frames]
    assert (chosen != codes).float().mean() < 0.02
    assert output.wav.shape == wav.shape
    assert output.units.shape[1] == n_frames
    torch.testing.assert_close(output.wav, model.decode(chosen), atol=1e-4, rtol=0)


def test_files_keep_everything_and_say_the_bitrate(model, wav, tmp_path):
    import soundfile

    source = tmp_path / "a.wav"
    soundfile.write(source, wav.flatten().numpy(), 16_000, "FLOAT")
    whole = model.encode(wav)
    decoded = []
    for suffix in ("npy", "avq"):
        encode_file(model, source, tmp_path / f"a.{suffix}", token_format=suffix)
        tokens = read_tokens(tmp_path / f"a.{suffix}")
        assert tokens.level_strides == model.config.level_strides
        np.testing.assert_array_equal(tokens.indices, whole.indices[0].numpy())
        decode_file(model, tmp_path / f"a.{suffix}", tmp_path / f"{suffix}.wav")
        decoded.append(soundfile.read(tmp_path / f"{suffix}.wav")[0][: wav.shape[2]])
    np.testing.assert_array_equal(*decoded)
    assert tokens.header == model.header(4, wav.shape[2])
    counts = count_codes([tmp_path / "a.npy"], 32)
    assert counts.sum(axis=1).tolist() == [len(level) for level in tokens.levels]


def test_repacking_keeps_the_first_levels_at_their_rates(model, wav, tmp_path):
    write_avq(tmp_path / "a.avq", model.encode(wav).indices[0].numpy(), model.header(4, 14_123))
    for n_q in range(1, 5):
        for suffix in ("npy", "avq"):
            target = tmp_path / f"{n_q}.{suffix}"
            repack_file(model, tmp_path / "a.avq", target, n_q=n_q, token_format=suffix)
            tokens = read_tokens(target)
            assert tokens.level_strides == model.header(n_q, 1).level_strides
            np.testing.assert_array_equal(tokens.indices, model.encode(wav, n_q).indices[0])


def test_edits_of_whole_groups_keep_the_rates_and_others_give_a_code_in_every_frame(model, wav):
    codes, group = model.encode(wav), model.config.group_frames
    level = model.config.level_strides.index(group)
    old = int(codes.indices[0, level, 0])
    everywhere = edit.replace(codes, old, (old + 1) % 32, model.config, level=level)
    assert everywhere.level_strides == codes.level_strides
    within = slice(group - 1, group)
    once = edit.replace(codes, old, (old + 1) % 32, model.config, level=level, frames=within)
    assert once.level_strides == ()
    assert edit.take(codes, range(group, 4 * group), model.config).level_strides
    assert edit.take(codes, range(1, 4 * group), model.config).level_strides == ()
    assert edit.splice([codes], model.config).level_strides == codes.level_strides
    swapped = edit.swap_acoustics(codes, everywhere, only_shared=False)[0]
    assert swapped.level_strides == codes.level_strides
    assert model.decode(once).shape == wav.shape


def test_rates_are_what_is_counted(model):
    """Over a whole number of groups and of seconds, tokens and bits are counted exactly."""
    config, seconds = model.config, 24
    for n_q in range(1, 5):
        header = model.header(n_q, seconds * config.sample_rate)
        n_codes = sum(config.n_codes(level, header.n_samples) for level in range(n_q))
        assert header.codes_per_second == config.codes_per_second(n_q) == n_codes / seconds
        assert header.bitrate == config.bitrate(n_q) == 5 * (n_codes / seconds)  # 32 codes
        rates = [header.level_rate(level) for level in range(n_q)]
        assert sum(rates) == pytest.approx(config.codes_per_second(n_q))


@pytest.mark.parametrize(
    ("n_codebooks", "strides", "levels"),
    [
        (2, (), [1, 2]),
        (3, (), [1, 2, 3]),
        (8, (), [1, 2, 4, 8]),
        (11, (), [1, 2, 4, 8, 11]),
        (9, (2, 2, 1, 1, 1, 1, 1, 1, 1), [1, 2, 3, 5, 9]),
        (4, (1, 2, 4, 4), [1, 4]),
        (5, (8, 1, 8, 1, 1), [1, 2, 4, 5]),  # 3 levels are hardly more than 2
    ],
)
def test_the_levels_to_compare_double_the_bitrate(n_codebooks, strides, levels):
    config = ModelConfig(n_codebooks=n_codebooks, level_strides=strides)
    assert config.doubling_levels() == levels
    rates = [config.bitrate(n_q) / config.bitrate(1) for n_q in levels]
    assert all(b >= 2 * a for a, b in pairwise(rates[:-1]))


def test_a_language_model_gets_every_code_once(model, wav):
    strides = model.config.level_strides
    codes = model.encode(wav)
    tokens = flatten(codes.indices[0].numpy(), strides, 32)
    assert len(tokens) == sum(level.shape[1] for level in codes.levels)
    back = unflatten(tokens, strides, 32, n_q=4)[:, : codes.indices.shape[2]]
    assert torch.equal(model.decode(back[None]), model.decode(codes.indices))


def test_unit_distances_are_one_row_a_unit(model, wav):
    units = model.encode(wav).levels[0][0]
    distances = model.unit_distances(wav)
    assert distances.shape == (1, len(units), 32)
    assert (distances[0].argmin(dim=1) != units).float().mean() < 0.05
    blocks = np.concatenate(list(unit_distances(model, np.array_split(wav[0, 0].numpy(), 7))))
    np.testing.assert_allclose(blocks, distances[0].detach().numpy(), atol=1e-3)


def test_save_and_load_are_the_identity(model, wav, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AudioVQ.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(loaded.encode(wav).indices, model.encode(wav).indices)


def test_strides_of_one_are_the_model_without_them(tiny_model):
    flat = replace(TINY, level_strides=(1, 1, 1, 1))
    assert flat == TINY
    assert "level_strides" not in json.loads(flat.tokens_json())
    coarse = replace(TINY, level_strides=(1, 1, 1, 2))
    assert coarse.tokens_json() != TINY.tokens_json()
    twin = AudioVQ(coarse)
    twin.load_state_dict(tiny_model.state_dict())
    assert twin.fingerprint != tiny_model.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level_strides": (2, 1)}, "level_strides must be 4 whole numbers"),
        ({"level_strides": (2, 3, 1, 1)}, "each a divisor of the largest"),
        ({"level_strides": (2, 3, 6, 6), "block_frames": 6}, "in the first 2 levels alone"),
        ({"level_strides": (8, 1, 1, 1)}, "block_frames must be a multiple of the largest"),
        ({"level_strides": (64, 1, 1, 1)}, "level_strides must be at most 32"),
        ({"level_strides": (0, 1, 1, 1)}, "level_strides must be a list of whole numbers >= 1"),
        ({"level_strides": (1,) * 5}, "level_strides must have at most 4 numbers"),
        ({"level_strides": 2}, "level_strides must be a list"),
    ],
)
def test_strides_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_tokens_of_other_rates_are_refused(model, tiny_model, wav, tmp_path):
    from audiovq import FileRefused, write_avq, write_npy

    strides = model.config.level_strides
    codes = model.encode(wav).indices[0].numpy()
    write_npy(tmp_path / "a.npy", codes, level_strides=strides)
    header = replace(tiny_model.header(4, wav.shape[2]), level_strides=strides)
    write_avq(tmp_path / "a.avq", codes, header)
    for name in ("a.npy", "a.avq"):
        with pytest.raises(FileRefused, match="level_strides"):
            decode_file(tiny_model, tmp_path / name, tmp_path / "out.wav")
