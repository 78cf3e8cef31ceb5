"""Codebooks and the quantizers made of them.

A codebook turns vectors into indices of their nearest codes. A quantizer projects the latent to
the codebooks' space, quantizes it in levels, and projects the sum of the chosen vectors back.

van den Oord et al. 2017 (VQ-VAE); Razavi et al. 2019 (EMA with Laplace smoothing); Zeghidour et
al. 2021 (residual levels, quantizer dropout); Defossez et al. 2024 (units beside the residual
stack); Siuzdak et al. 2024 (levels at several rates).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq.config import ModelConfig
from audiovq.layers import PackedLinear, can_pack

DECAY = 0.99
"""Of the moving averages, per training step."""
DEAD_SHARE = 0.15
"""A code is dead when it is used less than this share of fair use, 1 / K."""
RESET_SHARE = 0.3
"""Usage that a reset code starts with, as a share of fair use: above the threshold, so that it has
time to win vectors before it can be dead again."""
EPSILON = 1e-5
"""Laplace smoothing of the usage, spread over all codes."""
RESERVOIR = 2048
"""Recent vectors that dead codes are reset to."""
RESERVOIR_PER_STEP = 64
"""Vectors that each step adds to the reservoir: more steps than one utterance lasts."""
KMEANS_STEPS = 25


class EMACodebook(nn.Module):
    """K code vectors that follow moving averages of the vectors assigned to them.

    Two buffers are the whole state: `usage` [K], the share of vectors that chose each code (it sums
    to 1), and `total` [K, D], the sum of those vectors over the number of all vectors. The code
    vectors are their ratio, never stored beside them. Because usage is a share, nothing here
    depends on the batch size.
    """

    usage: Tensor
    total: Tensor
    started: Tensor
    reservoir: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("usage", torch.full((size,), 1 / size))
        self.register_buffer("total", torch.randn(size, dim) / size)
        # Nothing reads it, but it is among the tensors that a model's fingerprint hashes.
        self.register_buffer("started", torch.tensor(False))
        # Training state: checkpoints keep it, shipped models do not.
        self.register_buffer("reservoir", torch.zeros(0, dim), persistent=False)

    @property
    def vectors(self) -> Tensor:
        """Code vectors [K, D], float32: total / usage with Laplace smoothing."""
        return self.total / self.weights().unsqueeze(1)

    def weights(self) -> Tensor:
        """How often each code is used [K], with Laplace smoothing: they sum to 1."""
        return (self.usage + EPSILON / len(self.usage)) / (1 + EPSILON)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Start from the k-means centroids of x [M, D], the vectors of all ranks."""
        x = _gather(x)
        centroids, indices = _kmeans(x, len(self.usage))
        _broadcast(centroids, indices)
        usage = torch.bincount(indices, minlength=len(self.usage)) / len(x)
        # An empty cluster gets the least usage that is not dead, and its centroid with it.
        usage = usage.clamp(min=RESET_SHARE / len(usage))
        self.usage.copy_(usage / usage.sum())
        self.total.copy_(centroids * self.usage.unsqueeze(1))
        self.started.fill_(True)

    @torch.no_grad()
    def place(self, vectors: Tensor, indices: Tensor) -> None:
        """Put the codes at vectors [K, D] that something else moved; indices [M]: those chosen."""
        counts = torch.bincount(indices, minlength=len(self.usage)).to(self.usage)
        n_vectors = counts.sum()
        _all_reduce(counts, n_vectors)
        self.usage.lerp_(counts / n_vectors, 1 - DECAY)
        self.total.copy_(vectors * self.weights().unsqueeze(1))

    @torch.no_grad()
    def update(self, x: Tensor, indices: Tensor) -> int:
        """One training step on vectors x [M, D] and their codes [M]; returns the codes reset.

        The order matters: averages first, then resets, or the averages would undo them.
        """
        size = len(self.usage)
        counts = x.new_zeros(size).index_add_(0, indices, x.new_ones(len(indices)))
        sums = torch.zeros_like(self.total).index_add_(0, indices, x)
        n_vectors = counts.sum()
        _all_reduce(counts, sums, n_vectors)
        if not torch.isfinite(sums).all():  # one bad batch must not poison the averages
            return 0
        self.usage.lerp_(counts / n_vectors, 1 - DECAY)
        self.total.lerp_(sums / n_vectors, 1 - DECAY)
        self._remember(x)
        return self._reset_dead()

    def _remember(self, x: Tensor) -> None:
        share = max(1, RESERVOIR_PER_STEP // _world_size())
        # Evenly spread, so that ranks together remember what one rank with the whole batch would.
        recent = _gather(x[:: -(-len(x) // share)])
        self.reservoir = torch.cat([recent, self.reservoir])[:RESERVOIR]

    def _reset_dead(self) -> int:
        fair = self.usage.sum() / len(self.usage)
        dead = (self.usage < DEAD_SHARE * fair).nonzero().squeeze(1)
        if not len(dead):
            return 0
        chosen = torch.randint(len(self.reservoir), (len(dead),), device=self.usage.device)
        _broadcast(chosen)
        self.usage[dead] = RESET_SHARE * fair
        self.total[dead] = self.reservoir[chosen] * (RESET_SHARE * fair)
        return len(dead)

    def loss(self, x: Tensor, chosen: Tensor) -> Tensor:
        """No codebook loss: the averages move the codes."""
        return x.new_zeros(())


class GradientCodebook(nn.Module):
    """K code vectors that the codebook loss of VQ-VAE moves: |sg(x) - e|^2."""

    started: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(size, dim))
        # As in `EMACodebook`.
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Start from the k-means centroids of x [M, D], the vectors of all ranks."""
        centroids, _ = _kmeans(_gather(x), len(self.vectors))
        _broadcast(centroids)
        self.vectors.copy_(centroids)
        self.started.fill_(True)

    def update(self, x: Tensor, indices: Tensor) -> int:
        """Nothing to do: the optimizer moves the codes, and none is reset."""
        return 0

    def weights(self) -> Tensor:
        """How often each code is used [K] is not known: all alike."""
        return torch.full((len(self.vectors),), 1 / len(self.vectors))

    def loss(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The codebook loss, a scalar; `chosen` [M, D] are the vectors of the codes of x [M, D]."""
        return F.mse_loss(chosen, x.detach())


@dataclass
class Quantized:
    """What a quantizer says of a latent in training."""

    z_q: Tensor
    """Quantized latent [B, T, D], with straight-through gradients."""
    units: Tensor
    """Vectors of level 0 [B, T, codebook_dim], with straight-through gradients."""
    unit_vectors: Tensor
    """What level 0 quantizes [B, T / stride, codebook_dim]."""
    codes: Tensor
    """Indices [B, n_q, T]."""
    commitment: Tensor
    """Commitment loss of each level [n_q]."""
    codebook_loss: Tensor
    """Scalar; zero for EMA codebooks."""
    resets: Tensor
    """Dead codes that were reset in this step, of each level [n_q]."""


class ResidualQuantizer(nn.Module):
    """Levels of codebooks, each on what the ones before it left over.

    [B, T, dim] -> `codebook_dim` -> n levels -> [B, T, dim].

    A level of stride s quantizes the mean of what is left over of each s frames, and its vector is
    taken from all of them; the levels after it have what makes the frames differ. The mean is the
    vector that is nearest to its frames, it is causal but for the frames of the group, and it has
    nothing to learn. T is whole groups of the coarsest level, and codes stand in all their frames.

    strides: of the levels.
    n_labels: how many labels the codes of the first level stand for.
    """

    labels: Tensor | None
    """How likely each of them is where a code of the first level is, [K, n_labels]; all 0 while
    nothing has said so."""

    def __init__(self, config: ModelConfig, strides: Sequence[int], n_labels: int = 0) -> None:
        super().__init__()
        self.strides = tuple(strides)
        dim = config.channels[-1]
        self.project_in = nn.Linear(dim, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, dim)
        kind = EMACodebook if config.codebook == "ema" else GradientCodebook
        self.codebooks: Sequence[EMACodebook | GradientCodebook] = nn.ModuleList(  # type: ignore[assignment]
            kind(config.codebook_size, config.codebook_dim) for _ in strides
        )
        labels = torch.zeros(config.codebook_size, n_labels) if n_labels else None
        self.register_buffer("labels", labels)

    def tables(self) -> list[Tensor]:
        """Code vectors of each level, [K, codebook_dim]: derived once, then used for many calls."""
        return [codebook.vectors for codebook in self.codebooks]

    def encode(self, z: Tensor, searches: "list[Search]") -> Tensor:
        """Latent [B, T, dim] -> indices [B, n_q, T], n_q = len(searches)."""
        residual = self.project_in(z).flatten(0, 1)  # [B * T, codebook_dim]
        codes = []
        for level, (search, stride) in enumerate(zip(searches, self.strides)):
            indices = _repeat(search.nearest(pool(residual, stride)), stride)
            if level + 1 < len(searches):
                residual = residual - F.embedding(indices, search.table)
            codes.append(indices)
        return torch.stack(codes).unflatten(1, z.shape[:2]).transpose(0, 1)

    def decode(self, codes: Tensor, tables: list[Tensor], n_q: Tensor | None = None) -> Tensor:
        """Indices [B, n_q, T] -> quantized latent [B, T, dim].

        n_q: [B], levels that each item keeps; all of them when None.
        """
        vectors = [F.embedding(codes[:, level], tables[level]) for level in range(codes.shape[1])]
        if n_q is not None:
            vectors = [x * (n_q > level)[:, None, None] for level, x in enumerate(vectors)]
        return self.project_out(torch.stack(vectors).sum(dim=0))

    def unit_vectors(self, z: Tensor) -> Tensor:
        """z [B, T, dim] -> the vectors [B, T / stride, codebook_dim] that level 0 quantizes."""
        return pool(self.project_in(z).flatten(0, 1), self.strides[0]).unflatten(0, (len(z), -1))

    def vectors(self, z: Tensor) -> list[Tensor]:
        """What each residual stack quantizes, [B, T, codebook_dim]: here there is one."""
        return [self.project_in(z)]

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """k-means start of every level, each on what the one before leaves of z [B, T, dim]."""
        residual = self.project_in(z.float()).flatten(0, 1)
        if self.labels is not None:
            self.labels.zero_()  # they were those of other codes
        for codebook, stride in zip(self.codebooks, self.strides):
            x = pool(residual, stride)
            codebook.start(x)
            residual = residual - _repeat(codebook.vectors[nearest(x, codebook.vectors)], stride)

    def bypass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, T, dim] through the projections alone: an autoencoder without codes."""
        x = self.project_in(z)
        return self.project_out(x), x

    def forward(self, z: Tensor, n_q: Tensor) -> Quantized:
        """Quantize in training: learn the codebooks, reset dead codes, pass gradients through.

        `n_q` [B] says how many levels each item keeps (quantizer dropout).
        """
        x = self.project_in(z)  # [B, T, codebook_dim]
        keep = torch.arange(len(self.codebooks), device=z.device)[:, None] < n_q  # [levels, B]
        residual, total, first = x, torch.zeros_like(x), x
        codes, commitment, resets = [], [], []
        codebook_loss = x.new_zeros(())
        for level, (codebook, stride) in enumerate(zip(self.codebooks, self.strides)):
            flat = pool(residual.flatten(0, 1), stride)  # [B * T / stride, codebook_dim]
            table = codebook.vectors
            indices = nearest(flat.detach(), table.detach())
            chosen = F.embedding(indices, table)
            error = (flat - chosen.detach()).square().unflatten(0, (len(x), -1)).mean(dim=(1, 2))
            commitment.append((error * keep[level]).mean())
            codebook_loss = codebook_loss + codebook.loss(flat, chosen)
            resets.append(codebook.update(flat.detach(), indices) if self.training else 0)
            chosen = _repeat(chosen.detach(), stride).view_as(x)
            total = total + chosen * keep[level, :, None, None]
            residual = residual - chosen
            codes.append(_repeat(indices, stride).view(x.shape[:2]))
            first = chosen if level == 0 else first
        return Quantized(
            z_q=self.project_out(_straight_through(x, total)),
            units=_straight_through(x, first),
            unit_vectors=pool(x.flatten(0, 1), self.strides[0]).unflatten(0, (len(x), -1)),
            codes=torch.stack(codes, dim=1),
            commitment=torch.stack(commitment),
            codebook_loss=codebook_loss,
            resets=torch.tensor(resets),
        )


class SplitQuantizer(nn.Module):
    """Level 0 and the residual stack side by side, each with projections of its own; their
    quantized latents add up. Units can then follow phonemes without spoiling the sound.

    With `unit_blocks` each of them has its own half of the latent [B, T, 2 * dim]; for level 0
    alone the units' half is enough."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.channels[-1]
        self.units = ResidualQuantizer(config, config.frames_per_code[:1], config.unit_labels)
        self.acoustic = ResidualQuantizer(config, config.frames_per_code[1:])

    @property
    def codebooks(self) -> list[EMACodebook | GradientCodebook]:
        """The codebooks of all levels."""
        return [*self.units.codebooks, *self.acoustic.codebooks]

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the units see of the latent, and what the sound does."""
        parts = z.split(self.dim, dim=-1)
        return parts[-1], parts[0]

    def tables(self) -> list[Tensor]:
        """Code vectors of each level."""
        return self.units.tables() + self.acoustic.tables()

    def encode(self, z: Tensor, searches: "list[Search]") -> Tensor:
        """Latent [B, T, dim] -> indices [B, n_q, T], n_q = len(searches)."""
        z_units, z_acoustic = self._parts(z)
        codes = self.units.encode(z_units, searches[:1])
        if len(searches) == 1:
            return codes
        return torch.cat([codes, self.acoustic.encode(z_acoustic, searches[1:])], dim=1)

    def decode(self, codes: Tensor, tables: list[Tensor], n_q: Tensor | None = None) -> Tensor:
        """Indices [B, n_q, T] -> quantized latent [B, T, dim]; see `ResidualQuantizer.decode`."""
        z_q = self.units.decode(codes[:, :1], tables[:1])
        if codes.shape[1] == 1:
            return z_q
        if n_q is None:
            return z_q + self.acoustic.decode(codes[:, 1:], tables[1:])
        # An item of one level hears the units alone, not the bias of the other projection.
        heard = (n_q > 1)[:, None, None]
        return z_q + self.acoustic.decode(codes[:, 1:], tables[1:], n_q - 1) * heard

    def unit_vectors(self, z: Tensor) -> Tensor:
        """z [B, T, dim] -> the vectors [B, T / stride, codebook_dim] that level 0 quantizes."""
        return self.units.unit_vectors(self._parts(z)[0])

    def vectors(self, z: Tensor) -> list[Tensor]:
        """What each residual stack quantizes, [B, T, codebook_dim]: the units and the sound."""
        z_units, z_acoustic = self._parts(z)
        return [self.units.project_in(z_units), self.acoustic.project_in(z_acoustic)]

    def start(self, z: Tensor) -> None:
        """k-means start of every level from z [B, T, dim]."""
        self.start_units(z)
        self.acoustic.start(self._parts(z)[1])

    def start_units(self, z: Tensor) -> None:
        """k-means start of level 0 alone."""
        self.units.start(self._parts(z)[0])

    def bypass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, T, dim] through the projections alone, and the vectors of level 0."""
        z_units, z_acoustic = self._parts(z)
        z_q, units = self.units.bypass(z_units)
        return z_q + self.acoustic.bypass(z_acoustic)[0], units

    def forward(self, z: Tensor, n_q: Tensor) -> Quantized:
        """Quantize in training; see `ResidualQuantizer.forward`."""
        z_units, z_acoustic = self._parts(z)
        units = self.units(z_units, n_q)
        acoustic = self.acoustic(z_acoustic, n_q - 1)
        # An item of one level hears the units alone, not the bias of the other projection.
        heard = (n_q > 1)[:, None, None]
        return Quantized(
            z_q=units.z_q + acoustic.z_q * heard,
            units=units.units,
            unit_vectors=units.unit_vectors,
            codes=torch.cat([units.codes, acoustic.codes], dim=1),
            commitment=torch.cat([units.commitment, acoustic.commitment]),
            codebook_loss=units.codebook_loss + acoustic.codebook_loss,
            resets=torch.cat([units.resets, acoustic.resets]),
        )


def make_quantizer(config: ModelConfig) -> ResidualQuantizer | SplitQuantizer:
    """The quantizer that `config.unit_level` names."""
    if config.unit_level == "split":
        return SplitQuantizer(config)
    return ResidualQuantizer(config, config.frames_per_code)


def pool(x: Tensor, stride: int) -> Tensor:
    """The mean of each `stride` rows of x: [M, D] -> [M / stride, D].

    Row by row, so that no library chooses an order of the sum by the shape.
    """
    rows = x.unflatten(0, (-1, stride))
    total = rows[:, 0]
    for row in range(1, stride):
        total = total + rows[:, row]
    return total / stride if stride > 1 else total


def _repeat(x: Tensor, stride: int) -> Tensor:
    """Each row of x `stride` times: [M, ...] -> [M * stride, ...]."""
    return torch.stack([x] * stride, dim=1).flatten(0, 1)


class Search:
    """`nearest` in one table [K, D] for many calls: what depends on the table alone is kept."""

    def __init__(self, table: Tensor, *, pack: bool = True) -> None:
        self.table = table.detach()
        self._norms = self.table.square().sum(dim=1)
        self._packed: PackedLinear | None = None
        if pack and can_pack(table):
            self._packed = PackedLinear(-2 * self.table, self._norms)

    def scores(self, x: Tensor) -> Tensor:
        """|x - e|^2 - |x|^2 for each row of x [M, D] and e of the table: [M, K], float32."""
        if self._packed is not None:
            return self._packed(x)
        return torch.addmm(self._norms, x, self.table.t(), alpha=-2)

    def nearest(self, x: Tensor) -> Tensor:
        """Index [M] of the nearest row for each row of x [M, D], the first of equal ones."""
        scores = self.scores(x)
        if self._packed is not None:  # NumPy's argmin is a dozen times as fast as torch's on a CPU
            return torch.from_numpy(scores.numpy().argmin(axis=1))
        return scores.argmin(dim=1)


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest row of table [K, D] for each row of x [M, D], in float32."""
    x, table = x.float(), table.float()
    # |x - e|^2 without |x|^2, which is the same for every code.
    return torch.addmm(table.square().sum(dim=1), x, table.t(), alpha=-2).argmin(dim=1)


def _straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` in value, x in gradient: one step for all levels, so that it is exactly one."""
    return x + (quantized - x).detach()


def _kmeans(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means of x [M, D]: centroids [size, D] and the index of each vector [M].

    With fewer vectors than `size`, some centroids are the same vector.
    """
    order = torch.randperm(len(x), device=x.device)
    order = order.repeat(-(-size // len(x)))[:size]
    centroids = x[order].clone()
    for _ in range(KMEANS_STEPS):
        indices = nearest(x, centroids)
        counts = torch.bincount(indices, minlength=size)
        sums = torch.zeros_like(centroids).index_add_(0, indices, x)
        centroids = sums / counts.clamp(min=1).unsqueeze(1)
        empty = (counts == 0).nonzero().squeeze(1)
        centroids[empty] = x[torch.randint(len(x), (len(empty),), device=x.device)]
    return centroids, nearest(x, centroids)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_reduce(*tensors: Tensor) -> None:
    if _world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def _broadcast(*tensors: Tensor) -> None:
    if _world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _gather(x: Tensor) -> Tensor:
    """The rows of all ranks, rank 0's first; every rank must have the same number of rows."""
    if _world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
