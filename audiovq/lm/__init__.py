"""Language models over tokens: units first, then the sound of them.

`LanguageModel` is what a person needs; `TokenDataset` and `Vocabulary` are for other trainers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiovq.lm.data import TokenDataset
    from audiovq.lm.model import LanguageModel, Speech
    from audiovq.lm.sampling import Sampling
    from audiovq.lm.vocabulary import Vocabulary

__all__ = ["LanguageModel", "Sampling", "Speech", "TokenDataset", "Vocabulary"]

_WHERE = {
    "LanguageModel": "audiovq.lm.model",
    "Sampling": "audiovq.lm.sampling",
    "Speech": "audiovq.lm.model",
    "TokenDataset": "audiovq.lm.data",
    "Vocabulary": "audiovq.lm.vocabulary",
}
"""transformers takes seconds to import, which the vocabulary and the data do without."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value
