"""A small neural audio codec and speech tokenizer."""

from audiovq.codes import Header, Tokens, read_tokens, write_avq, write_npy
from audiovq.config import ModelConfig
from audiovq.files import FileRefused
from audiovq.model import AudioVQ, Codes
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
