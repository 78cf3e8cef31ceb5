"""Causal layers over [B, T, C], with their memory of the past as an argument.

Every layer is called as `y, state = layer(x, state)`. `state` is one tensor of past inputs; zeros
stand for the silence before the start. A long input in one call, or cut into pieces with the state
carried over, is the same computation. The layout keeps channels last, so that every convolution is
one matrix product.

The layers' weights are laid out for training. `packed` gives a copy of a module for inference on
the CPU, in which every matrix lies as oneDNN or FBGEMM reads it where there is one; it computes the
same function, each frame alike however many there are.
"""

import copy
import warnings
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq.hearing import AUDIBLE

State = list[Tensor]
"""One tensor for each layer of a stack."""

ROWS = 16
"""Rows of the products that packed weights are laid out for and whose sums set the order."""


class CausalConv(nn.Module):
    """Strided causal convolution whose kernel is `taps` strides long.

    [B, T * stride, in_channels] -> [B, T, out_channels]; output t sees the inputs of frame t and of
    the `taps - 1` frames before it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, taps: int) -> None:
        super().__init__()
        self.frame = stride * in_channels
        self.taps = taps
        self.linear = nn.Linear(taps * self.frame, out_channels)

    def initial_state(self, batch: int) -> Tensor:
        """The silence before the start: [B, taps - 1, stride * in_channels]."""
        return self.linear.weight.new_zeros(batch, self.taps - 1, self.frame)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        frames = x.reshape(x.shape[0], -1, self.frame)  # [B, T, stride * in_channels]
        n_frames = frames.shape[1]
        past = torch.cat([state.to(x.dtype), frames], dim=1)  # [B, taps - 1 + T, ...]
        windows = torch.cat([past[:, tap : tap + n_frames] for tap in range(self.taps)], dim=-1)
        return self.linear(windows), past[:, n_frames:]


class ResidualBlock(nn.Module):
    """Depthwise causal convolution, normalisation, and a two-layer perceptron, added to the input.

    [B, T, C] -> [B, T, C]. After ConvNeXt (Liu et al., 2022), as Vocos uses it (Siuzdak, 2023).
    """

    def __init__(self, channels: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(kernel_size, channels) / kernel_size**0.5)
        self.up = nn.Linear(channels, channels * expansion)
        self.down = nn.Linear(channels * expansion, channels)

    def initial_state(self, batch: int) -> Tensor:
        """The silence before the start: [B, kernel_size - 1, C]."""
        kernel_size, channels = self.kernel.shape
        return self.kernel.new_zeros(batch, kernel_size - 1, channels)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        past = torch.cat([state.to(x.dtype), x], dim=1)  # [B, kernel_size - 1 + T, C]
        n_frames = x.shape[1]
        kernel = self.kernel.to(x.dtype)
        y = past[:, :n_frames] * kernel[0]
        for tap in range(1, len(kernel)):  # a grouped convolution is slower in this layout
            y = torch.addcmul(y, past[:, tap : tap + n_frames], kernel[tap])
        y = self.up(F.layer_norm(y, y.shape[-1:]))
        return x + self.down(F.gelu(y)), past[:, n_frames:]


class RowLinear(nn.Module):
    """A linear layer for inference, [..., in] -> [..., out], each row of which is computed alone.

    A library may sum a row's products in another order when there are few rows, or a few more than
    fill its tiles. Here the order is that of a product of `ROWS` rows. A number of rows that gives
    it is computed as it is, and another is filled up with zeros to one that does, which is tried
    when the number first comes, once a process for each kind and size of layer. Where no number
    does, the rows go in groups of `ROWS`; and one by one where a row's place in a group matters.

    All of it holds on one thread.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias.detach().clone()
        self.width = weight.shape[1]
        self.known = _known_rows.setdefault((type(self), *weight.shape), {})

    def product(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out] in one product, in whatever order."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        n = len(rows)
        if n not in self.known:
            self.known[n] = self._find_rows(n)
        size = self.known[n]
        if size == n:
            y = self.product(rows)
        elif size > n:
            y = self.product(F.pad(rows, (0, 0, 0, size - n)))[:n]
        else:
            groups = F.pad(rows, (0, 0, 0, -n % size)).split(size)
            y = torch.cat([self.product(group) for group in groups])[:n]
        return y.view(*x.shape[:-1], y.shape[1])

    @property
    def has_one_order(self) -> bool:
        """Whether a row's place among `ROWS` rows does not matter."""
        noise = self._noise()
        return torch.equal(self.product(noise.roll(1, 0)).roll(-1, 0), self.product(noise))

    def _noise(self) -> Tensor:
        # The order of a product's sums does not depend on the data, so noise finds any difference.
        generator = torch.Generator().manual_seed(0)
        return torch.randn(ROWS, self.width, generator=generator, device="cpu").to(self.bias.dtype)

    def _find_rows(self, n: int) -> int:
        """Rows to compute at once when there are n: n or a few more, or else the size of groups."""
        if not self.has_one_order:
            return 1
        noise = self._noise()
        wanted = self.product(noise)
        for size in range(n, n + ROWS):
            copies = -(-size // ROWS)
            if torch.equal(
                self.product(noise.repeat(copies, 1)[:size]), wanted.repeat(copies, 1)[:size]
            ):
                return size
        return ROWS


_known_rows: dict[tuple[type, int, int], dict[int, int]] = {}
"""For each kind and size of layer: what `RowLinear._find_rows` found."""


class PlainLinear(RowLinear):
    """A linear layer with its weight as it is: for any machine."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.weight = weight.detach().clone()

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear(RowLinear):
    """A linear layer whose weight is packed once for oneDNN.

    A product of few rows spends much of its time on laying out the weight; here that is done
    beforehand.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        # The operators that torch.compile emits for a linear layer with a constant weight.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "none")


class HalfLinear(RowLinear):
    """A linear layer with a weight that is kept in float16, which must hold it exactly.

    The products and their sums are float32 all the same (FBGEMM). A live stream has a few rows at a
    time, whose cost is that of fetching the weights: here half as many bytes.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        with warnings.catch_warnings():
            # torch calls both functions deprecated, each when it is first used. The operator it
            # keeps beside them, quantized::linear_dynamic_fp16, takes 10 us more for each call.
            warnings.simplefilter("ignore", UserWarning)
            self.weight = torch.fbgemm_pack_gemm_matrix_fp16(weight.detach())
            self.product(weight.new_zeros(1, weight.shape[1]))

    @staticmethod
    def holds(weight: Tensor) -> bool:
        """Whether there is FBGEMM here and float16 holds every number of this weight."""
        return (
            "fbgemm" in torch.backends.quantized.supported_engines
            and hasattr(torch, "fbgemm_linear_fp16_weight_fp32_activation")
            and torch.equal(weight.half().float(), weight)
        )

    def product(self, x: Tensor) -> Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.weight, self.bias)


def packed_linear(linear: nn.Linear) -> RowLinear:
    """A linear layer as inference runs it fastest here, its rows independent of each other."""
    weight, bias = linear.weight, linear.bias
    if can_pack(weight):
        kinds = [HalfLinear, PackedLinear] if HalfLinear.holds(weight) else [PackedLinear]
        for kind in kinds:
            layer: RowLinear = kind(weight, bias)
            if layer.has_one_order:
                return layer
    return PlainLinear(weight, bias)


class PackedBlock(nn.Module):
    """`ResidualBlock` for inference: the same function in fewer, larger steps."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.kernel = block.kernel.detach().clone().unsqueeze(1)  # [kernel_size, 1, C]
        self.up = packed_linear(block.up)
        self.down = packed_linear(block.down)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        past = torch.cat([state, x], dim=1)  # [B, kernel_size - 1 + T, C]
        n_frames = x.shape[1]
        windows = past.unfold(1, n_frames, 1).transpose(2, 3)  # [B, kernel_size, T, C]
        y = (windows * self.kernel).sum(dim=1)
        y = self.up(F.layer_norm(y, y.shape[-1:]))
        return self.down(F.gelu(y)).add_(x), past[:, n_frames:]


def can_pack(weight: Tensor) -> bool:
    """Whether weights can be packed where this one is: float32, x86 CPU with AVX2 or better."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


M = TypeVar("M", bound=nn.Module)


def packed(module: M) -> M:
    """A copy of `module` for inference, with its blocks and linear layers packed.

    The copy keeps the weights as they are now: it does not follow the module's training.
    """
    if isinstance(module, ResidualBlock):
        return cast(M, PackedBlock(module))
    if isinstance(module, nn.Linear):
        return cast(M, packed_linear(module))
    children = {name: packed(child) for name, child in module.named_children()}
    # Copied without its children, which would be copied for nothing.
    shallow = copy.copy(module)
    shallow._modules = {}
    twin = copy.deepcopy(shallow).requires_grad_(False)
    twin._modules = dict(children)
    return twin


class CausalStack(nn.Module):
    """Causal layers one after the other; the state is the list of theirs."""

    def __init__(self, layers: list[CausalConv | ResidualBlock]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def initial_state(self, batch: int) -> State:
        """The silence before the start, one tensor for each layer."""
        return [cast(CausalConv, layer).initial_state(batch) for layer in self.layers]

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after = []
        for layer, past in zip(self.layers, state):
            x, past = layer(x, past)
            after.append(past)
        return x, after


class LogSpectrum(nn.Module):
    """Log magnitudes of short windows, two for each frame.

    Samples [B, T * hop] become features [B, T, size]: of each of two windows of `size` samples, one
    of which ends in the middle of the frame and one with it, log10 magnitudes of size / 2 bins from
    0 Hz on, moved to -1.7 .. 1.7 or so. Noise 74 dB below full scale is added: what is fainter
    cannot be heard.
    """

    window: Tensor

    def __init__(self, size: int, hop_length: int) -> None:
        super().__init__()
        self.size, self.shift = size, hop_length // 2
        window = torch.hann_window(size, dtype=torch.float32)
        self.register_buffer("window", window, persistent=False)
        self.floor = AUDIBLE**2 * float(self.window.square().sum())

    def initial_state(self, batch: int) -> Tensor:
        """The silence before the start: [B, size - hop / 2]."""
        return self.window.new_zeros(batch, self.size - self.shift)

    def powers(self, wav: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Powers [B, T, size] of the bins, where a GPU has it in float64; the state after them."""
        past = torch.cat([state, wav], dim=1)
        # In float32 a faint bin beside a strong one keeps three digits, others on every machine,
        # and the logarithm shows it. On Apple's GPUs there is no float64.
        precise = torch.float32 if wav.device.type == "mps" else torch.float64
        windows = past.to(precise).unfold(1, self.size, self.shift) * self.window
        spectra = torch.fft.rfft(windows)[..., : self.size // 2]
        power = spectra.real.square() + spectra.imag.square()  # [B, 2 * T, size / 2]
        return power.reshape(len(wav), -1, self.size), past[:, wav.shape[1] :]

    def features(self, powers: Tensor) -> Tensor:
        """The log spectrum of powers."""
        return (0.5 * (powers + self.floor).log10() + 0.5).to(self.window.dtype)

    def forward(self, wav: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        powers, state = self.powers(wav, state)
        return self.features(powers), state


class Level(nn.Module):
    """The level of a signal as it is known from its last `n_frames` frames.

    Powers [B, T, size] of `LogSpectrum` become the power [B, T, 1] of the speech, 1 for speech of a
    usual level, 20 dB below full scale. It is the mean over the frames, each weighted by its own
    power, so that pauses do not count, and by how recent it is, so that none leaves all at once.
    A signal that is louder throughout has as much more level from its first frame on, as long as it
    is louder than `FAINT`.
    """

    USUAL = 0.01
    """Power of speech of a usual level."""
    FAINT = 1e-9
    """Power, 90 dB below full scale, of which a frame is thought to come before the start."""

    weights: Tensor

    def __init__(self, n_frames: int, spectrum: LogSpectrum) -> None:
        super().__init__()
        self.scale = float(spectrum.window.square().sum())
        weights = torch.arange(1, n_frames + 1, dtype=torch.float32) / n_frames
        self.register_buffer("weights", weights[:, None], persistent=False)

    def noise(self, below: float) -> float:
        """Power of each bin of white noise `below` dB below speech of a usual level."""
        return self.USUAL * 10 ** (-below / 10) * self.scale

    def initial_state(self, batch: int) -> Tensor:
        """The silence before the start: powers [B, n_frames - 1]."""
        return self.weights.new_zeros(batch, len(self.weights) - 1)

    def forward(self, powers: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n_frames = powers.shape[1]
        past = torch.cat([state, (powers.mean(dim=2) / self.scale).to(state.dtype)], dim=1)
        frames = past.unfold(1, n_frames, 1)  # [B, len(weights), T]
        weighted = frames * self.weights
        total = _sum_in_order(weighted * frames) + self.FAINT**2
        level = total / (_sum_in_order(weighted) + self.FAINT) / self.USUAL
        return level.unsqueeze(2), past[:, n_frames:]


def _sum_in_order(x: Tensor) -> Tensor:
    """The sum of x [B, n, T] over n, in an order that does not depend on T, as a library's may."""
    while (n := x.shape[1]) > 1:
        pairs = x[:, : n // 2] + x[:, n // 2 : n // 2 * 2]
        x = torch.cat([pairs, x[:, n // 2 * 2 :]], dim=1)
    return x[:, 0]


class Fourier(nn.Module):
    """Fourier transform of real frames [..., n], n even, as real and imaginary parts, of
    [..., n / 2 + 1] each, and its inverse."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        spectra = torch.fft.rfft(frames)
        return spectra.real, spectra.imag

    def inverse(self, real: Tensor, imag: Tensor) -> Tensor:
        """Frames [..., n] of the parts of their spectra."""
        return torch.fft.irfft(torch.complex(real, imag), n=self.n)


class OverlapAdd(nn.Module):
    """The sum of windowed frames that come one after the other: the end of an inverse STFT.

    Frames [B, T, n_fft] and a state [B, n_fft / hop - 1, hop] become samples [B, T, hop].
    Frame t's window ends with frame t's own samples, so the samples that are complete once frame t
    is known are those of frame t - (n_fft / hop - 1): the output lags by that many frames.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        self.overlaps = n_fft // hop_length
        window = torch.hann_window(n_fft, dtype=torch.float32)
        window = window.reshape(self.overlaps, hop_length)
        # Divided by the sum of squared windows, as an inverse STFT is (Griffin and Lim, 1984).
        self.register_buffer("window", window / window.square().sum(dim=0), persistent=False)

    def initial_state(self, batch: int) -> Tensor:
        """Nothing to add yet: [B, n_fft / hop - 1, hop]."""
        return self.window.new_zeros(batch, self.overlaps - 1, self.hop_length)

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.unflatten(-1, (self.overlaps, self.hop_length)) * self.window
        n_frames = frames.shape[1]
        total = F.pad(state, (0, 0, 0, n_frames))  # [B, overlaps - 1 + T, hop]
        for part in reversed(range(self.overlaps)):  # the oldest frame first, as the state has it
            total[:, part : part + n_frames].add_(frames[:, :, part])
        return total[:, :n_frames], total[:, n_frames:]
