"""Laws of the codebooks, on planted failures, and of the quantizers."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import TINY, UNITS
from torch import Tensor

from audiovq.quantize import (
    DEAD_SHARE,
    DECAY,
    RESERVOIR,
    EMACodebook,
    GradientCodebook,
    ResidualQuantizer,
    Search,
    make_quantizer,
    nearest,
)


def width(change: dict) -> int:
    """Of the latent."""
    return TINY.channels[-1] * (2 if "unit_blocks" in change else 1)


def clusters(n: int, n_clusters: int, dim: int = 8, seed: int = 0) -> Tensor:
    """n vectors around n_clusters centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_clusters, dim, generator=generator) * 4
    which = torch.randint(n_clusters, (n,), generator=generator)
    return centres[which] + torch.randn(n, dim, generator=generator) * 0.3


def learn(codebook: EMACodebook, x: Tensor, steps: int) -> int:
    """Train on random batches of x; returns how many codes were reset in all."""
    resets = 0
    for _ in range(steps):
        batch = x[torch.randint(len(x), (256,))]
        resets += codebook.update(batch, nearest(batch, codebook.vectors))
    return resets


def test_a_planted_dead_code_is_used_again():
    torch.manual_seed(0)
    x = clusters(4000, 40)
    codebook = EMACodebook(32, 8)
    codebook.start(x)
    with torch.no_grad():  # codes far from everything: nothing will ever choose them
        codebook.total[:8] = 1000.0 * codebook.usage[:8, None]
    assert set(nearest(x, codebook.vectors).tolist()).isdisjoint(range(8))
    assert learn(codebook, x, 300) >= 8
    assert set(range(8)) <= set(nearest(x, codebook.vectors).tolist())


def test_a_reset_code_keeps_its_new_vector_in_the_next_step():
    torch.manual_seed(0)
    x = clusters(1000, 20)
    codebook = EMACodebook(16, 8)
    codebook.start(x)
    codebook._remember(x)
    with torch.no_grad():
        codebook.usage[3] = DEAD_SHARE / 16 / 10
    assert codebook._reset_dead() == 1
    fresh = codebook.vectors[3].clone()
    assert (x - fresh).norm(dim=1).min() < 1e-3  # it is one of the data
    elsewhere = x[(x - fresh).norm(dim=1) > 3]
    codebook.update(elsewhere, nearest(elsewhere, codebook.vectors))
    assert torch.allclose(codebook.vectors[3], fresh, atol=1e-4)


def test_the_kmeans_start_survives_the_first_step():
    torch.manual_seed(0)
    x = clusters(4000, 32)
    codebook = EMACodebook(32, 8)
    codebook.start(x)
    before = codebook.vectors.clone()
    codebook.update(x, nearest(x, before))
    # One step of the averages moves a centroid by a hundredth of the way to its batch mean, and
    # the batch is the data that the centroids are the means of.
    assert torch.allclose(codebook.vectors, before, atol=1e-3)


@pytest.mark.parametrize("n_vectors", [10, 32, 33, 500])
def test_the_kmeans_start_gives_finite_vectors_from_any_number(n_vectors):
    torch.manual_seed(0)
    codebook = EMACodebook(32, 8)
    codebook.start(clusters(n_vectors, 5))
    assert torch.isfinite(codebook.vectors).all()
    assert codebook.usage.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [16, 64, 256])
def test_usage_does_not_depend_on_the_batch_size(size):
    """A batch that is given twice is the same step: so neither does the rule for dead codes."""
    torch.manual_seed(0)
    x = clusters(512, 8)
    one, two = EMACodebook(size, 8), EMACodebook(size, 8)
    two.load_state_dict(one.state_dict())
    indices = nearest(x, one.vectors)
    torch.manual_seed(1)
    resets = one.update(x, indices)
    torch.manual_seed(1)
    assert two.update(x.repeat(2, 1), indices.repeat(2)) == resets
    assert torch.allclose(one.usage, two.usage)


def test_codes_are_dead_below_the_same_share_of_fair_use_for_every_k():
    for size in (8, 64, 1024):
        codebook = EMACodebook(size, 8)
        codebook._remember(torch.randn(100, 8))
        usage = torch.full((size,), (size - 2 * DEAD_SHARE) / (size - 2))  # 1 is fair
        usage[0], usage[1] = DEAD_SHARE * 0.9, DEAD_SHARE * 1.1
        codebook.usage.copy_(usage / usage.sum())
        assert codebook._reset_dead() == 1
        assert codebook.usage[0] > codebook.usage[1]


def test_loaded_vectors_are_the_ones_in_use():
    torch.manual_seed(0)
    one, two = EMACodebook(32, 8), EMACodebook(32, 8)
    x = clusters(100, 10)
    nearest(x, two.vectors)  # nothing of an earlier use may stay
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.vectors, one.vectors)
    assert torch.equal(nearest(x, two.vectors), nearest(x, one.vectors))


def test_a_batch_that_is_not_finite_leaves_the_codebook_alone():
    codebook = EMACodebook(16, 8)
    before = codebook.vectors.clone()
    x = torch.full((4, 8), torch.nan)
    codebook.update(x, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(codebook.vectors, before)


def test_a_step_moves_the_averages_by_a_share_of_the_way_to_the_batch():
    codebook = EMACodebook(4, 8)
    usage, total = codebook.usage.clone(), codebook.total.clone()
    x = torch.randn(100, 8)
    codebook.update(x, torch.full((100,), 2))
    batch = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert torch.allclose(codebook.usage, DECAY * usage + (1 - DECAY) * batch)
    moved = DECAY * total + (1 - DECAY) * batch[:, None] * x.mean(dim=0)
    assert torch.allclose(codebook.total, moved, atol=1e-6)


def test_resets_draw_from_the_newest_vectors():
    codebook = EMACodebook(4, 8)
    for step in range(RESERVOIR // 50 + 9):  # half of each are kept
        codebook._remember(torch.full((100, 8), float(step)))
    kept = codebook.reservoir[:, 0]
    assert len(kept) == RESERVOIR
    assert torch.equal(kept, kept.sort(descending=True).values)
    assert kept[0] == step


@pytest.mark.parametrize("kind", [EMACodebook, GradientCodebook])
def test_after_the_kmeans_start_each_code_is_the_mean_of_its_vectors(kind):
    torch.manual_seed(0)
    x = clusters(600, 12)
    codebook = kind(12, 8)
    assert not codebook.started
    codebook.start(x)
    assert codebook.started
    vectors = codebook.vectors.detach()
    indices = nearest(x, vectors)
    for code in indices.unique():
        assert torch.allclose(x[indices == code].mean(dim=0), vectors[code], atol=1e-3)


def test_nearest_is_the_nearest():
    torch.manual_seed(0)
    x, table = torch.randn(200, 8), torch.randn(50, 8)
    assert torch.equal(nearest(x, table), torch.cdist(x, table).argmin(dim=1))


@pytest.mark.parametrize("change", UNITS)
def test_the_straight_through_gradient_is_exactly_one(change):
    torch.manual_seed(0)
    quantizer = make_quantizer(replace(TINY, **change)).eval()
    z = torch.randn(2, 8, width(change), requires_grad=True)
    n_q = torch.full((2,), TINY.n_codebooks)
    (through,) = torch.autograd.grad(quantizer(z, n_q).z_q.sum(), z)
    (bypassed,) = torch.autograd.grad(quantizer.bypass(z)[0].sum(), z)
    assert torch.equal(through, bypassed)


@pytest.mark.parametrize("change", UNITS)
@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_training_and_encoding_choose_the_same_codes(change, kind):
    torch.manual_seed(0)
    quantizer = make_quantizer(replace(TINY, codebook=kind, **change)).double().eval()
    z = torch.randn(2, 48, width(change), dtype=torch.float64)
    quantized = quantizer(z, torch.full((2,), TINY.n_codebooks))
    tables = quantizer.tables()
    assert torch.equal(quantized.codes, quantizer.encode(z, [Search(t) for t in tables]))
    assert torch.allclose(quantized.z_q, quantizer.decode(quantized.codes, tables))


@pytest.mark.parametrize("change", UNITS)
def test_an_item_that_keeps_fewer_levels_hears_only_those(change):
    torch.manual_seed(0)
    quantizer = make_quantizer(replace(TINY, **change)).eval()
    z = torch.randn(TINY.n_codebooks, 4, width(change))
    quantized = quantizer(z, torch.arange(1, TINY.n_codebooks + 1))
    for item, n_q in enumerate(range(1, TINY.n_codebooks + 1)):
        codes = quantized.codes[item : item + 1, :n_q]
        heard = quantizer.decode(codes, quantizer.tables())
        assert torch.allclose(quantized.z_q[item : item + 1], heard, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("change", UNITS)
def test_decoding_with_levels_left_out_is_decoding_of_those_that_are_kept(change):
    torch.manual_seed(0)
    quantizer = make_quantizer(replace(TINY, **change)).eval()
    z = torch.randn(4, 8, width(change))
    quantizer.start(z)
    assert all(codebook.started for codebook in quantizer.codebooks)
    tables = quantizer.tables()
    codes = quantizer.encode(z, [Search(table) for table in tables])
    kept = quantizer.decode(codes, tables, torch.arange(1, 5))
    for n_q, z_q in enumerate(kept, 1):
        alone = quantizer.decode(codes[n_q - 1 : n_q, :n_q], tables[:n_q])[0]
        torch.testing.assert_close(z_q, alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("change", [c for c in UNITS if "level_strides" not in c])
def test_what_training_is_told_of_the_levels(change):
    torch.manual_seed(0)
    quantizer = make_quantizer(replace(TINY, **change)).eval()
    z = torch.randn(3, 7, width(change))
    n_q = torch.tensor([TINY.n_codebooks, 2, 1])
    found, tables = quantizer(z, n_q), quantizer.tables()
    assert torch.allclose(found.units, tables[0][found.codes[:, 0]], atol=1e-5)
    assert torch.equal(found.unit_vectors, quantizer.unit_vectors(z))
    assert torch.equal(found.unit_vectors, quantizer.vectors(z)[0])
    assert torch.equal(found.unit_vectors, quantizer.bypass(z)[1])
    assert found.resets.tolist() == [0] * TINY.n_codebooks
    assert found.codebook_loss == 0
    # A level's commitment: how far the vectors are from its codes, of the items that keep it.
    left, *beside = quantizer.vectors(z)
    for level in range(TINY.n_codebooks):
        if level == 1 and beside:
            (left,) = beside
        left = left - tables[level][found.codes[:, level]]
        error = left.square().mean(dim=(1, 2)) * (n_q > level)
        assert torch.allclose(found.commitment[level], error.mean(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strides", [(1, 1, 1, 1), (4, 2, 1, 1), (1, 4, 1, 2)])
def test_every_level_brings_the_vectors_nearer(strides):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY, strides)
    x = torch.randn(1, 3000, TINY.channels[-1])
    quantizer.start(x)
    tables = quantizer.tables()
    codes = quantizer.encode(x, [Search(table) for table in tables])
    goal = quantizer.project_in(x)
    errors = []
    for n_q in range(1, 5):
        total = sum(tables[level][codes[:, level]] for level in range(n_q))
        errors.append(float((goal - total).square().mean()))
    assert errors == sorted(errors, reverse=True)


@torch.no_grad()
def test_a_coarse_level_is_the_level_of_the_means():
    """Its codes are those of the means of its frames, and the next level has what is left."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY, (4, 1)).double().eval()
    z = torch.randn(2, 12, TINY.channels[-1], dtype=torch.float64)
    x, (coarse, fine) = quantizer.project_in(z), quantizer.tables()
    first = nearest(x.unflatten(1, (3, 4)).mean(dim=2).flatten(0, 1), coarse).view(2, 3)
    first = first.repeat_interleave(4, dim=1)
    second = nearest((x - coarse[first]).flatten(0, 1), fine).view(2, 12)
    codes = quantizer.encode(z, [Search(coarse), Search(fine)])
    assert torch.equal(codes, torch.stack([first, second], dim=1))


def test_a_coarse_level_learns_as_a_codebook_of_its_means():
    """Averages, resets and the commitment are those of one vector a group."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY, (4,)).train()
    other = EMACodebook(TINY.codebook_size, TINY.codebook_dim)
    other.load_state_dict(quantizer.codebooks[0].state_dict())
    z = torch.randn(3, 8, TINY.channels[-1])
    means = quantizer.project_in(z).detach().unflatten(1, (2, 4)).mean(dim=2).flatten(0, 1)
    indices = nearest(means, other.vectors)
    chosen = other.vectors[indices]
    torch.manual_seed(1)
    quantized = quantizer(z, torch.ones(3))
    torch.manual_seed(1)
    assert quantized.resets.tolist() == [other.update(means, indices)]
    assert torch.allclose(quantizer.codebooks[0].usage, other.usage)
    assert torch.allclose(quantizer.codebooks[0].total, other.total, atol=1e-6)
    assert torch.allclose(quantized.commitment[0], (means - chosen).square().mean())


def test_a_gradient_codebook_learns_by_its_loss():
    torch.manual_seed(0)
    x = clusters(2000, 16)
    codebook = GradientCodebook(16, 8)
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        loss = codebook.loss(x, codebook.vectors[nearest(x, codebook.vectors.detach())])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    """Start and train a codebook on this rank's half of the data, and save what came out."""
    torch.set_num_threads(1)
    if world > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    x = clusters(4096, 24)
    torch.manual_seed(0)
    codebook = EMACodebook(32, 8)
    codebook.start(x[rank::world] if world == 1 else x.chunk(world)[rank])
    with torch.no_grad():
        codebook.total[:4] = 1000.0 * codebook.usage[:4, None]  # dead: resets must agree too
    resets = 0
    for step in range(400):
        torch.manual_seed(step)
        batch = x[torch.randint(len(x), (256,))].chunk(world)[rank]
        resets += codebook.update(batch, nearest(batch, codebook.vectors))
    assert resets >= 4
    torch.save(codebook.state_dict(), f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_ranks_with_half_a_batch_are_one_rank_with_the_whole(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _rank(0, 1, port, str(tmp_path))
    mp.spawn(_rank, args=(2, port, str(tmp_path)), nprocs=2)
    alone = torch.load(tmp_path / "1-0.pt", weights_only=True)
    for rank in range(2):
        state = torch.load(tmp_path / f"2-{rank}.pt", weights_only=True)
        for name, tensor in alone.items():
            assert torch.allclose(state[name].float(), tensor.float(), atol=1e-5), (rank, name)
