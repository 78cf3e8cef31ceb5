"""The tokens do not depend on how the sound was cut, on restarts, on threads or on neighbours."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import TINY, started_model

from audiovq import AudioVQ, ModelConfig
from audiovq.layers import HalfLinear, PackedLinear, PlainLinear, can_pack
from audiovq.stream import DECODE_BLOCK, Stream

WIDE = {"channels": (64, 64), "decoder_channels": 64}
CONFIGS = {
    "split": {},
    "residual, no lookahead": {"unit_level": "residual", "lookahead": 0},
    "two frames of lookahead": {"lookahead": 2, "block_frames": 3},
    "units with a block of their own": {"unit_blocks": 1},
    "with a spectrum": {"unit_blocks": 1, "spectrum_size": 512},
    "at one level": {
        "unit_blocks": 1,
        "spectrum_size": 512,
        "level_frames": 9,
        "level_floor": 30,
        "unit_extra_blocks": 1,
    },
    "with a source": {"source_channels": 24, "pitch_channels": 16},
    "a source, long windows": {"source_channels": 16, "source_blocks": 1, "n_fft": 1280},
    "long windows": {"n_fft": 1280, "block_frames": 7},
    "levels at several rates": {"level_strides": (2, 4, 1, 2)},
    "a coarse stack, long lookahead": {
        "unit_level": "residual",
        "level_strides": (8, 4, 2, 1),
        "block_frames": 8,
        "lookahead": 2,
    },
    "wide": WIDE,
    "wide, rounded": WIDE,
}


def model_of(name: str) -> AudioVQ:
    """The model of that config, its weights as training leaves them or as they ship."""
    model = started_model(ModelConfig(**(TINY.__dict__ | CONFIGS[name])))
    return model.round_weights() if name.endswith("rounded") else model


@pytest.fixture(scope="module")
def speech(speech):
    """1.4 s of it, which is more than any receptive field here."""
    return speech[:, :, 8_000:30_123]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return model_of(request.param)


@pytest.fixture(params=["single frames", "blocks alone"])
def way(request, monkeypatch):
    """Both ways of a live stream; single frames only where they are exact."""

    def choose(stream: Stream) -> Stream:
        if request.param == "blocks alone":
            # An instance's own value goes before the property's cached one.
            monkeypatch.setitem(stream._engine.__dict__, "takes_single_frames", False)
            monkeypatch.setitem(stream._engine.__dict__, "takes_long_pieces", False)
        return stream

    return choose


def cut(total: int, rng: np.random.Generator, largest: int) -> list[int]:
    """Random piece lengths, zeros among them, that add up to `total`."""
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(min(int(rng.integers(0, largest + 1)), total - sum(sizes)))
    return sizes


def encode_in_pieces(stream: Stream, wav: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    codes = [stream.encode(piece) for piece in wav.split(sizes, dim=2)]
    return torch.cat([*codes, stream.flush_encode()], dim=2)


@pytest.mark.parametrize("largest", [1, 319, 320, 1_000, 9_000])
def test_any_cutting_gives_the_tokens_of_the_whole(model, way, speech, rng, largest):
    wav = speech[:, :, : 500 if largest == 1 else 20_123]
    whole = model.encode(wav).indices
    stream = way(model.stream())
    sizes = cut(wav.shape[2], rng, largest)
    assert torch.equal(encode_in_pieces(stream, wav, sizes), whole)
    assert torch.equal(encode_in_pieces(stream, wav, sizes), whole)  # as new after the flush


@pytest.mark.parametrize("n_samples", [1, 319, 320, 321, 1_280, 1_281, 5_000])
def test_short_signals(model, way, speech, n_samples):
    wav = speech[:, :, :n_samples]
    codes = encode_in_pieces(way(model.stream()), wav, [n_samples])
    assert codes.shape[2] == -(-n_samples // 320)
    assert torch.equal(codes, model.encode(wav).indices)


def test_a_frame_is_sent_as_soon_as_its_lookahead_has_come(model, way, speech):
    stream = way(model.stream())
    hop, lookahead, group = 320, model.config.lookahead, model.config.group_frames
    n_sent = 0
    for n_received in range(hop // 2, 20 * hop, hop // 2):
        n_sent += stream.encode(speech[:, :, n_received - hop // 2 : n_received]).shape[2]
        assert n_sent == max(0, (n_received // hop - lookahead) // group * group)


def test_whole_blocks_give_the_same_tokens_later(model, speech, rng):
    stream = model.stream()
    sizes = cut(speech.shape[2], rng, 4_000)
    codes = [stream.encode_blocks(piece) for piece in speech.split(sizes, dim=2)]
    codes.append(stream.flush_encode())
    assert torch.equal(torch.cat(codes, dim=2), model.encode(speech).indices)


def test_a_saved_stream_goes_on_where_it_was(model, way, speech, tmp_path):
    codes, wavs, whole = [], [], model.encode(speech)
    stream = way(model.stream())
    for number, piece in enumerate(speech.split(1_777, dim=2)):
        codes.append(stream.encode(piece))
        wavs.append(stream.decode(codes[-1]))
        if number % 3 == 2:
            safetensors.torch.save_file(stream.state_dict(), tmp_path / "state")
            stream = way(model.stream())
            stream.load_state_dict(safetensors.torch.load_file(tmp_path / "state"))
    rest = stream.flush()
    assert torch.equal(torch.cat([*codes, rest[0]], dim=2), whole.indices)
    wav = torch.cat([*wavs, rest[1]], dim=2)[:, :, : speech.shape[2]]
    assert torch.equal(wav, model.decode(whole))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_on_by_itself(tiny_model, speech, copied):
    whole = tiny_model.encode(speech).indices
    stream = tiny_model.stream()
    before = stream.encode(speech[:, :, :5_000])
    twin = copied(stream)
    for one in (stream, twin):  # the second as if the first had not gone on
        rest, last = one.encode(speech[:, :, 5_000:]), one.flush()[0]
        assert torch.equal(torch.cat([before, rest, last], dim=2), whole)


def test_a_stream_is_not_pickled(tiny_model):
    with pytest.raises(TypeError, match=r"cannot be pickled.*save its state_dict\(\)"):
        pickle.dumps(tiny_model.stream())


def test_a_state_of_another_model_is_refused(tiny_model):
    other = started_model(ModelConfig(**(TINY.__dict__ | {"kernel_size": 3})))
    with pytest.raises(ValueError, match="not the state"):
        tiny_model.stream().load_state_dict(other.stream().state_dict())
    with pytest.raises(ValueError, match="not the state"):
        tiny_model.stream().load_state_dict({})


def test_a_stream_of_units_alone_gives_the_units_of_all_levels(model, way, speech, rng):
    codes = model.encode(speech).indices
    stream = way(model.stream(1))
    sizes = cut(speech.shape[2], rng, 3_000)
    units = [stream.encode(piece) for piece in speech.split(sizes, dim=2)]
    assert torch.equal(torch.cat([*units, stream.flush_encode()], dim=2), codes[:, :1])
    assert torch.equal(model.encode(speech, 1).indices, codes[:, :1])


def test_units_alone_run_no_layer_of_the_sound(speech, monkeypatch):
    model = model_of("at one level")
    model.encode(speech)  # what is tried once is tried with all layers
    monkeypatch.setattr(type(model.encoder), "forward", None)
    assert model.encode(speech, 1).indices.shape[1] == 1
    with pytest.raises(TypeError):
        model.stream(2).encode(speech)


def test_a_state_of_all_levels_serves_one_but_not_the_other_way_round(speech):
    model = model_of("at one level")
    both, one = model.stream(), model.stream(1)
    both.encode(speech[:, :, :5000]), one.encode(speech[:, :, :5000])
    rest = one.encode(speech[:, :, 5000:])
    other = model.stream(1)
    other.load_state_dict(both.state_dict())
    assert torch.equal(other.encode(speech[:, :, 5000:]), rest)
    assert one.state_dict().keys() == other.state_dict().keys() < both.state_dict().keys()
    with pytest.raises(ValueError, match="or that of a stream of one level alone"):
        both.load_state_dict(one.state_dict())


def test_streams_of_one_model_do_not_touch_each_other(tiny_model, speech):
    one, other = tiny_model.stream(), tiny_model.stream()
    first, second = speech[:, :, :11_000], speech[:, :, 11_000:22_000]
    codes: dict[str, list[torch.Tensor]] = {"one": [], "other": []}
    for piece, other_piece in zip(first.split(500, dim=2), second.split(500, dim=2)):
        codes["one"].append(one.encode(piece))
        codes["other"].append(other.encode(other_piece))
    got = torch.cat([*codes["one"], one.flush_encode()], dim=2)
    assert torch.equal(got, tiny_model.encode(first).indices)
    got = torch.cat([*codes["other"], other.flush_encode()], dim=2)
    assert torch.equal(got, tiny_model.encode(second).indices)


@pytest.mark.parametrize("largest", [1, 5, 64, 200])
def test_any_cutting_decodes_to_the_same_samples(model, speech, rng, largest):
    codes = model.encode(speech)
    stream = model.stream()
    sizes = cut(codes.indices.shape[2], rng, largest)
    parts = [stream.decode(piece) for piece in codes.indices.split(sizes, dim=2)]
    wav = torch.cat([*parts, stream.flush_decode()], dim=2)
    assert wav.shape[2] == codes.indices.shape[2] * 320
    assert torch.equal(wav[:, :, : speech.shape[2]], model.decode(codes))


def test_samples_come_when_their_windows_are_complete(tiny_model, speech):
    codes = tiny_model.encode(speech).indices
    stream = tiny_model.stream()
    lengths = [stream.decode(codes[:, :, t : t + 1]).shape[2] for t in range(5)]
    assert lengths == [0, 0, 320, 320, 320]
    assert stream.flush_decode().shape[2] == 640
    assert stream.flush_decode().shape[2] == 0


def test_nothing_in_is_nothing_out(tiny_model):
    codes, wav = tiny_model.stream(n_q=2).flush()
    assert (codes.shape, wav.shape) == ((1, 2, 0), (1, 1, 0))
    assert codes.dtype == torch.int64


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["split", "wide", "wide, rounded"])
def test_threads_and_long_pieces_change_no_token(name, threads, speech, monkeypatch):
    """Long input goes in longer pieces and is shared by the threads; the state is the same."""
    model = model_of(name)
    wav = speech.repeat(1, 1, 8)
    results = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        stream = model.stream()
        codes = [stream.encode_blocks(wav), stream.encode_blocks(speech)]
        results.append((torch.cat(codes, dim=2), stream.state_dict()))
        stream = model.stream()
        monkeypatch.setitem(stream._engine.__dict__, "takes_long_pieces", False)
        codes = [stream.encode_blocks(wav), stream.encode_blocks(speech)]
        results.append((torch.cat(codes, dim=2), stream.state_dict()))
        monkeypatch.delitem(stream._engine.__dict__, "takes_long_pieces")
        assert torch.get_num_threads() == n_threads
    for codes, state in results[1:]:
        assert torch.equal(codes, results[0][0])
        for key, tensor in results[0][1].items():
            assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("name", ["split", "wide", "wide, rounded"])
def test_threads_change_no_sample(name, threads, speech):
    model = model_of(name)
    codes = model.encode(speech.repeat(1, 1, 4)).indices
    results = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        stream = model.stream()
        wav = [stream.decode(codes), stream.decode(codes[:, :, :9])]
        results.append((torch.cat(wav, dim=2), stream.state_dict()))
        assert torch.get_num_threads() == n_threads
    for wav, state in results[1:]:
        assert torch.equal(wav, results[0][0])
        for key, tensor in results[0][1].items():
            assert torch.equal(tensor, state[key]), key


@pytest.fixture(params=["no half", "nothing packed", "frame by frame"])
def poor_machine(request, monkeypatch):
    """One on which the fastest ways were found not to be exact, or are not there."""
    if request.param == "no half":
        monkeypatch.setattr(HalfLinear, "has_one_order", False)
    if request.param == "nothing packed":
        for module in ("layers", "quantize", "stream"):
            monkeypatch.setattr(f"audiovq.{module}.can_pack", lambda weight: False)
    if request.param == "frame by frame":
        # A product that is exact in no number of rows but one, found out by the engine alone.
        for kind in (HalfLinear, PackedLinear, PlainLinear):
            monkeypatch.setattr(kind, "forward", uneven(kind))
    return request.param


def uneven(kind):
    """A forward pass whose numbers depend on how many rows there are."""

    def forward(self, x):
        return kind.__base__.forward(self, x) * (1 + 1e-6 * x.shape[1])

    return forward


def test_the_laws_hold_on_poor_machines(poor_machine, speech, rng, threads):
    model = model_of("wide, rounded")
    threads(1)
    codes = model.encode(speech)
    whole = model.decode(codes)
    engine = model.stream()._engine
    kinds = {type(part) for part in engine.decoder.modules()}
    assert (HalfLinear in kinds) == (poor_machine == "frame by frame" and can_pack(whole))
    assert (PackedLinear in kinds) == (poor_machine == "no half" and can_pack(whole))
    assert engine.decode_block == (1 if poor_machine == "frame by frame" else DECODE_BLOCK)
    for n_threads in (1, 2):
        threads(n_threads)
        stream = model.stream()
        sizes = cut(speech.shape[2], rng, 2_000)
        assert torch.equal(encode_in_pieces(stream, speech, sizes), codes.indices)
        sizes = cut(codes.indices.shape[2], rng, 9)
        parts = [stream.decode(piece) for piece in codes.indices.split(sizes, dim=2)]
        wav = torch.cat([*parts, stream.flush_decode()], dim=2)
        assert torch.equal(wav[:, :, : speech.shape[2]], whole)
        assert torch.equal(model.decode(codes), whole)


def test_single_frames_are_used_only_where_they_are_exact():
    """What the engine found out is tried against the encoder itself."""
    for name in ("split", "wide", "wide, rounded", "long windows"):
        engine = model_of(name).stream()._engine
        noise, state = torch.randn(1, 1, engine.block), engine.initial_encoder_state
        whole = engine.encode_pieces([noise], state, 4)
        single = engine.encode_pieces(noise.split(320, dim=2), state, 4)
        same = all(map(torch.equal, whole[1], single[1]))
        assert same or not engine.takes_single_frames
        if can_pack(noise) and name.startswith("wide"):
            assert engine.takes_single_frames, "wide layers are exact on every machine tried so far"


def test_a_stream_follows_the_weights_of_its_beginning(speech):
    model = started_model(TINY)
    before = model.encode(speech).indices
    stream = model.stream()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert torch.equal(encode_in_pieces(stream, speech, [speech.shape[2]]), before)
    assert not torch.equal(model.encode(speech).indices, before)


def test_results_can_be_trained_on(tiny_model, speech):
    """They are ordinary tensors, whatever mode the stream computes in."""
    codes = tiny_model.encode(speech)
    assert not codes.indices.is_inference()
    table = torch.nn.Embedding(32, 3)
    wav = tiny_model.decode(codes)
    (table(codes.indices).sum() * wav.abs().sum()).backward()
    assert table.weight.grad is not None
    assert not tiny_model.stream().encode(speech.clone().requires_grad_()).requires_grad


def test_the_default_model_gives_one_answer(threads, speech, rng, way):
    model = AudioVQ.from_pretrained()
    threads(1)
    whole = model.encode(speech).indices
    for n_threads in (1, 2):
        threads(n_threads)
        assert torch.equal(model.encode(speech).indices, whole)
        stream = way(model.stream())
        sizes = cut(speech.shape[2], rng, 3_000)
        assert torch.equal(encode_in_pieces(stream, speech, sizes), whole)
    padded = torch.nn.functional.pad(speech, (0, 5_000)).repeat(2, 1, 1)
    padded[1, :, 20_000:] = 7.0
    batch = model.encode(padded, lengths=[speech.shape[2], 20_000]).indices
    assert torch.equal(batch[:1, :, : whole.shape[2]], whole)
