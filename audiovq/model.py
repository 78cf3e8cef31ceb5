"""The codec: waveform to codes and back."""

import hashlib
import json
import os.path
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiovq import hub
from audiovq.coarse import merges, standing_for
from audiovq.codes import Codes, Header
from audiovq.config import SOURCE_SETTINGS, ModelConfig
from audiovq.entropy import TABLES_FILE, Tables, read_tables, register, write_tables
from audiovq.entry import as_codes, as_wav, entry
from audiovq.files import FileRefused, atomic_output, refuse_existing
from audiovq.network import Decoder, Encoder
from audiovq.quantize import Quantized, Search, SplitQuantizer, make_quantizer
from audiovq.stream import Stream
from audiovq.weights import check_finite, check_types, kept, load_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
BATCH_FRAMES = 512
"""Frames of each item that a GPU computes at once when more are there."""
CONFIG_BYTES = 1 << 24
"""Size of the largest config with its card."""
_ADDED = ("encoder.spectrum.", "encoder.unit_spectrum.", "encoder.unit_front.")
"""Weights that may come later, and begin at 0."""
DEFAULT_FOLDER = Path(__file__).parent / "default"


@dataclass(frozen=True)
class Output:
    """What `AudioVQ.forward` computes in training."""

    wav: Tensor
    """Reconstruction [B, 1, N]."""
    units: Tensor | None
    """Vectors of level 0 [B, T, codebook_dim], with straight-through gradients; None from codes."""
    quantized: Quantized | None
    """None when the quantizer was passed by."""
    pitch: Tensor | None
    """With a source, scores of the fundamental at the end of each frame [B, T, classes]."""


class AudioVQ(nn.Module):
    """A neural audio codec whose first level of tokens are phoneme-like units.

    Example:

        model = AudioVQ.from_pretrained()
        codes = model.encode(wav)        # wav [B, 1, N] in -1..1 at model.config.sample_rate
        codes.indices                    # [B, 8, T]
        wav = model.decode(codes)        # [B, 1, N]

    The weights are float32, whatever `torch.set_default_dtype` says. After `.half()` or `.double()`
    a model neither encodes nor decodes, nor is it saved: it raises `ValueError`.
    """

    def __init__(self, config: ModelConfig, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = card or {"name": "untrained"}
        self.tables: Tables | None = None
        """What codes its tokens in fewer bits; see `coding_tables`."""
        with torch.inference_mode(False):  # or its weights could never be trained nor watched
            self.encoder = Encoder(config)
            self.quantizer = make_quantizer(config)
            self.decoder = Decoder(config)
            self.float()

    @property
    def name(self) -> str:
        """The model's name, from its card."""
        return str(self.card.get("name", "unnamed"))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.head.weight.device

    @entry
    def encode(
        self,
        wav: Tensor | np.ndarray,
        n_q: int | None = None,
        lengths: Sequence[int] | Tensor | None = None,
    ) -> Codes:
        """Turn sound into codes.

        wav: [B, 1, N], N >= 1, in -1..1 at `config.sample_rate`, a tensor or an array of any
            floating-point type. What goes a little beyond 1, as after resampling, is taken so.
        n_q: levels to compute, 1 .. n_codebooks; all of them when None. Fewer levels are a prefix.
        lengths: samples of each item of a padded batch; N for all when None. The codes after an
            item's last frame are 0.

        On a CPU an item's codes do not depend on the other items, nor on the padding. On a GPU all
        items are computed at once, with sums in another order: a few tokens may be others.
        Raises `ValueError` for a wrong shape, type, n_q or length, and for samples, the padding's
        among them, that are not finite or beyond `audio.HIGHEST_LEVEL`: they are of another scale.
        """
        n_q = self.check_n_q(n_q)
        wav = as_wav(wav, self.device)
        if not wav.numel():
            raise ValueError(f"wav must have the shape [B, 1, N], N >= 1, not {list(wav.shape)}.")
        batch, _, n_samples = wav.shape
        lengths = [n_samples] * batch if lengths is None else [int(length) for length in lengths]
        if len(lengths) != batch or not all(1 <= length <= n_samples for length in lengths):
            raise ValueError(f"lengths must be {batch} numbers in 1..{n_samples}, not {lengths}.")
        strides = self.config.level_strides[:n_q]
        if self.device.type != "cpu":
            check_types(self.state_dict())
            return Codes(self._encode_batch(wav, lengths, n_q), tuple(lengths), strides)
        items = [self._encode_one(item[None, :, :n], n_q) for item, n in zip(wav, lengths)]
        n_frames = max(item.shape[2] for item in items)
        indices = torch.cat([F.pad(item, (0, n_frames - item.shape[2])) for item in items])
        return Codes(indices, tuple(lengths), strides)

    @torch.no_grad()
    def _encode_batch(self, wav: Tensor, lengths: list[int], n_q: int) -> Tensor:
        """Codes [B, n_q, T] of all items at once, which is what keeps a GPU busy."""
        config, hop = self.config, self.config.hop_length
        samples = torch.tensor(lengths, device=wav.device)[:, None, None]
        n_frames = -(-max(lengths) // hop)
        wav = wav.masked_fill(torch.arange(wav.shape[2], device=wav.device) >= samples, 0.0)
        wav = self._padded(wav)
        searches = [Search(table, pack=False) for table in self.quantizer.tables()[:n_q]]
        state, codes = self.encoder.initial_state(len(wav))[self.encoder.needed(n_q)], []
        group = hop * config.group_frames
        for piece in wav.split(max(1, BATCH_FRAMES * hop // group) * group, dim=2):
            z, state = self.encoder.path(n_q)(piece, state)
            codes.append(self.quantizer.encode(z, searches))
        indices = torch.cat(codes, dim=2)[:, :, config.first_frame :][:, :, :n_frames]
        starts = torch.arange(n_frames, device=wav.device) * hop
        return indices.masked_fill(starts >= samples, 0)

    @torch.no_grad()
    def _decode_batch(self, indices: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Samples [B, 1, N] of all items at once; N is the longest of `lengths`."""
        config, hop = self.config, self.config.hop_length
        samples = torch.tensor(lengths, device=indices.device)[:, None, None]
        indices = indices[:, :, : -(-max(lengths) // hop)]
        n_frames = indices.shape[2]
        heard = torch.arange(n_frames, device=indices.device)[:, None] * hop < samples
        z_q = self.quantizer.decode(indices, self.quantizer.tables()) * heard  # [B, T, D]
        z_q = F.pad(z_q, (0, 0, 0, config.overlap_frames))  # the windows that reach back
        state, wavs = self.decoder.initial_state(len(indices)), []
        for piece in z_q.split(BATCH_FRAMES, dim=1):
            wav, state = self.decoder(piece, state)
            wavs.append(wav)
        wav = torch.cat(wavs, dim=2)[:, :, config.overlap_frames * hop :][:, :, : max(lengths)]
        return wav.masked_fill(torch.arange(wav.shape[2], device=wav.device) >= samples, 0.0)

    def _encode_one(self, wav: Tensor, n_q: int) -> Tensor:
        stream = self.stream(n_q)
        return torch.cat([stream.encode_blocks(wav), stream.flush_encode()], dim=2)

    @entry
    def decode(self, codes: Codes | Tensor | np.ndarray) -> Tensor:
        """Turn codes into sound: float32 [B, 1, N], N the longest of `codes.lengths`.

        Of bare indices [B, n_q, T], whole frames are decoded: N is T * hop_length. They are a
        tensor or an array of any type of whole numbers. The samples after an item's length are 0.

        Raises `ValueError` for a wrong shape or type, and for codes or a number of levels out of
        range.
        """
        hop = self.config.hop_length
        bare = codes.indices if isinstance(codes, Codes) else codes
        indices = as_codes(bare, self.config, self.device)
        if not indices.numel():
            raise ValueError(f"codes must be of one frame or more, not {list(indices.shape)}.")
        if not isinstance(codes, Codes):
            codes = Codes(indices, (indices.shape[2] * hop,) * len(indices))
        if len(codes.lengths) != len(indices) or not all(
            1 <= length <= indices.shape[2] * hop for length in codes.lengths
        ):
            raise ValueError(f"lengths {list(codes.lengths)} do not match the codes.")
        if self.device.type != "cpu":
            check_types(self.state_dict())
            return self._decode_batch(indices, codes.lengths)
        items = []
        for item, n_samples in zip(indices, codes.lengths):
            stream = self.stream()
            frames = item[None, :, : -(-n_samples // hop)]
            wav = torch.cat([stream.decode(frames), stream.flush_decode()], dim=2)
            items.append(F.pad(wav[:, :, :n_samples], (0, max(codes.lengths) - n_samples)))
        return torch.cat(items)

    @entry
    def stream(self, n_q: int | None = None) -> Stream:
        """Start a signal that comes piece by piece; see `Stream`."""
        return Stream(self, self.check_n_q(n_q))

    def forward(self, wav: Tensor, n_q: Tensor | None = None, *, quantize: bool = True) -> Output:
        """The pass that training differentiates; with `quantize`, codebooks learn from it.

        wav: [B, 1, N], N a multiple of hop_length.
        n_q: [B], levels that each item keeps (quantizer dropout); all when None.
        quantize: False passes the quantizer by, for the first part of a training.
        """
        config, batch = self.config, len(wav)
        n_frames = wav.shape[2] // config.hop_length
        z = self._latent(wav)  # [B, T, D]
        quantized = None
        with torch.autocast(wav.device.type, enabled=False):
            if quantize:
                if n_q is None:
                    n_q = torch.full((batch,), config.n_codebooks, device=wav.device)
                quantized = self.quantizer(z, n_q)
                z_q, units = quantized.z_q, quantized.units
            else:
                z_q, units = self.quantizer.bypass(z)
        wav, pitch = self._decode(z_q[:, :n_frames])
        return Output(wav, units[:, :n_frames], quantized, pitch)

    def hear(self, wav: Tensor, *, quantize: bool = True) -> tuple[Tensor, Quantized | None]:
        """The units' part of `forward`, where they share no layer with the sound (`level_frames`).

        wav: [B, 1, N], N a multiple of hop_length.
        quantize: False passes the quantizer by.

        Gives `Output.units` and `Output.quantized`.
        """
        if self.encoder.level is None:
            raise ValueError("Only with level_frames do the units have all layers for themselves.")
        z = self._latent(wav, 1)
        assert isinstance(self.quantizer, SplitQuantizer)
        with torch.autocast(wav.device.type, enabled=False):
            if not quantize:
                vectors = self.quantizer.unit_vectors(z)
                return vectors.repeat_interleave(self.config.frames_per_code[0], dim=1), None
            one = torch.ones(len(wav), dtype=torch.int64, device=wav.device)
            quantized = self.quantizer.units(z, one)
            return quantized.units, quantized

    def resynthesize(self, codes: Tensor, n_q: Tensor) -> Output:
        """The decoder's part of `forward`, for codes [B, n_codebooks, T] that are known.

        n_q: [B], levels that each item keeps.
        """
        with torch.autocast(codes.device.type, enabled=False):
            tables = [table.detach() for table in self.quantizer.tables()]
            z_q = self.quantizer.decode(codes, tables, n_q)
        wav, pitch = self._decode(z_q)
        return Output(wav, None, None, pitch)

    def _decode(self, z_q: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sound [B, 1, T * hop] of z_q [B, T, D], and the scores of the fundamental if any."""
        config, n_frames = self.config, z_q.shape[1]
        z_q = F.pad(z_q, (0, 0, 0, config.overlap_frames))  # the windows that reach back
        f0, scores = None, None
        if self.decoder.source is not None:
            pitch = self.decoder.source.pitch
            scores, _ = pitch(z_q, pitch.initial_state(len(z_q)))
            f0, scores = pitch.hertz(scores), scores[:, :n_frames]
        wav, _ = self.decoder(z_q, self.decoder.initial_state(len(z_q)), f0)
        return wav[:, :, config.overlap_frames * config.hop_length :], scores

    @torch.no_grad()
    def latent(self, wav: Tensor) -> Tensor:
        """The latent of wav [B, 1, N]: [B, T, D], or with `unit_blocks` [B, T, 2 * D]; see
        `Encoder`. T are the frames of N samples, in whole groups."""
        return self._latent(wav)

    def _latent(self, wav: Tensor, n_q: int | None = None) -> Tensor:
        """What `n_q` levels need of the latent, all of it when None."""
        n_q = n_q or self.config.n_codebooks
        state = self.encoder.initial_state(len(wav))[self.encoder.needed(n_q)]
        z, _ = self.encoder.path(n_q)(self._padded(wav), state)
        return z[:, self.config.first_frame :].float()

    def _padded(self, wav: Tensor) -> Tensor:
        """Sound with the silence around it of which the encoder makes whole groups of frames."""
        config, n_samples = self.config, wav.shape[2]
        lead = config.lead * config.hop_length
        whole = config.encoder_frames(n_samples) * config.hop_length
        return F.pad(wav, (lead, whole - lead - n_samples))

    @torch.no_grad()
    def unit_vectors(self, wav: Tensor) -> Tensor:
        """What level 0 quantizes of wav [B, 1, N]: [B, T, codebook_dim], T the frames, or with
        `level_strides` the units, of whole groups."""
        return self.quantizer.unit_vectors(self._latent(wav, 1))

    @entry
    @torch.no_grad()
    def unit_distances(self, wav: Tensor | np.ndarray) -> Tensor:
        """Squared distances [B, T, K] of wav [B, 1, N] to the codes of level 0.

        T are the frames, or with `level_strides` the units, one of so many frames. The nearest
        codes are the units, but for ties within float32 rounding. Raises `ValueError` as `encode`.
        """
        wav = as_wav(wav, self.device)
        vectors = self.unit_vectors(wav)[:, : self.config.n_codes(0, wav.shape[2])]
        table = self.quantizer.codebooks[0].vectors
        return torch.cdist(vectors, table.expand(len(vectors), -1, -1)) ** 2

    @entry
    def coarse_units(self, n_units: int) -> Tensor:
        """Which unit stands for each where only `n_units` are told apart, 1 to K: int64 [K].

        Those merged are the ones that stand for the same phones, where the model says for which
        (`unit_labels`), or else those whose code vectors are nearest, by how often they are used
        (`audiovq.coarse`); the rest stays a unit of this model, which decodes. What 256 have in one
        128 have in one, too. Raises `ValueError` for another number.
        """
        size = self.config.codebook_size
        if not 1 <= n_units <= size:
            raise ValueError(f"n_units must be in 1..{size}, the units there are, not {n_units}.")
        codebook = self.quantizer.codebooks[0]
        labels = None
        if isinstance(self.quantizer, SplitQuantizer):
            labels = self.quantizer.units.labels
        if labels is not None and labels.any():
            # Distances between roots of probabilities are Hellinger's.
            vectors = np.sqrt(labels.cpu().double().numpy())
        else:
            vectors = codebook.vectors.detach().cpu().numpy()
        weights = codebook.weights().cpu().double().numpy()
        order = kept(self, "merges", lambda: merges(vectors, weights))
        return torch.from_numpy(standing_for(order, vectors, weights, n_units))

    def check_n_q(self, n_q: int | None) -> int:
        """`n_q`, or all levels when it is None. Raises `ValueError` when it is out of range."""
        if n_q is None:
            return self.config.n_codebooks
        self.config.check_n_q(n_q)
        return n_q

    def check_range(self, smallest: int, largest: int) -> None:
        """Raise `ValueError` when codes between these two are not all in the codebooks."""
        self.config.check_range(smallest, largest)

    def header(self, n_q: int, n_samples: int) -> Header:
        """What a token file says of this model and of `n_samples` samples at `n_q` levels."""
        return Header(
            model=self.name,
            fingerprint=self.fingerprint,
            sample_rate=self.config.sample_rate,
            hop_length=self.config.hop_length,
            codebook_size=self.config.codebook_size,
            n_q=n_q,
            n_samples=n_samples,
            level_strides=self.config.level_strides[:n_q],
        )

    def coding_tables(self) -> Tables | None:
        """The tables that code this model's tokens: `tables`, unless those are of other tokens,
        as after the encoder has learnt on."""
        tables = self.tables
        return tables if tables is not None and tables.fingerprint == self.fingerprint else None

    @staticmethod
    def decides_tokens(name: str) -> bool:
        """Whether the tensor of that name has a say in what the tokens are and mean.

        The decoder has none, nor has the way back from the codebooks' space to the latent.
        """
        return not name.startswith("decoder.") and "project_out" not in name

    @staticmethod
    def decides_units(name: str) -> bool:
        """Whether, with `level_frames`, the tensor of that name has a say in the units alone."""
        return name.startswith(("encoder.unit", "quantizer.units.")) and "project_out" not in name

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell the tokens of this model from any others.

        Models of the same sizes that differ in their decoders' weights alone have the same, and
        decode each other's tokens.
        """
        return kept(self, "fingerprint", self._hash)  # hashing 20 MB takes a while

    def _hash(self) -> str:
        digest = hashlib.sha256(self.config.tokens_json().encode())
        for name, tensor in sorted(self.state_dict().items()):
            if self.decides_tokens(name):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    @entry
    def from_pretrained(
        cls, name_or_folder: str | Path = "default", *, device: str | torch.device = "cpu"
    ) -> "AudioVQ":
        """Load a model, ready to encode and decode.

        name_or_folder: "default" for the model inside the package, a folder that
        `save_pretrained` wrote, or, as text, owner/name of a model on the Hugging Face hub.
        device: where it computes, as torch names it: "cpu", "cuda", "cuda:1".

        Raises `FileRefused` when there is no such model, when its files are damaged or do not fit
        each other, and when they hold numbers that are not finite; `ValueError` for the device.
        """
        model = _load(cls, _folder_of(name_or_folder))
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {str(device)!r} cannot be used here ({reason}).") from error

    def check_weights(self) -> None:
        """Raise `ValueError` that names a tensor which is not float32, or holds NaN or infinity."""
        tensors = self.state_dict()
        check_types(tensors)
        check_finite(tensors)
        tables = enumerate(self.quantizer.tables())
        check_finite({f"the codebook of level {level}": table for level, table in tables})

    @entry
    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write `config.json` and `model.safetensors`, exactly the weights in memory, and with
        `coding_tables` also `tables.safetensors`.

        Raises `FileRefused` when a file exists or cannot be written, and `ValueError` for weights
        that cannot be used, as `check_weights`, and a card that is no JSON.
        """
        folder = Path(folder)
        tables = self.coding_tables()
        for name in (CONFIG_FILE, WEIGHTS_FILE, *([TABLES_FILE] if tables else [])):
            refuse_existing(folder / name, overwrite=overwrite)  # all, before any is written
        self.check_weights()
        try:
            text = json.dumps({"card": self.card, "config": asdict(self.config)}, indent=2)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the card cannot be saved as JSON: {error}.") from error
        tensors = dict(self.state_dict())
        for name, parameter in self.named_parameters():
            half = parameter.detach().half()
            if torch.equal(half.float(), parameter):
                tensors[name] = half  # the same numbers in half the room
        with atomic_output(folder / WEIGHTS_FILE, overwrite=overwrite) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))  # a full disk is an OSError
        with atomic_output(folder / CONFIG_FILE, overwrite=overwrite) as temporary:
            temporary.write_text(text + "\n")
        if tables is not None:
            write_tables(folder / TABLES_FILE, tables, overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool = False) -> None:
        """Write the model to the Hugging Face hub, for `from_pretrained("owner/name")` anywhere.

        repository: owner/name, made if need be. Log in before with `hf auth login`.

        Raises `FileRefused` when the hub cannot be reached or refuses, or without huggingface_hub,
        and `ValueError` for a name of another form and as `save_pretrained`.
        """
        if not hub.names_repository(repository):
            raise ValueError(f"repository must be owner/name, not {repository!r}.")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.publish(Path(folder), repository, private=private)

    def grown(
        self,
        *,
        unit_blocks: int = 0,
        spectrum_size: int = 0,
        level_frames: int = 0,
        level_floor: int = 0,
        unit_extra_blocks: int = 0,
        unit_labels: int = 0,
    ) -> "AudioVQ":
        """A model that computes the same, with room to learn more; 0 leaves a size as it is.

        unit_blocks: blocks of the units' own, which begin as copies of the encoder's last ones.
        spectrum_size: that of `ModelConfig`; the spectrum begins with weights of 0.
        level_frames: that of `ModelConfig`. Here the units do not stay the same: their own layers
            begin as copies of those that they shared with the sound, with a front of weights 0 in
            the place of the convolutions, and have to learn (train.learn = "units").
        level_floor: that of `ModelConfig`; with another one, too, the units have to learn.
        unit_extra_blocks: that of `ModelConfig`; they begin with a last layer of weights 0.
        unit_labels: that of `ModelConfig`; until they are learnt they say nothing.

        Raises `ValueError` when the model has one of them in another size already, when nothing
        is asked for, and as `ModelConfig` does.
        """
        wanted = {
            "unit_blocks": unit_blocks,
            "spectrum_size": spectrum_size,
            "level_frames": level_frames,
            "level_floor": level_floor,
            "unit_extra_blocks": unit_extra_blocks,
            "unit_labels": unit_labels,
        }
        changes: dict[str, Any] = {}
        for name, size in wanted.items():
            has = getattr(self.config, name)
            if size and has and size != has and name != "level_floor":  # it has no weights
                raise ValueError(f"{name} is {has} in this model and cannot become {size}.")
            if size and size != has:
                changes[name] = size
        if not changes:
            raise ValueError(f"Give one of {', '.join(wanted)} that the model does not have.")
        grown = AudioVQ(replace(self.config, **changes), dict(self.card))
        tensors = self.state_dict()
        if "unit_blocks" in changes:
            n_shared = len(self.encoder.stack.layers) - unit_blocks
            for name in [name for name in tensors if name.startswith("encoder.")]:
                if name.startswith("encoder.stack.layers."):
                    index, rest = name.removeprefix("encoder.stack.layers.").split(".", 1)
                    if int(index) >= n_shared:
                        tensor = tensors.pop(name)
                        for branch in ("sound", "units"):
                            own = f"encoder.{branch}.layers.{int(index) - n_shared}.{rest}"
                            tensors[own] = tensor
                elif name.startswith("encoder.norm."):
                    tensors[name.replace("norm", "unit_norm")] = tensors[name]
        if "level_frames" in changes:
            first = self.encoder.join + 1
            for own in [name for name in grown.state_dict() if "unit_stack" in name]:
                place, rest = own.removeprefix("encoder.unit_stack.layers.").split(".", 1)
                shared = f"encoder.stack.layers.{first + int(place)}.{rest}"
                if shared in tensors:  # those of `unit_extra_blocks` are not
                    tensors[own] = tensors[shared]
        for name, tensor in grown.state_dict().items():
            if name not in tensors:  # a block adds to its input what its last layer gives
                begins_at_0 = name.startswith(_ADDED) or ".down." in name
                tensors[name] = torch.zeros_like(tensor) if begins_at_0 else tensor
        grown.load_state_dict(tensors)
        return grown.to(self.device).train(self.training)

    @entry
    def with_source(self, **settings: int | tuple[int, ...]) -> "AudioVQ":
        """The same tokens, with another source in the decoder: `SOURCE_SETTINGS` of the config.

        Weights that fit are taken over; the others begin at random. What it decodes to has to be
        learnt (train.learn = "decoder").
        """
        for name in settings:
            if name not in SOURCE_SETTINGS:
                raise ValueError(f"{name} is not of the source; it has {SOURCE_SETTINGS}.")
        other = AudioVQ(replace(self.config, **settings), dict(self.card))  # type: ignore[arg-type]
        tensors = other.state_dict()
        tensors |= {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in tensors and tensor.shape == tensors[name].shape
        }
        other.load_state_dict(tensors)
        other.tables = self.tables
        return other.to(self.device).train(self.training)

    def round_weights(self) -> "AudioVQ":
        """Round the network's weights to what float16 can hold, in place, still float32.

        A model rounded so takes half the room and loads as it is in memory. The codebooks stay
        exact: they are small, and the tokens hang on them.

        Raises `ValueError`, with all weights as they were, when one is beyond float16's range
        (65504) or not finite.
        """
        # Adding 0 makes -0 of what is too small 0: an average of them would be, and its fingerprint
        # another one.
        rounded = {name: p.detach().half() + 0.0 for name, p in self.named_parameters()}
        for name, half in rounded.items():
            if not torch.isfinite(half).all():
                raise ValueError(
                    f"{name} holds numbers that are not finite or beyond the range of float16 "
                    "(65504), in which shipped weights are kept."
                )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(rounded[name])
        return self


@torch.inference_mode(False)
def config_of(name_or_folder: str | Path) -> ModelConfig:
    """The sizes of a model that `AudioVQ.from_pretrained` would load; raises `FileRefused`."""
    return _read_config(_folder_of(name_or_folder))[0]


def _folder_of(name_or_folder: str | Path) -> Path:
    folder = Path(name_or_folder)
    if str(name_or_folder) == "default":
        folder = DEFAULT_FOLDER
    elif hub.names_repository(name_or_folder) and not os.path.exists(folder):
        folder = hub.fetch(str(name_or_folder), (CONFIG_FILE, WEIGHTS_FILE, TABLES_FILE))
    if not os.path.isfile(folder / CONFIG_FILE):
        raise FileRefused(
            f'{name_or_folder} is not a model; give "default" or a folder with {CONFIG_FILE} '
            f"and {WEIGHTS_FILE}."
        )
    return folder


def _read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The sizes of a model, and its card."""
    config_path = folder / CONFIG_FILE
    try:
        if config_path.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it is larger than {CONFIG_BYTES >> 20} MiB")
        saved = json.loads(config_path.read_text())
        return ModelConfig.from_dict(saved["config"]), dict(saved["card"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileRefused(f"{config_path} is not the config of a model ({error}).") from error


def _load(cls: type[AudioVQ], folder: Path) -> AudioVQ:
    config, card = _read_config(folder)
    weights_path = folder / WEIGHTS_FILE
    model = load_weights(lambda: cls(config, card), weights_path)
    try:
        model.check_weights()
    except ValueError as error:
        raise FileRefused(f"{weights_path} is damaged: {error}") from error
    if os.path.isfile(folder / TABLES_FILE):
        model.tables = read_tables(folder / TABLES_FILE)
        register(model.tables)
    return model.eval()
