"""Discriminators for adversarial training: 2-D convolutions over complex STFTs of several windows.

After Defossez et al. 2022 (EnCodec), with fewer channels, three windows instead of five, no
dilation, half-overlapping frames and compressed magnitudes, so that a CPU can afford them.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from audiovq.training.losses import AUDIBLE

STFT_SIZES = (256, 512, 1024)
CHANNELS = (2, 16, 32, 32, 32)
_COMPRESSION = 0.3  # magnitudes to this power, so that faint sounds count too


class StftDiscriminator(nn.Module):
    """wav [B, 1, N] -> the activations of every layer, the scores [B, 1, frames, bins / 16] last.

    Convolutions over frames and bins of the compressed complex STFT, four of them with a stride of
    two over the bins, each followed by a leaky ReLU.
    """

    window: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        last = CHANNELS[-1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (3, 9), (1, 2), padding=(1, 4)))
            for before, after in pairwise(CHANNELS)
        )
        self.layers.append(weight_norm(nn.Conv2d(last, last, 3, padding=1)))
        self.score = weight_norm(nn.Conv2d(last, 1, 3, padding=1))

    def forward(self, wav: Tensor) -> list[Tensor]:
        x, activations = self._spectrogram(wav), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            activations.append(x)
        return [*activations, self.score(x)]

    def _spectrogram(self, wav: Tensor) -> Tensor:
        """Compressed complex STFT [B, 2, frames, bins]."""
        with torch.autocast(wav.device.type, enabled=False):
            wav = wav.squeeze(1).float()
            spectra = torch.stft(
                wav, self.n_fft, self.n_fft // 2, window=self.window, return_complex=True
            )
            # The power of inaudible noise is added: below it the compression is steepest, and
            # draws the gradients to what nobody hears.
            floor = AUDIBLE**2 * self.window.square().sum()
            power = spectra.real.square() + spectra.imag.square() + floor
            x = torch.view_as_real(spectra * power ** ((_COMPRESSION - 1) / 2))
            return x.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)


class Discriminator(nn.Module):
    """An STFT discriminator for each of `STFT_SIZES`.

    wavs [B, 1, N] -> for each wav and each of them the activations of its layers, its scores last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stfts = nn.ModuleList(StftDiscriminator(n_fft) for n_fft in STFT_SIZES)

    def forward(self, *wavs: Tensor) -> list[list[list[Tensor]]]:
        return [[stft(wav) for stft in self.stfts] for wav in wavs]
