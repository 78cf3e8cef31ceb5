"""The model as ONNX graphs that stream: their state goes in and comes out.

`encoder.onnx` turns one block of samples into codes, `decoder.onnx` any number of codes into
samples. Every tensor of state has the same shape in as out, and is zero at the start of a signal:

    encoder   wav [1, 1, block_frames * hop], state_i
              -> codes [1, n_codebooks, block_frames], next_i
    decoder   codes [1, n_codebooks, T], state_i -> wav [1, 1, T * hop], next_i

Frame t's code is frame t + lookahead of the encoder's output, so the caller drops the first
`lookahead` frames and pads the end with silence. The decoder's output lags by `overlap_frames`: the
caller sends as many frames of code -1, which stand for no sound, after the end and drops as many
frames of samples at the start. `OnnxModel` does both. `config.json` beside the
graphs has these numbers.

With `level_strides` codes stand in all their frames, in as well as out. The caller sends `lead`
frames of silence before the signal and drops them too, so that the groups of `group_frames` frames
lie within the blocks, and fills up the last group with silence.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiovq.files import atomic_output, refuse_existing
from audiovq.layers import Fourier, OverlapAdd, State
from audiovq.model import AudioVQ
from audiovq.quantize import Search
from audiovq.stream import DECODE_BLOCK

OPSET = 20
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
ONNX_CONFIG_FILE = "config.json"


class _Encoder(nn.Module):
    """wav and state to codes and state, the codebooks as constants."""

    def __init__(self, model: AudioVQ) -> None:
        super().__init__()
        self.encoder, self.quantizer = model.encoder, model.quantizer
        self.searches = [Search(table, pack=False) for table in model.quantizer.tables()]

    def forward(self, wav: Tensor, state: State) -> tuple[Tensor, State]:
        z, state = self.encoder(wav, state)
        return self.quantizer.encode(z, self.searches), state


class _Decoder(nn.Module):
    """codes and state to wav and state."""

    def __init__(self, model: AudioVQ) -> None:
        super().__init__()
        self.quantizer, self.decoder = model.quantizer, model.decoder
        self.tables = [table.detach() for table in model.quantizer.tables()]
        for module in list(self.decoder.modules()):
            for name, child in module.named_children():
                if isinstance(child, Fourier):
                    setattr(module, name, _MatrixFourier(child.n))
                elif isinstance(child, OverlapAdd):
                    setattr(
                        module,
                        name,
                        _OverlapAdd(child.overlaps * child.hop_length, child.hop_length),
                    )

    def forward(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        heard = (codes[:, 0] >= 0).to(torch.float32).unsqueeze(-1)  # [B, T, 1]
        z_q = self.quantizer.decode(codes.clamp(min=0), self.tables) * heard
        return self.decoder(z_q, state)


class _MatrixFourier(nn.Module):
    """`Fourier` as matrix products."""

    def __init__(self, n: int) -> None:
        super().__init__()
        bins = torch.arange(n // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi / n * bins[:, None] * torch.arange(n, dtype=torch.float64)
        # Every bin but the first and the middle one stands for itself and its mirror image.
        weight = torch.full((len(bins), 1), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0
        self.cosines, self.sines = angles.cos().t().float(), -angles.sin().t().float()
        self.inverse_cosines = (weight * angles.cos() / n).float()
        self.inverse_sines = (-weight * angles.sin() / n).float()

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return frames @ self.cosines, frames @ self.sines

    def inverse(self, real: Tensor, imag: Tensor) -> Tensor:
        return real @ self.inverse_cosines + imag @ self.inverse_sines


class _OverlapAdd(OverlapAdd):
    """`OverlapAdd` without writing in place."""

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.unflatten(-1, (self.overlaps, self.hop_length)) * self.window
        parts = [
            nn.functional.pad(frames[:, :, part], (0, 0, part, self.overlaps - 1 - part))
            for part in range(self.overlaps)
        ]
        n_frames = frames.shape[1]
        total = torch.stack(parts).sum(dim=0) + nn.functional.pad(state, (0, 0, 0, n_frames))
        return total[:, :n_frames], total[:, n_frames:]


def export_onnx(model: AudioVQ, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `encoder.onnx`, `decoder.onnx` and `config.json`; see the head of this module.

    Needs the extra `onnx`. Raises `FileRefused` when a file exists.
    """
    import onnxscript  # noqa: F401 - the exporter's own; missing, it is named before the work

    folder, config = Path(folder), model.config
    for name in (ENCODER_FILE, DECODER_FILE, ONNX_CONFIG_FILE):
        refuse_existing(folder / name, overwrite=overwrite)  # before the work, not after it
    block = torch.zeros(1, 1, config.block_frames * config.hop_length)
    # More than one frame and not the block's number, so that the length stays free.
    codes = torch.zeros(1, config.n_codebooks, config.block_frames + 3, dtype=torch.int64)
    own = AudioVQ(config)
    own.load_state_dict(model.state_dict())
    own.eval().requires_grad_(False)
    graphs = {
        ENCODER_FILE: (_Encoder(own), "wav", block, "codes", own.encoder.initial_state(1), None),
        DECODER_FILE: (
            _Decoder(own),
            "codes",
            codes,
            "wav",
            own.decoder.initial_state(1),
            {2: torch.export.Dim("frames", min=1)},
        ),
    }
    for name, (module, source, example, result, state, free) in graphs.items():
        program = torch.onnx.export(
            module.eval(),
            (example, state),
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            input_names=[source, *(f"state_{i}" for i in range(len(state)))],
            output_names=[result, *(f"next_{i}" for i in range(len(state)))],
            dynamic_shapes={source: free or {}, "state": [{} for _ in state]},
        )
        assert program is not None  # with a file name, or without dynamo, it would be
        with atomic_output(folder / name, overwrite=overwrite) as temporary:
            program.save(temporary)
    text = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "config": asdict(config),
        "hop_length": config.hop_length,
        "overlap_frames": config.overlap_frames,
        "lead": config.lead,
        "group_frames": config.group_frames,
    }
    with atomic_output(folder / ONNX_CONFIG_FILE, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(text, indent=2) + "\n")


class OnnxModel:
    """An exported model in ONNX Runtime, whole signals in and out: how to drive the graphs.

    threads: of one graph. Needs the extra `onnx`.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        import onnxruntime

        folder = Path(folder)
        numbers = json.loads((folder / ONNX_CONFIG_FILE).read_text())
        self.config = numbers["config"]
        self.hop_length: int = numbers["hop_length"]
        self.overlap_frames: int = numbers["overlap_frames"]
        # Graphs from before there were several rates do not say these.
        self.lead: int = numbers.get("lead", 0)
        self.group_frames: int = numbers.get("group_frames", 1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in (ENCODER_FILE, DECODER_FILE)
        )

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """Samples float32 [n] -> codes int64 [n_codebooks, T], T = ceil(n / hop)."""
        hop, first = self.hop_length, self.lead + self.config["lookahead"]
        block = self.config["block_frames"] * hop
        n_frames = -(-len(wav) // hop)
        n_whole = -(-n_frames // self.group_frames) * self.group_frames
        n_samples = -(-(first + n_whole) * hop // block) * block
        wav = np.pad(wav.astype(np.float32), (self.lead * hop, 0))
        wav = np.pad(wav, (0, n_samples - len(wav)))
        pieces = wav.reshape(-1, 1, 1, block)
        codes = np.concatenate(list(_run(self.encoder, pieces)), axis=2)
        return codes[0, :, first : first + n_frames]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n_codebooks, T] -> samples float32 [T * hop]."""
        codes = np.pad(codes, ((0, 0), (0, self.overlap_frames)), constant_values=-1)
        pieces = [
            codes[None, :, t : t + DECODE_BLOCK] for t in range(0, codes.shape[1], DECODE_BLOCK)
        ]
        wav = np.concatenate(list(_run(self.decoder, pieces)), axis=2)
        return wav[0, 0, self.overlap_frames * self.hop_length :]


_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def _run(session: Any, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The first output for each piece, the state carried from one to the next."""
    inputs = session.get_inputs()
    state = {tensor.name: np.zeros(tensor.shape, _DTYPES[tensor.type]) for tensor in inputs[1:]}
    for piece in pieces:
        first, *after = session.run(None, {inputs[0].name: piece, **state})
        state = dict(zip(state, after))
        yield first
