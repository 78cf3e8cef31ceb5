"""Learn the tables that a model's tokens are coded by; see `audiovq.entropy`."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq.codes import TOKEN_SUFFIXES, read_tokens
from audiovq.entropy import FRACTION, Tables
from audiovq.files import FileRefused
from audiovq.flatten import count_codes
from audiovq.model import AudioVQ
from audiovq.transcode import check_header

CODE_WIDTH = 12
"""Numbers of a code's vector."""
FRAME_WIDTH = 24
"""Numbers of a frame's vector."""
HIDDEN_WIDTH = 16
"""Hidden numbers of each level."""
DECAYS = (0, 1, 3, 6)
"""An average goes 2^-decay of the way to each new frame: the last one, and up to a second."""
SEGMENT = 384
"""Frames that are learnt from in one piece, whole groups of any `level_strides`; averages begin at
0 with each."""
BATCH = 16
LEARNING_RATE = 0.01
SCALE = 1 << FRACTION

logger = logging.getLogger("audiovq.train")


def learn_tables(
    model: AudioVQ, tokens: Sequence[np.ndarray], *, steps: int = 1500, seed: int = 0
) -> Tables:
    """Tables for a model, from its codes uint16 [Q, T] of recordings, all levels of them.

    An hour of speech is enough to gain, several are better. Float32 on the CPU; what is learnt are
    numbers that are whole once multiplied by `SCALE`. The same seed and tokens give, on one
    machine, the same tables. Raises `ValueError` for codes that are not the model's.
    """
    levels = model.config.n_codebooks
    tokens = [codes for codes in tokens if codes.shape[1]]
    if not tokens or any(len(codes) != levels for codes in tokens):
        raise ValueError(f"tables are learnt from recordings of all {levels} levels; give some.")
    for codes in tokens:
        model.check_range(0, int(codes.max()))
    codebooks = [table.detach().cpu().numpy() for table in model.quantizer.tables()]
    slots = np.stack([neighbourhoods(codebook) for codebook in codebooks])
    pieces = _pieces(tokens, slots)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        groups, n_slots = group_count(len(codebooks[0])), 1 << _bits(len(codebooks[0]))
        net = Net(model.config.frames_per_code, groups, n_slots)
        net.start_from(codebooks, slots, pieces)
        _train(net, pieces, steps)
    return net.tables(model.fingerprint, slots)


def _bits(n_codes: int) -> int:
    return max(1, (n_codes - 1).bit_length())


def group_count(n_codes: int) -> int:
    """Groups that the codes are in: about as many as each of them has slots."""
    return 1 << _bits(n_codes) // 2


def neighbourhoods(codebook: np.ndarray) -> np.ndarray:
    """A slot for each code, so that neighbours are in one group: uint16 [K].

    codebook: [K, D]. It is halved along the principal axis on which it is spread most, and the
    halves likewise.
    """
    n_codes = len(codebook)
    places = _principal(codebook)
    parts = [np.arange(n_codes)]
    for _ in range(_bits(n_codes)):
        halves = []
        for part in parts:
            if len(part) > 1:
                along = places[part, places[part].var(axis=0).argmax()]
                part = part[np.argsort(along, kind="stable")]
            middle = (len(part) + 1) // 2
            halves += [part[:middle], part[middle:]]
        parts = halves
    slots = np.empty(n_codes, np.uint16)
    for slot, part in enumerate(parts):
        slots[part] = slot
    return slots


def _principal(codebook: np.ndarray) -> np.ndarray:
    """The vectors [K, D] on their principal axes, the widest first."""
    centred = codebook - codebook.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2].T


def _pieces(tokens: Sequence[np.ndarray], slots: np.ndarray) -> Tensor:
    """Slots of the tokens [n, Q, SEGMENT], filled up with -1."""
    pieces = []
    for codes in tokens:
        found = np.take_along_axis(slots, codes.astype(np.int64), axis=1).astype(np.int64)
        for start in range(0, found.shape[1], SEGMENT):
            piece = found[:, start : start + SEGMENT]
            pieces.append(
                np.pad(piece, ((0, 0), (0, SEGMENT - piece.shape[1])), constant_values=-1)
            )
    return torch.from_numpy(np.stack(pieces))


class Net(nn.Module):
    """`entropy.Coder` in floating point, to be differentiated; shapes are those of `Tables`."""

    def __init__(self, strides: Sequence[int], groups: int, slots: int) -> None:
        super().__init__()
        self.strides, self.levels = strides, len(strides)
        self.groups, self.size = groups, slots // groups
        levels = self.levels
        e, x, h, d = CODE_WIDTH, FRAME_WIDTH, HIDDEN_WIDTH, len(DECAYS)

        def normal(*shape: int, spread: float) -> nn.Parameter:
            return nn.Parameter(spread * torch.randn(shape))

        self.code = normal(levels, slots, e, spread=0.3)
        self.mix = normal(levels, e, x, spread=1 / math.sqrt(e))
        self.past = normal(d, x, levels, h, spread=0.3 / math.sqrt(d * x))
        self.below = normal(levels, levels, e, h, spread=0.5 / math.sqrt(e))
        self.start = nn.Parameter(torch.zeros(levels, h))
        self.group = normal(levels, groups, h, spread=0.1)
        self.group_bias = nn.Parameter(torch.zeros(levels, groups))
        self.member = normal(levels, slots, h, spread=0.1)
        self.member_bias = nn.Parameter(torch.zeros(levels, slots))
        self.repeat = normal(levels, 2, h, spread=0.1)
        self.repeat_bias = nn.Parameter(torch.ones(levels, 2))
        self.register_buffer("kernels", _kernels(), persistent=False)

    @torch.no_grad()
    def start_from(self, codebooks: list[np.ndarray], slots: np.ndarray, pieces: Tensor) -> None:
        """Begin with codes that are alike where their vectors are, as often as they are there."""
        for level, codebook in enumerate(codebooks):
            principal = _principal(codebook)
            at = torch.from_numpy(slots[level].astype(np.int64))
            for table, spread in ((self.code, 0.4), (self.member, 0.2)):
                places = principal[:, : table.shape[2]]
                places = spread * places / places.std(axis=0).clip(1e-6)
                table[level, at, : places.shape[1]] = torch.from_numpy(places).float()
            found = pieces[:, level].flatten()
            counts = torch.bincount(found[found >= 0], minlength=self.member.shape[1]) + 0.5
            of_groups = counts.view(self.groups, self.size)
            shares = (of_groups / of_groups.sum(dim=1, keepdim=True)).log2().flatten()
            self.member_bias[level] = shares + math.log2(self.size)
            self.group_bias[level] = (of_groups.sum(dim=1) / counts.sum()).log2()
            self.group_bias[level] += math.log2(self.groups)

    def forward(self, pieces: Tensor, n_q: int) -> Tensor:
        """Bits that the codes of the first n_q levels of pieces [n, Q, L] take: [n_q], sums."""
        whole = {name: _whole(tensor) for name, tensor in self.named_parameters()}
        known = pieces[:, 0] >= 0  # [n, L]
        codes = [
            F.embedding(pieces[:, level].clamp(min=0), whole["code"][level]) * known[..., None]
            for level in range(n_q)
        ]
        frames = torch.stack([c @ whole["mix"][level] for level, c in enumerate(codes)]).sum(dim=0)
        averages = torch.einsum("dts,nsx->ntdx", self.kernels, frames)
        past = whole["past"][:, :, :n_q].flatten(2).flatten(0, 1)
        hidden = averages.flatten(2) @ past  # [n, L, n_q * H]
        hidden = hidden.view(*hidden.shape[:2], n_q, -1) + whole["start"][:n_q]
        bits = []
        before = F.pad(pieces[:, :, :-1], (1, 0), value=-1)
        for level in range(n_q):
            own = hidden[:, :, level]
            for lower in range(level):
                own = own + codes[lower] @ whole["below"][lower, level]
            due = torch.arange(known.shape[1]) % self.strides[level] == 0
            rows = (known & due).flatten().nonzero()[:, 0]
            own = F.hardtanh(own.flatten(0, 1)[rows])
            slot, old = pieces[:, level].flatten()[rows], before[:, level].flatten()[rows]
            bits.append(self._bits(own, slot, old, level, whole))
        return torch.stack(bits)

    def _bits(
        self, hidden: Tensor, slot: Tensor, old: Tensor, level: int, whole: dict[str, Tensor]
    ) -> Tensor:
        """Bits of slots [N] with hidden [N, H], after the slots `old`, -1 where there is none."""
        group, place = slot // self.size, slot % self.size
        bonus = hidden @ whole["repeat"][level].T + whole["repeat_bias"][level]
        scores = hidden @ whole["group"][level].T + whole["group_bias"][level]
        rises = bonus[:, :1] * (old >= 0)[:, None]
        scores = scores.scatter_add(1, (old.clamp(min=0) // self.size)[:, None], rises)
        total = F.cross_entropy(scores * math.log(2), group, reduction="sum")
        # Group by group, so that each multiplies with the one matrix of its places.
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group, minlength=self.groups).tolist()
        rises = (bonus[:, 1] * ((old >= 0) & (old // self.size == group)))[order]
        member = whole["member"][level].view(self.groups, self.size, -1)
        bias = whole["member_bias"][level].view(self.groups, self.size)
        scores = torch.cat(
            [
                part @ member[index].T + bias[index]
                for index, part in enumerate(hidden[order].split(counts))
            ]
        )
        scores = scores.scatter_add(1, (old.clamp(min=0) % self.size)[order, None], rises[:, None])
        total = total + F.cross_entropy(scores * math.log(2), place[order], reduction="sum")
        return total / math.log(2)

    @torch.no_grad()
    def tables(self, fingerprint: str, slots: np.ndarray) -> Tables:
        """What was learnt, in whole numbers."""
        arrays = {}
        for name, tensor in self.named_parameters():
            wide = name in _WIDE
            numbers = (_whole(tensor) * SCALE).round().numpy()
            arrays[name] = numbers.astype(np.int16 if wide else np.int8)
        decay = np.array(DECAYS, np.uint8)
        return Tables(fingerprint=fingerprint, slots=slots, decay=decay, **arrays)


_WIDE = ("start", "group_bias", "member_bias", "repeat_bias")  # int16; the others are int8


def _whole(tensor: Tensor) -> Tensor:
    """Numbers that are whole once multiplied by SCALE; int8 for matrices. Gradients pass."""
    limit = 127 / SCALE
    bounded = tensor if tensor.dim() == 2 else tensor.clamp(-limit, limit)
    return bounded + ((bounded * SCALE).round() / SCALE - bounded).detach()


def _kernels() -> Tensor:
    """What the frames [s] before a frame [t] are to its averages: [D, SEGMENT, SEGMENT]."""
    age = torch.arange(SEGMENT)[:, None] - torch.arange(SEGMENT) - 1
    share = 2.0 ** -torch.tensor(DECAYS)[:, None, None]
    kernels = share * (1 - share) ** age.clamp(min=0)
    return kernels * (age >= 0)


def _train(net: Net, pieces: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    counts = [2**i for i in range(net.levels.bit_length()) if 2**i < net.levels]
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 50), 1 + math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * left / 2
        # Fewer levels half of the time, for files that have no more.
        few = counts and step % 2
        n_q = counts[int(torch.randint(len(counts), ()))] if few else net.levels
        batch = pieces[torch.randint(len(pieces), (BATCH,))]
        n_frames = int((batch[:, 0] >= 0).sum())
        bits = net(batch, n_q)
        loss = bits.sum() / n_frames / sum(1 / stride for stride in net.strides[:n_q])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            logger.info(f"tables: step {step}, {loss.item():.3f} bits a code at n_q {n_q}")


def read_recordings(model: AudioVQ, paths: Sequence[Path]) -> list[np.ndarray]:
    """Codes [Q, T] of the token files among some files.

    Raises `FileRefused` for tokens of another model, and for files that have fewer levels.
    """
    found = []
    levels = model.config.n_codebooks
    for path in paths:
        if path.suffix.lower() not in TOKEN_SUFFIXES:
            continue
        tokens = read_tokens(path)
        if tokens.header is not None:
            check_header(model, tokens.header, str(path))
        if len(tokens.indices) != levels:
            raise FileRefused(
                f"{path} has {len(tokens.indices)} levels; tables are learnt from all {levels}: "
                "encode without --n-q."
            )
        found.append(tokens.indices)
    return found


def measure_tables(
    tables: Tables, recordings: Sequence[np.ndarray], level_strides: Sequence[int] = ()
) -> dict[int, float]:
    """Bits a code that recordings [Q, T] take, by the number of levels: 1, 2, 4, ... and all."""
    levels = len(tables.slots)
    strides = tuple(level_strides) or (1,) * levels
    counts = sorted({2**i for i in range(levels.bit_length()) if 2**i <= levels} | {levels})
    found = {}
    for n_q in counts if any(codes.size for codes in recordings) else []:
        n_codes = sum(count_codes(codes.shape[1], strides[:n_q]) for codes in recordings)
        coded = (tables.coder(n_q, strides[:n_q]).encode(codes[:n_q]) for codes in recordings)
        found[n_q] = 8 * sum(map(len, coded)) / n_codes
    return found
