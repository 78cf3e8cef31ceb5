"""Models on the Hugging Face hub, through huggingface_hub (extra `hub`), which is imported here."""

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiovq.files import FileRefused

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def names_repository(name: object) -> bool:
    """Whether `name` is a text of the form owner/name."""
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None


def fetch(repository: str, files: Sequence[str]) -> Path:
    """The folder with these files of a repository, owner/name, which the hub's cache keeps.

    Raises `FileRefused` when there is no such repository, no network, or no huggingface_hub.
    """
    with _hub(f"{repository} is no folder here, and was not fetched from the hub") as hub:
        return Path(hub.snapshot_download(repository, allow_patterns=list(files)))


def publish(folder: Path, repository: str, *, private: bool) -> None:
    """Commit the files of a folder to a repository, owner/name, which is made if need be.

    Raises `FileRefused` as `fetch`, and when whoever is logged in may not write there.
    """
    with _hub(f"{repository} was not written on the hub") as hub:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)


@contextmanager
def _hub(failure: str) -> Iterator[Any]:
    """huggingface_hub; whatever fails in it is `failure` and a reason, in one sentence."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise FileRefused(f"{failure}: it needs huggingface_hub, pip install '.[hub]'.") from error
    try:
        yield hub
    except Exception as error:  # of its own, of the system and of the client beneath it
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise FileRefused(f"{failure} ({reason}); check the name and the network.") from error
