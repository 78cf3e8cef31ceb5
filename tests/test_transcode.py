"""Files to files: nothing depends on the pieces, nothing half-written is left."""

import numpy as np
import pytest
import soundfile
import torch
from tiny import EXAMPLES, TINY, started_model

from audiovq import FileRefused, read_tokens
from audiovq.audio import load_audio
from audiovq.segment import expand, read_segments
from audiovq.transcode import (
    ENCODE_FRAMES,
    decode_file,
    encode_file,
    fit_price,
    repack_file,
    segment_file,
    unit_distances,
)


@pytest.mark.parametrize("token_format", ["npy", "avq"])
def test_files_hold_what_the_model_says(tiny_model, tmp_path, token_format):
    tokens = tmp_path / f"a.{token_format}"
    done = encode_file(tiny_model, EXAMPLES[1], tokens, token_format=token_format)
    wav = torch.from_numpy(load_audio(EXAMPLES[1], 16_000))[None, None]
    codes = tiny_model.encode(wav)
    assert np.array_equal(read_tokens(tokens).indices, codes.indices[0].numpy())
    assert done.shape == tuple(codes.indices.shape[1:])
    decode_file(tiny_model, tokens, tmp_path / "a.wav")
    decoded = load_audio(tmp_path / "a.wav", 16_000)
    goal = tiny_model.decode(codes)[0, 0].clamp(-1, 1).numpy()
    assert len(decoded) == (len(goal) if token_format == "avq" else codes.indices.shape[2] * 320)
    assert np.abs(decoded[: len(goal)] - goal).max() < 1e-4


def test_an_unknown_format_is_refused_before_the_work(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="must be npy or avq, not 'wav'"):
        encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.wav", token_format="wav")


@pytest.mark.parametrize("kind", ["encode", "segment", "decode"])
def test_progress_counts_the_seconds_up_to_all_of_them(tiny_model, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("audiovq.audio._BLOCK", 8_000)
    monkeypatch.setattr("audiovq.transcode.DECODE_FRAMES", 16)
    seen = []
    options = {"progress": lambda *now: seen.append(now)}
    if kind == "encode":
        done = encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.npy", **options)
    elif kind == "segment":
        done = segment_file(tiny_model, EXAMPLES[1], tmp_path / "a.tsv", price=1.0, **options)
    else:
        encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.avq", token_format="avq")
        done = decode_file(tiny_model, tmp_path / "a.avq", tmp_path / "a.wav", **options)
    passed, totals = zip(*seen, strict=True)
    assert len(seen) > 4
    assert list(passed) == sorted(passed)
    assert passed[-1] == done.seconds
    assert totals == pytest.approx([done.seconds] * len(totals))


@pytest.mark.parametrize("rate", [8_000, 48_000])
@pytest.mark.parametrize("sound", ["silence", "clipped", "quiet", "10 ms", "one sample"])
def test_odd_sounds_round_trip_with_their_exact_length(tiny_model, tmp_path, rng, rate, sound):
    speech = soundfile.read(EXAMPLES[1])[0][: rate // 2]
    wav = {
        "silence": np.zeros(rate // 2),
        "clipped": np.clip(50 * speech, -1, 1),
        "quiet": 1e-4 * speech,
        "10 ms": speech[: rate // 100],
        "one sample": np.array([0.5]),
    }[sound]
    source, tokens, decoded = tmp_path / "in.wav", tmp_path / "t.avq", tmp_path / "out.wav"
    soundfile.write(source, np.stack([wav, wav], axis=1), rate)
    assert encode_file(tiny_model, source, tokens, token_format="avq").source.channels == 2
    decode_file(tiny_model, tokens, decoded)
    result, result_rate = soundfile.read(decoded)
    assert result_rate == 16_000
    assert len(result) == max(1, round(len(wav) * 16_000 / rate))


def test_the_blocks_of_the_reader_do_not_change_the_tokens(tiny_model, tmp_path, monkeypatch):
    encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.npy")
    monkeypatch.setattr("audiovq.audio._BLOCK", 777)
    encode_file(tiny_model, EXAMPLES[1], tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_tokens_of_another_model_are_refused_by_both_names(tiny_model, tmp_path):
    encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.avq", token_format="avq")
    other = started_model(TINY)
    with torch.no_grad():
        other.encoder.norm.weight.mul_(1.1)
    other.card["name"] = "another model"
    with pytest.raises(FileRefused, match=r"test model .* another model"):
        decode_file(other, tmp_path / "a.avq", tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("indices", "message"),
    [(np.full((4, 9), 32), "code 32 is out of range"), (np.zeros((5, 9), int), "n_q must be")],
)
def test_tokens_that_do_not_fit_are_refused(tiny_model, tmp_path, indices, message):
    np.save(tmp_path / "a.npy", indices.astype(np.uint16))
    with pytest.raises(FileRefused, match=message):
        decode_file(tiny_model, tmp_path / "a.npy", tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_segments_at_price_0_are_the_units(tiny_model, tmp_path):
    encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.npy", n_q=1)
    segment_file(tiny_model, EXAMPLES[1], tmp_path / "a.tsv", price=0.0)
    units = expand(read_segments(tmp_path / "a.tsv"))
    tokens = read_tokens(tmp_path / "a.npy").indices[0]
    assert len(units) == len(tokens)
    assert (units != tokens).mean() < 0.01  # ties in rounding


def test_a_higher_price_makes_fewer_segments(tiny_model, tmp_path):
    counts = []
    for price in (0.0, 1.0, 10.0, 1e6):
        path = tmp_path / f"{price}.tsv"
        counts.append(segment_file(tiny_model, EXAMPLES[1], path, price=price).shape[1])
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


def test_distances_in_pieces_are_those_of_the_whole():
    model = started_model(TINY)  # of its own, for the hook
    wav = np.tile(load_audio(EXAMPLES[1], 16_000), 4)[:-100]
    whole = model.unit_distances(torch.from_numpy(wav)[None, None])[0].numpy()
    heard = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].shape[2]))
    parts = unit_distances(model, [wav])
    assert max(heard) == ENCODE_FRAMES * 320 < len(wav)  # however long it is
    np.testing.assert_allclose(np.concatenate(list(parts)), whole, atol=1e-3)
    again = unit_distances(model, np.split(wav, [1, 700, 90_001]))
    assert np.array_equal(parts.z, again.z)


def test_the_price_for_a_rate_is_found_on_the_recordings(tiny_model, tmp_path, monkeypatch):
    price = fit_price(tiny_model, [EXAMPLES[1]], 12.0)
    done = segment_file(tiny_model, EXAMPLES[1], tmp_path / "a.tsv", price=price)
    assert done.shape[1] / done.seconds == pytest.approx(12.0, abs=0.5)
    assert price == float(f"{price:.4g}")  # what is printed is what was used
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    assert fit_price(tiny_model, [tmp_path / "bad.wav", EXAMPLES[1]], 12.0) == price
    with pytest.raises(FileRefused, match="not audio"):
        fit_price(tiny_model, [tmp_path / "bad.wav"], 12.0)
    for sources, rate in (([], 12.0), ([EXAMPLES[1]], 0.0), ([EXAMPLES[1]], float("nan"))):
        with pytest.raises(ValueError, match=r"at least one|> 0"):
            fit_price(tiny_model, sources, rate)


def test_a_price_is_found_on_a_bounded_part_of_the_sources(tiny_model, monkeypatch):
    opened = []
    monkeypatch.setattr("audiovq.transcode.FIT_SECONDS", 2)
    monkeypatch.setattr("audiovq.audio._BLOCK", 1600)

    def counted(model, blocks):
        opened.append(sum(map(len, blocks)))
        return unit_distances(model, [np.zeros(1600, np.float32)])

    monkeypatch.setattr("audiovq.transcode.unit_distances", counted)
    fit_price(tiny_model, [EXAMPLES[1]] * 100, 12.0)
    assert 20 < len(opened) <= 40
    assert sum(opened) < 2 * 2 * 16_000


@pytest.mark.parametrize("price", ["much", True, -1.0, float("nan")])
def test_a_card_whose_price_is_no_price_is_refused(price, tmp_path):
    model = started_model(TINY)
    model.card["segment_price"] = price
    with pytest.raises(FileRefused, match="a number >= 0"):
        segment_file(model, EXAMPLES[1], tmp_path / "a.tsv")
    with pytest.raises(ValueError, match="must be >= 0"):
        segment_file(model, tmp_path / "none.wav", tmp_path / "a.tsv", price=-1.0)


def test_coded_files_hold_the_same_tokens(coded_model, tmp_path):
    packed, coded = tmp_path / "packed.avq", tmp_path / "coded.avq"
    encode_file(coded_model, EXAMPLES[1], packed, token_format="avq")
    done = encode_file(coded_model, EXAMPLES[1], coded, token_format="avq", coded=True)
    assert coded.read_bytes()[:4] == b"AVQ2"
    assert done.n_bytes == coded.stat().st_size
    one, other = read_tokens(packed), read_tokens(coded)
    np.testing.assert_array_equal(one.indices, other.indices)
    assert one.header == other.header
    for path in (packed, coded):
        decode_file(coded_model, path, path.with_suffix(".wav"))
    assert packed.with_suffix(".wav").read_bytes() == coded.with_suffix(".wav").read_bytes()


def test_a_model_without_tables_packs(tiny_model, tmp_path):
    encode_file(tiny_model, EXAMPLES[1], tmp_path / "a.avq", token_format="avq", coded=True)
    assert (tmp_path / "a.avq").read_bytes()[:4] == b"AVQ1"


@pytest.mark.parametrize("n_q", [1, 3, None])
def test_repacking_is_encoding_so(coded_model, tmp_path, n_q):
    whole, goal, out = tmp_path / "whole.avq", tmp_path / "goal.avq", tmp_path / "out.avq"
    options = {"token_format": "avq", "coded": True}
    encode_file(coded_model, EXAMPLES[1], whole, **options)
    encode_file(coded_model, EXAMPLES[1], goal, n_q=n_q, **options)
    repack_file(coded_model, whole, out, n_q=n_q, **options)
    assert out.read_bytes() == goal.read_bytes()
    repack_file(coded_model, out, tmp_path / "out.npy", token_format="npy")
    np.testing.assert_array_equal(
        read_tokens(tmp_path / "out.npy").indices, read_tokens(goal).indices
    )


def test_repacking_merges_units_and_leaves_the_sound(coded_model, tmp_path):
    whole, some, fewer = (tmp_path / f"{name}.avq" for name in ("whole", "some", "fewer"))
    encode_file(coded_model, EXAMPLES[1], whole, token_format="avq")
    repack_file(coded_model, whole, some, n_units=16, coded=True)
    before, after = read_tokens(whole), read_tokens(some)
    np.testing.assert_array_equal(after.indices[0], coded_model.coarse_units(16)[before.indices[0]])
    np.testing.assert_array_equal(after.indices[1:], before.indices[1:])
    assert len(np.unique(before.indices[0])) > 16 >= len(np.unique(after.indices[0]))
    assert after.header == before.header  # they are tokens of the same model
    repack_file(coded_model, some, fewer, n_units=5)
    repack_file(coded_model, whole, some, n_units=5, overwrite=True)
    np.testing.assert_array_equal(read_tokens(some).indices, read_tokens(fewer).indices)
    for n in (0, 33):
        with pytest.raises(ValueError, match="n_units must be in"):
            repack_file(coded_model, whole, tmp_path / "none.avq", n_units=n)
    assert not (tmp_path / "none.avq").exists()


def test_plain_arrays_become_whole_frames_of_the_model(coded_model, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8).reshape(2, 4))
    repack_file(coded_model, tmp_path / "a.npy", tmp_path / "a.avq", coded=True)
    assert read_tokens(tmp_path / "a.avq").header == coded_model.header(2, 4 * 320)
    np.save(tmp_path / "b.npy", np.array([[32]]))
    with pytest.raises(FileRefused, match="does not fit the model"):
        repack_file(coded_model, tmp_path / "b.npy", tmp_path / "b.avq")
    with pytest.raises(FileRefused, match="2 levels"):
        repack_file(coded_model, tmp_path / "a.npy", tmp_path / "b.avq", n_q=3)


def test_autocast_around_changes_no_distance(tiny_model, speech):
    blocks = [speech[0, 0].numpy()]
    expected = np.concatenate(list(unit_distances(tiny_model, blocks)))
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(np.concatenate(list(unit_distances(tiny_model, blocks))), expected)
