"""Every size of the network, in one place."""

import json
import math
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from audiovq.flatten import LARGEST_STRIDE, checked_strides, codes_per_second

_MAY_BE_0 = (
    "lookahead",
    "unit_blocks",
    "spectrum_size",
    "level_frames",
    "level_floor",
    "unit_extra_blocks",
    "unit_labels",
    "source_channels",
)
CODEBOOK_SETTINGS = ("n_codebooks", "codebook_size", "codebook", "level_strides")
"""What new codebooks may have otherwise than those of the model to go on from."""
SOURCE_SETTINGS = (
    "source_channels",
    "source_blocks",
    "pitch_channels",
    "pitch_blocks",
    "crossover",
)
"""Of the decoder's source; they change no token."""
SUBFRAMES = 4
"""Times a frame that the decoder's source is filtered anew."""
MOST = {
    "sample_rate": 768_000,
    "strides": 1 << 12,
    "channels": 1 << 14,
    "encoder_blocks": 256,
    "encoder_expansion": 64,
    "level_frames": 1 << 12,
    "level_floor": 100,
    "unit_extra_blocks": 256,
    "unit_labels": 1 << 14,
    "decoder_channels": 1 << 14,
    "decoder_blocks": 256,
    "decoder_expansion": 64,
    "kernel_size": 1 << 10,
    "n_fft": 1 << 17,
    "source_channels": 1 << 14,
    "source_blocks": 256,
    "pitch_channels": 1 << 14,
    "pitch_blocks": 256,
    "crossover": 384_000,
    "n_codebooks": 256,
    "level_strides": LARGEST_STRIDE,
    "codebook_size": 1 << 16,
    "codebook_dim": 1 << 14,
    "block_frames": 1 << 12,
}
"""The largest values, far beyond any use: a damaged file must not ask for all the memory."""
MOST_STRIDES = 16
MOST_BLOCK = 1 << 20
"""Samples of a block, which are computed at once."""


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of an `AudioVQ` model. Rates and lengths that follow from them are properties.

    Raises `ValueError` when a value is out of range or two values contradict each other.
    """

    sample_rate: int = 16_000
    """Samples per second, in Hz."""
    strides: tuple[int, ...] = (40, 4, 2)
    """Strides of the encoder's convolutions, from the waveform to the frame rate."""
    channels: tuple[int, ...] = (192, 256, 384)
    """Width after each of those convolutions; the last one is the width of the latent."""
    encoder_blocks: tuple[int, ...] = (1, 1, 5)
    """Residual blocks after each of those convolutions."""
    unit_blocks: int = 0
    """How many of the encoder's last blocks the units have for themselves: as many stand beside
    them. 0 makes units and sound share all. Only with unit_level "split"."""
    spectrum_size: int = 0
    """Samples of the windows, two for each frame, whose log spectrum joins the encoder's frames.
    Convolutions find magnitudes hard to learn. 0: none."""
    level_frames: int = 0
    """Frames from which the units know the level of the sound, which is then divided out of their
    spectrum, all that they see: the units share no layer with the sound. Only with unit_blocks and
    spectrum_size. 0: none."""
    level_floor: int = 0
    """dB from the level of the speech down to that of a noise whose power is added to the spectrum
    that the units see, so that fainter noise hardly changes it. Only with level_frames. 0: none."""
    unit_extra_blocks: int = 0
    """Residual blocks that the units have beyond as many as the sound has. Only with level_frames.
    0: none."""
    unit_labels: int = 0
    """Phone labels of which each unit says how likely they are, learnt with `loss.code_labels`:
    where fewer units are wanted, those that mean the same are merged. Only with unit_level "split".
    0: none."""
    encoder_expansion: int = 2
    """Width inside a residual block of the encoder, as a multiple of the width outside it."""
    decoder_channels: int = 384
    """Width of the decoder."""
    decoder_blocks: int = 6
    """Residual blocks of the decoder, all at the frame rate."""
    decoder_expansion: int = 3
    """Width inside a residual block of the decoder, as a multiple of the width outside it."""
    kernel_size: int = 7
    """Frames that the depthwise convolution of a residual block sees: its own and those before."""
    n_fft: int = 960
    """Samples of a synthesis window of the decoder, a multiple of the hop."""
    source_channels: int = 0
    """Width of the decoder's blocks, at four times the frame rate, that filter pulses and noise to
    the sound above `crossover`, where it needs harmonics. 0: none, all is the inverse STFT's."""
    source_blocks: int = 3
    """Residual blocks of that width."""
    pitch_channels: int = 192
    """Width of the blocks that read the fundamental from the codes. Only with source_channels."""
    pitch_blocks: int = 3
    """Residual blocks of that width."""
    crossover: tuple[int, ...] = (1000, 1600)
    """With source_channels: frequencies in Hz between which the inverse STFT fades out."""
    lookahead: int = 1
    """Frames after a frame that the encoder waits for, 0 to 2."""
    n_codebooks: int = 8
    """Levels: level 0 is the unit codebook, the others are acoustic codebooks."""
    codebook_size: int = 1024
    """Codes of each codebook, K."""
    codebook_dim: int = 64
    """Length of a code vector."""
    codebook: str = "ema"
    """How codebooks learn: "ema" (moving averages) or "gradient" (the codebook loss of VQ-VAE)."""
    unit_level: str = "split"
    """Where level 0 stands: "split" beside the residual stack, or "residual", its first level."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for, one number a level: 1 for a code every frame, 4
    for one every fourth. A coarse level quantizes the mean of its frames. Each divides the largest,
    and that one block_frames. Empty when all are 1."""
    block_frames: int = 16
    """Frames that the encoder computes at once. Tokens are exact for any cutting of the input
    because every computation has this one shape."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # from JSON or TOML
                object.__setattr__(self, field.name, tuple(value))
        self._check_types()
        strides = checked_strides(self.level_strides, self.n_codebooks)
        object.__setattr__(self, "level_strides", strides)  # one spelling, one fingerprint
        for n_q in range(1, len(strides)):  # any first levels are tokens of their own
            if any(max(strides[:n_q]) % stride for stride in strides[:n_q]):
                raise ValueError(
                    f"level_strides must also fit each other in the first {n_q} levels alone, each "
                    f"a divisor of the largest there, not {list(strides)}."
                )
        if not len(self.strides) == len(self.channels) == len(self.encoder_blocks) >= 1:
            raise ValueError(
                "strides, channels and encoder_blocks must be lists of one length, not "
                f"{self.strides}, {self.channels} and {self.encoder_blocks}."
            )
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length:
            raise ValueError(
                f"n_fft must be a multiple of the hop ({self.hop_length}, the product of strides) "
                f"and at least twice it, not {self.n_fft}."
            )
        if self.spectrum_size and (
            self.spectrum_size % 2
            or self.hop_length % 2
            or not self.hop_length // 2 <= self.spectrum_size <= 4 * self.hop_length
        ):
            raise ValueError(
                f"spectrum_size must be 0 or an even number from half a hop to four hops, and the "
                f"hop an even number, not {self.spectrum_size} with a hop of {self.hop_length}."
            )
        if self.source_channels and self.hop_length % SUBFRAMES:
            raise ValueError(
                f"source_channels needs a hop that is a multiple of {SUBFRAMES}, "
                f"not {self.hop_length}."
            )
        if len(self.crossover) != 2 or not self.crossover[0] < self.crossover[1]:
            raise ValueError(
                f"crossover must be two frequencies in Hz, the lower one first, "
                f"not {self.crossover}."
            )
        if self.lookahead > 2:
            raise ValueError(f"lookahead must be 0, 1 or 2 frames, not {self.lookahead}.")
        if self.block_frames <= self.lookahead:
            raise ValueError(
                f"block_frames must be more than lookahead ({self.lookahead}), "
                f"not {self.block_frames}."
            )
        if self.block_frames * self.hop_length > MOST_BLOCK:
            raise ValueError(
                f"block_frames times the hop must be at most {MOST_BLOCK} samples, not "
                f"{self.block_frames * self.hop_length}."
            )
        if self.block_frames % self.group_frames:
            raise ValueError(
                f"block_frames must be a multiple of the largest of level_strides "
                f"({self.group_frames}), not {self.block_frames}."
            )
        if self.codebook not in ("ema", "gradient"):
            raise ValueError(
                f'codebook must be "ema" or "gradient", not {reprlib.repr(self.codebook)}.'
            )
        if self.unit_level not in ("split", "residual"):
            raise ValueError(
                f'unit_level must be "split" or "residual", not {reprlib.repr(self.unit_level)}.'
            )
        if self.unit_level == "split" and self.n_codebooks < 2:
            raise ValueError('unit_level "split" needs n_codebooks of at least 2.')
        if self.unit_blocks and self.unit_level != "split":
            raise ValueError(
                f'unit_blocks needs unit_level "split"; with "{self.unit_level}" it must be 0, '
                f"not {self.unit_blocks}."
            )
        if self.level_frames and not (self.unit_blocks and self.spectrum_size):
            raise ValueError(
                f"level_frames needs unit_blocks and spectrum_size, through which the units hear; "
                f"without them it must be 0, not {self.level_frames}."
            )
        if self.level_floor and not self.level_frames:
            raise ValueError(
                "level_floor lies below the level that level_frames finds; without them it must "
                f"be 0, not {self.level_floor}."
            )
        if self.unit_labels and self.unit_level != "split":
            raise ValueError(
                f'unit_labels needs unit_level "split"; without it must be 0, not '
                f"{self.unit_labels}."
            )
        if self.unit_extra_blocks and not self.level_frames:
            raise ValueError(
                "unit_extra_blocks join the units' own layers, which level_frames brings; without "
                f"them it must be 0, not {self.unit_extra_blocks}."
            )
        if self.unit_blocks > self.encoder_blocks[-1]:
            raise ValueError(
                f"unit_blocks must be at most the encoder's last number of blocks "
                f"({self.encoder_blocks[-1]}), not {self.unit_blocks}."
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_0 else 1
            if isinstance(field.default, int):
                if type(value) is not int or value < least:
                    raise ValueError(
                        f"{field.name} must be a whole number >= {least}, "
                        f"not {reprlib.repr(value)}."
                    )
            elif isinstance(field.default, tuple):
                least = 0 if field.name == "encoder_blocks" else 1
                if type(value) is not tuple or not all(
                    type(item) is int and item >= least for item in value
                ):
                    raise ValueError(
                        f"{field.name} must be a list of whole numbers >= {least}, "
                        f"not {reprlib.repr(value)}."
                    )
                limit = self.n_codebooks if field.name == "level_strides" else MOST_STRIDES
                if len(value) > limit:
                    raise ValueError(
                        f"{field.name} must have at most {limit} numbers, not {len(value)}."
                    )
            elif type(value) is not str:
                raise ValueError(f"{field.name} must be text, not {reprlib.repr(value)}.")
            most = MOST.get(field.name)
            largest = max(value, default=0) if isinstance(value, tuple) else value
            if most is not None and largest > most:
                raise ValueError(f"{field.name} must be at most {most}, not {largest}.")

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def overlap_frames(self) -> int:
        """Frames after a frame whose synthesis windows reach back into it."""
        return self.n_fft // self.hop_length - 1

    @property
    def delay(self) -> int:
        """Algorithmic delay of encode plus decode, in samples: a group, lookahead and overlap."""
        return self.hop_length * (self.group_frames + self.lookahead + self.overlap_frames)

    @property
    def frames_per_code(self) -> tuple[int, ...]:
        """`level_strides`, all 1 written out."""
        return self.level_strides or (1,) * self.n_codebooks

    @property
    def group_frames(self) -> int:
        """Frames of a group, which have one code of the coarsest level; 1 when all have one."""
        return max(self.frames_per_code)

    @property
    def first_frame(self) -> int:
        """The encoder's frame whose code is that of frame 0: as many are dropped.

        The lookahead, rounded up to whole groups, so that those of the codes are whole groups of
        the encoder's blocks too."""
        return -(-self.lookahead // self.group_frames) * self.group_frames

    @property
    def lead(self) -> int:
        """Frames of silence that the encoder hears before the signal, for `first_frame`."""
        return self.first_frame - self.lookahead

    def encoder_frames(self, n_samples: int) -> int:
        """Frames that the encoder computes of so many samples: before `first_frame`, and whole
        groups."""
        group = self.hop_length * self.group_frames
        return self.first_frame + -(-n_samples // group) * self.group_frames

    def level_rate(self, level: int) -> float:
        """Codes per second of one level, in Hz."""
        return self.frame_rate / self.frames_per_code[level]

    def n_codes(self, level: int, n_samples: int) -> int:
        """Codes that a level has for so many samples."""
        return -(-n_samples // (self.hop_length * self.frames_per_code[level]))

    @property
    def receptive_field(self) -> int:
        """Samples of the input that can move one frame's codes, its lookahead and the frames that
        share a code with it included."""
        samples, rate = 0, 1  # rate: samples per step of the layer at hand
        for index, (stride, blocks) in enumerate(zip(self.strides, self.encoder_blocks)):
            samples += (self.taps(index) - 1) * stride * rate
            rate *= stride
            samples += blocks * (self.kernel_size - 1) * rate
        spectrum = self.spectrum_size - 1 - self.hop_length // 2  # its window begins with a zero
        n_last = self.encoder_blocks[-1] + self.unit_extra_blocks
        last = n_last * (self.kernel_size - 1) * self.hop_length
        level = max(0, self.level_frames - 1) * self.hop_length
        ahead = self.hop_length * (self.group_frames + self.lookahead)
        return max(samples, spectrum + last + level) + ahead

    @property
    def source_delay(self) -> int:
        """Samples by which the decoder's source would be ahead of its inverse STFT."""
        return (
            self.overlap_frames * self.hop_length - (SUBFRAMES - 1) * self.hop_length // SUBFRAMES
        )

    @property
    def decoder_memory(self) -> int:
        """Frames before a frame that can move the samples which the decoder puts out with it, but
        for the source's fundamental and its phase, which remember all."""
        frames = 1 + self.decoder_blocks * (self.kernel_size - 1) + self.overlap_frames
        if not self.source_channels:
            return frames
        # In subframes: the blocks, the windows of analysis and of synthesis.
        fine = self.source_blocks * (self.kernel_size - 1) + 2 * (SUBFRAMES - 1)
        return frames + -(-fine // SUBFRAMES) + 1

    @staticmethod
    def taps(index: int) -> int:
        """Kernel of the strided convolution `index`, in strides: the first is the filterbank."""
        return 4 if index == 0 else 2

    def check_n_q(self, n_q: int) -> None:
        """Raise `ValueError` when a model has no such number of levels."""
        if not 1 <= n_q <= self.n_codebooks:
            raise ValueError(f"n_q must be in 1..{self.n_codebooks}, not {n_q}.")

    def check_range(self, smallest: int, largest: int) -> None:
        """Raise `ValueError` when codes between these two are not all in the codebooks."""
        if smallest < 0 or largest >= self.codebook_size:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(
                f"code {wrong} is out of range; codes are 0..{self.codebook_size - 1}."
            )

    def bitrate(self, n_q: int) -> float:
        """Bits per second of `n_q` levels."""
        return self.codes_per_second(n_q) * max(1, (self.codebook_size - 1).bit_length())

    def codes_per_second(self, n_q: int) -> float:
        """Codes per second of `n_q` levels: the tokens of a language model."""
        return codes_per_second(self.sample_rate, self.hop_length, self.frames_per_code[:n_q])

    def doubling_levels(self) -> list[int]:
        """Numbers of levels to compare: one, each that doubles the bitrate of the last, and all."""
        wanted = [1]
        for n_q in range(2, self.n_codebooks + 1):
            if self.codes_per_second(n_q) >= 2 * self.codes_per_second(wanted[-1]):
                wanted.append(n_q)
        return sorted({*wanted, self.n_codebooks})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Build from plain values. Raises `ValueError` for a name that is not a field."""
        if not isinstance(values, dict):
            raise ValueError(f"settings must be named, not {reprlib.repr(values)}.")
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(
                    f"{reprlib.repr(name)} is not a setting of the model; they are {names}."
                )
        return cls(**values)

    def tokens_json(self) -> str:
        """The fields that tell the tokens of one model from another's, as indented JSON.

        Fields that came after the first release are left out: those of the decoder, which change no
        token, and others where they are off. Token files name a model by a hash of this text."""
        values = asdict(self)
        for name in SOURCE_SETTINGS:
            del values[name]
        for name in (
            "level_frames",
            "level_floor",
            "unit_extra_blocks",
            "unit_labels",
            "level_strides",
        ):
            if not values[name]:
                del values[name]
        return json.dumps(values, indent=2)
