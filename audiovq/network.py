"""Encoder and decoder: waveform to latent frames, and latent frames to waveform."""

import torch
from torch import Tensor, nn

from audiovq.config import ModelConfig
from audiovq.layers import CausalConv, CausalStack, OverlapAdd, ResidualBlock, State


class Encoder(nn.Module):
    """Strided causal convolutions with residual blocks between them.

    wav [B, 1, T * hop] -> latent [B, T, D], D = channels[-1]. Causal: frame t sees the samples up
    to its own last one. The lookahead is the caller's: it feeds samples ahead and drops frames.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers: list[CausalConv | ResidualBlock] = []
        width = 1
        for index, (stride, channels) in enumerate(zip(config.strides, config.channels)):
            layers.append(CausalConv(width, channels, stride, config.taps(index)))
            for _ in range(config.encoder_blocks[index]):
                layers.append(ResidualBlock(channels, config.kernel_size, config.encoder_expansion))
            width = channels
        self.stack = CausalStack(layers)
        self.norm = nn.LayerNorm(width)

    def initial_state(self, batch: int) -> State:
        """The silence before the start."""
        return self.stack.initial_state(batch)

    def forward(self, wav: Tensor, state: State) -> tuple[Tensor, State]:
        z, state = self.stack(wav.transpose(1, 2), state)  # [B, T, D]
        return self.norm(z), state


class Decoder(nn.Module):
    """Residual blocks at the frame rate and an inverse-STFT head (after Vocos, Siuzdak 2023).

    Quantized latent [B, T, D] -> wav [B, 1, T * hop], which lags by `overlap_frames` frames: sample
    0 of the output is `overlap_frames * hop` samples before the first frame.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_channels
        self.stack = CausalStack(
            [
                CausalConv(config.channels[-1], width, stride=1, taps=2),
                *(
                    ResidualBlock(width, config.kernel_size, config.decoder_expansion)
                    for _ in range(config.decoder_blocks)
                ),
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.n_fft + 2)
        self.overlap_add = OverlapAdd(config.n_fft, config.hop_length)

    def initial_state(self, batch: int) -> State:
        """The silence before the start, and nothing to overlap with."""
        return [*self.stack.initial_state(batch), self.overlap_add.initial_state(batch)]

    def forward(self, z_q: Tensor, state: State) -> tuple[Tensor, State]:
        x, after = self.stack(z_q, state[:-1])
        log_magnitude, phase = self.head(self.norm(x)).float().chunk(2, dim=-1)  # [B, T, bins]
        # The bound keeps a stray exponent from turning one frame into infinities.
        spectra = torch.polar(log_magnitude.clamp(max=6.0).exp(), phase)
        frames, overlap = self.overlap_add(spectra, state[-1])  # [B, T, hop]
        return frames.flatten(1).unsqueeze(1), [*after, overlap]
