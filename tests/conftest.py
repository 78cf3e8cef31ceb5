"""Models and sound that several tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import EXAMPLES, TINY, random_tables, started_model

from audiovq import AudioVQ
from audiovq.audio import load_audio
from audiovq.entropy import TABLES_FILE, write_tables

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # as many workers as cores: threads that wait for each other crawl


@pytest.fixture(scope="session")
def tiny_model() -> AudioVQ:
    """A small model with 4 levels of 32 codes; do not change it."""
    return started_model(TINY)


@pytest.fixture(scope="session")
def coded_model(tiny_model: AudioVQ, tmp_path_factory: pytest.TempPathFactory) -> AudioVQ:
    """The small model as it is loaded with tables beside it; do not change it."""
    folder = tmp_path_factory.mktemp("coded") / "model"
    tables = random_tables(tiny_model.fingerprint, TINY.n_codebooks, TINY.codebook_size)
    tiny_model.save_pretrained(folder)
    write_tables(folder / TABLES_FILE, tables)
    return AudioVQ.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: AudioVQ, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder, overwrite=True)
    return folder


@pytest.fixture(scope="session")
def speech() -> torch.Tensor:
    """3 s of speech, float32 [1, 1, 47841]."""
    return torch.from_numpy(load_audio(EXAMPLES[1], 16_000))[None, None]


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)
