"""What training minimises, besides the codebooks' own losses. All in float32."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from audiovq.hearing import AUDIBLE, MEL_SCALES
from audiovq.quantize import nearest
from audiovq.source import Pitch

SHORT_SCALES = 3
"""The first scales, with windows of up to 128 samples: they see when sound happens."""


STOI_BANDS, STOI_LOWEST_HZ, STOI_FRAMES, STOI_CLIP_DB = 15, 150.0, 30, 15.0
"""Third octaves from 150 Hz on, in segments of 30 frames; distortion counts up to -15 dB."""
STOI_FLOOR, STEADY = 10 * AUDIBLE, 3e-3
"""RMS amplitude of noise that is added to both, and the share of a band's power by which it must
change to count: STOI has neither, and gradients without bound where a band is empty or steady."""
CONTEXT = (0, -4, 4)
"""Frames from a code's own to those whose labels it says: its own, one before and one after."""
SHARPNESS = 2.0
"""Log-odds of two codes whose squared distances differ by that of neighbouring codes."""


class MelLoss(nn.Module):
    """Distance of log-mel spectrograms over several windows (Kumar et al. 2023, DAC).

    wav, target [B, 1, N] -> one distance for each of `MEL_SCALES`: the mean absolute difference of
    log10 mel magnitudes, to which that of noise at `AUDIBLE` is added. Bands too narrow for a
    window's bins to fill are left out.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
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


def sound_losses(wav: Tensor, target: Tensor, mel_loss: MelLoss) -> dict[str, Tensor]:
    """What brings decoded sound [B, 1, N] near the target, but for the discriminators."""
    distances = mel_loss(wav, target)
    return {
        "mel": distances.sum(),
        "mel_short": distances[:SHORT_SCALES].sum(),
        "waveform": F.l1_loss(wav, target),
        "intelligibility": intelligibility_loss(wav, target, mel_loss.sample_rate),
    }


def intelligibility_loss(wav: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """1 - STOI (Taal et al. 2011) of wav [B, 1, N] against the target, 0 when they are alike.

    Envelopes of third octaves are correlated over 384 ms, or over all there is of shorter crops.
    Frames 40 dB below a crop's loudest do not count, as they are left out there.
    """
    n_fft = sample_rate // 250 * 13  # about as fine in frequency as there
    bands = _third_octaves(sample_rate, n_fft).to(wav.device)

    def envelopes(x: Tensor) -> tuple[Tensor, Tensor]:
        """Of sound [B, 1, N]: [B, bands, frames], and the power of frames [B, frames]."""
        length = n_fft // 2
        window = torch.hann_window(length, device=x.device)
        spectra = torch.stft(
            x.squeeze(1).float(), n_fft, length // 2, length, window, return_complex=True
        )
        power = spectra.real.square() + spectra.imag.square()
        floor = bands.sum(1)[:, None] * STOI_FLOOR**2 * window.square().sum()
        return (bands @ power + floor).sqrt(), power.sum(1)

    (wanted, loudness), (found, _) = envelopes(target), envelopes(wav)
    heard = loudness > 1e-4 * loudness.amax(1, keepdim=True)
    n_frames = min(STOI_FRAMES, heard.shape[1])
    heard = heard[:, None].unfold(2, n_frames, 1).float()
    wanted, found = (heard * x.unfold(2, n_frames, 1) for x in (wanted, found))
    found = found * (wanted.norm(dim=3, keepdim=True) / found.norm(dim=3, keepdim=True).clamp(1e-8))
    found = torch.minimum(found, wanted * (1 + 10 ** (STOI_CLIP_DB / 20)))
    n_heard = heard.sum(3, keepdim=True)
    weight = (n_heard[..., 0] - n_frames / 2).clamp(min=0)  # little is known of a few frames
    power = wanted.square().sum(3)
    wanted, found = (
        heard * (x - x.sum(3, keepdim=True) / n_heard.clamp(min=1)) for x in (wanted, found)
    )
    # Without the last term, what hardly changes would have gradients without bound.
    norms = wanted.norm(dim=3) * found.norm(dim=3) + STEADY * power
    alike = (wanted * found).sum(3) / norms.clamp(min=1e-8)
    weight = weight.expand_as(alike)
    return 1 - (weight * alike).sum() / weight.sum().clamp(min=1e-8)


@functools.cache
def _third_octaves(sample_rate: int, n_fft: int) -> Tensor:
    """Which bins belong to which of STOI's bands: [15, bins], 0 or 1."""
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    edges = STOI_LOWEST_HZ * 2.0 ** ((2 * torch.arange(STOI_BANDS + 1) - 1) / 6)
    nearest_bins = (bins - edges[:, None]).abs().argmin(1)
    index = torch.arange(len(bins))
    inside = (index >= nearest_bins[:-1, None]) & (index < nearest_bins[1:, None])
    return inside.float()


def other_losses(output: dict[str, Any], batch: dict[str, Any], shift: int) -> dict[str, Tensor]:
    """What is learned besides the sound: `unit_losses`, and what the other outputs ask for.

    output: `pitch`, the scores for `pitch_loss`; `commitment` [n_q]; `unit_vectors` for
    `keeping_losses`; `log_codes` [B, T, K] of `LabelledCodes`. Each has its losses if it is there.
    batch: `id` of the B crops; `pitch` [B, T] in Hz; `unit_table` [K, D] where units are to stay or
    to agree, and `kept_vectors` [B, T, D] where those of another model are to stay.
    """
    losses = unit_losses(output, batch, shift)
    if "pitch" in output:
        losses["pitch"] = pitch_loss(output["pitch"], batch["pitch"])
    kept = batch.get("kept_vectors")
    if "unit_table" in batch:
        twice = len(output["unit_vectors"]) > len(batch["id"])
        losses |= keeping_losses(output["unit_vectors"], batch["unit_table"], kept, twice=twice)
    if "log_codes" in output:
        losses["code_use"] = unused(output["log_codes"])
        if len(output["log_codes"]) > len(batch["id"]):
            losses["agreement"] = shared_agreement(output["log_codes"])
    # The unit that is nearest may not be the one that consistency asks for.
    committed = output.get("commitment", [])[0 if kept is None else 1 :]
    if len(committed):
        losses["commitment"] = committed.mean()
    return losses


def keeping_losses(
    vectors: Tensor, table: Tensor, wanted: Tensor | None, *, twice: bool
) -> dict[str, Tensor]:
    """What keeps vectors [B, T, D] those of the model whose vectors [B, T, D] are wanted, if any.

    twice: vectors [2 * B, T, D] are of two views of each crop, of which the first is kept. The
    second is to have its units; the two come to meet each other, so that the first lets go of what
    only it can hear.
    """
    first, second = vectors.chunk(2) if twice else (vectors, None)
    losses = {}
    if wanted is not None:
        losses["consistency"] = consistency_loss(first, table, wanted)
    if second is not None:
        losses["agreement"] = consistency_loss(second, table, first)
    return losses


def unit_losses(output: dict[str, Any], batch: dict[str, Any], shift: int) -> dict[str, Tensor]:
    """What makes units phoneme-like; unit t is compared with teacher frame t - shift.

    output: `teacher` [B, T, D] and `labels` [B, T, n_labels], what the heads on the units say, and
    `code_labels` [3, B, T, n_labels], what the codes say, each if it is there. batch: `teacher`
    [B, T, D] with `has_teacher` [B], `labels` [B, T, n_labels], their probabilities, all 0 where
    there are none.
    """
    losses = {}
    if "teacher" in output:
        n_frames = output["teacher"].shape[1] - shift
        distance = 1 - F.cosine_similarity(
            output["teacher"][:, shift:].float(), batch["teacher"][:, :n_frames], dim=-1
        )
        mask = batch["has_teacher"][:, None].float().expand_as(distance)
        losses["teacher"] = (distance * mask).sum() / mask.sum().clamp(min=1)
    if "labels" in output:
        losses["labels"] = label_loss(output["labels"], batch["labels"], shift)
    if "code_labels" in output:
        own, *around = (
            label_loss(said, batch["labels"], shift - frames)
            for frames, said in zip(CONTEXT, output["code_labels"], strict=True)
        )
        losses |= {"code_labels": own, "code_context": torch.stack(around).mean()}
    return losses


def label_loss(odds: Tensor, labels: Tensor, shift: int) -> Tensor:
    """Cross-entropy of log-odds [B, T, n_labels] at t with labels [B, T, n_labels] at t - shift."""
    wanted = F.pad(labels, (0, 0, shift, -shift))
    said = odds.float().log_softmax(dim=-1)
    return -(wanted * said).sum() / wanted.sum().clamp(min=1)


def consistency_loss(vectors: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
    """What brings vectors [B, T, D], that level 0 quantizes by the codes [K, D], to wanted ones.

    The squared distance of the vectors, and the cross-entropy of their distances to all codes with
    the units of the wanted ones (after Gat et al. 2023). All distances are relative to that between
    neighbouring codes, which does not move with the vectors.
    """
    x, goal = vectors.float().flatten(0, 1), wanted.float().flatten(0, 1)
    table = table.detach().float()
    scale = neighbour_distance(table)
    distances = squared_distances(x, table, scale)
    units = nearest(goal, table)
    away = (x - goal).square().sum(dim=1).mean() / scale
    return away + F.cross_entropy(-SHARPNESS * distances, units)


def shared_agreement(log_codes: Tensor) -> Tensor:
    """Cross-entropy of the codes of each hearing with the nearest code of the other one.

    log_codes: [2 * B, T, K], of two hearings of B crops.
    """
    first, second = (x.flatten(0, 1) for x in log_codes.chunk(2))
    return (F.nll_loss(second, first.argmax(dim=1)) + F.nll_loss(first, second.argmax(dim=1))) / 2


def unused(log_codes: Tensor) -> Tensor:
    """Nats by which the use of codes, from log-probabilities [B, T, K], is less even than all
    alike."""
    use = log_codes.exp().flatten(0, 1).mean(dim=0)
    return math.log(len(use)) + torch.special.xlogy(use, use).sum()


def neighbour_distance(table: Tensor) -> Tensor:
    """Mean squared distance of codes [K, D] from the one that is nearest to each, a scalar."""
    apart = torch.cdist(table, table).square().fill_diagonal_(math.inf)
    return apart.min(dim=1).values.mean()


def squared_distances(x: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Of each row of x [M, D] from each of table [K, D], as multiples of scale: [M, K]."""
    distances = (x.square().sum(dim=1, keepdim=True) + table.square().sum(dim=1)) / scale
    return torch.addmm(distances, x, table.t(), alpha=-2 / float(scale))


def pitch_loss(scores: Tensor, hertz: Tensor) -> Tensor:
    """Cross-entropy of the decoder's scores [B, T, classes] with the fundamental [B, T] in Hz at
    the end of each frame, 0 where there is none; 0 for a batch without any."""
    return Pitch.loss(scores, hertz)


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
