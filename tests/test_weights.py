"""Which weights are taken, and when what was made of them is made anew."""

import copy
import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from tiny import TINY, full_disk, started_model

from audiovq import AudioVQ, FileRefused
from audiovq.training.average import Average

PREFIX = "import sys; sys.path.insert(0, 'tests'); import torch; from tiny import *\n"


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, fused=True)


def through_data(parameters):
    for parameter in parameters:
        parameter.data.mul_(1.5)


def through_numpy(parameters):
    for parameter in parameters:
        parameter.detach().numpy()[...] *= 1.5


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("way", [adamw, through_data, through_numpy])
def test_a_change_of_weights_is_seen_however_it_was_made(speech, part, way):
    """None of these counts up the tensors' versions, and the model is in eval mode throughout."""
    model = started_model(TINY)
    codes = model.encode(speech)
    before, fingerprint = model.decode(codes), model.fingerprint
    parameters = list(getattr(model, part).parameters())
    versions = [parameter._version for parameter in parameters]
    if way is adamw:
        optimizer = adamw(parameters)
        model(speech[:, :, :3200]).wav.square().mean().backward()
        optimizer.step()
    else:
        way(parameters)
    assert [parameter._version for parameter in parameters] == versions
    fresh = AudioVQ(TINY).eval()
    fresh.load_state_dict(model.state_dict())
    after = model.encode(speech)
    assert torch.equal(after.indices, fresh.encode(speech).indices)
    assert torch.equal(model.decode(codes), fresh.decode(codes))
    assert model.fingerprint == fresh.fingerprint
    if part == "decoder":
        assert not torch.allclose(model.decode(codes), before, atol=1e-3)
        assert model.fingerprint == fingerprint
    else:
        assert not torch.equal(after.indices, codes.indices)
        assert model.fingerprint != fingerprint


def test_one_row_that_a_fused_optimizer_moved_is_seen(speech):
    """The numbers that are compared need not be among those that changed."""
    model = started_model(replace(TINY, codebook="gradient"))
    table = model.quantizer.codebooks[0].vectors
    before = model.encode(speech).indices
    row = int(before[0, 0].mode().values)
    optimizer = torch.optim.SGD([table], lr=1.0, fused=True)
    table.grad = torch.zeros_like(table)
    table.grad[row, 1:] = 100.0
    optimizer.step()
    assert not torch.equal(model.encode(speech).indices, before)


def test_what_is_kept_is_made_once(tiny_model, speech):
    engine = tiny_model.stream()._engine
    tiny_model.encode(speech)
    other = started_model(TINY)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(speech[:, :, :3200]).wav.square().mean().backward()
    optimizer.step()
    tiny_model.eval()
    assert tiny_model.stream()._engine is engine


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.norm.weight", lambda t: t.fill_(torch.nan), "encoder.norm.weight holds numbers"),
        ("decoder.head.bias", lambda t: t.index_fill_(0, torch.tensor(3), torch.inf), "decoder.he"),
        ("quantizer.units.codebooks.0.total", lambda t: t * torch.nan, "total holds numbers"),
        ("quantizer.units.codebooks.0.usage", lambda t: t - torch.inf, "usage holds numbers"),
        (
            "quantizer.acoustic.codebooks.2.usage",
            lambda t: torch.full_like(t, -1e-5 / len(t)),
            "codebook of level 3 holds numbers",
        ),
        ("encoder.norm.weight", lambda t: t.to(torch.int8), "is I8 and must be F32 or F16 or BF16"),
        ("encoder.norm.weight", lambda t: t > 0, "encoder.norm.weight is BOOL and must be"),
        ("encoder.norm.weight", lambda t: t.to(torch.complex64), "is C64 and must be"),
        ("encoder.norm.weight", lambda t: t.double(), "is F64 and must be"),
        ("quantizer.units.codebooks.0.started", lambda t: t.float(), "is F32 and must be BOOL"),
        ("encoder.norm.weight", lambda t: t[:-1], r"is \[23\] and must be \[24\]"),
        ("encoder.norm.weight", None, "it lacks 'encoder.norm.weight'"),
        ("encoder.other", lambda t: torch.zeros(3), "a tensor that the model lacks, 'encoder.othe"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_by_name(
    tiny_model, tiny_folder, tmp_path, name, change, message
):
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    tensors = copy.deepcopy(dict(tiny_model.state_dict()))
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FileRefused, match=message) as error:
        AudioVQ.from_pretrained(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_size_load_as_float32(tmp_path, dtype):
    model = started_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    model.save_pretrained(tmp_path)
    names = {name for name, _ in model.named_parameters()}
    tensors = {
        name: tensor.to(dtype) if name in names else tensor
        for name, tensor in model.state_dict().items()
    }
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    loaded = AudioVQ.from_pretrained(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_what_cannot_be_used_is_not_saved(tmp_path):
    model = started_model(TINY)
    total = model.quantizer.codebooks[1].total
    total[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"acoustic.codebooks.0.total holds numbers that are not"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    total[3, 2] = 0
    with torch.no_grad():
        model.decoder.head.weight[2, 2] = 65_520.0  # rounds to infinity
        model.encoder.norm.weight[0] = 1 + 2**-20
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"decoder.head.weight .* beyond the range of float16"):
        model.round_weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model.save_pretrained(tmp_path / "new")  # float32 holds it
    assert AudioVQ.from_pretrained(tmp_path / "new").fingerprint == model.fingerprint


def test_rounded_weights_and_their_average_have_one_fingerprint():
    model = started_model(TINY)
    with torch.no_grad():
        model.encoder.norm.weight[:3] = torch.tensor([-1e-9, -0.0, -0.25])
    model.round_weights()
    assert model.encoder.norm.weight[2] == -0.25
    before = model.fingerprint
    average = Average(model, decay=0.9)
    average.update(100)
    with average.applied():
        assert model.fingerprint == before
    zeros = [p[p == 0] for p in model.parameters()]
    assert not torch.cat(zeros).signbit().any()


def test_a_model_is_saved_whole_or_not_at_all(tiny_model, tmp_path):
    (tmp_path / "config.json").write_text("of another program")
    with pytest.raises(FileRefused, match=r"config\.json exists"):
        tiny_model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_full_disk_is_refused_and_leaves_the_model_as_it_was(tiny_model, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    with full_disk(), pytest.raises(FileRefused, match="written: File too large"):
        tiny_model.save_pretrained(tmp_path / "model", overwrite=True)
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert AudioVQ.from_pretrained(tmp_path / "model").fingerprint == tiny_model.fingerprint


def test_a_config_that_asks_for_too_much_takes_no_memory(tiny_folder, tmp_path):
    """Whatever 1 kB of text says, no more memory is taken than the weights' file is long."""
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    plain = asdict(TINY)
    huge = [
        {"decoder_blocks": 10**9},
        {"encoder_blocks": [10**9, 1]},
        {"encoder_blocks": [256, 256], "decoder_blocks": 256},
        {"codebook_dim": 10**12},
        {"n_codebooks": 10**7},
        {"n_fft": 320 * 10**10},
        {"decoder_channels": 1 << 14, "decoder_expansion": 64, "decoder_blocks": 256},
        {"channels": [1 << 14, 1 << 14], "encoder_expansion": 64},
        {"strides": [1] * 1000, "channels": [1] * 1000, "encoder_blocks": [1] * 1000},
        {"block_frames": 10**9},
        {"sample_rate": 10**15},
        {"kernel_size": 10**12},
    ]
    texts = [json.dumps({"card": {}, "config": plain | change}) for change in huge]
    texts.append('{"card": ' + "[" * 100_000 + "]" * 100_000 + ', "config": {}}')
    texts.append('{"card": {}, "config": ' + '{"a":' * 100_000 + "1" + "}" * 100_001)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in texts:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FileRefused) as error:
            AudioVQ.from_pretrained(tmp_path)
        assert len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_config_of_a_gigabyte_is_not_read(tiny_folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(FileRefused, match="larger than 16 MiB"):
        AudioVQ.from_pretrained(tmp_path)


def test_a_name_that_no_folder_can_have_is_no_model():
    for name in ("x" * 5_000, "a\0b"):
        with pytest.raises(FileRefused, match="is not a model"):
            AudioVQ.from_pretrained(name)


def test_the_device_is_named_as_torch_does(tiny_folder):
    assert AudioVQ.from_pretrained(tiny_folder, device="cpu").device == torch.device("cpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=re.escape(f"device '{device}' cannot be used here")):
            AudioVQ.from_pretrained(tiny_folder, device=device)


@pytest.mark.parametrize(
    "around",
    [
        "with torch.inference_mode():",
        "torch.set_default_dtype(torch.float64)\nif True:",
    ],
)
def test_a_model_that_was_made_in_another_mode_is_the_same(tiny_model, tiny_folder, around):
    code = f"""{PREFIX}
wav = torch.linspace(-0.5, 0.5, 9_000, dtype=torch.float32).sin()[None, None]
{around}
    loaded = AudioVQ.from_pretrained({str(tiny_folder)!r})
    made = AudioVQ(TINY).eval()
made.load_state_dict(loaded.state_dict())
for model in (loaded, made):
    stream = model.stream()
    parts = [stream.encode(chunk) for chunk in wav.split(700, dim=2)]
    codes = model.encode(wav)
    assert torch.equal(torch.cat([*parts, stream.flush_encode()], dim=2), codes.indices)
    wav_out = model.decode(codes)
    assert wav_out.dtype == torch.float32
    model(wav[:, :, :3200]).wav.sum().backward()
    with torch.no_grad():
        model.decoder.head.weight.mul_(2)
    assert not torch.equal(model.decode(codes), wav_out)
print(model.fingerprint, codes.indices.sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wav = torch.linspace(-0.5, 0.5, 9_000, dtype=torch.float32).sin()[None, None]
    codes = tiny_model.encode(wav).indices
    assert done.stdout.split() == [tiny_model.fingerprint, str(codes.sum().item())]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_refused(speech, tmp_path, dtype):
    model = started_model(TINY)
    codes = model.encode(speech)
    model.to(dtype)
    for use in (
        lambda: model.encode(speech),
        lambda: model.decode(codes),
        model.stream,
        lambda: model.fingerprint,
        lambda: model.save_pretrained(tmp_path / "new"),
    ):
        with pytest.raises(ValueError, match="a model computes in float32 alone"):
            use()
    assert not (tmp_path / "new").exists()
