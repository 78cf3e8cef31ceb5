"""Source and filter: the part of the decoder that voices harmonics.

Phases that are a function of the frame cannot follow a moving pitch where a period is short beside
the frame. So above `ModelConfig.crossover` the sound is not an inverse STFT of free phases: three
excitations with a phase of their own, which runs from sample to sample, are filtered by magnitudes
alone, four times a frame (after the neural source-filter model of Wang et al. 2019, and HiFTNet,
Li et al. 2023). The fundamental is read from the tokens.

Phases and positions are whole numbers, so that a sum of any length has one value however it is
cut: an oscillator that has run for an hour is exact to a 2**32nd of a period.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from audiovq.config import SUBFRAMES, ModelConfig
from audiovq.layers import CausalConv, CausalStack, Fourier, OverlapAdd, ResidualBlock, State

PITCH_FLOOR = 60.0
"""Lowest fundamental, in Hz."""
PITCH_CLASSES = 96
"""Classes of the fundamental, 37.5 cents each: three octaves."""
_PER_OCTAVE = 32
_STEPS = 1024  # of the fundamental between two classes
_PERIOD = 1 << 32  # of the oscillator's phase
_START = 100.0  # Hz before the first frame
_NOISE_SAMPLES = 1 << 15
N_EXCITATIONS = 3


class Pitch(nn.Module):
    """Quantized latent [B, T, D] -> scores of the classes of the fundamental [B, T, 96].

    Frame t's score is for the fundamental at the end of the excitation that the decoder makes with
    frame t; see `ModelConfig.source_delay`.
    """

    steps: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.pitch_channels
        self.stack = CausalStack(
            [
                CausalConv(config.channels[-1], width, stride=1, taps=2),
                *(
                    ResidualBlock(width, config.kernel_size, expansion=2)
                    for _ in range(config.pitch_blocks)
                ),
            ]
        )
        self.head = nn.Linear(width, PITCH_CLASSES)
        steps = torch.arange((PITCH_CLASSES - 1) * _STEPS + 1, dtype=torch.float64) / _STEPS
        hertz = (PITCH_FLOOR * torch.exp2(steps / _PER_OCTAVE)).float()
        self.register_buffer("steps", hertz, persistent=False)

    def initial_state(self, batch: int) -> State:
        """The silence before the start."""
        return self.stack.initial_state(batch)

    def forward(self, z_q: Tensor, state: State) -> tuple[Tensor, State]:
        x, state = self.stack(z_q, state)
        return self.head(x).float(), state

    def hertz(self, scores: Tensor) -> Tensor:
        """Scores [B, T, 96] -> fundamental [B, T] in Hz: the mean around the best class, as CREPE
        has it (Kim et al. 2018)."""
        classes = torch.arange(PITCH_CLASSES, device=scores.device)
        far = (classes - scores.argmax(dim=-1, keepdim=True)).abs() > 3
        mean = (scores.masked_fill(far, -1e9).softmax(dim=-1) * classes).sum(dim=-1)
        # Looked up: an exponential of a few numbers may differ in its last bit from that of many.
        return self.steps[(mean * _STEPS).round().to(torch.int64)]

    @staticmethod
    def loss(scores: Tensor, hertz: Tensor) -> Tensor:
        """Cross-entropy of scores [B, T, 96] with the fundamental [B, T] in Hz, blurred by a class;
        frames of 0 Hz are unvoiced and left out."""
        classes = torch.arange(PITCH_CLASSES, device=scores.device)
        goal = _PER_OCTAVE * (hertz.clamp(min=PITCH_FLOOR) / PITCH_FLOOR).log2()
        target = (-0.5 * (classes - goal.unsqueeze(-1)).square()).softmax(dim=-1)
        entropy = -(target * scores.log_softmax(dim=-1)).sum(dim=-1)
        voiced = (hertz >= PITCH_FLOOR).to(entropy.dtype)
        return (entropy * voiced).sum() / voiced.sum().clamp(min=1)


class Excitation(nn.Module):
    """Fundamental [B, T] in Hz at the end of each frame -> samples [B, 3, T * hop], RMS about 1.

    Pulses (all harmonics up to half the sample rate, equally strong), white noise, and noise that
    swells once a period, as breath does. The fundamental is interpolated from frame to frame. The
    state is int64 [B, 3], 0 at the start: phase, its increment at the last sample less that of
    100 Hz, position in the noise.
    """

    noise: Tensor

    def __init__(self, hop_length: int, sample_rate: int) -> None:
        super().__init__()
        self.hop_length, self.sample_rate = hop_length, sample_rate
        self.start = round(_START / sample_rate * _PERIOD)
        # Whole numbers from a fixed generator: the same noise on every machine.
        drawn = np.random.Generator(np.random.PCG64(0)).integers(0, 1 << 24, _NOISE_SAMPLES)
        noise = (drawn / (1 << 23) - 1) * math.sqrt(3)
        self.register_buffer("noise", torch.from_numpy(noise.astype(np.float32)), persistent=False)

    def initial_state(self, batch: int) -> Tensor:
        """Phase 0, 100 Hz, the noise's beginning."""
        return torch.zeros(batch, 3, dtype=torch.int64, device=self.noise.device)

    def _increments(self, f0: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Phase increments at the end of each frame [B, T], and of every sample [B, T, hop]."""
        ends = (f0.double() * (_PERIOD / self.sample_rate)).round().to(torch.int64)
        before = torch.cat([state[:, 1:2] + self.start, ends[:, :-1]], dim=1).unsqueeze(-1)
        ramp = torch.arange(1, self.hop_length + 1, device=f0.device)
        rise = (ends.unsqueeze(-1) - before) * ramp
        return ends, before + torch.div(rise, self.hop_length, rounding_mode="floor")

    def after(self, f0: Tensor, state: Tensor) -> Tensor:
        """The state after these frames, of which there may be none."""
        if not f0.shape[1]:
            return state
        ends, increments = self._increments(f0, state)
        phase = (state[:, 0] + increments.sum(dim=(1, 2))) % _PERIOD
        position = (state[:, 2] + f0.shape[1] * self.hop_length) % _NOISE_SAMPLES
        return torch.stack([phase, ends[:, -1] - self.start, position], dim=1)

    def forward(self, f0: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        _, increments = self._increments(f0, state)
        increments = increments.flatten(1)  # [B, T * hop]
        phase = (state[:, :1] + increments.cumsum(dim=1)) % _PERIOD
        # From -pi to pi; a period's last bits are dropped, alike everywhere.
        angle = (phase - (phase >= _PERIOD // 2) * _PERIOD).float() * (2 * math.pi / _PERIOD)
        steps = torch.arange(increments.shape[1], device=f0.device)
        noise = self.noise[(state[:, 2:] + steps) % _NOISE_SAMPLES]
        breath = noise * (1 + angle.cos()) * math.sqrt(2 / 3)
        excitations = torch.stack([_pulses(angle, increments), noise, breath], dim=1)
        return excitations, self.after(f0, state)


def _pulses(angle: Tensor, increments: Tensor) -> Tensor:
    """The sum of all harmonics below half the sample rate, in closed form (Dirichlet's kernel).

    The last harmonic fades in and out with the fundamental, or it would click.
    """
    n_harmonics = _PERIOD / 2 / increments.float()
    whole = n_harmonics.floor()
    half = torch.sin(angle / 2)
    at_pulse = half.abs() < 1e-4
    half = half.masked_fill(at_pulse, 1.0)

    def harmonics(n: Tensor) -> Tensor:
        return torch.where(at_pulse, n, torch.sin((n + 0.5) * angle) / (2 * half) - 0.5)

    total = torch.lerp(harmonics(whole - 1), harmonics(whole), n_harmonics - whole)
    return total * (2 / n_harmonics).sqrt()


class SourceFilter(nn.Module):
    """The decoder's frames [B, T, C] and the fundamental [B, T] -> samples [B, T * hop].

    The output lags as the decoder's inverse STFT does, by `overlap_frames` frames.
    """

    window: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pitch = Pitch(config)
        self.n_pitch = config.pitch_blocks + 1  # tensors of its state, the first ones
        width, size = config.source_channels, config.hop_length
        self.width, self.size, self.shift = width, size, size // SUBFRAMES
        self.excitation = Excitation(config.hop_length, config.sample_rate)
        self.split = nn.Linear(config.decoder_channels, SUBFRAMES * width)
        self.stack = CausalStack(
            [ResidualBlock(width, config.kernel_size, 3) for _ in range(config.source_blocks)]
        )
        self.norm = nn.LayerNorm(width)
        self.gains = nn.Linear(width, N_EXCITATIONS * (size // 2 + 1))
        # A filter that is nearly silent: the first steps shall not drown the speech in noise.
        with torch.no_grad():
            self.gains.weight.mul_(0.1)
            self.gains.bias.fill_(-5.0)
        self.fourier = Fourier(size)
        self.overlap_add = OverlapAdd(size, self.shift)
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.delay = config.source_delay

    def initial_state(self, batch: int) -> State:
        """The blocks' silence, the excitation's start, its window's past, nothing to overlap with,
        and what waits for the inverse STFT."""
        zeros = self.window.new_zeros
        return [
            *self.pitch.initial_state(batch),
            *self.stack.initial_state(batch),
            self.excitation.initial_state(batch),
            zeros(batch, N_EXCITATIONS, self.size - self.shift),
            self.overlap_add.initial_state(batch),
            zeros(batch, self.delay),
        ]

    def contour(self, z_q: Tensor, state: State) -> tuple[Tensor, State]:
        """The fundamental [B, T] in Hz of quantized latents [B, T, D]."""
        scores, after = self.pitch(z_q, state[: self.n_pitch])
        return self.pitch.hertz(scores), [*after, *state[self.n_pitch :]]

    def start_at(self, new: State, state: State, f0: Tensor) -> State:
        """See `Decoder.start_at`: the pitch's blocks and the excitation remember all."""
        *blocks, _, past, overlap, waiting = new[self.n_pitch :]
        excitation = self.excitation.after(f0, state[-4])
        return [*state[: self.n_pitch], *blocks, excitation, past, overlap, waiting]

    def forward(self, x: Tensor, f0: Tensor, state: State) -> tuple[Tensor, State]:
        *blocks, excitation, past, overlap, waiting = state[self.n_pitch :]
        fine = self.split(x).reshape(len(x), -1, self.width)  # [B, 4 * T, width]
        fine, after = self.stack(fine, blocks)
        gains = self.gains(self.norm(fine)).float().clamp(max=5.0).exp()
        gains = gains.unflatten(-1, (N_EXCITATIONS, -1)).transpose(1, 2)  # [B, 3, 4 * T, bins]
        samples, excitation = self.excitation(f0, excitation)
        samples = torch.cat([past, samples], dim=2)
        windows = samples.unfold(2, self.size, self.shift) * self.window
        real, imag = self.fourier(windows)  # [B, 3, 4 * T, bins]
        frames = self.fourier.inverse((real * gains).sum(dim=1), (imag * gains).sum(dim=1))
        sound, overlap = self.overlap_add(frames, overlap)  # [B, 4 * T, shift]
        sound = torch.cat([waiting, sound.flatten(1)], dim=1)
        n_samples = sound.shape[1] - self.delay
        past = samples[:, :, samples.shape[2] - past.shape[2] :]
        after = [*state[: self.n_pitch], *after, excitation, past, overlap, sound[:, n_samples:]]
        return sound[:, :n_samples], after
