"""Sizes of the two networks, and the transformer that both are built on."""

from dataclasses import dataclass
from typing import Annotated, Any

from audiovq.settings import Count, Range, check_ranges

MOST_NUMBERS = 1 << 31
"""Of the weights of a network: a damaged config must not ask for all the memory."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network. Raises `ValueError` when they are not possible."""

    width: Annotated[int, Range(8, 1 << 14)] = 256
    """Width of the transformer, a multiple of twice `heads`."""
    layers: Annotated[int, Range(1, 256)] = 6
    """Its blocks."""
    heads: Count = 4
    """Of its attention."""
    expansion: Annotated[int, Range(1, 64)] = 4
    """Width inside a block's second half, as a multiple of `width`."""
    context: Annotated[int, Range(16, 1 << 20)] = 512
    """Positions that it looks at: tokens of the units' stage, frames of the acoustic one."""
    dropout: Annotated[float, Range(0, 0.9)] = 0.1
    """Share of the numbers of each layer that training drops."""

    def __post_init__(self) -> None:
        check_ranges(self, "sizes")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"sizes.width must be a multiple of twice sizes.heads ({self.heads}), not "
                f"{self.width}."
            )
        if self.layers * self.width * self.width * (4 + 2 * self.expansion) > MOST_NUMBERS:
            raise ValueError("sizes.layers and sizes.width ask for more than 2^31 weights.")

    def transformer(self, vocab_size: int) -> Any:
        """The config of a GPT-NeoX (Black et al. 2022): rotary positions, attention and the second
        half of a block side by side, which saves a third of a step's small operations.

        Of transformers' stock models it has both dropout, without which a few hours of speech are
        learnt by heart, and positions that need not be learnt.
        """
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.expansion * self.width,
            hidden_dropout=self.dropout,
            attention_dropout=self.dropout,
            max_position_embeddings=self.context,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 1.0,
            },
            bos_token_id=None,
            eos_token_id=None,
        )
