"""What a training takes where it is left to the machine."""

import logging
import os
import platform

import pytest
import torch

from audiovq import hardware
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe, TrainSettings

ONEDNN, AVX512_BF16 = "oneDNN", "AVX512_BF16"


@pytest.fixture
def machine(monkeypatch):
    """A machine with these capabilities."""

    def make(*has: str, name: str = "x86_64", cores: int = 8, load: float = 0.0) -> None:
        monkeypatch.setattr(platform, "machine", lambda: name)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in " ".join(has))
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: "cuda, bf16" in has
        )
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: ONEDNN in has, raising=False
        )
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: AVX512_BF16 in has)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)

    return make


@pytest.mark.parametrize(
    ("has", "accelerator", "precision"),
    [
        ((ONEDNN, AVX512_BF16), "auto", "bf16-mixed"),
        ((ONEDNN,), "auto", "32-true"),  # AVX-512 without bf16, which oneDNN emulates
        ((AVX512_BF16,), "cpu", "32-true"),  # oneDNN was told to do without
        ((), "auto", "32-true"),  # AVX2
        (("cuda, bf16",), "auto", "bf16-mixed"),
        (("cuda",), "auto", "32-true"),  # a GPU that emulates
        (("cuda", ONEDNN, AVX512_BF16), "cpu", "bf16-mixed"),
    ],
)
def test_bf16_only_where_it_is_multiplied_in_hardware(machine, has, accelerator, precision):
    machine(*has)
    assert hardware.choose_precision("auto", accelerator) == precision
    for asked in ("bf16-mixed", "32-true"):
        assert hardware.choose_precision(asked, accelerator) == asked


def test_bf16_on_arm_is_what_onednn_says(machine):
    machine(ONEDNN, name="aarch64")
    assert hardware.choose_precision("auto", "cpu") == "bf16-mixed"
    machine(name="aarch64")
    assert hardware.choose_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize(
    ("load", "devices", "threads"),
    [(0.0, 1, 8), (0.0, 2, 4), (3.2, 1, 5), (7.9, 1, 1), (20.0, 1, 1), (0.0, 16, 1)],
)
def test_threads_share_the_idle_cores(machine, load, devices, threads):
    machine(load=load)
    assert hardware.choose_threads(0, devices) == threads
    assert hardware.choose_threads(3, devices) == 3


def test_the_machine_at_hand_can_be_asked():
    assert hardware.choose_precision("auto", "auto") in ("bf16-mixed", "32-true")
    assert 1 <= hardware.choose_threads(0, 1) <= hardware.available_cores()
    line = hardware.describe(torch.device("cpu"), "32-true", 1)
    capability = torch.backends.cpu.get_cpu_capability()
    assert line == f"CPU ({capability}), 32-true, 1 thread of {hardware.available_cores()} cores"


class StoppedError(Exception):
    """In place of a run."""


@pytest.mark.filterwarnings("ignore")  # Fabric's own, on every start
def test_a_training_takes_what_was_chosen_and_says_so(machine, monkeypatch, caplog, tmp_path):
    train = pytest.importorskip("audiovq.training.loop")

    def run(recipe, out, fabric, start):
        raise StoppedError(fabric._precision.precision, torch.get_num_threads())

    machine(ONEDNN, cores=3)
    monkeypatch.setattr(train, "Run", run)
    before = torch.get_num_threads()
    data = DataSettings(train=(ManifestSettings("x.jsonl"),))
    settings = TrainSettings(accelerator="cpu", threads=0)
    try:
        with caplog.at_level(logging.INFO, "audiovq.train"), pytest.raises(StoppedError) as stopped:
            train.train(Recipe(data=data, train=settings), tmp_path)
    finally:
        torch.set_num_threads(before)
    assert stopped.value.args == ("32-true", 3)
    assert "32-true, 3 threads of 3 cores" in caplog.text
