"""Causal layers: the past is an argument, the future does not matter, cutting changes nothing."""

import pytest
import torch
from torch import nn

from audiovq.layers import (
    CausalConv,
    CausalStack,
    Fourier,
    HalfLinear,
    LogSpectrum,
    OverlapAdd,
    PackedLinear,
    ResidualBlock,
    can_pack,
    packed,
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


@needs_packing
@pytest.mark.parametrize("rows", [1, 3, 16, 33])
def test_a_packed_linear_layer_is_the_layer(rows):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40)
    x, other = torch.randn(1, rows, 24), torch.randn(1, rows, 40)
    with torch.no_grad():
        plain = PackedLinear(linear.weight, linear.bias)
        gelu = PackedLinear(linear.weight, linear.bias, "gelu")
        torch.testing.assert_close(plain(x), linear(x))
        torch.testing.assert_close(plain.add(x, other), other + linear(x))
        torch.testing.assert_close(gelu(x), nn.functional.gelu(linear(x)), atol=1e-5, rtol=1e-4)


@needs_packing
@pytest.mark.parametrize("rows", [1, 3, 16, 33])
def test_a_linear_layer_in_half_the_bytes_is_the_layer(rows):
    torch.manual_seed(0)
    linear = nn.Linear(700, 40)
    linear.weight.data = linear.weight.data.half().float()
    x, other = torch.randn(1, rows, 700), torch.randn(1, rows, 40)
    assert HalfLinear.holds(linear.weight)
    with torch.no_grad():
        plain = HalfLinear(linear.weight, linear.bias)
        gelu = HalfLinear(linear.weight, linear.bias, "gelu")
        torch.testing.assert_close(plain(x), linear(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(plain.add(x, other), other + linear(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gelu(x), nn.functional.gelu(linear(x)), atol=1e-5, rtol=1e-4)
        for row in range(rows):
            assert torch.equal(plain(x[:, row : row + 1]), plain(x)[:, row : row + 1])


@pytest.mark.parametrize("number", [1 + 2**-12, 1e-9, 70_000.0])
def test_weights_that_float16_does_not_hold_stay_in_float32(number):
    assert HalfLinear.holds(torch.full((2, 2), 0.5)) == can_pack(torch.zeros(1))
    assert not HalfLinear.holds(torch.tensor([[0.5, number]]))


@needs_packing
def test_a_packed_stack_is_the_stack_and_keeps_its_weights():
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
