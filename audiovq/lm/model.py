"""A language model of speech: units, then their sound, then the codec's decoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiovq.files import FileRefused
from audiovq.lm.acoustic import AcousticModel, AcousticWriter
from audiovq.lm.sampling import Sampling
from audiovq.lm.stage import (
    ACOUSTIC_STAGE,
    CONFIG_FILE,
    STAGES,
    UNITS_STAGE,
    Stage,
    load_stage,
    stage_name,
)
from audiovq.lm.units import UnitModel, generate
from audiovq.lm.vocabulary import IGNORED, TEXT, UNITS, Vocabulary
from audiovq.model import AudioVQ

DEFAULT_FOLDER = Path(__file__).parent / "default"
MOST_SECONDS = 3600.0
"""Of what is generated at once."""
Hear = Callable[[Tensor], None]
"""Called with sound [1, 1, n] as soon as it is known."""


@dataclass(frozen=True)
class Speech:
    """What was generated."""

    codes: Tensor
    """int64 [1, n_q, T], the prompt's first where they are kept."""
    n_prompt: int
    """Frames of the prompt among them."""
    wav: Tensor
    """Their sound, float32 [1, 1, T * hop_length]."""


@dataclass(frozen=True)
class Score:
    """How likely units are."""

    n_units: int
    """Merged units."""
    seconds: float
    """Their duration."""
    units: float
    """Log probability of the units, in nats."""
    durations: float
    """Log probability of their durations given the units, in nats."""

    @property
    def per_unit(self) -> float:
        """Log probability of a unit with its duration, in nats."""
        return (self.units + self.durations) / self.n_units

    @property
    def per_second(self) -> float:
        """Log probability of a second, in nats."""
        return (self.units + self.durations) / self.seconds

    @property
    def perplexity(self) -> float:
        """Of the units, durations left aside."""
        return math.exp(-self.units / self.n_units)


class LanguageModel:
    """Two stages and the codec whose tokens they know.

    Example:

        lm = LanguageModel.from_pretrained()
        speech = lm.continue_speech(wav, seconds=5)  # wav [1, 1, N]
        speech.wav                                   # [1, 1, N + 5 s]

    Without an acoustic stage, sound is decoded from the units alone.
    """

    def __init__(self, codec: AudioVQ, units: UnitModel, acoustic: AcousticModel | None) -> None:
        for stage in (units, acoustic):
            if stage is not None:
                _refuse_other_tokens(stage.vocabulary, codec)
        self.codec, self.units, self.acoustic = codec, units, acoustic
        self.vocabulary = units.vocabulary
        self.n_q = 1 if acoustic is None else acoustic.vocabulary.n_q
        """Levels of what is generated."""
        self.group_frames = max(codec.config.frames_per_code[: self.n_q])
        """Frames after which all of them begin a code."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "default",
        codec: AudioVQ | str | Path = "default",
        *,
        device: str | torch.device = "cpu",
    ) -> "LanguageModel":
        """Load "default", the language model inside the package, or what `audiovq lm train` wrote
        to a folder: its units, and its acoustic stage if any.

        Raises `FileRefused` when there is none, when its files are damaged, and when it was trained
        on tokens of another codec.
        """
        folder = DEFAULT_FOLDER if str(name_or_folder) == "default" else Path(name_or_folder)
        stages: dict[str, Any] = {}
        for name in STAGES:
            if (folder / name / CONFIG_FILE).is_file():
                stage = load_stage(folder / name)[0]
                if stage_name(stage) != name:
                    raise FileRefused(
                        f"{folder / name} holds the stage {stage_name(stage)}; put it in a folder "
                        "of that name."
                    )
                stages[name] = stage.to(device)
        if UNITS_STAGE not in stages:
            raise FileRefused(
                f"{folder} holds no language model: {folder / UNITS_STAGE} has no {CONFIG_FILE}; "
                "train one with audiovq lm train."
            )
        if not isinstance(codec, AudioVQ):
            codec = AudioVQ.from_pretrained(codec, device=device)
        return cls(codec, stages[UNITS_STAGE], stages.get(ACOUSTIC_STAGE))

    def continue_speech(
        self,
        wav: Tensor | np.ndarray,
        seconds: float,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        hear: Hear | None = None,
    ) -> Speech:
        """Go on with speech [1, 1, N], N >= 1, for so many seconds; the prompt is kept before it,
        whole groups of frames where levels have several rates.

        Raises `ValueError` for a prompt that is empty or has more units than the context.
        """
        codes = self._prompt(wav)
        tokens = self._units_after([], codes[0])
        if len(tokens) >= self.units.sizes.context:
            room = self.units.sizes.context - 1
            frames = int(self.vocabulary.split(tokens[1:room])[1].sum())
            frames *= self.vocabulary.frames_per_unit
            seconds = math.floor(10 * frames / self.vocabulary.frame_rate) / 10
            raise ValueError(
                f"the prompt has {len(tokens)} units, and the language model looks back at {room}: "
                f"cut it to {seconds:g} s."
            )
        return self._speak(tokens, codes, self._frames(seconds), sampling, hear, keep=True)

    def sample(
        self,
        seconds: float,
        sampling: Sampling = Sampling(),  # noqa: B008
        hear: Hear | None = None,
    ) -> Speech:
        """Speech from nothing."""
        nothing = torch.zeros(self.n_q, 0, dtype=torch.int64)
        tokens = self._units_after([], nothing[0])
        return self._speak(tokens, nothing, self._frames(seconds), sampling, hear, keep=True)

    def say(
        self,
        text: str,
        voice: Tensor | np.ndarray | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        hear: Hear | None = None,
        *,
        most_seconds: float = 20.0,
    ) -> Speech:
        """Speak a text until its end is drawn, or for `most_seconds`.

        voice: speech [1, 1, N] whose voice to take; a few seconds.
        Raises `ValueError` for a text that is empty, too long, or has unknown characters.
        """
        characters = self.vocabulary.of_text(text)
        most = self.units.sizes.context // 2
        if len(characters) > most:
            raise ValueError(
                f"the text has {len(characters)} characters, and the language model reads at most "
                f"{most} at once; say it in parts."
            )
        head = [self.vocabulary.special(TEXT), characters]
        nothing = torch.zeros(self.n_q, 0, dtype=torch.int64)
        codes = nothing if voice is None else self._prompt(voice)
        tokens = self._units_after(head, nothing[0])
        n_frames = self._frames(most_seconds)
        return self._speak(tokens, codes, n_frames, sampling, hear, keep=False, may_end=True)

    def score(self, wav: Tensor | np.ndarray) -> Score:
        """How likely speech [1, 1, N] is. Raises `ValueError` for one that is empty."""
        units = self._prompt(wav)[0, :: self.vocabulary.frames_per_unit]
        return self.score_units(units.numpy())

    @torch.no_grad()
    def score_units(self, units: np.ndarray) -> Score:
        """How likely units [T], T >= 1, are, each once.

        What is longer than the context is scored in parts of half of it, each after the half before
        it. Raises `ValueError` when there are none.
        """
        tokens = self.vocabulary.of_units(units)
        if not len(tokens):
            raise ValueError("there are no units to score; give speech of a frame or more.")
        context = self.units.sizes.context
        size = len(tokens) if len(tokens) <= context else context // 2
        found = np.zeros(2)
        for start in range(0, len(tokens), size):
            before = tokens[max(0, start - size) : start]
            row = np.concatenate([before, tokens[start : start + size]])
            read = np.concatenate([self.vocabulary.special(UNITS), row[:-1]])
            row[: len(before)] = IGNORED
            pair = (torch.from_numpy(part)[None].to(self.units.device) for part in (read, row))
            found += [float(part.double().sum()) for part in self.units.log_likelihood(*pair)]
        seconds = len(units) * self.vocabulary.frames_per_unit / self.vocabulary.frame_rate
        return Score(len(tokens), seconds, float(found[0]), float(found[1]))

    def _frames(self, seconds: float) -> int:
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError(
                f"seconds must be above 0 and at most {MOST_SECONDS:g}, not {seconds}."
            )
        group = self.group_frames
        return group * max(1, round(seconds * self.vocabulary.frame_rate / group))

    def _prompt(self, wav: Tensor | np.ndarray) -> Tensor:
        """Codes [n_q, T] of speech, whole groups of frames: what is left at its end is cut off, or
        filled up with silence where there is nothing else."""
        if not math.prod(wav.shape):
            raise ValueError("the speech is empty; give a recording of at least one frame.")
        group = self.group_frames
        missing = group * self.vocabulary.hop_length - wav.shape[-1]
        wav = F.pad(torch.as_tensor(wav), (0, max(0, missing)))
        codes = self.codec.encode(wav, self.n_q).indices[0].cpu()
        return codes[:, : codes.shape[1] // group * group]

    def _units_after(self, head: list[np.ndarray], units: Tensor) -> np.ndarray:
        v = self.vocabulary
        once = units[:: v.frames_per_unit].numpy()
        return np.concatenate([*head, v.special(UNITS), v.of_units(once)])

    def _speak(
        self,
        tokens: np.ndarray,
        prompt: Tensor,
        n_frames: int,
        sampling: Sampling,
        hear: Hear | None,
        *,
        keep: bool,
        may_end: bool = False,
    ) -> Speech:
        """Generate after `tokens`, in the voice of the codes `prompt` [n_q, T].

        keep: whether the prompt is part of what is returned and heard.
        """
        voice = _Voice(self, prompt if keep else prompt[:, :0], hear)
        writer = None
        if self.acoustic is not None:
            writer = AcousticWriter(
                self.acoustic, prompt, temperature=sampling.acoustic_temperature, seed=sampling.seed
            )
        n_left = n_frames

        def on_token(token: int) -> None:
            nonlocal n_left
            units = self.vocabulary.to_units(np.array([token]))
            units = units.repeat(self.vocabulary.frames_per_unit)[:n_left]
            n_left -= len(units)
            if writer is not None:
                voice.speak(writer.add(units.tolist()))
            else:
                voice.speak(torch.from_numpy(units)[None])

        with torch.random.fork_rng(devices=_devices(self.units)):
            torch.manual_seed(sampling.seed)
            generate(
                self.units,
                tokens,
                n_frames // self.vocabulary.frames_per_unit,
                may_end=may_end,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                on_token=on_token,
            )
        if writer is not None:
            voice.speak(writer.end())
        return voice.end(prompt.shape[1] if keep else 0)


class _Voice:
    """Codes to sound, as they come."""

    def __init__(self, lm: LanguageModel, prompt: Tensor, hear: Hear | None) -> None:
        self.stream, self.device, self.hear = lm.codec.stream(), lm.codec.device, hear
        self.codes: list[Tensor] = []
        self.wavs: list[Tensor] = []
        self.speak(prompt)

    def speak(self, codes: Tensor) -> None:
        """codes: [n_q, T]."""
        self.codes.append(codes)
        if codes.shape[1]:
            self._hear(self.stream.decode(codes[None].to(self.device)))

    def end(self, n_prompt: int) -> Speech:
        self._hear(self.stream.flush_decode())
        return Speech(torch.cat(self.codes, dim=1)[None], n_prompt, torch.cat(self.wavs, dim=2))

    def _hear(self, wav: Tensor) -> None:
        self.wavs.append(wav)
        if self.hear is not None and wav.shape[2]:
            self.hear(wav)


def _devices(stage: Stage) -> list[torch.device]:
    device = next(stage.parameters()).device
    return [] if device.type == "cpu" else [device]


def _refuse_other_tokens(vocabulary: Vocabulary, codec: AudioVQ) -> None:
    if vocabulary.fingerprint != codec.fingerprint:
        raise FileRefused(
            f"the language model knows the tokens of {vocabulary.tokenizer} "
            f"({vocabulary.fingerprint}), not those of {codec.name} ({codec.fingerprint}); name "
            "that tokenizer with --model, or train a language model on these tokens."
        )
