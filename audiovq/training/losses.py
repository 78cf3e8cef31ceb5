"""What training minimises, besides the codebooks' own losses. All in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from audiovq.hearing import AUDIBLE, MEL_SCALES

SHORT_SCALES = 3
"""The first scales, with windows of up to 128 samples: they see when sound happens."""


class MelLoss(nn.Module):
    """Distance of log-mel spectrograms over several windows (Kumar et al. 2023, DAC).

    wav, target [B, 1, N] -> one distance for each of `MEL_SCALES`: the mean absolute difference of
    log10 mel magnitudes, to which that of noise at `AUDIBLE` is added. Bands too narrow for a
    window's bins to fill are left out.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for index, (n_fft, n_mels) in enumerate(MEL_SCALES):
            filters = melscale_fbanks(
                n_fft // 2 + 1, 0.0, sample_rate / 2, min(n_mels, n_fft // 8 + 1), sample_rate
            )
            filters = filters[:, filters.sum(dim=0) > 0]
            self.register_buffer(f"filters_{index}", filters, persistent=False)
            self.register_buffer(f"window_{index}", torch.hann_window(n_fft), persistent=False)

    def log_mels(self, wav: Tensor) -> list[Tensor]:
        """Log10 mel magnitudes of wav [B, 1, N], one tensor [B, bands, frames] for each scale."""
        mels = []
        for index, (n_fft, _) in enumerate(MEL_SCALES):
            window = getattr(self, f"window_{index}")
            spectra = torch.stft(
                wav.squeeze(1).float(), n_fft, n_fft // 4, window=window, return_complex=True
            )
            # abs() has no gradient at 0; the floor keeps it finite.
            magnitude = (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt()
            mel = getattr(self, f"filters_{index}").t() @ magnitude
            mels.append((mel + AUDIBLE * window.square().sum().sqrt()).log10())
        return mels

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.log_mels(target)
        return torch.stack([F.l1_loss(a, b) for a, b in zip(self.log_mels(wav), goal)])
