"""Corpora: many hours of audio to shards of tokens, and shards to trainers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiovq.corpus.checking import verify
    from audiovq.corpus.dataset import TokenDataset, TokenStream, collate
    from audiovq.corpus.encode import encode_corpus

__all__ = ["TokenDataset", "TokenStream", "collate", "encode_corpus", "verify"]

_HOMES = {"TokenDataset": "dataset", "TokenStream": "dataset", "collate": "dataset"}
_HOMES |= {"encode_corpus": "encode", "verify": "checking"}
"""The modules of the names, which need pyarrow or torch and so are imported when asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"audiovq.corpus.{_HOMES[name]}"), name)
