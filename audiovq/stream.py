"""Encoding and decoding piece by piece, with tokens that do not depend on the pieces.

Floating-point sums depend on their order, and the order on the shapes of the matrices. So the
encoder always computes one shape: a block of `block_frames` frames. A block that is not full yet is
filled up with silence, which cannot reach the frames before it; only a full block moves the state.
Whole files, chunks and live streams are the same blocks, and so give the same tokens.
"""

from typing import Protocol

import torch
from torch import Tensor

from audiovq.config import ModelConfig
from audiovq.layers import State
from audiovq.network import Decoder, Encoder
from audiovq.quantize import ResidualQuantizer, SplitQuantizer

DECODE_BLOCK = 64
"""Frames that are decoded at once when more are there: past this, no faster and more memory."""


class Codec(Protocol):
    """The parts of a model that a stream runs."""

    config: ModelConfig
    encoder: Encoder
    quantizer: ResidualQuantizer | SplitQuantizer
    decoder: Decoder


class Stream:
    """One signal on its way through a model. Any number of streams may share a model.

    Encoding and decoding are two independent halves: use either, or both. All tensors are of batch
    1. The whole memory of a stream is `state_dict()`, plain tensors that can be saved and restored.

    Example::

        stream = model.stream()
        for chunk in chunks:              # wav [1, 1, any length]
            codes = stream.encode(chunk)  # [1, n_q, frames that are complete by now]
            wav = stream.decode(codes)    # [1, 1, samples that are complete by now]
        codes, wav = stream.flush()       # what is left: the lookahead and the overlap
    """

    def __init__(self, model: Codec, n_q: int) -> None:
        self._config = model.config
        self._encoder = model.encoder
        self._decoder = model.decoder
        self._quantizer = model.quantizer
        self._n_q = n_q
        with torch.no_grad():
            self._tables = model.quantizer.tables()
        like = self._tables[0]
        self._encoder_state: State = model.encoder.initial_state(1)
        self._pending = like.new_zeros(1, 1, 0)  # samples of the block that is not full yet
        # Of the pending block's frames, those sent already. The first frames of a signal count as
        # sent: they have not seen their lookahead, and code t is that of encoder frame t + lookahead.
        self._sent = self._config.lookahead
        self._n_samples = 0  # received by encode
        self._decoder_state: State = model.decoder.initial_state(1)
        self._n_frames = 0  # received by decode

    def encode(self, wav: Tensor) -> Tensor:
        """Take samples [1, 1, n], n >= 0; return the codes [1, n_q, T] that are known by now.

        Frame t is known when sample (t + 1 + lookahead) * hop - 1 has come.
        """
        return torch.cat([*self._full_blocks(wav), self._partial_block()], dim=2)

    def encode_blocks(self, wav: Tensor) -> Tensor:
        """As `encode`, but only whole blocks: later, and without computing a block twice."""
        return torch.cat([*self._full_blocks(wav), self._no_codes()], dim=2)

    def flush_encode(self) -> Tensor:
        """End of the signal: the codes [1, n_q, T] still due, so that T is ceil(N / hop) in all.

        The stream is as new afterwards.
        """
        hop = self._config.hop_length
        n_frames = -(-self._n_samples // hop) + self._config.lookahead
        n_missing = n_frames * hop - self._n_samples if self._n_samples else 0
        codes = self.encode(self._pending.new_zeros(1, 1, n_missing))
        self._encoder_state = self._encoder.initial_state(1)
        self._pending = self._pending[:, :, :0]
        self._sent = self._config.lookahead
        self._n_samples = 0
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Take codes [1, n_q, T], T >= 0; return the samples [1, 1, n] that are complete by now.

        A frame's samples are complete when the `overlap_frames` frames after it have come. The
        number of levels may change from call to call.
        """
        outputs = [self._pending.new_zeros(1, 1, 0)]
        for block in codes.split(DECODE_BLOCK, dim=2):
            if block.shape[2]:
                z_q = self._quantizer.decode(block, self._tables)
                outputs.append(self._synthesise(z_q))
        return torch.cat(outputs, dim=2)

    def flush_decode(self) -> Tensor:
        """End of the codes: the samples [1, 1, n] still due, so that they are T * hop in all.

        The stream is as new afterwards.
        """
        wav = self._pending.new_zeros(1, 1, 0)
        if self._n_frames and self._config.overlap_frames:
            width = self._config.channels[-1]
            wav = self._synthesise(wav.new_zeros(1, self._config.overlap_frames, width))
        self._decoder_state = self._decoder.initial_state(1)
        self._n_frames = 0
        return wav

    def flush(self) -> tuple[Tensor, Tensor]:
        """End of the signal for both halves: the last codes, and the last samples after them."""
        codes = self.flush_encode()
        return codes, torch.cat([self.decode(codes), self.flush_decode()], dim=2)

    def state_dict(self) -> dict[str, Tensor]:
        """The stream's memory as tensors, to be saved (safetensors) and restored."""
        state = {f"encoder.{i}": tensor for i, tensor in enumerate(self._encoder_state)}
        state |= {f"decoder.{i}": tensor for i, tensor in enumerate(self._decoder_state)}
        counts = [self._sent, self._n_samples, self._n_frames]
        state |= {"pending": self._pending, "counts": torch.tensor(counts)}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state_dict` was taken, on the same model.

        Raises `ValueError` when `state` is not the state of a stream of this model.
        """
        own = self.state_dict()
        fits = own.keys() == state.keys() and all(
            state[name].shape == tensor.shape for name, tensor in own.items() if name != "pending"
        )
        if not fits:
            raise ValueError("This is not the state of a stream of this model.")
        self._encoder_state = [
            state[f"encoder.{i}"].clone() for i in range(len(self._encoder_state))
        ]
        self._decoder_state = [
            state[f"decoder.{i}"].clone() for i in range(len(self._decoder_state))
        ]
        self._pending = state["pending"].clone()
        self._sent, self._n_samples, self._n_frames = (int(n) for n in state["counts"])

    @property
    def _block(self) -> int:
        return self._config.block_frames * self._config.hop_length

    def _no_codes(self) -> Tensor:
        return torch.zeros(1, self._n_q, 0, dtype=torch.int64, device=self._pending.device)

    @torch.no_grad()
    def _full_blocks(self, wav: Tensor) -> list[Tensor]:
        self._n_samples += wav.shape[2]
        pending = torch.cat([self._pending, wav], dim=2)
        n_full = pending.shape[2] // self._block
        self._pending = pending[:, :, n_full * self._block :].clone()
        outputs = []
        for block in pending[:, :, : n_full * self._block].split(self._block, dim=2):
            if block.shape[2]:
                codes, self._encoder_state = self._encode_block(block)
                outputs.append(codes[:, :, self._sent :])
                self._sent = 0
        return outputs

    @torch.no_grad()
    def _partial_block(self) -> Tensor:
        n_complete = self._pending.shape[2] // self._config.hop_length
        if n_complete <= self._sent:
            return self._no_codes()
        padded = torch.nn.functional.pad(self._pending, (0, self._block - self._pending.shape[2]))
        codes, _ = self._encode_block(padded)
        first, self._sent = self._sent, n_complete
        return codes[:, :, first:n_complete]

    def _encode_block(self, wav: Tensor) -> tuple[Tensor, State]:
        z, state = self._encoder(wav, self._encoder_state)
        return self._quantizer.encode(z, self._tables[: self._n_q]), state

    @torch.no_grad()
    def _synthesise(self, z_q: Tensor) -> Tensor:
        wav, self._decoder_state = self._decoder(z_q, self._decoder_state)
        n_early = self._config.overlap_frames - self._n_frames  # frames before the first sample
        self._n_frames += z_q.shape[1]
        return wav[:, :, max(0, n_early) * self._config.hop_length :]
