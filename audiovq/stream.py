"""Encoding and decoding piece by piece, with tokens that do not depend on the pieces.

Floating-point sums depend on their order, and the order may depend on the shapes of the matrices
and on the number of threads that share them. So the encoder computes on one thread, and in blocks
of one shape, `block_frames` frames. A block that is not full yet is filled up with silence, which
cannot reach the frames before it; only a full block moves the state. Whole files, chunks and live
streams are the same blocks, and so give the same tokens. Where levels have several rates, a block
is whole groups of the frames that share a code, and codes come group by group.

Other shapes are used only where they are equal to the blocks, bit for bit, in every step, which is
tried on the machine at hand before it is relied on: single groups for a live stream (frames, where
all levels have one rate), which has one at a time, and several blocks at once for a long recording.
Elsewhere a live stream computes the unfinished block anew with every group, which costs more.

More threads take runs of blocks side by side: a block depends on the receptive field before it and
on nothing earlier, so a run that starts that much early, from silence, meets the state that the run
before it leaves, bit for bit. Frames to decode are shared out in the same way.

Decoding needs no blocks: its products give a frame the same numbers however many frames there are
(`layers.RowLinear`), and whether all the other steps do is tried as well. Where one does not,
frames are decoded one by one.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq.config import ModelConfig
from audiovq.entry import as_codes, as_wav, entry
from audiovq.layers import State, can_pack, packed
from audiovq.network import Decoder, Encoder
from audiovq.quantize import ResidualQuantizer, Search, SplitQuantizer, pool
from audiovq.weights import kept

LONG_PIECE = 4
"""Blocks that the encoder computes at once when more are there and when it is exact."""
DECODE_BLOCK = 128
"""Frames that are decoded at once when more are there: past this, no faster and more memory."""
DECODE_CUT = [1, 2, 3, 5, 7, 11, 32, DECODE_BLOCK - 61]
"""A cutting of such a block that must not change a bit of it."""


class Codec(Protocol):
    """The parts of a model that a stream runs."""

    config: ModelConfig
    encoder: Encoder
    quantizer: ResidualQuantizer | SplitQuantizer
    decoder: Decoder


class _Engine:
    """A model as streams run it: weights packed for inference, codebooks with their searches."""

    def __init__(self, model: Codec) -> None:
        self.config = model.config
        self.tables = [table.detach().clone() for table in model.quantizer.tables()]
        self.searches = [Search(table) for table in self.tables]
        self.device = self.tables[0].device
        self.initial_encoder_state: State = model.encoder.initial_state(1)
        self.initial_decoder_state: State = model.decoder.initial_state(1)
        with _one_thread():
            if self.device.type == "cpu":
                self.quantizer, self.decoder = packed(model.quantizer), packed(model.decoder)
            else:
                self.quantizer, self.decoder = copy.deepcopy((model.quantizer, model.decoder))
            # Its blocks have one shape, in which plain layers are exact and lose nothing.
            can = can_pack(self.tables[0])
            self.encoder = packed(model.encoder) if can else copy.deepcopy(model.encoder)
        self.block = model.config.block_frames * model.config.hop_length  # samples
        self.group = model.config.group_frames * model.config.hop_length  # samples
        self.warm_up = -(-model.config.receptive_field // self.block)  # blocks

    def encode_pieces(
        self, pieces: Iterable[Tensor], state: State, n_q: int
    ) -> tuple[list[Tensor], State]:
        """Codes [1, n_q, T] of each piece [1, 1, T * hop], one after the other, on one thread."""
        path, codes = self.encoder.path(n_q), []
        with torch.inference_mode(), _one_thread():
            for samples in pieces:
                z, state = path(samples, state)
                codes.append(self.quantizer.encode(z, self.searches[:n_q]))
        return codes, state

    def encode_blocks(self, wav: Tensor, state: State, n_q: int) -> tuple[Tensor, State]:
        """Codes of whole blocks, with as many threads as torch has and as are worth it."""

        def compute(start: int, end: int, state: State) -> tuple[Tensor, State]:
            samples = wav[:, :, start * self.block : end * self.block]
            codes, state = self.encode_pieces(self._cut(samples), state, n_q)
            return torch.cat(codes, dim=2), state

        n_blocks = wav.shape[2] // self.block

        def initial(start: int) -> State:
            return self.initial_encoder_state[self.encoder.needed(n_q)]

        return self._shared(compute, n_blocks, self.warm_up, state, initial)

    def decode_frames(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """Samples [1, 1, T * hop] of codes [1, n_q, T], T >= 1, with threads as `encode_blocks`."""
        f0, state = self._contour(codes, state)
        size = self.decode_block

        def compute(start: int, end: int, state: State) -> tuple[Tensor, State]:
            pieces = codes[:, :, start:end].split(size, dim=2)
            contours = None if f0 is None else f0[:, start:end].split(size, dim=1)
            return self._decode_pieces(pieces, state, contours)

        def initial(start: int) -> State:
            known = None if f0 is None else f0[:, :start]
            return self.decoder.start_at(self.initial_decoder_state, state, known)

        return self._shared(compute, codes.shape[2], self.config.decoder_memory, state, initial)

    def _contour(self, codes: Tensor, state: State) -> tuple[Tensor | None, State]:
        """The fundamental [1, T] of all frames, on one thread: the phase of each hangs on it."""
        parts = []
        with torch.inference_mode(), _one_thread():
            for piece in codes.split(self.decode_block, dim=2):
                f0, state = self.decoder.contour(self.quantizer.decode(piece, self.tables), state)
                if f0 is None:
                    return None, state
                parts.append(f0)
        return torch.cat(parts, dim=1), state

    def decode_latent(self, z_q: Tensor, state: State) -> tuple[Tensor, State]:
        """The decoder on one thread: samples [1, 1, T * hop] of z_q [1, T, D]."""
        with torch.inference_mode(), _one_thread():
            return self.decoder(z_q, state)

    def _decode_pieces(
        self, pieces: Sequence[Tensor], state: State, contours: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        outputs = []
        with torch.inference_mode(), _one_thread():
            for index, piece in enumerate(pieces):
                z_q = self.quantizer.decode(piece, self.tables)
                f0 = contours[index] if contours is not None else None
                wav, state = self.decoder(z_q, state, f0)
                outputs.append(wav)
        return torch.cat(outputs, dim=2), state

    def _shared(
        self,
        compute: Callable[[int, int, State], tuple[Tensor, State]],
        n_items: int,
        warm_up: int,
        state: State,
        initial: Callable[[int], State],
    ) -> tuple[Tensor, State]:
        """What `compute(0, n_items, state)` gives, with runs of the items side by side.

        A run after the first one starts `warm_up` items early, at an item whose number `initial`
        takes for the state to start with.
        """

        def run_alone(start: int, end: int, state: State) -> tuple[Tensor, State]:
            with _one_thread():
                return compute(start, end, state)

        n_runs = min(torch.get_num_threads(), n_items // (2 * warm_up))
        if n_runs < 2 or self.device.type != "cpu":
            return compute(0, n_items, state)
        # The first run needs no start ahead of it, so it takes that many items more.
        share = (n_items + (n_runs - 1) * warm_up) / n_runs
        starts = [0, *(round(run * share - (run - 1) * warm_up) for run in range(1, n_runs))]
        jobs = []
        with ThreadPoolExecutor(n_runs) as pool:
            for run, (start, end) in enumerate(zip(starts, [*starts[1:], n_items])):
                early = warm_up if run else 0
                before = initial(start - early) if run else state
                jobs.append(pool.submit(run_alone, start - early, end, before))
        outputs, states = zip(*(job.result() for job in jobs))
        n_early = warm_up * outputs[0].shape[2] // starts[1]  # columns of the items before a run
        later = [output[:, :, n_early:] for output in outputs[1:]]
        return torch.cat([outputs[0], *later], dim=2), states[-1]

    def _cut(self, wav: Tensor) -> list[Tensor]:
        """Whole blocks as pieces of the shapes that may be computed."""
        size = LONG_PIECE * self.block
        if wav.shape[2] < 2 * size or not self.takes_long_pieces:
            return list(wav.split(self.block, dim=2))
        n_long = wav.shape[2] // size * size
        pieces = list(wav[:, :, :n_long].split(size, dim=2))
        if n_long < wav.shape[2]:
            pieces += wav[:, :, n_long:].split(self.block, dim=2)
        return pieces

    @cached_property
    def takes_single_frames(self) -> bool:
        """Whether group by group (frame by frame, where all levels have the same rate) gives the
        numbers of a block at once, bit for bit, here."""
        return self._is_exact(self.block, self.group)

    @cached_property
    def takes_long_pieces(self) -> bool:
        """Whether several blocks at once give the numbers of block by block, bit for bit, here."""
        return self._is_exact(LONG_PIECE * self.block, self.block)

    @cached_property
    def decode_block(self) -> int:
        """Frames to decode at once when more are there: 1 where other cuttings give other bits."""
        if self.device.type != "cpu":  # no promise there, and single frames would take for ever
            return DECODE_BLOCK
        shape = (1, self.config.n_codebooks, DECODE_BLOCK)
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(self.config.codebook_size, shape, generator=generator, device="cpu")
        wav, state = self._decode_pieces([codes], self.initial_decoder_state)
        pieces = codes.split(DECODE_CUT, dim=2)
        other, after = self._decode_pieces(pieces, self.initial_decoder_state)
        exact = all(map(torch.equal, [other, *after], [wav, *state]))
        return DECODE_BLOCK if exact else 1

    def _is_exact(self, n_samples: int, size: int) -> bool:
        """Whether `n_samples` at once and in pieces of `size` are equal in every step.

        The order of a kernel's sums does not depend on the data, so noise finds any difference.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 1, n_samples, generator=generator, dtype=torch.float32, device="cpu")
        noise = 0.1 * noise.to(self.device)

        def compute(wav: Tensor, state: State) -> tuple[list[Tensor], State]:
            z, state = self.encoder(wav, state)
            vectors = [x.flatten(0, 1) for x in self.quantizer.vectors(z)]
            strides = sorted(set(self.config.frames_per_code))
            scores = [self.searches[0].scores(pool(vectors[0], stride)) for stride in strides]
            return [z, *vectors, *scores], state

        with torch.inference_mode(), _one_thread():
            whole, state_of_whole = compute(noise, self.initial_encoder_state)
            pieces, state = [], self.initial_encoder_state
            for samples in noise.split(size, dim=2):
                piece, state = compute(samples, state)
                pieces.append(piece)
        joined = [torch.cat(parts, dim=-2) for parts in zip(*pieces)]
        return all(map(torch.equal, [*joined, *state], [*whole, *state_of_whole]))


def _engine(model: Codec) -> _Engine:
    """The model's engine: made once, and anew when its weights have changed since."""
    return kept(cast(nn.Module, model), "engine", lambda: _Engine(model))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stream:
    """One signal on its way through a model. Any number of streams may share a model.

    Encoding and decoding are two independent halves: use either, or both. All tensors are of batch
    1. A stream runs the weights that the model had when the stream was made. The whole memory of a
    stream is `state_dict()`, plain tensors that can be saved and restored. A copy goes on from
    where the stream is, on its own; pickle raises `TypeError`: save the state.

    A chunk that is refused, with `ValueError`, leaves the stream as it was.

    Example:

        stream = model.stream()
        for chunk in chunks:              # wav [1, 1, any length]
            codes = stream.encode(chunk)  # [1, n_q, frames that are complete by now]
            wav = stream.decode(codes)    # [1, 1, samples that are complete by now]
        codes, wav = stream.flush()       # what is left: the lookahead and the overlap
    """

    def __init__(self, model: Codec, n_q: int) -> None:
        self._engine = engine = _engine(model)
        self._n_q = n_q
        self._needed = engine.encoder.needed(n_q)
        self._start_encoder()
        self._decoder_state = engine.initial_decoder_state
        self._n_frames = 0  # received by decode

    def _start_encoder(self) -> None:
        config = self._engine.config
        self._encoder_state = self._engine.initial_encoder_state[self._needed]
        # Samples of the block that is not full yet.
        lead = config.lead * config.hop_length
        self._pending = torch.zeros(1, 1, lead, dtype=torch.float32, device=self._engine.device)
        # Of the pending block's frames, those sent already. The first frames of a signal count as
        # sent: code t is that of encoder frame t + lookahead, which has seen frame t's lookahead,
        # and later by the lead.
        self._sent = config.first_frame
        self._n_samples = 0  # received by encode

    @entry
    def encode(self, wav: Tensor | np.ndarray) -> Tensor:
        """Take samples [1, 1, n], n >= 0; return the codes int64 [1, n_q, T] known by now.

        Frame t is known when sample (t + 1 + lookahead) * hop - 1 has come; with `level_strides`,
        when that holds of all frames of its group. Samples are of the types and in the range of
        `AudioVQ.encode`; `ValueError` refuses others.
        """
        codes = self._full_blocks(self._checked(wav))
        if self._pending.shape[2] >= self._engine.group:
            single = self._engine.takes_single_frames
            codes += self._single_groups() if single else self._partial_block()
        return torch.cat([*codes, self._no_codes()], dim=2)

    @entry
    def encode_blocks(self, wav: Tensor | np.ndarray) -> Tensor:
        """As `encode`, but only whole blocks: later, and in the fastest way."""
        return torch.cat([*self._full_blocks(self._checked(wav)), self._no_codes()], dim=2)

    @entry
    def flush_encode(self) -> Tensor:
        """End of the signal: the codes [1, n_q, T] still due, so that T is ceil(N / hop) in all.

        The stream is as new afterwards.
        """
        config, hop = self._engine.config, self._engine.config.hop_length
        codes, n_beyond = [], 0
        if self._n_samples:
            whole = config.encoder_frames(self._n_samples)
            n_missing = (whole - config.lead) * hop - self._n_samples
            n_beyond = whole - config.first_frame - -(-self._n_samples // hop)
            codes = self._full_blocks(self._pending.new_zeros(1, 1, n_missing))
            codes += self._partial_block()
        self._start_encoder()
        due = torch.cat([*codes, self._no_codes()], dim=2)
        return due[:, :, : due.shape[2] - n_beyond]

    @entry
    def decode(self, codes: Tensor | np.ndarray) -> Tensor:
        """Take codes [1, n_q, T], T >= 0; return the samples [1, 1, n] that are complete by now.

        A frame's samples are complete when the `overlap_frames` frames after it have come. The
        number of levels may change from call to call. Codes are of any type of whole numbers;
        `ValueError` refuses others, and codes or levels that the model lacks.
        """
        codes = as_codes(codes, self._engine.config, self._engine.device)
        if len(codes) != 1:
            raise ValueError(f"codes must have the shape [1, n_q, T], not {list(codes.shape)}.")
        if not codes.shape[2]:
            return self._pending.new_zeros(1, 1, 0)
        wav, self._decoder_state = self._engine.decode_frames(codes, self._decoder_state)
        return self._complete(wav, codes.shape[2])

    @entry
    def flush_decode(self) -> Tensor:
        """End of the codes: the samples [1, 1, n] still due, so that they are T * hop in all.

        The stream is as new afterwards.
        """
        wav = self._pending.new_zeros(1, 1, 0)
        if self._n_frames and self._engine.config.overlap_frames:
            width = self._engine.config.channels[-1]
            with torch.inference_mode():
                silence = wav.new_zeros(1, self._engine.config.overlap_frames, width)
                wav, _ = self._engine.decode_latent(silence, self._decoder_state)
            wav = self._complete(wav.clone(), silence.shape[1])  # a clone can be trained on
        self._decoder_state = self._engine.initial_decoder_state
        self._n_frames = 0
        return wav

    def flush(self) -> tuple[Tensor, Tensor]:
        """End of the signal for both halves: the last codes, and the last samples after them."""
        codes = self.flush_encode()
        return codes, torch.cat([self.decode(codes), self.flush_decode()], dim=2)

    def state_dict(self) -> dict[str, Tensor]:
        """The stream's memory as tensors, to be saved (safetensors) and restored.

        Where the units have layers of their own (`level_frames`), a stream of the units alone
        remembers nothing of the sound's layers, and only a stream of one level goes on from there.
        """
        first = self._needed.start
        state = {f"encoder.{i}": tensor for i, tensor in enumerate(self._encoder_state, first)}
        state |= {f"decoder.{i}": tensor for i, tensor in enumerate(self._decoder_state)}
        counts = [self._sent, self._n_samples, self._n_frames]
        state |= {"pending": self._pending, "counts": torch.tensor(counts, device="cpu")}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state_dict` was taken, on the same model.

        Raises `ValueError` when `state` is not the state of a stream of this model.
        """
        own = self.state_dict()
        # That of all levels serves one level, too.
        rest = {f"encoder.{i}" for i in range(self._needed.start)}
        fits = own.keys() <= state.keys() <= own.keys() | rest and all(
            state[name].dtype == tensor.dtype
            and (name == "pending" or state[name].shape == tensor.shape)
            for name, tensor in own.items()
        )
        fits = fits and state["pending"].shape[:-1] == (1, 1)
        if not fits or state["pending"].shape[2] >= self._engine.block:
            raise ValueError(
                "This is not the state of a stream of this model"
                + (", or that of a stream of one level alone." if self._n_q > 1 else ".")
            )
        state = {name: state[name].clone().to(self._engine.device) for name in own}
        count, first = len(self._encoder_state), self._needed.start
        self._encoder_state = [state[f"encoder.{i}"] for i in range(first, first + count)]
        self._decoder_state = [state[f"decoder.{i}"] for i in range(len(self._decoder_state))]
        self._pending = state["pending"]
        self._sent, self._n_samples, self._n_frames = (int(n) for n in state["counts"])

    def __copy__(self) -> "Stream":
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__  # the engine, which does not change, is shared
        twin.load_state_dict(self.state_dict())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stream":
        return copy.copy(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A stream cannot be pickled, as it holds a model; save its state_dict(), plain "
            "tensors, and load it into a new stream of the model."
        )

    def _checked(self, wav: Tensor | np.ndarray) -> Tensor:
        wav = as_wav(wav, self._engine.device)
        if len(wav) != 1:
            raise ValueError(f"wav must have the shape [1, 1, n], not {list(wav.shape)}.")
        return wav

    def _no_codes(self) -> Tensor:
        return torch.zeros(1, self._n_q, 0, dtype=torch.int64, device=self._pending.device)

    def _full_blocks(self, wav: Tensor) -> list[Tensor]:
        self._n_samples += wav.shape[2]
        self._pending = torch.cat([self._pending, wav], dim=2)
        n_full = self._pending.shape[2] // self._engine.block * self._engine.block
        if not n_full:
            return []
        codes, self._encoder_state = self._engine.encode_blocks(
            self._take(n_full), self._encoder_state, self._n_q
        )
        n_early, self._sent = self._sent, 0
        return [codes[:, :, n_early:]]

    def _single_groups(self) -> list[Tensor]:
        """The codes of the complete groups of a block that is not full; they move the state."""
        group, frames = self._engine.group, self._engine.config.group_frames
        n_complete = self._pending.shape[2] // group * group
        if not n_complete:
            return []
        codes, self._encoder_state = self._engine.encode_pieces(
            self._take(n_complete).split(group, dim=2), self._encoder_state, self._n_q
        )
        n_early, self._sent = self._sent, max(0, self._sent - len(codes) * frames)
        return codes[n_early // frames :]

    def _partial_block(self) -> list[Tensor]:
        """The same codes from a block filled up with silence; the state stays where it was."""
        n_samples = self._pending.shape[2]
        n_complete = n_samples // self._engine.group * self._engine.config.group_frames
        if n_complete <= self._sent:
            return []
        block = F.pad(self._pending, (0, self._engine.block - n_samples))
        (codes,), _ = self._engine.encode_pieces([block], self._encoder_state, self._n_q)
        first, self._sent = self._sent, n_complete
        return [codes[:, :, first:n_complete]]

    def _take(self, n_samples: int) -> Tensor:
        taken, self._pending = self._pending.split(
            [n_samples, self._pending.shape[2] - n_samples], dim=2
        )
        self._pending = self._pending.clone()
        return taken

    def _complete(self, wav: Tensor, n_frames: int) -> Tensor:
        """The decoder's samples for `n_frames` more frames, less those before the first frame."""
        n_early = self._engine.config.overlap_frames - self._n_frames
        self._n_frames += n_frames
        return wav[:, :, max(0, n_early) * self._engine.config.hop_length :]
