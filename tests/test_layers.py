"""Causal layers: the past is an argument, the future does not matter, cutting changes nothing."""

import pytest
import torch
from torch import nn

from audiovq.layers import (
    CausalConv,
    CausalStack,
    Fourier,
    HalfLinear,
    Level,
    LogSpectrum,
    OverlapAdd,
    PackedLinear,
    PlainLinear,
    ResidualBlock,
    can_pack,
    packed,
    packed_linear,
)

needs_packing = pytest.mark.skipif(
    not can_pack(torch.zeros(1)), reason="weights are packed on x86 CPUs with AVX2 only"
)


def in_pieces(layer, x: torch.Tensor, state, sizes: int | list[int]):
    """The layer's outputs for x [B, T, C] cut along T into `sizes`, and the last state."""
    outputs = []
    for piece in x.split(sizes, dim=1):
        y, state = layer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_a_convolution_in_chunks_is_the_convolution(taps, stride, chunk):
    torch.manual_seed(0)
    conv = CausalConv(3, 4, stride, taps)
    x = torch.randn(2, 21 * stride, 3)
    whole, after = conv(x, conv.initial_state(2))
    pieces, after_pieces = in_pieces(conv, x, conv.initial_state(2), chunk * stride)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(after_pieces, after, rtol=0, atol=0)


@pytest.fixture
def level():
    """The level of samples [B, T * 320] from their start, [B, T, 1]."""
    spectrum = LogSpectrum(512, 320)
    norm = Level(50, spectrum)

    def measure(wav: torch.Tensor) -> torch.Tensor:
        powers, _ = spectrum.powers(wav, spectrum.initial_state(len(wav)))
        return norm(powers, norm.initial_state(len(wav)))[0]

    return measure


def test_a_level_in_chunks_is_the_level():
    torch.manual_seed(0)
    norm, powers = Level(8, LogSpectrum(512, 320)), torch.rand(2, 21, 512)
    whole, after = norm(powers, norm.initial_state(2))
    assert whole.shape == (2, 21, 1)
    for chunk in (1, 3, 7):
        pieces, after_pieces = in_pieces(norm, powers, norm.initial_state(2), chunk)
        torch.testing.assert_close(pieces, whole)
        assert torch.equal(after_pieces, after)


def test_the_level_is_that_of_the_speech_whatever_its_pauses(level):
    noise = 0.1 * torch.randn(1, 200 * 320, generator=torch.Generator().manual_seed(0))
    steady = level(noise)
    assert (steady[:, 5:] - 1).abs().max() < 0.15  # it has the usual level
    paused = noise.clone().view(1, 200, 320)
    paused[:, 60:90] *= 1e-3
    assert (level(paused.flatten(1)) / steady)[:, 5:].log10().abs().max() < 0.1
    assert level(torch.zeros_like(noise)).isfinite().all()


def test_what_is_louder_has_as_much_more_level_from_the_start(level, speech):
    wav = speech[:, 0, : speech.shape[2] // 320 * 320]
    wav = wav + 5e-3 * torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    whole = level(wav)
    assert (whole[:, 50:].log10().diff(dim=1).abs() < 0.2).all()  # it goes on evenly
    for gain in (8.0, 0.1):
        torch.testing.assert_close(level(gain * wav) / gain**2, whole, rtol=5e-3, atol=0)


@pytest.mark.parametrize("size", [20, 26, 64])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_spectrum_in_chunks_is_the_spectrum(size, chunk):
    torch.manual_seed(0)
    hop = 40
    spectrum = LogSpectrum(size, hop)
    wav = torch.randn(2, 21 * hop)
    whole, after = spectrum(wav, spectrum.initial_state(2))
    assert whole.shape == (2, 21, size)
    pieces, after_pieces = in_pieces(spectrum, wav, spectrum.initial_state(2), chunk * hop)
    assert torch.equal(pieces, whole)
    assert torch.equal(after_pieces, after)


def test_a_spectrum_is_that_of_the_windows_that_end_in_and_with_the_frame():
    """Its logarithm tells tenfold amplitudes by steps of one, down to what cannot be heard."""
    size, hop, frame = 64, 40, 5
    spectrum = LogSpectrum(size, hop)
    wav = 0.1 * torch.randn(1, 8 * hop, generator=torch.Generator().manual_seed(0))
    features, _ = spectrum(wav, spectrum.initial_state(1))
    for half, end in enumerate((frame * hop + hop // 2, (frame + 1) * hop)):
        part = wav[0, end - size : end] * torch.hann_window(size)
        wanted = torch.fft.rfft(part).abs().log10()[: size // 2] + 0.5
        got = features[0, frame, half * size // 2 : (half + 1) * size // 2]
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
    louder, _ = spectrum(wav * 10, spectrum.initial_state(1))
    torch.testing.assert_close(louder[:, 2:], features[:, 2:] + 1, atol=1e-3, rtol=0)
    silent, _ = spectrum(wav * 0, spectrum.initial_state(1))
    faint, _ = spectrum(wav * 1e-6, spectrum.initial_state(1))
    torch.testing.assert_close(faint, silent, atol=1e-3, rtol=0)
    assert silent.unique().numel() == 1


@pytest.mark.parametrize("kernel_size", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_block_in_chunks_is_the_block(kernel_size, chunk):
    torch.manual_seed(0)
    block = ResidualBlock(8, kernel_size, 2)
    x = torch.randn(2, 21, 8)
    whole, _ = block(x, block.initial_state(2))
    pieces, _ = in_pieces(block, x, block.initial_state(2), chunk)
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize(("stride", "taps"), [(1, 1), (2, 2), (5, 4)])
def test_a_convolution_is_the_one_of_torch(stride, taps):
    torch.manual_seed(0)
    conv = CausalConv(3, 4, stride, taps)
    x = torch.randn(2, 6 * stride, 3)
    kernel = conv.linear.weight.reshape(4, taps * stride, 3).transpose(1, 2)
    past = nn.functional.pad(x.transpose(1, 2), ((taps - 1) * stride, 0))
    expected = nn.functional.conv1d(past, kernel, conv.linear.bias, stride=stride)
    torch.testing.assert_close(conv(x, conv.initial_state(2))[0], expected.transpose(1, 2))


def test_a_stack_is_causal():
    torch.manual_seed(0)
    stack = CausalStack([CausalConv(1, 6, 4, 2), ResidualBlock(6, 3, 2)])
    x = torch.randn(1, 40, 1)
    other = x.clone()
    other[:, 20:] = torch.randn(1, 20, 1)  # frame 5 and later
    y, _ = stack(x, stack.initial_state(1))
    y_other, _ = stack(other, stack.initial_state(1))
    assert torch.equal(y[:, :5], y_other[:, :5])
    assert not torch.isclose(y[:, 5], y_other[:, 5]).all()


@pytest.mark.parametrize("n_fft", [8, 12, 16])
def test_overlap_add_inverts_the_stft(n_fft):
    """With both windows, frames that end with their own samples add up to the signal."""
    hop, n_frames = 4, 10
    torch.manual_seed(0)
    layer = OverlapAdd(n_fft, hop)
    wav = torch.randn(1, n_frames * hop)
    overlap = n_fft - hop
    frames = nn.functional.pad(wav, (overlap, overlap)).unfold(1, n_fft, hop)
    fourier = Fourier(n_fft)
    spectra = fourier(frames * torch.hann_window(n_fft))
    out, _ = layer(fourier.inverse(*spectra), layer.initial_state(1))  # [1, n_frames + lag, hop]
    torch.testing.assert_close(out.flatten(1)[:, overlap:], wav, atol=1e-5, rtol=0)


def test_overlap_add_in_chunks_is_the_whole():
    torch.manual_seed(0)
    layer = OverlapAdd(12, 4)
    frames = torch.randn(2, 9, 12)
    whole, after = layer(frames, layer.initial_state(2))
    for sizes in ([1] * 9, [2, 7], [5, 1, 3]):
        pieces, after_pieces = in_pieces(layer, frames, layer.initial_state(2), sizes)
        torch.testing.assert_close(pieces, whole)
        torch.testing.assert_close(after_pieces, after)


KINDS = [
    pytest.param(PlainLinear),
    pytest.param(PackedLinear, marks=needs_packing),
    pytest.param(HalfLinear, marks=needs_packing),
]


def half_linear(width: int, out: int) -> nn.Linear:
    """A linear layer whose weight float16 holds."""
    torch.manual_seed(0)
    linear = nn.Linear(width, out)
    linear.weight.data = linear.weight.data.half().float()
    return linear


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 16, 33])
def test_a_linear_layer_for_inference_is_the_layer(kind, rows, one_thread):
    linear = half_linear(700, 40)
    x = torch.randn(1, rows, 700)
    with torch.no_grad():
        got = kind(linear.weight, linear.bias)(x)
        torch.testing.assert_close(got, linear(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 64), (24, 72), (64, 384), (384, 64), (700, 40), (1152, 384)])
def test_a_row_does_not_depend_on_how_many_there_are(kind, size, one_thread):
    linear = half_linear(*size)
    layer = kind(linear.weight, linear.bias)
    x = torch.randn(1, 640, size[0])
    with torch.no_grad():
        whole = layer(x)
        for rows in (*range(1, 35), 40, 48, 63, 64, 65, 97, 120, 127, 128, 129):
            for start in (0, 5, 640 - rows):
                part = layer(x[:, start : start + rows])
                assert torch.equal(part, whole[:, start : start + rows]), (rows, start)


class FewRowsDiffer(PlainLinear):
    """As a library that takes another order of sums for 1, 2, 7 and 20 rows."""

    def product(self, x):
        if len(x) not in (1, 2, 7, 20):
            return super().product(x)
        half = self.width // 2
        return (
            self.bias
            + x[:, half:] @ self.weight[:, half:].T
            + x[:, :half] @ self.weight[:, :half].T
        )


class OnlyGroups(FewRowsDiffer):
    """As one that takes the order of 16 rows for no other number."""

    def product(self, x):
        return PlainLinear.product(self, x) + 1e-3 * len(x)


class PlacesDiffer(PlainLinear):
    """As one whose order depends on the place of a row."""

    def product(self, x):
        return super().product(x) + 1e-3 * torch.arange(len(x)).unsqueeze(1)


@pytest.mark.parametrize("kind", [FewRowsDiffer, OnlyGroups, PlacesDiffer])
def test_a_row_is_computed_alone_by_whatever_library(kind, one_thread):
    linear = half_linear(64, 40)
    layer = kind(linear.weight, linear.bias)
    x = torch.randn(1, 70, 64)
    with torch.no_grad():
        assert not torch.equal(layer.product(x[0, 5:12]), layer.product(x[0])[5:12])  # so bad
        whole = layer(x)
        for rows in (1, 2, 3, 7, 16, 20, 33):
            for start in (0, 5, 70 - rows):
                part = layer(x[:, start : start + rows])
                assert torch.equal(part, whole[:, start : start + rows]), (rows, start)
        torch.testing.assert_close(whole, linear(x), atol=0.1, rtol=0)
        assert layer.has_one_order == (kind is not PlacesDiffer)


@needs_packing
def test_packing_falls_back_where_a_rows_place_matters(monkeypatch):
    linear = half_linear(64, 40)
    assert isinstance(packed_linear(linear), HalfLinear)
    monkeypatch.setattr(HalfLinear, "has_one_order", False)
    assert isinstance(packed_linear(linear), PackedLinear)
    monkeypatch.setattr(PackedLinear, "has_one_order", False)
    assert isinstance(packed_linear(linear), PlainLinear)


@needs_packing
@pytest.mark.parametrize("number", [1 + 2**-12, 1e-9, 70_000.0])
def test_weights_that_float16_does_not_hold_stay_in_float32(number):
    assert HalfLinear.holds(torch.full((2, 2), 0.5))
    assert not HalfLinear.holds(torch.tensor([[0.5, number]]))


def test_a_packed_stack_is_the_stack_and_keeps_its_weights(one_thread):
    torch.manual_seed(0)
    stack = CausalStack([CausalConv(2, 16, 4, 2), ResidualBlock(16, 7, 2), ResidualBlock(16, 7, 3)])
    names = [name for name, _ in stack.named_parameters()]
    fast = packed(stack)
    x, state = torch.randn(1, 40, 2), stack.initial_state(1)
    with torch.no_grad():
        expected, expected_state = stack(x, state)
        got, got_state = fast(x, state)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        for one, other in zip(got_state, expected_state):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert [name for name, _ in stack.named_parameters()] == names
        for parameter in stack.parameters():
            parameter.mul_(2.0)
        torch.testing.assert_close(fast(x, state)[0], expected, atol=1e-5, rtol=1e-4)
