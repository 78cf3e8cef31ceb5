"""The second stage: the sound of units, levels 1 to n_q - 1 of the codes.

A transformer goes over frames and sees, at each, its unit, the unit `LOOKAHEAD` frames later and
the acoustic codes of the frame before; what it makes of them is read level by level, each level
seeing those before it in the same frame (the depth of RQ-Transformer, Lee et al. 2022, and of
Moshi, Defossez et al. 2024, here a small network a level). A prompt is frames whose codes are
known: the voice goes on. Every frame hangs on what came before and on two frames of units to come,
so a stream has the same codes as the whole. Where levels have several rates, a code is drawn at
the first of its frames and stands in the others, and the transformer knows which frame of its group
it is in.

Codes are read and written through the codec's own codebooks, from which their vectors begin, so
that near codes are alike from the first step on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GPTNeoXModel

from audiovq.lm.sizes import Sizes
from audiovq.lm.vocabulary import Vocabulary

LOOKAHEAD = 2
"""Frames by which units are known before their sound: 40 ms at 50 frames a second."""
PROMPT_SHARE = 0.3
"""Of the context, what the end of the prompt may take."""


class Level(nn.Module):
    """One level in a frame: from all that is known of it to scores of the codes."""

    def __init__(self, width: int, code_dim: int, codebook_size: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, code_dim)
        )
        self.bias = nn.Parameter(torch.zeros(codebook_size))

    def forward(self, known: Tensor, table: Tensor) -> Tensor:
        """known [..., width] and the level's vectors [K, code_dim] to logits [..., K]."""
        return F.linear(self.mix(known), table, self.bias)


def of_variance_1(codebooks: Tensor) -> Tensor:
    """Codebooks [n_q, K, D] around 0, each scaled to variance 1."""
    centred = codebooks - codebooks.mean(1, keepdim=True)
    return centred / centred.pow(2).mean((1, 2), keepdim=True).sqrt()


class AcousticModel(nn.Module):
    """Codes of the levels above the units, frame by frame."""

    def __init__(self, vocabulary: Vocabulary, sizes: Sizes, code_dim: int) -> None:
        super().__init__()
        if vocabulary.n_q < 2:
            raise ValueError(
                "the tokens are units alone; encode with more levels for an acoustic stage."
            )
        self.vocabulary, self.sizes, self.code_dim = vocabulary, sizes, code_dim
        n_q, width = vocabulary.n_q, sizes.width
        self.tables = nn.Parameter(torch.empty(n_q, vocabulary.codebook_size, code_dim))
        self.unit = nn.Linear(code_dim, width)
        self.next_unit = nn.Linear(code_dim, width)
        self.before = nn.ModuleList(nn.Linear(code_dim, width) for _ in range(1, n_q))
        # It is given vectors. Its table of one stands for a frame before the first.
        self.transformer = GPTNeoXModel(sizes.transformer(vocab_size=1))
        self.within = nn.ModuleList(nn.Linear(code_dim, width) for _ in range(2, n_q))
        self.levels = nn.ModuleList(
            Level(width, code_dim, vocabulary.codebook_size) for _ in range(1, n_q)
        )
        group = vocabulary.group_frames
        self.place = nn.Embedding(group, width) if group > 1 else None
        nn.init.normal_(self.tables)

    @torch.no_grad()
    def start_from(self, codebooks: Tensor) -> None:
        """Begin with the codec's codebooks [n_q, K, code_dim], each scaled to variance 1."""
        self.tables.copy_(of_variance_1(codebooks))

    def _vectors(self, codes: Tensor, level: int) -> Tensor:
        return F.embedding(codes, self.tables[level])

    def due(self, n_frames: int) -> Tensor:
        """In which of the frames from the first of a group on the acoustic levels have a code that
        is not that of the frame before: bool [n_q - 1, T]."""
        strides = torch.tensor(self.vocabulary.frames_per_code[1:], device=self.tables.device)
        return torch.arange(n_frames, device=strides.device) % strides[:, None] == 0

    def read(
        self, units: Tensor, later: Tensor, before: Tensor, starts: Tensor, frames: Tensor
    ) -> Tensor:
        """What the transformer is given [B, T, width].

        units, later: [B, T], those of a frame and of `LOOKAHEAD` frames after it. before: acoustic
        codes [B, n_q - 1, T] of the frame before. starts: [B, T], whether there is none before.
        frames: [T], their numbers.
        """
        seen = self.unit(self._vectors(units, 0)) + self.next_unit(self._vectors(later, 0))
        if self.place is not None:
            seen = seen + self.place(frames % self.place.num_embeddings)
        known = sum(read(self._vectors(before[:, i], i + 1)) for i, read in enumerate(self.before))
        return seen + torch.where(starts[..., None], self.transformer.embed_in.weight[0], known)

    def with_level(self, known: Tensor, codes: Tensor, i: int) -> Tensor:
        """What is known of frames [..., width] and of their codes of acoustic level `i`, [...]."""
        if i == len(self.within):  # the last level, which none reads
            return known
        return known + self.within[i](self._vectors(codes, i + 1))

    def log_likelihood(self, codes: Tensor, heard: Tensor | None = None) -> Tensor:
        """Log probabilities, in nats, of the acoustic codes of codes [B, n_q, T]: those of each
        level given the frames before and the levels before, [B, n_q - 1, T]. They mean nothing
        where codes are not `due`.

        heard: what stands for the codes of the frames before, if not the codes themselves.
        """
        units = codes[:, 0]
        later = torch.cat([units, units[:, -1:].expand(-1, LOOKAHEAD)], dim=1)[:, LOOKAHEAD:]
        acoustic = codes[:, 1:]
        before = F.pad((codes if heard is None else heard)[:, 1:, :-1], (1, 0))
        frames = torch.arange(units.shape[1], device=units.device)
        read = self.read(units, later, before, (frames == 0).expand_as(units), frames)
        known = self.transformer(inputs_embeds=read, use_cache=False).last_hidden_state
        found = []
        for i, level in enumerate(self.levels):
            logits = level(known, self.tables[i + 1]).float()
            found.append(-F.cross_entropy(logits.transpose(1, 2), acoustic[:, i], reduction="none"))
            known = self.with_level(known, acoustic[:, i], i)
        return torch.stack(found, dim=1)


class AcousticWriter:
    """Writes the codes of units that come one by one, after a prompt.

    codes: of the prompt, int64 [n_q, T], whole groups of them, T >= 0. temperature: 0 takes the
        likeliest codes.

    When the context is full, the last frames of the prompt and the later half of it are read anew.
    """

    def __init__(
        self, model: AcousticModel, codes: Tensor, *, temperature: float, seed: int
    ) -> None:
        self.model, self.temperature = model, temperature
        self.units: list[int] = codes[0].tolist()
        """Those of the prompt, and all that have come."""
        self.acoustic = list(codes[1:].T)
        """Those of the prompt, and all that were written: [n_q - 1] each."""
        self.n_prompt = len(self.units)
        self.generator = torch.Generator().manual_seed(seed)
        self.cache: DynamicCache | None = None

    def add(self, units: list[int]) -> Tensor:
        """Take the units of frames that follow, one a frame; return codes [n_q, T] of those known
        by now."""
        self.units += units
        return self._write(len(self.units) - LOOKAHEAD)

    def end(self) -> Tensor:
        """The codes [n_q, T] still due: the last unit is taken to go on."""
        return self._write(len(self.units))

    @torch.no_grad()
    def _write(self, end: int) -> Tensor:
        first = len(self.acoustic)
        while len(self.acoustic) < end:
            frame = len(self.acoustic)
            self.acoustic.append(self._draw(frame, self._hidden(frame)))
        n_frames = len(self.acoustic) - first
        found = torch.zeros(self.model.vocabulary.n_q, n_frames, dtype=torch.int64)
        found[0] = torch.tensor(self.units[first : first + n_frames])
        for t in range(n_frames):
            found[1:, t] = self.acoustic[first + t]
        return found

    def _hidden(self, frame: int) -> Tensor:
        """What the transformer makes of a frame [width], all before it being in the cache."""
        room = self.model.sizes.context
        frames, starts = [frame], False
        if self.cache is None or self.cache.get_seq_length() >= room:
            self.cache, starts = DynamicCache(), True
            n_prompt = min(self.n_prompt, int(PROMPT_SHARE * room))
            begin = max(self.n_prompt, frame - room // 2)
            frames = [*range(self.n_prompt - n_prompt, self.n_prompt), *range(begin, frame + 1)]
        read = self.model.read(*self._known(frames, starts))
        hidden = self.model.transformer(inputs_embeds=read, cache=self.cache, use_cache=True)
        return hidden.last_hidden_state[0, -1]

    def _known(self, frames: list[int], starts: bool) -> tuple[Tensor, ...]:
        """What `AcousticModel.read` takes, of these frames; `starts`: nothing is before them."""
        last = len(self.units) - 1
        units = torch.tensor([[self.units[t] for t in frames]])
        later = torch.tensor([[self.units[min(t + LOOKAHEAD, last)] for t in frames]])
        none = torch.zeros(self.model.vocabulary.n_q - 1, dtype=torch.int64)
        before = torch.stack([self.acoustic[t - 1] if t else none for t in frames], dim=1)
        first = torch.tensor([[starts and not i for i in range(len(frames))]])
        device = self.model.tables.device
        known = units, later, before[None], first, torch.tensor(frames)
        return tuple(tensor.to(device) for tensor in known)

    def _draw(self, frame: int, known: Tensor) -> Tensor:
        """The acoustic codes [n_q - 1] of a frame, level by level."""
        codes = []
        for i, stride in enumerate(self.model.vocabulary.frames_per_code[1:]):
            if frame % stride:
                code = self.acoustic[frame - 1][i]
            else:
                code = self._draw_code(self.model.levels[i](known, self.model.tables[i + 1]))
            codes.append(code)
            known = self.model.with_level(known, code.to(known.device), i)
        return torch.stack(codes)

    def _draw_code(self, logits: Tensor) -> Tensor:
        """One of the codes with logits [K]."""
        logits = logits.float().cpu()
        if self.temperature > 0:
            shares = (logits / self.temperature).softmax(-1)
            return torch.multinomial(shares, 1, generator=self.generator)[0]
        return logits.argmax()
