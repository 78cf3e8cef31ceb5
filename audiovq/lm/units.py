"""The first stage: which unit comes next, and for how long.

A stock GPT-NeoX of transformers with its own `generate()`; what is ours is how a token is read and
written. A token is a symbol and its duration (`audiovq.lm.vocabulary`): read as the sum of a vector
for each, written as the probability of the symbol times that of the duration given the symbol. So a
unit is one step, as many steps a second as there are units, and the numbers are few although the
tokens are many.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from audiovq.lm.sizes import Sizes
from audiovq.lm.vocabulary import END, IGNORED, PAD, UNITS, Vocabulary


class PairEmbedding(nn.Module):
    """Tokens [...] to vectors [..., width]."""

    def __init__(self, durations: nn.Embedding, n_symbols: int) -> None:
        super().__init__()
        self.durations = durations
        self.symbols = nn.Embedding(n_symbols, durations.embedding_dim)
        nn.init.normal_(self.symbols.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        longest = self.durations.num_embeddings
        return self.symbols(tokens // longest) + self.durations(tokens % longest)


class PairHead(nn.Module):
    """Vectors [..., width] to the log probabilities of tokens.

    Symbols are compared with the vectors that they are read as (Press and Wolf 2017). The duration
    hangs on the vector and on the symbol, by a term for each.
    """

    def __init__(self, durations: nn.Linear, read: PairEmbedding, first_unit: int) -> None:
        super().__init__()
        self.durations, self.first_unit = durations, first_unit
        self._read = (read,)  # in a tuple: its weights are not this module's
        n_symbols = read.symbols.num_embeddings
        self.bias = nn.Parameter(torch.zeros(n_symbols))
        self.duration_of = nn.Embedding(n_symbols, durations.out_features)
        nn.init.zeros_(self.duration_of.weight)

    def symbol_logits(self, hidden: Tensor) -> Tensor:
        """[..., n_symbols]."""
        return F.linear(hidden, self._read[0].symbols.weight, self.bias)

    def duration_logits(self, hidden: Tensor, symbols: Tensor) -> Tensor:
        """[..., max_duration], of the symbols [...]; entry d is that of d + 1 frames."""
        return self.durations(hidden) + self.duration_of(symbols)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log probabilities of all tokens [..., n_tokens]."""
        symbols = self.symbol_logits(hidden).float().log_softmax(-1)
        durations = self.durations(hidden)[..., None, :] + self.duration_of.weight
        durations = durations.float().log_softmax(-1)  # [..., n_symbols, max_duration]
        durations[..., : self.first_unit, :] = -torch.inf  # what is no unit has duration 1
        durations[..., : self.first_unit, 0] = 0.0
        return (symbols[..., None] + durations).flatten(-2)


class UnitModel(GPTNeoXForCausalLM):
    """An autoregressive model of tokens. Its logits are log probabilities."""

    def __init__(self, vocabulary: Vocabulary, sizes: Sizes) -> None:
        # The model's own table and head, which it makes first, are those of the durations.
        super().__init__(sizes.transformer(vocabulary.max_duration))
        self.vocabulary, self.sizes = vocabulary, sizes
        read = PairEmbedding(self.gpt_neox.embed_in, vocabulary.n_symbols)
        self.set_input_embeddings(read)
        self.set_output_embeddings(PairHead(self.lm_head, read, vocabulary.first_unit))
        self.config.vocab_size = vocabulary.n_tokens
        self.generation_config.eos_token_id = int(vocabulary.special(END)[0])
        self.generation_config.pad_token_id = int(vocabulary.special(PAD)[0])

    def log_likelihood(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities, in nats, of what comes after each of the tokens [B, n].

        targets: tokens [B, n], or `IGNORED`. Returns those of the symbols, and those of units'
        durations given the symbols; [B, n] each, 0 where there is nothing to tell.
        """
        hidden = self.gpt_neox(tokens, use_cache=False).last_hidden_state
        longest = self.vocabulary.max_duration
        ignored = targets == IGNORED
        symbols = (targets // longest).masked_fill(ignored, PAD)
        by_duration = self.lm_head.duration_logits(hidden, symbols)
        no_unit = symbols < self.vocabulary.first_unit
        durations = (targets % longest).masked_fill(no_unit, IGNORED)
        symbols = symbols.masked_fill(ignored, IGNORED)
        return _picked(self.lm_head.symbol_logits(hidden), symbols), _picked(by_duration, durations)


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    """Log probabilities of targets [B, n] by logits [B, n, classes]; 0 where ignored."""
    return -F.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )


class UnitRules(LogitsProcessor):
    """Leaves what may come next: a unit, or after one the end where it is allowed.

    Two tokens in a row have the same unit only when the first is as long as can be: otherwise they
    would have been merged.
    """

    def __init__(self, vocabulary: Vocabulary, *, may_end: bool) -> None:
        self.longest = vocabulary.max_duration
        self.first = vocabulary.first_unit * self.longest
        self.end = int(vocabulary.special(END)[0])
        self.may_end = may_end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = scores.clone()
        allowed[:, : self.first] = -torch.inf
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if self.may_end and last >= self.first:
                allowed[row, self.end] = scores[row, self.end]
            if last >= self.first and last % self.longest < self.longest - 1:
                start = last - last % self.longest
                allowed[row, start : start + self.longest] = -torch.inf
        return allowed


class EnoughFrames(StoppingCriteria):
    """Ends a generation whose tokens after the first `n_prompt` last `n_frames` or more."""

    def __init__(self, vocabulary: Vocabulary, n_prompt: int, n_frames: int) -> None:
        self.vocabulary, self.n_prompt, self.n_frames = vocabulary, n_prompt, n_frames

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        symbols, durations = self.vocabulary.split(input_ids[:, self.n_prompt :])
        frames = durations * (symbols >= self.vocabulary.first_unit)
        return frames.sum(1) >= self.n_frames


class Listener(BaseStreamer):
    """Hands on each token that `generate()` draws, but not the prompt."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self.on_token = on_token
        self.in_prompt = True

    def put(self, value: Tensor) -> None:
        if not self.in_prompt:
            self.on_token(int(value))
        self.in_prompt = False

    def end(self) -> None:
        pass


def generate(
    model: UnitModel,
    prompt: np.ndarray,
    n_frames: int,
    *,
    may_end: bool,
    temperature: float,
    top_p: float,
    on_token: Callable[[int], None],
) -> None:
    """Draw units after the tokens [n] of a prompt until they last `n_frames` or the end is drawn.

    on_token: called with each token, the end among them. Where the context is full, what says that
    units follow, the text among it, and then the last units are read anew, for half of what is
    left. `torch.manual_seed` says what is drawn; temperature 0 takes the likeliest.
    """
    vocabulary, room = model.vocabulary, model.sizes.context
    units, end = (int(vocabulary.special(symbol)[0]) for symbol in (UNITS, END))
    drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    tokens = prompt.tolist()
    head = tokens[: tokens.index(units) + 1]
    n_recent = (room - len(head)) // 2
    n_left = n_frames

    def listen(token: int) -> None:
        nonlocal n_left
        tokens.append(token)
        symbol, duration = vocabulary.split(token)
        n_left -= duration * (symbol >= vocabulary.first_unit)
        on_token(token)

    while n_left > 0 and tokens[-1] != end:
        recent = tokens if len(tokens) < room else [*head, *tokens[-n_recent:]]
        ids = torch.tensor([recent], device=model.device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room - len(recent),
            logits_processor=[UnitRules(vocabulary, may_end=may_end)],
            stopping_criteria=[EnoughFrames(vocabulary, len(recent), n_left)],
            streamer=Listener(listen),
            **(drawing if temperature > 0 else {"do_sample": False}),
        )
