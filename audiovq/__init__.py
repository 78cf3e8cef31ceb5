"""A small neural audio codec and speech tokenizer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from audiovq import moved
from audiovq.codes import Codes, Header, Tokens, read_tokens, write_avq, write_npy
from audiovq.config import ModelConfig
from audiovq.files import FileRefused

if TYPE_CHECKING:
    from audiovq.model import AudioVQ
    from audiovq.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "AudioVQ",
    "Codes",
    "FileRefused",
    "Header",
    "ModelConfig",
    "Stream",
    "Tokens",
    "read_tokens",
    "write_avq",
    "write_npy",
]

_NEED_TORCH = {"AudioVQ": "audiovq.model", "Stream": "audiovq.stream"}
"""Where the names are whose import takes seconds, which `audiovq --help` does without."""


moved.install()


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_NEED_TORCH[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
