"""Laws of encode, decode, save and load."""

import copy
import datetime
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from tiny import TINY, UNITS, started_model

from audiovq import AudioVQ, Codes, FileRefused, ModelConfig
from audiovq.quantize import nearest


@pytest.mark.parametrize("n_samples", [1, 2, 160, 319, 320, 321, 1279, 1280, 1281, 5000])
def test_decode_of_encode_has_the_same_shape(tiny_model, n_samples):
    wav = torch.randn(2, 1, n_samples) * 0.1
    codes = tiny_model.encode(wav)
    assert codes.indices.shape == (2, 4, -(-n_samples // 320))
    assert tiny_model.decode(codes).shape == wav.shape


def test_fewer_levels_are_a_prefix(tiny_model, speech):
    codes = tiny_model.encode(speech).indices
    for n_q in range(1, 5):
        assert torch.equal(tiny_model.encode(speech, n_q=n_q).indices, codes[:, :n_q])


def test_an_item_of_a_padded_batch_gets_the_tokens_it_gets_alone(tiny_model, speech):
    lengths = [20_000, 7_777, 321, 1]
    batch = torch.full((4, 1, 20_000), 0.5)  # what stands in the padding must not matter
    for item, length in enumerate(lengths):
        batch[item, 0, :length] = speech[0, 0, 1000 * item : 1000 * item + length]
    codes = tiny_model.encode(batch, lengths=lengths)
    wav = tiny_model.decode(codes)
    for item, length in enumerate(lengths):
        alone = tiny_model.encode(batch[item : item + 1, :, :length])
        n_frames = alone.indices.shape[2]
        assert torch.equal(codes.indices[item : item + 1, :, :n_frames], alone.indices)
        assert torch.equal(wav[item : item + 1, :, :length], tiny_model.decode(alone))
        assert not wav[item, :, length:].any()


def test_codes_do_not_depend_on_what_comes_after_the_lookahead(tiny_model, speech):
    wav = speech[:, :, :16_000]
    changed = wav.clone()
    changed[:, :, 9_600:] = torch.randn(6_400)
    before = tiny_model.encode(wav).indices
    after = tiny_model.encode(changed).indices
    known = 9_600 // 320 - TINY.lookahead
    assert torch.equal(before[:, :, :known], after[:, :, :known])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("change", UNITS)
def test_forward_in_eval_mode_chooses_the_codes_of_encode(change, speech):
    model = started_model(replace(TINY, **change))
    wav = speech[:, :, : 320 * 100]
    codes = model(wav).quantized.codes
    # The forward pass is one block of all frames, encode is blocks of four: sums may round
    # otherwise, and a frame that lies halfway between two codes may fall to the other side.
    assert (codes != model.encode(wav).indices).float().mean() < 0.002


def test_forward_reconstructs_what_decode_does(tiny_model, speech):
    wav = speech[:, :, : 320 * 60]
    with torch.no_grad():
        output = tiny_model(wav)
    decoded = tiny_model.decode(output.quantized.codes)
    assert torch.allclose(output.wav, decoded, atol=1e-4)


def test_save_and_load_are_the_identity(tiny_model, speech, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = AudioVQ.from_pretrained(tmp_path)
    assert loaded.config == tiny_model.config
    assert loaded.card == tiny_model.card
    assert loaded.fingerprint == tiny_model.fingerprint
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    codes = tiny_model.encode(speech)
    assert torch.equal(codes.indices, loaded.encode(speech).indices)
    assert torch.equal(tiny_model.decode(codes), loaded.decode(codes))


def test_rounded_weights_take_half_the_room_and_load_as_they_are(tmp_path):
    model = started_model(TINY)
    model.save_pretrained(tmp_path / "whole")
    model.round_weights().save_pretrained(tmp_path / "rounded")
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("whole", "rounded")]
    assert sizes[1] < 0.75 * sizes[0]
    assert AudioVQ.from_pretrained(tmp_path / "rounded").fingerprint == model.fingerprint


def test_the_fingerprint_follows_what_decides_the_tokens(speech):
    model = started_model(TINY)
    before, codes = model.fingerprint, model.encode(speech).indices
    assert model.fingerprint == before
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        value = tensor.flatten()[0].clone()
        tensor.flatten()[0] += 1e-3
        assert (model.fingerprint != before) == model.decides_tokens(name), name
        tensor.flatten()[0] = value
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not model.decides_tokens(name):
                parameter.normal_()
    assert torch.equal(model.encode(speech).indices, codes)
    assert model.fingerprint == before


@pytest.mark.parametrize("change", UNITS)
@pytest.mark.parametrize("n_q", [1, 4])
def test_all_items_at_once_are_the_items_but_for_rounding(change, n_q, speech, monkeypatch):
    """What a GPU does with a batch, here on the CPU, in more than one piece."""
    monkeypatch.setattr("audiovq.model.BATCH_FRAMES", 50)
    model = started_model(replace(TINY, **change))
    lengths = [speech.shape[2], 1, 9_601, 320]
    wav = torch.cat([speech, torch.randn_like(speech), -speech, speech])
    alone = model.encode(wav, n_q, lengths)
    codes = model._encode_batch(wav, lengths, n_q)
    assert codes.shape == alone.indices.shape
    assert (codes != alone.indices).float().mean() < 0.005
    decoded = model._decode_batch(alone.indices, alone.lengths)
    torch.testing.assert_close(decoded, model.decode(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "growth",
    [{"unit_blocks": 1}, {"spectrum_size": 512}, {"unit_blocks": 1, "spectrum_size": 512}],
)
def test_a_grown_model_computes_the_same(speech, growth):
    model = started_model(TINY)
    grown = model.grown(**growth)
    codes = model.encode(speech)
    assert torch.equal(grown.encode(speech).indices, codes.indices)
    assert torch.equal(grown.decode(codes), model.decode(codes))
    again = AudioVQ(TINY)
    again.load_state_dict(model.state_dict())
    step_by_step = again.eval()
    for name, size in growth.items():
        step_by_step = step_by_step.grown(**{name: size})
    assert step_by_step.fingerprint == grown.fingerprint
    new = [parameter for name, parameter in grown.encoder.named_parameters() if "unit" in name]
    with torch.no_grad():
        for parameter in new or grown.encoder.spectrum.parameters():
            parameter.copy_(torch.randn_like(parameter))
    other = grown.encode(speech).indices
    assert not torch.equal(other[:, 0], codes.indices[:, 0])
    assert torch.equal(other[:, 1:], codes.indices[:, 1:]) == bool(new)


DEEP = replace(TINY, encoder_blocks=(1, 3), unit_blocks=1, spectrum_size=512)


def test_units_alone_do_not_hear_the_level(speech):
    wav = speech[:, :, : speech.shape[2] // 640 * 640]
    wav = wav + 5e-3 * torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    plain = started_model(DEEP)
    model = plain.grown(level_frames=50)
    model.encoder.fit_front(list(wav.chunk(2, dim=2)))
    before = plain.encode(wav).indices
    codes, softer = (model.encode(gain * wav).indices for gain in (1.0, 0.1))
    assert (codes[:, 0] != softer[:, 0]).float().mean() < 0.02
    assert (codes[:, 1] != softer[:, 1]).float().mean() > 0.1
    assert torch.equal(codes[:, 1:], before[:, 1:])
    agreement = (codes[:, 0] == before[:, 0]).float().mean()
    assert agreement > 0.3  # the front stands in for the convolutions
    assert agreement > (plain.encode(0.1 * wav).indices[:, 0] == before[:, 0]).float().mean()


def test_a_floor_hides_noise_that_is_fainter_at_every_level(speech):
    wav = speech[:, :, : speech.shape[2] // 640 * 640]
    noise = torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    noisy = wav + noise * wav.square().mean().sqrt() * 10 ** (-40 / 20)
    plain = started_model(DEEP).grown(level_frames=50)
    plain.encoder.fit_front(list(wav.chunk(2, dim=2)))
    moved = []
    for model in (plain, plain.grown(level_floor=30)):
        alone, softer = model.unit_vectors(wav), model.unit_vectors(0.1 * wav)
        moved.append(float((model.unit_vectors(noisy) - alone).norm() / alone.std()))
        torch.testing.assert_close(softer[:, 50:], alone[:, 50:], atol=0.05, rtol=0.05)
        assert ("level_floor" in model.config.tokens_json()) == bool(model.config.level_floor)
    assert moved[1] < 0.5 * moved[0]
    with pytest.raises(ValueError, match="level_floor lies below the level that level_frames"):
        started_model(DEEP).grown(level_floor=30)


def test_units_that_mean_the_same_are_merged(tmp_path):
    """By what they stand for, once that is known; the tokens say that it is known."""
    plain = started_model(DEEP)
    model = plain.grown(unit_labels=3)
    assert "unit_labels" in model.config.tokens_json()
    assert "unit_labels" not in plain.config.tokens_json()
    size = model.config.codebook_size
    assert torch.equal(model.coarse_units(size // 2), plain.coarse_units(size // 2))
    unknown = model.fingerprint
    model.quantizer.units.labels.copy_(torch.eye(3)[torch.arange(size) % 3])
    groups = model.coarse_units(3)
    assert len(groups.unique()) == 3
    assert all(len(set(group.tolist())) == 1 for group in (groups[0::3], groups[1::3]))
    assert torch.equal(groups % 3, torch.arange(size) % 3)
    assert model.fingerprint != unknown
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(AudioVQ.from_pretrained(tmp_path / "model").coarse_units(3), groups)
    with pytest.raises(ValueError, match='unit_labels needs unit_level "split"'):
        replace(DEEP, unit_level="residual", unit_blocks=0, unit_labels=3)


def test_units_get_more_blocks_and_stay_until_those_learn(speech):
    before = started_model(DEEP).grown(level_frames=50)
    before.encoder.fit_front([speech[:, :, :32_000]])
    model = before.grown(unit_extra_blocks=2)
    codes = before.encode(speech).indices
    assert torch.equal(model.encode(speech).indices, codes)
    assert "unit_extra_blocks" in model.config.tokens_json()
    assert "unit_extra_blocks" not in before.config.tokens_json()
    extra = model.encoder.unit_stack.layers[-2:]
    assert all(block.up.weight.any() and block.kernel.any() for block in extra)
    heard = model.config.receptive_field - before.config.receptive_field
    assert heard == 2 * (model.config.kernel_size - 1) * model.config.hop_length
    torch.nn.init.normal_(extra[1].down.weight)
    other = model.encode(speech).indices
    assert not torch.equal(other[:, 0], codes[:, 0])
    assert torch.equal(other[:, 1:], codes[:, 1:])
    with pytest.raises(ValueError, match="unit_extra_blocks join the units' own layers, which"):
        started_model(DEEP).grown(unit_extra_blocks=2)


def test_units_alone_are_those_of_all(speech):
    model = started_model(DEEP).grown(level_frames=50)
    model.encoder.fit_front([speech[:, :, :32_000]])
    wav = speech[:, :, :32_000]
    units, quantized = model.hear(wav)
    assert torch.equal(quantized.unit_vectors, model.unit_vectors(wav))
    found = nearest(quantized.unit_vectors[0], model.quantizer.codebooks[0].vectors)
    assert torch.equal(quantized.codes[0, 0], found)
    torch.testing.assert_close(units[0], model.quantizer.codebooks[0].vectors[found])
    vectors, none = model.hear(wav, quantize=False)
    assert none is None
    assert torch.equal(vectors, quantized.unit_vectors)  # one a frame, at one rate
    with pytest.raises(ValueError, match="Only with level_frames"):
        started_model(TINY).hear(wav)


def test_units_of_a_batch_are_those_of_encode(speech):
    model = started_model(replace(TINY, unit_blocks=1))
    wav = torch.cat([speech[:, :, :16_000], speech[:, :, 16_000:32_000]])
    vectors = model.unit_vectors(wav)
    assert vectors.shape == (2, 50, TINY.codebook_dim)
    units = nearest(vectors.flatten(0, 1), model.quantizer.codebooks[0].vectors).view(2, 50)
    assert (units != model.encode(wav).indices[:, 0]).float().mean() < 0.01


def test_a_model_grows_once_and_only_where_it_can():
    model = started_model(TINY)
    grown = model.grown(unit_blocks=1)
    with pytest.raises(ValueError, match="does not have"):
        grown.grown(unit_blocks=1)
    with pytest.raises(ValueError, match="does not have"):
        model.grown()
    with pytest.raises(ValueError, match="unit_blocks is 1 in this model and cannot become 2"):
        grown.grown(unit_blocks=2)
    with pytest.raises(ValueError, match="even number"):
        model.grown(spectrum_size=33)
    with pytest.raises(ValueError, match="level_frames needs unit_blocks and spectrum_size"):
        model.grown(level_frames=50)


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_that_was_trained_on_decodes_with_its_new_weights(speech, fused):
    model = started_model(TINY)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=0.1, fused=fused)
    codes = model.encode(speech)
    before = model.decode(codes)
    model.train()
    model.quantizer.eval()  # what its codebooks learn would be seen anyway
    model(speech[:, :, :3200]).wav.square().mean().backward()
    optimizer.step()
    model.eval()
    assert not torch.allclose(model.decode(codes), before, atol=1e-3)


def test_a_folder_that_is_not_a_model_is_refused(tmp_path, tiny_folder):
    with pytest.raises(FileRefused, match="is not a model"):
        AudioVQ.from_pretrained(tmp_path / "nothing")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FileRefused, match="damaged"):
        AudioVQ.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    other = asdict(replace(TINY, codebook_size=16))
    (tmp_path / "config.json").write_text(json.dumps({"card": {}, "config": other}))
    with pytest.raises(FileRefused, match="does not fit"):
        AudioVQ.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FileRefused, match="not the config"):
        AudioVQ.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("wav", "arguments", "message"),
    [
        (torch.zeros(1, 100), {}, "shape"),
        (torch.zeros(1, 2, 100), {}, "shape"),
        (torch.zeros(1, 1, 0), {}, "shape"),
        (torch.full((1, 1, 10), torch.nan), {}, "not finite"),
        (torch.zeros(1, 1, 10), {"n_q": 0}, r"n_q must be in 1\.\.4, not 0"),
        (torch.zeros(1, 1, 10), {"n_q": 5}, r"n_q must be in 1\.\.4, not 5"),
        (torch.zeros(1, 1, 10), {"lengths": [11]}, "lengths"),
        (torch.zeros(1, 1, 10), {"lengths": [5, 5]}, "lengths"),
    ],
)
def test_encode_says_what_is_wrong(tiny_model, wav, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.encode(wav, **arguments)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 3), 32), "code 32 is out of range"),
        (torch.full((1, 4, 3), -1), "code -1 is out of range"),
        (torch.zeros(1, 5, 3, dtype=torch.int64), "n_q must be"),
        (torch.zeros(4, 3, dtype=torch.int64), "whole numbers"),
        (torch.zeros(1, 4, 3), "whole numbers"),
        (Codes(torch.zeros(1, 4, 3, dtype=torch.int64), (961,)), "lengths"),
    ],
)
def test_decode_says_what_is_wrong(tiny_model, codes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.decode(codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_fft": 500}, "n_fft must be a multiple of the hop"),
        ({"lookahead": 3}, "lookahead must be 0, 1 or 2"),
        ({"strides": (40, 0)}, "strides must be a list of whole numbers >= 1"),
        ({"strides": (40,)}, "lists of one length"),
        ({"codebook": "adam"}, 'codebook must be "ema" or "gradient"'),
        ({"unit_level": "beside"}, 'unit_level must be "split" or "residual"'),
        ({"codebook_size": 1.5}, "codebook_size must be a whole number"),
        ({"codebook_size": 70_000}, "at most 65536"),
        ({"block_frames": 1}, "block_frames must be more than lookahead"),
        ({"n_codebooks": 1}, "needs n_codebooks of at least 2"),
    ],
)
def test_the_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_config_refuses_names_that_it_does_not_have():
    with pytest.raises(ValueError, match="is not a setting of the model"):
        ModelConfig.from_dict({"hidden": 3})


def test_the_default_config_is_what_the_documents_say():
    config = ModelConfig()
    assert (config.sample_rate, config.frame_rate, config.hop_length) == (16_000, 50.0, 320)
    assert (config.n_codebooks, config.codebook_size) == (8, 1024)
    assert config.bitrate(8) == 4_000.0
    assert config.delay / config.sample_rate == 0.08


def test_tables_are_saved_with_a_model_and_are_of_its_tokens(coded_model, tmp_path):
    coded_model.save_pretrained(tmp_path / "again")
    again = AudioVQ.from_pretrained(tmp_path / "again")
    assert again.coding_tables().key == coded_model.coding_tables().key
    with torch.no_grad():
        again.decoder.head.bias += 1  # decides no token
        assert again.coding_tables() is not None
        next(again.encoder.parameters()).mul_(2)
    assert again.coding_tables() is None
    again.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "tables.safetensors").exists()


def test_a_model_with_broken_tables_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "tables.safetensors").write_bytes(b"no tables")
    with pytest.raises(FileRefused, match=r"tables\.safetensors is no file of tables"):
        AudioVQ.from_pretrained(tmp_path / "model")


def test_a_card_that_is_no_json_writes_nothing(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "m")
    model = started_model(TINY).grown(unit_blocks=1)
    model.card["made"] = datetime.date(2026, 1, 1)
    with pytest.raises(ValueError, match="card cannot be saved"):
        model.save_pretrained(tmp_path / "m", overwrite=True)
    AudioVQ.from_pretrained(tmp_path / "m")


def test_another_default_device_changes_nothing(speech):
    model = started_model(TINY)
    codes = model.encode(speech)
    wav = model.decode(codes)
    twin = copy.deepcopy(model)
    with torch.device("meta"):
        assert torch.equal(twin.encode(speech).indices, codes.indices)
        assert torch.equal(twin.decode(codes), wav)
