"""Models on the Hugging Face hub, with a folder in the place of the hub."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiovq import AudioVQ, FileRefused
from audiovq.hub import names_repository


class FakeHub:
    """A folder with a folder for each repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: set[str] = set()

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        if not (self.root / repo_id).is_dir():
            raise OSError(f"404: no repository {repo_id}.\nRequest ID: 1")
        assert {path.name for path in (self.root / repo_id).iterdir()} <= set(allow_patterns)
        return str(self.root / repo_id)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.private |= {repo_id} if private else set()

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path)
    module = SimpleNamespace(HfApi=lambda: fake, snapshot_download=fake.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return fake


def test_what_was_pushed_is_loaded_by_its_name(hub, tiny_model):
    tiny_model.push_to_hub("someone/a-model_1.0", private=True)
    loaded = AudioVQ.from_pretrained("someone/a-model_1.0")
    assert loaded.fingerprint == tiny_model.fingerprint
    assert hub.private == {"someone/a-model_1.0"}
    with pytest.raises(ValueError, match="must be owner/name, not 'mine'"):
        tiny_model.push_to_hub("mine")


def test_a_folder_goes_before_the_hub(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("models/mine")
    assert AudioVQ.from_pretrained("models/mine").fingerprint == tiny_model.fingerprint
    with pytest.raises(FileRefused, match="is not a model"):
        AudioVQ.from_pretrained(Path("models/other"))


def test_what_fails_is_one_sentence(hub, tiny_model, monkeypatch):
    with pytest.raises(FileRefused, match=r"^no/such .*\(404: no repository no/such\); check") as e:
        AudioVQ.from_pretrained("no/such")
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(FileRefused, match=r"needs huggingface_hub, pip install '\.\[hub\]'"):
        AudioVQ.from_pretrained("no/such")
    with pytest.raises(FileRefused, match="needs huggingface_hub"):
        tiny_model.push_to_hub("no/such")


def test_without_a_network_the_real_client_is_refused_in_a_sentence(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileRefused, match="no/such is no folder here"):
        AudioVQ.from_pretrained("no/such")


def test_only_owner_and_name_are_a_repository():
    assert names_repository("owner/name")
    for name in (
        "default",
        "/abs/olute",
        "./a",
        "../a",
        "a/b/c",
        "a/",
        "a\0/b",
        Path("a/b"),
        "é/b",
    ):
        assert not names_repository(name)
