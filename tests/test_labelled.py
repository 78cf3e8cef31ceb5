"""Codes that learn which label they stand for."""

import math

import pytest
import torch
import torch.nn.functional as F

from audiovq.quantize import EMACodebook, nearest
from audiovq.training.labelled import LabelledCodes
from audiovq.training.losses import shared_agreement, unused


def begun(table: torch.Tensor, n_labels: int = 2) -> LabelledCodes:
    codebook = EMACodebook(*table.shape)
    codebook.total.copy_(table * codebook.weights()[:, None])
    codes = LabelledCodes(*table.shape, n_labels)
    codes.begin(codebook)
    return codes


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def test_the_nearest_code_is_the_most_likely_at_any_size_of_the_vectors(table):
    x = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1))
    log_codes = begun(table)(x)
    torch.testing.assert_close(log_codes.exp().sum(dim=2), torch.ones(2, 30))
    assert torch.equal(log_codes.argmax(dim=2), nearest(x.flatten(0, 1), table).view(2, 30))
    torch.testing.assert_close(begun(3 * table)(3 * x), log_codes, rtol=1e-4, atol=1e-4)


def test_what_codes_say_are_probabilities_and_at_first_nothing(table):
    codes = begun(table, 5)
    x = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codes.labels(codes(x)), torch.full((3, 1, 7, 5), math.log(1 / 5)))
    codes.odds.data.normal_()
    torch.testing.assert_close(codes.labels(codes(x)).exp().sum(dim=3), torch.ones(3, 1, 7))


def test_codes_move_from_what_varies_most_to_what_the_labels_say():
    """Labels hang on the small second dimension, along which k-means has no two codes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(2, (n,), generator=generator)
        x = torch.randn(n, 2, generator=generator) * torch.tensor([4.0, 0.2])
        x[:, 1] += labels - 0.5
        return x, labels

    def right(table: torch.Tensor) -> float:
        """Share of frames whose label is the one that their code most often has."""
        (x, labels), (y, wanted) = drawn(2000), drawn(2000)
        counts = torch.zeros(len(table), 2).index_put_(
            (nearest(x, table), labels), torch.ones(2000), accumulate=True
        )
        return float((counts.argmax(dim=1)[nearest(y, table)] == wanted).float().mean())

    codebook = EMACodebook(4, 2)
    codebook.start(drawn(2000)[0])
    codes = LabelledCodes(4, 2, 2)
    codes.begin(codebook)
    torch.testing.assert_close(codes.vectors, codebook.vectors)
    assert right(codebook.vectors) < 0.75
    optimizer = torch.optim.Adam(codes.parameters(), lr=1e-3)
    for _ in range(400):
        x, labels = drawn(256)
        said = codes.labels(codes(x[None]))[0, 0]
        optimizer.zero_grad()
        F.nll_loss(said, labels).backward()
        optimizer.step()
    assert right(codes.vectors.detach()) > 0.95
    codebook.place(codes.vectors, torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(codebook.vectors, codes.vectors.detach())
    assert float(codebook.usage.sum()) == pytest.approx(1)


def test_use_is_judged_by_how_even_it_is():
    even = torch.eye(8).repeat(3, 1)[None].clamp(min=1e-30).log()
    assert float(unused(even)) == pytest.approx(0, abs=1e-5)
    assert float(unused(even[:, :1])) == pytest.approx(math.log(8))
    assert 0 < float(unused(even[:, :6])) < math.log(8)


def test_hearings_of_one_code_agree_and_move_to_meet(table):
    codes = begun(table)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 20, 4, generator=generator, requires_grad=True)
    same = shared_agreement(codes(x[:1].repeat(2, 1, 1)))
    loss = shared_agreement(codes(x))
    assert same < loss
    (gradient, moved) = torch.autograd.grad(loss, (x, codes.moved))
    assert all(part.any() for part in (*gradient, moved))
    assert shared_agreement(codes(x - gradient)) < loss
