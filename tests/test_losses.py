"""Laws of the losses."""

import pytest
import torch
import torch.nn.functional as F

from audiovq.training.losses import (
    CONTEXT,
    MEL_SCALES,
    SHORT_SCALES,
    MelLoss,
    consistency_loss,
    intelligibility_loss,
    keeping_losses,
    unit_losses,
)


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


def noisy(speech: torch.Tensor, db: float) -> torch.Tensor:
    """Speech with white noise so many dB below it."""
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    return speech + noise * speech.square().mean().sqrt() * 10 ** (-db / 20)


def test_what_is_alike_is_wholly_intelligible(speech):
    assert intelligibility_loss(speech, speech, 16_000) < 0.05
    assert intelligibility_loss(-speech, speech, 16_000) < 0.05
    losses = [float(intelligibility_loss(noisy(speech, db), speech, 16_000)) for db in (20, 10, -5)]
    assert sorted(losses) == losses
    assert losses[-1] > 0.3


@pytest.mark.parametrize("db", [10, 0, -5])
def test_intelligibility_is_that_of_pystoi(speech, db):
    stoi = pytest.importorskip("pystoi").stoi
    wav = noisy(speech, db)
    measured = stoi(speech[0, 0].numpy(), wav[0, 0].numpy(), 16_000)
    assert 1 - float(intelligibility_loss(wav, speech, 16_000)) == pytest.approx(measured, abs=0.1)


def test_intelligibility_has_bounded_gradients(speech):
    silence = torch.zeros_like(speech)
    hardly = 1e-4 * noisy(silence + 1, 0)
    for target in (speech, silence, hardly, speech[:, :, :1_500]):
        for wav in (silence, hardly, noisy(speech, 10)):
            wav = wav[:, :, : target.shape[2]].clone().requires_grad_()
            loss = intelligibility_loss(wav, target, 16_000)
            (gradient,) = torch.autograd.grad(loss, wav)
            assert torch.isfinite(loss)
            assert gradient.norm() < 100


def test_a_batch_is_as_intelligible_as_its_crops(speech):
    clips = speech[..., :15_000], speech[..., -15_000:]
    wavs = [noisy(clip, 5) for clip in clips]
    each = [float(intelligibility_loss(*pair, 16_000)) for pair in zip(wavs, clips)]
    both = float(intelligibility_loss(torch.cat(wavs), torch.cat(clips), 16_000))
    assert min(each) <= both <= max(each)


def test_two_views_agree_with_a_model_to_keep_to_and_without():
    generator = torch.Generator().manual_seed(0)
    table, first, wanted = (torch.randn(n, 5, 8, generator=generator) for n in (6, 2, 2))
    table = table.flatten(0, 1)
    views = torch.cat([first, torch.randn(2, 5, 8, generator=generator)]).requires_grad_()
    alone = keeping_losses(views, table, None, twice=True)
    assert set(alone) == {"agreement"}
    (gradient,) = torch.autograd.grad(alone["agreement"], views)
    assert gradient[:2].any()  # each comes towards the other
    assert gradient[2:].any()
    moved = (views - 0.01 * gradient).detach().chunk(2)
    assert (moved[0] - moved[1]).norm() < (first - views[2:]).norm()
    both = keeping_losses(views, table, wanted, twice=True)
    torch.testing.assert_close(both["agreement"], alone["agreement"])
    torch.testing.assert_close(both["consistency"], consistency_loss(first, table, wanted))
    assert set(keeping_losses(first, table, wanted, twice=False)) == {"consistency"}


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


def test_codes_say_the_labels_of_their_frame_and_of_those_around():
    labels = F.one_hot(torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(0)), 40)
    right = [100.0 * labels.roll(2 - frames, dims=1) for frames in CONTEXT]  # two frames late
    batch = {"labels": labels.float()}
    losses = unit_losses({"code_labels": torch.stack(right)}, batch, 2)
    assert set(losses) == {"code_labels", "code_context"}
    assert all(float(loss) == pytest.approx(0, abs=1e-4) for loss in losses.values())
    own, before, after = right
    losses = unit_losses({"code_labels": torch.stack([own, after, before])}, batch, 2)
    assert losses["code_context"] > 1
    assert float(losses["code_labels"]) == pytest.approx(0, abs=1e-4)
    none = unit_losses({"labels": own}, {"labels": torch.zeros(2, 30, 40)}, 2)
    assert float(none["labels"]) == 0
