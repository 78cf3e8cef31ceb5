"""Learning tables: what is learnt is what is coded by, and it saves what can be foreseen."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import audiovq_cli
from audiovq import FileRefused, read_tokens, write_avq, write_npy
from audiovq.entropy import read_tables
from audiovq.training.tables import (
    Net,
    _pieces,
    learn_tables,
    measure_tables,
    neighbourhoods,
)


def walks(rng: np.random.Generator, n: int, n_frames: int) -> list[np.ndarray]:
    """Codes [4, T] of 32: a level repeats or goes one on, and the next level is its double."""
    found = []
    for _ in range(n):
        first = np.cumsum(rng.integers(0, 2, n_frames)) % 32
        found.append(np.stack([first, 2 * first % 32, first ^ 5, rng.integers(0, 32, n_frames)]))
    return [codes.astype(np.uint16) for codes in found]


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    """Less to compute in a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiovq.training.tables.SEGMENT", 100)
        patch.setattr("audiovq.training.tables.BATCH", 4)
        yield


@pytest.fixture(scope="module")
def learnt(tiny_model):
    return learn_tables(tiny_model, walks(np.random.default_rng(1), 16, 100), steps=150)


def test_what_can_be_foreseen_is_saved(learnt, rng):
    bits = measure_tables(learnt, walks(rng, 4, 100))
    assert list(bits) == [1, 2, 4]
    assert 1 < bits[1] < 2.5  # of 5; one bit is news
    assert bits[2] < bits[1]  # the second level hangs on the first alone
    assert 1.5 < bits[4] < 3  # nothing foresees the last level, a quarter of the codes


@pytest.mark.parametrize("strides", [(1, 1, 1, 1), (2, 4, 1, 2)])
def test_the_net_counts_the_bits_that_the_coder_takes(learnt, strides, rng):
    codes = walks(rng, 1, 120)[0]
    codes = np.stack([np.repeat(row[::n], n) for row, n in zip(codes, strides)])
    net = Net(strides, *learnt.group.shape[1:2], learnt.code.shape[1])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(learnt.arrays()[name].astype(np.float32)) / 64)
        bits = net(_pieces([codes], learnt.slots), 4).sum().item()
    shares = learnt.coder(4, strides).shares(codes)
    assert np.log2(shares[:, 2] / shares[:, 1]).sum() == pytest.approx(bits, rel=0.02)


def test_learning_is_repeatable_and_leaves_the_random_state(tiny_model):
    codes = walks(np.random.default_rng(1), 2, 50)
    state = torch.random.get_rng_state()
    keys = {learn_tables(tiny_model, codes, steps=3).key for _ in range(2)}
    assert len(keys) == 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert learn_tables(tiny_model, codes, steps=3, seed=1).key not in keys


@pytest.mark.parametrize("n_codes", [1, 2, 5, 32])
def test_every_code_has_a_slot_beside_its_neighbours(n_codes):
    codebook = np.arange(n_codes)[:, None] * np.array([[3.0, -1.0]])
    slots = neighbourhoods(codebook).astype(int)
    assert len(set(slots)) == n_codes
    assert list(slots) == sorted(slots) or list(slots) == sorted(slots, reverse=True)


@pytest.mark.parametrize("tokens", [[], [np.zeros((3, 5), np.uint16)], [np.full((4, 5), 32)]])
def test_codes_of_other_models_teach_nothing(tiny_model, tokens):
    with pytest.raises(ValueError, match=r"levels|codes"):
        learn_tables(tiny_model, tokens, steps=1)


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(audiovq_cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_tables_are_one_command_and_coding_another(tiny_model, tmp_path, rng):
    model, tokens = tmp_path / "model", tmp_path / "tokens"
    tiny_model.save_pretrained(model)
    tokens.mkdir()
    for i, codes in enumerate(walks(rng, 20, 40)):
        write_avq(tokens / f"{i}.avq", codes, tiny_model.header(4, 40 * 320))
    out = run("tables", tokens, "--model", model, "--steps", 40)
    assert "n_q 4" in out
    assert "1 recordings that were not learnt from" in out
    assert read_tables(model / "tables.safetensors").fingerprint == tiny_model.fingerprint
    assert "--force" in run("tables", tokens, "--model", model, code=3)
    small = tmp_path / "small"
    out = run("repack", tokens, "-o", small, "--format", "avq", "--coded", "--model", model)
    assert "4 levels, 40 frames" in out
    for path in small.iterdir():
        assert path.stat().st_size < (tokens / path.name).stat().st_size
        np.testing.assert_array_equal(
            read_tokens(path).indices, read_tokens(tokens / path.name).indices
        )
    out = run("info", small / "0.avq", "--model", model)
    assert "coded bitrate" in out


def test_tokens_of_too_few_levels_or_of_another_model_are_refused(
    tiny_model, tiny_folder, tmp_path
):
    write_npy(tmp_path / "few.npy", np.zeros((2, 5), np.uint16))
    command = ("tables", tmp_path, "--model", tiny_folder, "-o", tmp_path / "t.safetensors")
    assert "without --n-q" in run(*command, code=1)
    (tmp_path / "few.npy").unlink()
    assert "give some" in run(*command, code=2)
    header = tiny_model.header(4, 320)
    header = type(header)(**(header.__dict__ | {"fingerprint": "ff"}))
    write_avq(tmp_path / "other.avq", np.zeros((4, 1), np.uint16), header)
    assert "name that model with --model" in run(*command, code=1)


def test_what_cannot_be_meant_is_refused(tiny_folder, tmp_path):
    (tmp_path / "tokens").mkdir()
    assert "name the file to write with -o" in run("tables", tmp_path, code=2)
    for verb in ("encode", "repack"):
        command = (verb, "a.npy", "-o", "b.npy", "--coded", "--model", tiny_folder)
        assert "--coded is for .avq" in run(*command, code=2)
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.uint16))
    for n in (0, 1000):
        command = ("repack", tmp_path / "a.npy", "-o", tmp_path / "b.npy", "--n-units", n)
        assert "n_units must be in 1.." in run(*command, "--model", tiny_folder, code=2)


def test_tokens_without_tables_are_packed_with_a_word(tiny_folder, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.uint16))
    command = ("repack", tmp_path / "a.npy", "-o", tmp_path / "a.avq", "--coded")
    assert "has no tables" in run(*command, "--model", tiny_folder)
    with pytest.raises(FileRefused, match="--force"):
        write_avq(tmp_path / "a.avq", np.zeros((1, 1)), read_tokens(tmp_path / "a.avq").header)
