"""The network sees what its config says, and no more."""

import pytest
import torch
from tiny import TINY, started_model

from audiovq import ModelConfig
from audiovq.network import Decoder, Encoder

CONFIGS = [
    ModelConfig(channels=(8, 8, 8), decoder_channels=8, kernel_size=3),
    ModelConfig(strides=(40, 8), channels=(8, 8), encoder_blocks=(0, 2), lookahead=0),
    ModelConfig(strides=(4,), channels=(8,), encoder_blocks=(1,), n_fft=8, lookahead=2),
    ModelConfig(strides=(4,), channels=(8,), encoder_blocks=(1,), n_fft=8, spectrum_size=16),
    ModelConfig(strides=(40, 8), channels=(8, 8), encoder_blocks=(1, 3), unit_blocks=2),
    ModelConfig(
        strides=(40, 8),
        channels=(8, 8),
        encoder_blocks=(1, 2),
        unit_blocks=1,
        spectrum_size=512,
        level_frames=7,
    ),
    ModelConfig(
        strides=(40, 8), channels=(8, 8), encoder_blocks=(1, 3), unit_blocks=2, spectrum_size=512
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_outside_the_receptive_field_moves_a_frame(config):
    """The gradient of one frame is zero before its field and after its lookahead."""
    torch.manual_seed(0)
    encoder = Encoder(config).double()
    hop = config.hop_length
    frame = config.receptive_field // hop + 3
    wav = torch.randn(1, 1, (frame + 8) * hop, dtype=torch.float64, requires_grad=True)
    z, _ = encoder(wav, encoder.initial_state(1))
    (z[0, frame + config.lookahead] * torch.randn(z.shape[2])).sum().backward()
    moving = wav.grad[0, 0].nonzero().flatten()
    end = (frame + 1 + config.lookahead) * hop
    assert moving[-1] == end - 1
    seen = end - int(moving[0])
    # `receptive_field` counts the lookahead's samples beside the frame's own field.
    assert seen <= config.receptive_field <= seen + config.lookahead * hop


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_units_teach_the_shared_layers_only_their_share(share):
    """What units learn reaches their own blocks in full, and the sound's blocks not at all."""
    torch.manual_seed(0)
    encoder = Encoder(CONFIGS[-1]).double()
    wav = torch.randn(1, 1, 3200, dtype=torch.float64)
    gradients = []
    for encoder.unit_gradient in (1.0, share):
        encoder.zero_grad()
        z, _ = encoder(wav, encoder.initial_state(1))
        z.chunk(2, dim=-1)[1].square().sum().backward()
        assert not any(p.grad.any() for p in encoder.sound.parameters())
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, whole in gradients[0].items():
        if name.startswith(("stack.", "spectrum.")):
            torch.testing.assert_close(gradients[1][name], share * whole)
        elif whole is not None:
            torch.testing.assert_close(gradients[1][name], whole)
    own = ("units.", "unit_spectrum.")
    assert all(gradients[1][name].any() for name in gradients[1] if name.startswith(own))


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_codes_see_no_further_than_the_lookahead(lookahead, speech):
    model = started_model(ModelConfig(**(TINY.__dict__ | {"lookahead": lookahead})))
    hop, frame = model.config.hop_length, 40
    end = (frame + 1 + lookahead) * hop
    other = speech.clone()
    other[:, :, end:] = torch.randn_like(other[:, :, end:])
    codes, codes_other = model.encode(speech).indices, model.encode(other).indices
    assert torch.equal(codes[:, :, : frame + 1], codes_other[:, :, : frame + 1])
    assert not torch.equal(codes, codes_other)


def test_a_slice_past_the_receptive_field_has_the_tokens_of_the_whole(tiny_model, speech):
    config = tiny_model.config
    hop = config.hop_length
    n_early = -(-config.receptive_field // hop)
    start = 7
    whole = tiny_model.encode(speech).indices[:, :, start + n_early :]
    cut = tiny_model.encode(speech[:, :, start * hop :]).indices[:, :, n_early:]
    assert (whole != cut).sum() == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_the_decoder_lags_by_the_overlap_and_is_causal(config):
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    z_q = torch.randn(1, 12, config.channels[-1])
    other = z_q.clone()
    other[:, 6:] += 1.0
    with torch.no_grad():
        wav, _ = decoder(z_q, decoder.initial_state(1))
        wav_other, _ = decoder(other, decoder.initial_state(1))
    assert wav.shape == (1, 1, 12 * config.hop_length)
    # Frame 6's window reaches back over `overlap_frames` frames, which the output lags by.
    changed = (wav != wav_other)[0, 0].nonzero().flatten()
    # The window begins with a zero, so its first sample adds nothing.
    assert changed[0] in (6 * config.hop_length, 6 * config.hop_length + 1)


def test_the_decoder_survives_an_exponent_that_is_too_large():
    config = CONFIGS[0]
    decoder = Decoder(config).eval()
    with torch.no_grad():
        decoder.head.bias.fill_(1e4)
        wav, _ = decoder(torch.randn(1, 4, config.channels[-1]), decoder.initial_state(1))
    assert torch.isfinite(wav).all()
