"""Laws of the discriminators and of their losses."""

import pytest
import torch
from tiny import EXAMPLES
from torch import Tensor

from audiovq import AudioVQ
from audiovq.audio import load_audio
from audiovq.training.discriminator import STFT_SIZES, Discriminator, StftDiscriminator
from audiovq.training.losses import adversarial_loss, discriminator_loss, feature_loss


def outputs(score: float, activation: float = 1.0) -> list[list[Tensor]]:
    """Two sub-discriminators with one layer and their scores."""
    return [[torch.full((2, 3), activation), torch.full((2, 3), score)] for _ in range(2)]


@pytest.mark.parametrize(
    ("real", "fake", "loss"), [(0, 0, 2), (1, -1, 0), (5, -5, 0), (-1, 1, 4), (0.5, -0.5, 1)]
)
def test_hinge_by_hand(real, fake, loss):
    assert discriminator_loss(outputs(real), outputs(fake)) == pytest.approx(loss)
    assert adversarial_loss(outputs(fake)) == pytest.approx(-fake)


def test_feature_loss_is_relative_and_hears_no_scores():
    assert feature_loss(outputs(1), outputs(-1)) == 0
    for scale in (1.0, 10.0):
        loss = feature_loss(outputs(0, scale), outputs(0, 1.5 * scale))
        assert loss == pytest.approx(0.5)


def test_every_discriminator_hears_every_sample():
    torch.manual_seed(0)
    wav = (0.1 * torch.randn(1, 1, 4_000)).requires_grad_()
    (judged,) = Discriminator()(wav)
    assert len(judged) == len(STFT_SIZES)
    for layers in judged:
        (gradient,) = torch.autograd.grad(layers[-1].sum(), wav, retain_graph=True)
        assert (gradient != 0).float().mean() > 0.95


@pytest.mark.parametrize("n_fft", STFT_SIZES)
def test_what_nobody_hears_counts_little(n_fft):
    stft = StftDiscriminator(n_fft)
    noise = torch.randn(1, 1, 16_000, generator=torch.Generator().manual_seed(0))
    inaudible, faint = (stft._spectrogram(level * noise).norm() for level in (1e-5, 1e-2))
    assert 0 < inaudible < 0.05 * faint  # compression alone gives 0.13


def test_bf16_is_near_float32():
    torch.manual_seed(0)
    wav, discriminator = 0.1 * torch.randn(2, 1, 8_000), Discriminator()
    with torch.no_grad():
        (exact,) = discriminator(wav)
        with torch.autocast("cpu", torch.bfloat16):
            (rough,) = discriminator(wav)
    for a, b in zip(exact, rough):
        assert all(y.dtype == torch.bfloat16 for y in b)
        # Relative to each layer: the scores of new weights are as small as an absolute tolerance.
        assert all((y.float() - x).norm() < 0.03 * x.norm() for x, y in zip(a, b))


def test_each_learns_to_tell_decoded_speech_from_recordings():
    torch.manual_seed(0)
    wav = torch.cat([torch.from_numpy(load_audio(path, 16_000)) for path in EXAMPLES[:3]])
    wav = wav[None, None, : len(wav) // 4_000 * 4_000]
    model = AudioVQ.from_pretrained("default")
    decoded = model.decode(model.encode(wav, 1))  # of one level, which anybody can tell
    real, fake = (x.reshape(-1, 1, 4_000) for x in (wav, decoded))
    discriminator = Discriminator()
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3, betas=(0.8, 0.99))

    def losses(some: Tensor) -> Tensor:
        """Of each discriminator on these crops; 2 is to know nothing."""
        judged = zip(*discriminator(real[some], fake[some]))
        return torch.stack([discriminator_loss([r], [f]) for r, f in judged])

    recent = torch.full((len(STFT_SIZES),), 2.0)
    for _ in range(130):  # the slowest has learnt before
        found = losses(torch.randperm(len(real))[:4])
        found.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        recent.lerp_(found.detach(), 0.2)
        if recent.max() < 0.8:
            break
    with torch.no_grad():
        assert losses(torch.arange(len(real))).max() < 1.0
