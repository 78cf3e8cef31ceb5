"""Encoder and decoder: waveform to latent frames, and latent frames to waveform."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq.config import ModelConfig
from audiovq.layers import (
    CausalConv,
    CausalStack,
    Fourier,
    Level,
    LogSpectrum,
    OverlapAdd,
    ResidualBlock,
    State,
)
from audiovq.source import SourceFilter


class Encoder(nn.Module):
    """Strided causal convolutions with residual blocks between them.

    wav [B, 1, T * hop] -> latent [B, T, D], D = channels[-1]. Causal: frame t sees the samples up
    to its own last one. The lookahead is the caller's: it feeds samples ahead and drops frames.

    With `unit_blocks` the last blocks are there twice, for the sound and for the units, and the
    latent is both side by side, [B, T, 2 * D], the sound's first.

    With `spectrum_size` a log spectrum joins the frames where the convolutions have reached the
    frame rate, and the units' own blocks once more.

    With `level_frames` the units share nothing with the sound but the spectrum, from which the
    level is divided out: their front stands in for the convolutions, and all blocks at the frame
    rate are there twice. With `unit_extra_blocks` the units have some more.
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
        self.unit_blocks = config.unit_blocks
        n_layers = len(layers)
        n_shared = n_layers - self.unit_blocks
        self.stack = CausalStack(layers[:n_shared])
        self.norm = nn.LayerNorm(width)
        if self.unit_blocks:
            self.sound = CausalStack(layers[n_shared:])
            self.units = copy.deepcopy(self.sound)
            self.unit_norm = nn.LayerNorm(width)
        self.join = n_layers - config.encoder_blocks[-1] - 1
        self.log_spectrum = None
        if config.spectrum_size:
            self.log_spectrum = LogSpectrum(config.spectrum_size, config.hop_length)
            self.spectrum = nn.Linear(config.spectrum_size, width)
            if self.unit_blocks:
                self.unit_spectrum = nn.Linear(config.spectrum_size, width)
        self.level: Level | None = None
        if config.level_frames and self.log_spectrum is not None:
            self.level = Level(config.level_frames, self.log_spectrum)
            self.level_floor = self.level.noise(config.level_floor) if config.level_floor else 0.0
            self.unit_front = nn.Linear(config.spectrum_size, width)
            self.unit_stack = copy.deepcopy(CausalStack(layers[self.join + 1 : n_shared]))
            for _ in range(config.unit_extra_blocks):
                block = ResidualBlock(width, config.kernel_size, config.encoder_expansion)
                self.unit_stack.layers.append(block)
        self.n_sound = n_shared + self.unit_blocks
        """Tensors of the state before those of the units' own layers."""
        self.unit_gradient = 1.0
        """Share of the units' gradient that reaches the layers they share with the sound."""

    def initial_state(self, batch: int) -> State:
        """The silence before the start."""
        state = self.stack.initial_state(batch)
        if self.unit_blocks:
            state += self.sound.initial_state(batch) + self.units.initial_state(batch)
        if self.log_spectrum is not None:
            state.append(self.log_spectrum.initial_state(batch))
        if self.level is not None:
            state += [*self.unit_stack.initial_state(batch), self.level.initial_state(batch)]
        return state

    def forward(self, wav: Tensor, state: State) -> tuple[Tensor, State]:
        n_shared, n_own = len(self.stack.layers), self.unit_blocks
        ends = n_shared + 2 * n_own
        x, after, powers, after_spectrum = wav.transpose(1, 2), [], None, []
        if self.log_spectrum is not None:
            powers, past = self.log_spectrum.powers(wav.squeeze(1), state[ends])
            after_spectrum = [past]
        for index, (layer, past) in enumerate(zip(self.stack.layers, state)):
            x, past = layer(x, past)  # [B, T, D] in the end
            after.append(past)
            if index == self.join and self.log_spectrum is not None and powers is not None:
                features = self.log_spectrum.features(powers)
                x = x + self.spectrum(features)
        if not n_own:
            return self.norm(x), after + after_spectrum
        sound, after_sound = self.sound(x, state[n_shared : n_shared + n_own])
        before_units = state[n_shared + n_own : ends]
        if self.level is not None and powers is not None:
            units, after_units, after_level = self._hear(powers, before_units, state[ends + 1 :])
        else:
            if x.requires_grad:
                x = torch.lerp(x.detach(), x, self.unit_gradient)
            if powers is not None:
                x = x + self.unit_spectrum(features)
            units, after_units = self.units(x, before_units)
            after_level = []
        z = torch.cat([self.norm(sound), self.unit_norm(units)], dim=-1)
        return z, after + after_sound + after_units + after_spectrum + after_level

    def _hear(self, powers: Tensor, state: State, front: State) -> tuple[Tensor, State, State]:
        """What the units' own layers make of powers, with `level_frames`."""
        assert self.level is not None
        level, after_level = self.level(powers, front[-1])
        features = self._levelled(powers, level)
        x, after_front = self.unit_stack(self.unit_front(features), front[:-1])
        x, state = self.units(x + self.unit_spectrum(features), state)
        return x, state, [*after_front, after_level]

    def _levelled(self, powers: Tensor, level: Tensor) -> Tensor:
        """The log spectrum of powers at one level, over the floor."""
        assert self.log_spectrum is not None
        return self.log_spectrum.features(powers / level + self.level_floor)

    def path(self, n_q: int) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """What computes all that `n_q` levels need of the latent: for the units alone `hear`, where
        they have layers of their own, else `forward`."""
        return self.hear if self.needed(n_q).start else self

    def needed(self, n_q: int) -> slice:
        """Which tensors of the state `path(n_q)` takes and gives."""
        return slice(self.n_sound if n_q == 1 and self.level is not None else 0, None)

    def hear(self, wav: Tensor, state: State) -> tuple[Tensor, State]:
        """The units' half of the latent of wav [B, 1, T * hop], [B, T, D], without the sound's
        layers; state: what is `needed` of it for one level. Only with `level_frames`."""
        assert self.log_spectrum is not None
        n_own = self.unit_blocks
        powers, after_spectrum = self.log_spectrum.powers(wav.squeeze(1), state[n_own])
        units, after, after_level = self._hear(powers, state[:n_own], state[n_own + 1 :])
        return self.unit_norm(units), [*after, after_spectrum, *after_level]

    @torch.no_grad()
    def fit_front(self, wavs: list[Tensor]) -> None:
        """Start the units' front as what comes nearest to the convolutions, of wavs [B, 1, N].

        Least squares from the spectrum at one level to what the layers at the frame rate get from
        the sound. Only with `level_frames`."""
        assert self.log_spectrum is not None
        assert self.level is not None
        inputs, outputs = [], []
        for wav in wavs:
            x, state = wav.transpose(1, 2), self.initial_state(len(wav))
            powers, _ = self.log_spectrum.powers(
                wav.squeeze(1), self.log_spectrum.initial_state(len(wav))
            )
            for layer, past in zip(self.stack.layers[: self.join + 1], state):
                x, _ = layer(x, past)
            x = x + self.spectrum(self.log_spectrum.features(powers))
            level, _ = self.level(powers, self.level.initial_state(len(wav)))
            features = self._levelled(powers, level)
            inputs.append(F.pad(features.flatten(0, 1), (0, 1), value=1.0).double())
            outputs.append(x.flatten(0, 1).double())
        a, b = torch.cat(inputs), torch.cat(outputs)
        ridge = 1e-4 * len(a) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        weights = torch.linalg.solve(a.t() @ a + ridge, a.t() @ b).t()
        self.unit_front.weight.copy_(weights[:, :-1])
        self.unit_front.bias.copy_(weights[:, -1])


class Decoder(nn.Module):
    """Residual blocks at the frame rate and an inverse-STFT head (after Vocos, Siuzdak 2023).

    Quantized latent [B, T, D] -> wav [B, 1, T * hop], which lags by `overlap_frames` frames: sample
    0 of the output is `overlap_frames * hop` samples before the first frame.

    With `source_channels` the inverse STFT fades out at `crossover`, and a `SourceFilter` is added.
    """

    fade: Tensor

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
        self.fourier = Fourier(config.n_fft)
        self.overlap_add = OverlapAdd(config.n_fft, config.hop_length)
        self.source: SourceFilter | None = None
        if config.source_channels:
            self.source = SourceFilter(config)
            low, high = config.crossover
            hertz = torch.arange(config.n_fft // 2 + 1) * config.sample_rate / config.n_fft
            share = ((hertz - low) / (high - low)).clamp(0, 1)
            fade = 0.5 + 0.5 * torch.cos(math.pi * share)
            self.register_buffer("fade", fade, persistent=False)
        self.n_free = len(self.stack.layers) + 1
        """Tensors of the state before those of the source."""

    def initial_state(self, batch: int) -> State:
        """The silence before the start, and nothing to overlap with."""
        state = [*self.stack.initial_state(batch), self.overlap_add.initial_state(batch)]
        return state if self.source is None else state + self.source.initial_state(batch)

    def contour(self, z_q: Tensor, state: State) -> tuple[Tensor | None, State]:
        """The fundamental [B, T] in Hz that `forward` uses, None without a source; the state moves
        on by its part."""
        if self.source is None:
            return None, state
        f0, after = self.source.contour(z_q, state[self.n_free :])
        return f0, [*state[: self.n_free], *after]

    def start_at(self, new: State, state: State, f0: Tensor | None) -> State:
        """The state to start from in the middle: `new`, that of a start, but for what remembers
        all.

        state: that before the frames of the fundamental f0 [B, T], which are passed over, with the
        part that `contour` moves on after them.
        """
        if self.source is None or f0 is None:
            return new
        own = self.source.start_at(new[self.n_free :], state[self.n_free :], f0)
        return [*new[: self.n_free], *own]

    def forward(self, z_q: Tensor, state: State, f0: Tensor | None = None) -> tuple[Tensor, State]:
        """f0: what `contour` gave for these frames, when it was called before; then the state of
        its part is left to the caller."""
        if f0 is None:
            f0, state = self.contour(z_q, state)
        x, after = self.stack(z_q, state[: self.n_free - 1])
        x = self.norm(x)
        log_magnitude, phase = self.head(x).float().chunk(2, dim=-1)  # [B, T, bins]
        # The bound keeps a stray exponent from turning one frame into infinities.
        magnitude = log_magnitude.clamp(max=6.0).exp()
        if self.source is not None:
            magnitude = magnitude * self.fade
        frames = self.fourier.inverse(magnitude * phase.cos(), magnitude * phase.sin())
        sound, overlap = self.overlap_add(frames, state[self.n_free - 1])  # [B, T, hop]
        wav, after = sound.flatten(1), [*after, overlap]
        if self.source is not None:
            voiced, after_source = self.source(x, f0, state[self.n_free :])
            wav, after = wav + voiced, after + after_source
        return wav.unsqueeze(1), after
