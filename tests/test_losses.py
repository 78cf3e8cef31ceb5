"""Laws of the mel distance."""

import pytest
import torch

from audiovq.training.losses import MEL_SCALES, SHORT_SCALES, MelLoss, consistency_loss


@pytest.fixture(scope="module")
def mel() -> MelLoss:
    """The loss at 16 kHz."""
    return MelLoss(16_000)


def test_it_is_a_distance(mel, speech):
    quieter, noisy = 0.5 * speech, speech + 0.01 * torch.ones_like(speech).cumsum(2).sin()
    assert (mel(speech, speech) == 0).all()
    assert (mel(quieter, speech) > 0).all()
    torch.testing.assert_close(mel(noisy, speech), mel(speech, noisy))
    direct = mel(noisy, quieter)
    assert (direct <= mel(noisy, speech) + mel(speech, quieter) + 1e-5).all()


def test_the_sign_of_the_samples_does_not_matter(mel, speech):
    torch.testing.assert_close(
        mel(-speech, speech), torch.zeros(len(MEL_SCALES)), atol=1e-4, rtol=0
    )


def test_ten_times_as_loud_is_one_in_every_scale(mel):
    # So loud that the floor does not count.
    noise = 1e3 * torch.randn(1, 1, 16_000, generator=torch.Generator().manual_seed(0))
    distance = mel(10 * noise, noise)
    torch.testing.assert_close(distance, torch.ones(len(MEL_SCALES)), atol=1e-3, rtol=0)


def test_what_nobody_hears_counts_little(mel):
    noise = torch.randn(1, 1, 16_000, generator=torch.Generator().manual_seed(0))
    silence = torch.zeros_like(noise)
    inaudible, faint = mel(1e-5 * noise, silence), mel(1e-2 * noise, silence)
    assert (inaudible > 0).all()
    assert (inaudible < 0.05 * faint).all()


def test_silence_has_finite_gradients(mel, speech):
    wav = torch.zeros_like(speech, requires_grad=True)
    mel(wav, speech).sum().backward()
    assert wav.grad is not None
    assert torch.isfinite(wav.grad).all()


def test_only_the_short_scales_hear_where_in_its_period_a_voice_has_its_pulses(mel):
    pulses = torch.zeros(1, 1, 16_000)
    pulses[:, :, ::160] = 0.5
    distances = mel(pulses.roll(80, dims=2), pulses)
    assert distances[:SHORT_SCALES].sum() > 0.8 * distances.sum()
    assert distances[-1] < 0.05 * distances[0]


def test_consistency_pulls_a_vector_to_the_one_that_it_should_be():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(32, 8, generator=generator)
    vectors = torch.randn(2, 50, 8, generator=generator, requires_grad=True)
    wanted = torch.randn(2, 50, 8, generator=generator)
    right, wrong = (consistency_loss(vectors, table, goal) for goal in (vectors.detach(), wanted))
    assert right < wrong
    (gradient,) = torch.autograd.grad(wrong, vectors)
    nearer = vectors - 10 * gradient
    assert ((nearer - wanted).norm(dim=2) < (vectors - wanted).norm(dim=2)).float().mean() > 0.95
    scaled = consistency_loss(3 * vectors, 3 * table, 3 * wanted)
    torch.testing.assert_close(scaled, wrong)
    # Moving away from all codes wins nothing.
    far = consistency_loss(3 * vectors, table, wanted)
    assert far > wrong
