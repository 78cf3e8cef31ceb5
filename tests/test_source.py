"""The excitation is periodic and cut anywhere; the source voices harmonics and nothing below."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY

from audiovq.network import Decoder
from audiovq.source import PITCH_CLASSES, PITCH_FLOOR, Excitation, Pitch

HOP, RATE = 320, 16_000
WITH_SOURCE = replace(TINY, source_channels=16, pitch_channels=16)


def harmonic_share(sound: torch.Tensor, f0: float) -> float:
    """Share of the power [n] within 8 Hz of a multiple of f0."""
    power = torch.fft.rfft(sound * torch.hann_window(len(sound))).abs().square()
    hertz = torch.arange(len(power)) * RATE / len(sound)
    near = ((hertz + f0 / 2) % f0 - f0 / 2).abs() < 8
    return float(power[near].sum() / power.sum())


@pytest.mark.parametrize("f0", [63.0, 127.3, 250.0, 471.0])
def test_pulses_are_harmonics_and_noise_is_not(f0):
    layer = Excitation(HOP, RATE)
    # The first frame glides up from 100 Hz.
    sound, _ = layer(torch.full((1, 101), f0), layer.initial_state(1))
    pulses, noise, breath = sound[0, :, HOP:]
    assert harmonic_share(pulses, f0) > 0.99
    by_chance = 16 / f0
    assert harmonic_share(noise, f0) == pytest.approx(by_chance, rel=0.3)
    assert harmonic_share(breath, f0) == pytest.approx(by_chance, rel=0.3)
    for excitation in (pulses, noise, breath):
        assert float(excitation.square().mean().sqrt()) == pytest.approx(1, rel=0.1)


def test_pulses_are_flat_up_to_half_the_rate():
    layer = Excitation(HOP, RATE)
    sound, _ = layer(torch.full((1, 101), 200.0), layer.initial_state(1))
    power = torch.fft.rfft(sound[0, 0, HOP:] * torch.hann_window(100 * HOP)).abs()
    peaks = torch.stack([power[k * 400 - 3 : k * 400 + 4].max() for k in range(1, 39)])
    assert float(peaks.max() / peaks.min()) < 1.1


def test_breath_swells_with_the_pulse():
    layer = Excitation(HOP, RATE)
    sound, _ = layer(torch.full((1, 200), 100.0), layer.initial_state(1))
    periods = sound[0, :, HOP:].unflatten(1, (-1, 160)).square().mean(dim=1)  # [3, 160]
    at_pulse = int(periods[0].argmax())
    breath = periods[2].roll(80 - at_pulse)
    assert breath[60:100].mean() > 8 * torch.cat([breath[:20], breath[-20:]]).mean()


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 37], [17, 1, 22]])
def test_an_excitation_in_pieces_is_the_whole_bit_for_bit(sizes):
    torch.manual_seed(0)
    layer = Excitation(HOP, RATE)
    f0 = 60 + 400 * torch.rand(2, 40)
    whole, after = layer(f0, layer.initial_state(2))
    state, pieces = layer.initial_state(2), []
    for piece in f0.split(sizes, dim=1):
        assert torch.equal(layer.after(piece, state), layer(piece, state)[1])
        sound, state = layer(piece, state)
        pieces.append(sound)
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    assert torch.equal(state, after)
    assert torch.equal(after, layer.after(f0, layer.initial_state(2)))


def test_an_hour_later_the_phase_is_still_exact():
    """Sums of whole numbers: an hour in one step is an hour frame by frame."""
    layer = Excitation(HOP, RATE)
    state = layer.after(torch.full((1, 180_000), 200.0), layer.initial_state(1))
    increment = round(200 / RATE * 2**32)
    glide = sum(layer.start + (increment - layer.start) * step // HOP for step in range(1, HOP + 1))
    assert int(state[0, 0]) == (glide + 179_999 * HOP * increment) % 2**32


def test_the_fundamental_is_read_between_the_classes():
    pitch = Pitch(WITH_SOURCE)
    classes = torch.arange(PITCH_CLASSES)
    hertz = torch.tensor([70.0, 123.4, 240.0, 400.0])
    place = 32 * (hertz / PITCH_FLOOR).log2()
    scores = -0.5 * (classes - place[:, None]).square()
    cents = 1200 * (pitch.hertz(scores[None])[0] / hertz).log2()
    assert cents.abs().max() < 5


def test_the_pitch_loss_falls_to_the_truth_and_leaves_silence_out():
    classes = torch.arange(PITCH_CLASSES)
    hertz = torch.tensor([[100.0, 200.0, 0.0]])
    place = 32 * (hertz.clamp(min=PITCH_FLOOR) / PITCH_FLOOR).log2()
    right = -0.5 * (classes - place[..., None]).square()
    wrong = right.roll(5, dims=-1)
    assert Pitch.loss(right, hertz) < Pitch.loss(wrong, hertz)
    elsewhere = right.clone()
    elsewhere[0, 2] = torch.randn(PITCH_CLASSES)
    assert torch.equal(Pitch.loss(elsewhere, hertz), Pitch.loss(right, hertz))
    assert Pitch.loss(right, torch.zeros(1, 3)) == 0


def loud_decoder(config=WITH_SOURCE) -> Decoder:
    """Random weights, with a source that is heard."""
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        decoder.source.gains.bias.fill_(0.0)
    return decoder


def test_free_phases_end_at_the_crossover_and_the_source_goes_on():
    decoder = loud_decoder()
    z_q = torch.randn(1, 60, TINY.channels[-1])
    f0 = torch.full((1, 60), 220.0)
    with torch.no_grad():
        decoder.source.gains.bias.fill_(-30.0)
        silent, _ = decoder(z_q, decoder.initial_state(1), f0)
        # Pulses alone.
        decoder.source.gains.bias[: HOP // 2 + 1] = 0.0
        voiced, _ = decoder(z_q, decoder.initial_state(1), f0)
    power = torch.fft.rfft(silent[0, 0, 3200:16000] * torch.hann_window(12800)).abs().square()
    above = int(WITH_SOURCE.crossover[1] * 1.1 * 12800 / RATE)
    assert power[above:].sum() < 1e-4 * power.sum()
    assert harmonic_share((voiced - silent)[0, 0, 3200:16000], 220.0) > 0.9


def test_a_contour_beforehand_is_the_contour_inside():
    decoder = loud_decoder()
    z_q = torch.randn(2, 30, TINY.channels[-1])
    with torch.no_grad():
        inside, after = decoder(z_q, decoder.initial_state(2))
        f0, state = decoder.contour(z_q, decoder.initial_state(2))
        outside, after_outside = decoder(z_q, state, f0)
    assert torch.equal(inside, outside)
    assert all(map(torch.equal, after, after_outside))


def test_a_start_in_the_middle_meets_the_whole():
    """What a run of frames needs that begins in the middle, on another thread."""
    decoder, memory = loud_decoder(), WITH_SOURCE.decoder_memory
    z_q = torch.randn(1, memory + 40, TINY.channels[-1])
    initial = decoder.initial_state(1)
    with torch.no_grad():
        whole, _ = decoder(z_q, initial)
        f0, state = decoder.contour(z_q, initial)
        start = decoder.start_at(initial, state, f0[:, :20])
        late, _ = decoder(z_q[:, 20:], start, f0[:, 20:])
    np.testing.assert_allclose(
        late[0, 0, memory * HOP :].numpy(), whole[0, 0, (20 + memory) * HOP :].numpy(), atol=1e-6
    )


def test_a_shorter_memory_would_not_do():
    decoder, memory = loud_decoder(), WITH_SOURCE.decoder_memory
    z_q = torch.randn(1, memory + 40, TINY.channels[-1], requires_grad=True)
    f0 = torch.full((1, memory + 40), 150.0)
    wav, _ = decoder(z_q, decoder.initial_state(1), f0)
    frame = memory + 10
    (wav[0, 0, frame * HOP : (frame + 1) * HOP] * torch.randn(HOP)).sum().backward()
    moving = z_q.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert moving[-1] == frame
    assert memory - 2 <= frame - int(moving[0]) <= memory
