"""Sound and codes in any form are taken alike or refused, in any program."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import TINY, started_model

from audiovq import Codes
from audiovq.audio import HIGHEST_LEVEL

BAD_SOUND = [
    (torch.zeros(1, 1, 400, dtype=torch.int16), "not int16; divide 16-bit samples by 32768"),
    (np.zeros((1, 1, 400), np.int16), "not int16; divide 16-bit samples by 32768"),
    (torch.zeros(1, 1, 400, dtype=torch.bool), "not bool"),
    (torch.zeros(1, 1, 400, dtype=torch.complex64), "not complex64"),
    ([[[0.0] * 400]], "not list"),
    (torch.zeros(1, 400), "shape"),
    (torch.zeros(1, 2, 400), "shape"),
    (torch.full((1, 1, 400), torch.nan), "not finite"),
    (torch.full((1, 1, 400), -torch.inf), "not finite"),
    (torch.full((1, 1, 400), 1e300, dtype=torch.float64), "not finite"),
    (np.full((1, 1, 400), 1e300), "not finite"),
    (torch.full((1, 1, 400), -20_000.0), "wav reaches 20000, and samples must be in -1..1"),
]
BAD_CODES = [
    (torch.zeros(1, 4, 3), "whole numbers"),
    (torch.zeros(1, 4, 3, dtype=torch.bool), "whole numbers"),
    (torch.zeros(1, 4, 3, dtype=torch.complex64), "whole numbers"),
    (np.zeros((1, 4, 3)), "whole numbers"),
    ([[[0]]], "whole numbers"),
    (torch.zeros(4, 3, dtype=torch.int64), "whole numbers"),
    (torch.zeros(1, 5, 3, dtype=torch.int64), r"n_q must be in 1\.\.4, not 5"),
    (torch.zeros(1, 0, 3, dtype=torch.int64), r"n_q must be in 1\.\.4, not 0"),
    (torch.full((1, 4, 3), 32, dtype=torch.uint16), r"code 32 is out of range"),
    (np.full((1, 4, 3), 65_535, np.uint16), r"code 65535 is out of range"),
    (torch.full((1, 4, 3), -1), "code -1 is out of range"),
]


@pytest.mark.parametrize(("wav", "message"), BAD_SOUND)
def test_bad_sound_is_refused_and_leaves_a_stream_as_it_was(tiny_model, speech, wav, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.encode(wav)
    stream = tiny_model.stream()
    parts = []
    for piece in speech[:, :, :9_000].split(1_111, dim=2):
        parts.append(stream.encode(piece))
        for call in (stream.encode, stream.encode_blocks):
            with pytest.raises(ValueError, match=message):
                call(wav)
    codes = torch.cat([*parts, stream.flush_encode()], dim=2)
    assert torch.equal(codes, tiny_model.encode(speech[:, :, :9_000]).indices)


@pytest.mark.parametrize(("codes", "message"), BAD_CODES)
def test_bad_codes_are_refused_and_leave_a_stream_as_it_was(tiny_model, speech, codes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.decode(codes)
    good = tiny_model.encode(speech[:, :, :6_400]).indices
    stream, clean = tiny_model.stream(), tiny_model.stream()
    for piece in good.split(3, dim=2):
        with pytest.raises(ValueError, match=message):
            stream.decode(codes)
        assert torch.equal(stream.decode(piece), clean.decode(piece))
    assert torch.equal(stream.flush_decode(), clean.flush_decode())


def test_a_stream_takes_one_signal(tiny_model):
    with pytest.raises(ValueError, match=r"\[1, 1, n\], not \[2, 1, 400\]"):
        tiny_model.stream().encode(torch.zeros(2, 1, 400))
    with pytest.raises(ValueError, match=r"\[1, n_q, T\], not \[2, 4, 3\]"):
        tiny_model.stream().decode(torch.zeros(2, 4, 3, dtype=torch.int64))


def test_sound_of_any_precision_is_taken_as_float32(tiny_model, speech):
    wav = speech[:, :, :9_000]
    for other in (wav.double(), wav.half(), wav.bfloat16(), wav.numpy(), wav.double().numpy()):
        same = torch.as_tensor(other).float()
        whole = tiny_model.encode(other).indices
        assert torch.equal(whole, tiny_model.encode(same).indices)
        stream = tiny_model.stream()
        parts = [stream.encode(other[:, :, :5_000]), stream.encode(same[:, :, 5_000:])]
        assert torch.equal(torch.cat([*parts, stream.flush_encode()], dim=2), whole)


def test_arrays_of_any_layout_are_taken(tiny_model, speech):
    wav = speech[:, :, :9_000].numpy()
    whole = tiny_model.encode(wav).indices
    frozen = wav.copy()
    frozen.flags.writeable = False
    for other in (frozen, wav[:, :, ::-1].copy()[:, :, ::-1], wav.astype(">f4")):
        assert torch.equal(tiny_model.encode(other).indices, whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64])
def test_codes_of_any_whole_numbers_are_taken(tiny_model, speech, dtype):
    codes = tiny_model.encode(speech[:, :, :9_000]).indices
    wav = tiny_model.decode(codes)
    array = codes.numpy().astype(dtype)
    for other in (array, torch.from_numpy(array)):
        assert torch.equal(tiny_model.decode(other), wav)
        assert torch.equal(tiny_model.decode(Codes(other, (9_000,))), wav[:, :, :9_000])
        stream = tiny_model.stream()
        parts = [stream.decode(other[:, :, :9]), stream.decode(other[:, :, 9:])]
        torch.testing.assert_close(
            torch.cat([*parts, stream.flush_decode()], dim=2), wav, atol=1e-5, rtol=0
        )


def test_a_little_beyond_one_is_taken(tiny_model, speech):
    wav = speech / speech.abs().max() * HIGHEST_LEVEL
    assert tiny_model.encode(wav.clamp(-HIGHEST_LEVEL, HIGHEST_LEVEL)).indices.shape[2] > 100


def test_what_a_stream_gives_can_be_trained_on(tiny_model, speech):
    stream = tiny_model.stream()
    codes = [stream.encode(speech[:, :, :5_000]), stream.flush_encode()]
    wavs = [stream.decode(codes[0]), stream.flush_decode()]
    assert not any(tensor.is_inference() for tensor in [*codes, *wavs])
    assert not any(tensor.is_inference() for tensor in stream.state_dict().values())


def test_a_copied_stream_goes_on_alone(tiny_model, speech):
    whole = tiny_model.encode(speech[:, :, :9_000])
    for make in (copy.copy, copy.deepcopy):
        stream = tiny_model.stream()
        start = stream.encode(speech[:, :, :5_000])
        heard = stream.decode(start)
        twin = make(stream)
        stream.decode(stream.encode(torch.randn(1, 1, 4_000)))  # another way
        rest = twin.encode(speech[:, :, 5_000:9_000])
        wavs = [heard, twin.decode(rest)]
        last = twin.flush()
        assert torch.equal(torch.cat([start, rest, last[0]], dim=2), whole.indices)
        wav = torch.cat([*wavs, last[1]], dim=2)[:, :, :9_000]
        torch.testing.assert_close(wav, tiny_model.decode(whole), atol=1e-5, rtol=0)


def test_a_stream_is_not_pickled_and_a_model_is(tiny_model, speech):
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(tiny_model.stream())
    tiny_model.encode(speech)
    for twin in (pickle.loads(pickle.dumps(tiny_model)), copy.deepcopy(tiny_model)):
        assert twin.fingerprint == tiny_model.fingerprint
        assert torch.equal(twin.encode(speech).indices, tiny_model.encode(speech).indices)


def test_a_state_of_other_types_or_lengths_is_refused(tiny_model, speech):
    stream = tiny_model.stream()
    stream.encode(speech[:, :, :5_000])
    state = stream.state_dict()
    for change in (
        {name: tensor.double() for name, tensor in state.items()},
        state | {"pending": torch.zeros(1, 1, 10**5)},
        state | {"pending": torch.zeros(3)},
    ):
        with pytest.raises(ValueError, match="not the state"):
            stream.load_state_dict(change)
    stream.load_state_dict(state)


@pytest.mark.parametrize("packs", [True, False])
def test_autocast_around_changes_nothing(speech, monkeypatch, packs):
    if not packs:
        monkeypatch.setattr("audiovq.stream.can_pack", lambda weight: False)
        monkeypatch.setattr("audiovq.quantize.can_pack", lambda weight: False)
    model = started_model(TINY)
    codes = model.encode(speech)
    wav = model.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(speech).indices, codes.indices)
        assert torch.equal(model.decode(codes), wav)
        stream = model.stream()
        parts = [stream.encode(piece) for piece in speech.split(9_999, dim=2)]
        assert torch.equal(torch.cat([*parts, stream.flush_encode()], dim=2), codes.indices)


def run(code: str) -> str:
    code = "import sys; sys.path.insert(0, 'tests'); import torch; from tiny import *\n" + code
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_torch_compile_leaves_the_answers_as_they_are():
    """Inductor has no use for packed weights, and orders sums anew: it gets none of the network."""
    out = run("""
model = started_model(TINY)
wav = torch.randn(1, 1, 9_000) * 0.1
codes = model.encode(wav)
sound = model.decode(codes)
compiled = set()
def backend(graph, inputs):
    compiled.update(str(node.target) for node in graph.graph.nodes if node.op != "placeholder")
    return graph.forward
assert torch.equal(torch.compile(model.encode, backend=backend)(wav).indices, codes.indices)
assert torch.equal(torch.compile(model.decode, backend=backend)(codes), sound)
stream = model.stream()
encode = torch.compile(stream.encode, backend=backend)
parts = [encode(piece) for piece in wav.split(3_000, dim=2)]
assert torch.equal(torch.cat([*parts, stream.flush_encode()], dim=2), codes.indices)
print(sorted(compiled))
""")
    assert out.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_answers_although_torch_had_threads():
    """OpenMP's threads are gone after a fork, and without care torch waits for them for ever."""
    out = run("""
import copy, faulthandler, os, tempfile
model = started_model(TINY)
wav = torch.randn(1, 1, 100_000) * 0.1
codes = model.encode(wav)
sound = model.decode(codes)
stream = model.stream()
folder = tempfile.mkdtemp()
model.save_pretrained(folder, overwrite=True)
torch.set_num_threads(2)
torch.ones(1_000_000).exp()  # starts the threads
for use in (
    lambda: torch.equal(model.encode(wav).indices, codes.indices),
    lambda: torch.equal(model.decode(codes), sound),
    lambda: torch.equal(
        torch.cat([stream.encode_blocks(wav), stream.flush_encode()], dim=2), codes.indices
    ),
    lambda: copy.deepcopy(model).fingerprint == model.fingerprint,
    lambda: AudioVQ.from_pretrained(folder).fingerprint == model.fingerprint,
    lambda: model.unit_distances(wav).shape[1] == codes.indices.shape[2],
):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(30, exit=True)
        os._exit(0 if use() else 3)
    assert os.waitpid(child, 0)[1] == 0, use.__code__.co_firstlineno
assert torch.get_num_threads() == 2
print("answered")
""")
    assert out.strip() == "answered"
