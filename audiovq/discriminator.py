"""Discriminators for adversarial training, made of matrix products so that a CPU can afford them.

Periods (Kong et al. 2020, HiFi-GAN) and complex STFTs (Defossez et al. 2022, EnCodec), both as
strided 1-D convolutions with channels last: over the samples of one phase of a period, and over the
frames of a spectrogram.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from audiovq.layers import CausalConv

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (16, 32, 64, 128)
STFT_SIZES = (256, 512, 1024)
STFT_CHANNELS = 128
STFT_LAYERS = 4
_COMPRESSION = 0.3  # magnitudes to this power, so that faint sounds count too


class ConvTower(nn.Module):
    """Convolutions [B, T, C], each followed by a leaky ReLU, and a score for each last frame."""

    def __init__(self, channels: tuple[int, ...], stride: int, taps: int) -> None:
        super().__init__()
        self.stride = stride
        self.layers: Sequence[CausalConv] = nn.ModuleList(  # type: ignore[assignment]
            CausalConv(before, after, stride, taps) for before, after in pairwise(channels)
        )
        self.score = CausalConv(channels[-1], 1, stride=1, taps=taps)
        for layer in [*self.layers, self.score]:
            layer.linear = weight_norm(layer.linear)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The activations of every layer, the scores last."""
        activations = []
        for layer in self.layers:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stride))
            x = F.leaky_relu(layer(x, layer.initial_state(len(x)))[0], 0.1)
            activations.append(x)
        return [*activations, self.score(x, self.score.initial_state(len(x)))[0]]


class Discriminator(nn.Module):
    """Multi-period and multi-resolution STFT discriminators together.

    wav [B, 1, N] -> for each sub-discriminator the activations of its layers, its scores last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.periods = nn.ModuleList(
            ConvTower((1, *PERIOD_CHANNELS), stride=3, taps=2) for _ in PERIODS
        )
        self.stfts = nn.ModuleList(
            ConvTower((n_fft + 2, *[STFT_CHANNELS] * STFT_LAYERS), stride=1, taps=3)
            for n_fft in STFT_SIZES
        )
        for n_fft in STFT_SIZES:
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft), persistent=False)

    def forward(self, wav: Tensor) -> list[list[Tensor]]:
        outputs = [tower(_phases(wav, period)) for tower, period in zip(self.periods, PERIODS)]
        for tower, n_fft in zip(self.stfts, STFT_SIZES):
            outputs.append(tower(self._spectrogram(wav, n_fft)))
        return outputs

    def _spectrogram(self, wav: Tensor, n_fft: int) -> Tensor:
        """Compressed complex STFT [B, frames, 2 * bins]."""
        with torch.autocast(wav.device.type, enabled=False):
            window = getattr(self, f"window_{n_fft}")
            wav = wav.squeeze(1).float()
            spectra = torch.stft(wav, n_fft, n_fft // 4, window=window, return_complex=True)
            power = spectra.real.square() + spectra.imag.square() + 1e-8
            spectra = spectra * power ** ((_COMPRESSION - 1) / 2)
            return torch.cat([spectra.real, spectra.imag], dim=1).transpose(1, 2)


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Hinge loss (Lim and Ye 2017), the mean over the sub-discriminators."""
    losses = [
        F.relu(1 - r[-1].float()).mean() + F.relu(1 + f[-1].float()).mean()
        for r, f in zip(real, fake)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(fake: list[list[Tensor]]) -> Tensor:
    """What the generator minimises to be taken for real, the mean over the sub-discriminators."""
    return torch.stack([-f[-1].float().mean() for f in fake]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Feature matching (Kumar et al. 2019), each layer relative to its mean activation."""
    losses = [
        F.l1_loss(b.float(), a.float()) / a.float().abs().mean().clamp(min=1e-3)
        for r, f in zip(real, fake)
        for a, b in zip(r[:-1], f[:-1])
    ]
    return torch.stack(losses).mean()


def _phases(wav: Tensor, period: int) -> Tensor:
    """wav [B, 1, N] -> [B * period, N / period, 1]: every period-th sample, from each start."""
    wav = F.pad(wav, (0, -wav.shape[2] % period))
    phases = wav.reshape(len(wav), -1, period).transpose(1, 2)  # [B, period, N / period]
    return phases.reshape(-1, phases.shape[2], 1)
