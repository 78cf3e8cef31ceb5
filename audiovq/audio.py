"""Audio files to float32 mono samples at the model's rate, and back.

Reading and resampling go block by block, so that an hour costs no more memory than a second.
"""

import io
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audiovq.files import (
    STDIO,
    FileRefused,
    atomic_output,
    read_standard_input,
    refuse_unreadable,
    write_standard_output,
)

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Sample rates in Hz that are read."""
HIGHEST_LEVEL = 8.0
"""Largest magnitude of a sample. Resampling and lossy formats go a little beyond 1. Of a
model's .92 of STOI .91 are left of sound that reaches 2, .81 at 8 and .46 at 32: that is no sound,
but numbers of another scale."""

MOST_WAV_SAMPLES = (1 << 31) - (1 << 17)
"""16-bit samples of a WAV file, whose lengths are numbers of 32 bits: 37 hours at 16 kHz."""
UNKNOWN_LENGTH = 0xFFFFFFFF
"""Length in the header of a WAV stream that has not ended."""

PART_TOLERANCE = 0.025
"""Seconds by which a part may end after its recording: tables round."""

MOST_SAMPLES = 1 << 48
"""Of a file: more are libsndfile's number for not knowing how long one is."""

_BLOCK = 1 << 16  # samples read at a time, before resampling
_BLOCK_VALUES = 1 << 21  # samples times channels


class SoundFile(soundfile.SoundFile):
    """soundfile's, which also reads to the end what does not say how long it is, as FLAC that a
    program wrote to a pipe: libsndfile takes it for endless, and fails where soundfile has it seek
    the end after the last block. `frames` is 0 then."""

    @property
    def frames(self) -> int:
        """Samples of a channel, 0 where that is not known."""
        found = int(super().frames)
        return 0 if found > MOST_SAMPLES else found

    def seekable(self) -> bool:
        """Whether there is another place than the next one."""
        return super().frames <= MOST_SAMPLES and bool(super().seekable())


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file says of itself: rate in Hz, channels, and samples per channel, of which 0
    are said where the file does not know."""

    sample_rate: int
    channels: int
    n_samples: int


def audio_suffixes() -> tuple[str, ...]:
    """Suffixes of the audio files that are looked for in folders, in lower case, with the dot.

    They are those of the containers that libsndfile reads here; headerless samples are none.
    """
    names = {name.lower() for name in soundfile.available_formats()} - {"raw"}
    names |= {"aif", "aifc", "oga", "opus", "snd", "sph"}  # other names of the same containers
    return tuple(f".{name}" for name in sorted(names))


class AudioReader:
    """An audio file, or a part of it, as mono float32 blocks at `sample_rate`.

    `path` is any file that libsndfile reads (WAV, FLAC, OGG, Opus, MP3, AIFF, ...), or "-" for
    standard input. Channels are averaged. Resampling is soxr's high quality, one stream over the
    whole file or part: the result does not depend on the block size.

    data: the bytes of the file, where it is no file of its own; `path` then names it in messages.
    start, duration: the part, in seconds; to the end when `duration` is None.
    channel: the one to take, from 0; None averages all.

    Raises `FileRefused` when the file is missing, is not audio, has a rate outside `LOWEST_RATE` to
    `HIGHEST_RATE`, holds no samples, or samples that are not finite or beyond `HIGHEST_LEVEL`, and
    when it has no such part or channel.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        *,
        data: bytes | None = None,
        start: float = 0.0,
        duration: float | None = None,
        channel: int | None = None,
    ) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self._file = open_audio(path, data)
        self.source = AudioInfo(self._file.samplerate, self._file.channels, self._file.frames)
        self.n_samples = 0
        """Samples at `sample_rate` that were given out so far."""
        self._channel = channel
        self._left: int | None = None  # samples of the part that are to be read
        try:
            if channel is not None and not 0 <= channel < self.source.channels:
                raise FileRefused(
                    f"{path} has {self.source.channels} channels; there is no channel {channel}."
                )
            if start or duration is not None:
                self._seek(start, duration)
        except FileRefused:
            self._file.close()
            raise

    def _seek(self, start: float, duration: float | None) -> None:
        rate, n_samples = self.source.sample_rate, self.source.n_samples
        if not self._file.seekable():
            raise FileRefused(
                f"{self.path} does not say how long it is, as what came through a pipe, so it can "
                "be read as a whole alone; write it to a file anew."
            )
        whole = n_samples / rate
        end = whole if duration is None else start + duration
        if not 0 <= start < end or end > whole + PART_TOLERANCE:
            raise FileRefused(
                f"{path_and_part(self.path, start, duration)} is not there: it lasts {whole:g} s."
            )
        first = round(start * rate)
        self._left = min(n_samples, round(end * rate)) - first
        try:
            self._file.seek(first)
        except (RuntimeError, OSError) as error:
            raise FileRefused(f"{self.path} cannot be read from {start:g} s on.") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield float32 blocks [n], n >= 1; together round(n_samples * rate / source rate)."""
        source_rate = self.source.sample_rate
        resampler = None
        if source_rate != self.sample_rate:
            resampler = soxr.ResampleStream(source_rate, self.sample_rate, 1, dtype="float32")
        n_read = 0
        with self._file as file:
            while True:
                block = self._read(file)
                n_read += len(block)
                if not n_read:
                    raise FileRefused(f"{self.path} holds no samples; give a longer recording.")
                last = len(block) == 0
                if resampler is not None:
                    block = resampler.resample_chunk(block, last=last)
                    check_level(block, str(self.path))  # a square wave reaches higher then
                # soxr's tail may be a sample more or less than the ratio says.
                due = max(1, round(n_read * self.sample_rate / source_rate)) - self.n_samples
                block = fit_length(block, due) if last else block[:due]
                self.n_samples += len(block)
                if len(block):
                    yield block
                if last:
                    return

    def _read(self, file: SoundFile) -> np.ndarray:
        n_samples = min(_BLOCK, max(1, _BLOCK_VALUES // file.channels))
        if self._left is not None:
            n_samples = min(n_samples, self._left)
        try:
            block = file.read(n_samples, dtype="float32", always_2d=True)  # [n, channels]
        except (RuntimeError, OSError, ValueError) as error:
            reason = getattr(error, "error_string", None) or error
            raise FileRefused(
                f"{self.path} is damaged: libsndfile stopped reading it ({reason})."
            ) from error
        check_level(block, str(self.path))  # before channels that cancel each other are averaged
        if self._left is not None:
            self._left -= len(block)
        return block.mean(axis=1) if self._channel is None else block[:, self._channel]


def path_and_part(path: str | Path, start: float, duration: float | None) -> str:
    """A part of a recording as messages name it."""
    end = "the end" if duration is None else f"{start + duration:g} s"
    return f"{path} from {start:g} s to {end}"


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Read a whole audio file: float32 [n], mono, at `sample_rate` Hz. See `AudioReader`."""
    return np.concatenate(list(AudioReader(path, sample_rate)))


def fit_length(wav: np.ndarray, n: int) -> np.ndarray:
    """Samples [m] cut to n, or filled up to n with silence."""
    return np.pad(wav[:n], (0, max(0, n - len(wav))))


def as_int16(wav: np.ndarray) -> np.ndarray:
    """Samples in -1..1 as int16: rounded to the nearest, and clipped beyond.

    All decoded sound goes through here: libsndfile would round down, and so make other samples.
    """
    return np.clip(np.rint(wav * np.float32(32768)), -32768, 32767).astype(np.int16)


def wav_header(sample_rate: int, n_samples: int | None = None) -> bytes:
    """That of a 16-bit mono WAV, or of a stream of which nobody knows how long it gets."""
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    length = whole = UNKNOWN_LENGTH
    if n_samples is not None:
        length, whole = 2 * n_samples, 2 * n_samples + 36
    return (
        struct.pack("<4sI4s4sI", b"RIFF", whole, b"WAVE", b"fmt ", len(form))
        + form
        + struct.pack("<4sI", b"data", length)
    )


class AudioWriter:
    """What `audio_writer` gives."""

    def __init__(self, write: Callable[[np.ndarray], object]) -> None:
        self._write = write

    def write(self, wav: np.ndarray) -> None:
        """Append float32 samples [n]; those beyond -1..1 are clipped."""
        self._write(as_int16(wav))


@contextmanager
def audio_writer(
    path: str | Path, sample_rate: int, *, n_samples: int | None = None, overwrite: bool = False
) -> Iterator[AudioWriter]:
    """A 16-bit mono file to `.write` float32 samples to; it appears only when it is complete.

    `path` ends in .wav or .flac (the container follows it), or is "-" for WAV on standard output.
    Samples beyond -1..1 are clipped.

    n_samples: how many there will be, where that is known: standard output then has them as they
    come, and more than a WAV holds are refused before the work.
    """
    suffix = Path(path).suffix.lower()
    if suffix != ".flac" and (n_samples or 0) > MOST_WAV_SAMPLES:
        raise FileRefused(
            f"{path} would have {n_samples} samples, and WAV holds {MOST_WAV_SAMPLES}; write .flac."
        )
    if str(path) == STDIO:
        with _standard_output(sample_rate, n_samples) as writer:
            yield writer
        return
    if suffix not in (".wav", ".flac"):
        raise FileRefused(f"{path} is not a name for decoded audio; end it in .wav or .flac.")
    with atomic_output(path, overwrite=overwrite) as temporary:
        try:
            with soundfile.SoundFile(
                spelled(temporary), "w", sample_rate, 1, "PCM_16", format=suffix[1:].upper()
            ) as file:
                yield AudioWriter(file.write)
        except soundfile.LibsndfileError as error:
            raise FileRefused(f"{path} cannot be written: {error.error_string}") from error


@contextmanager
def _standard_output(sample_rate: int, n_samples: int | None) -> Iterator[AudioWriter]:
    """WAV on standard output, whose header says how long it is: at once, if that is known."""
    if n_samples is not None:
        write_standard_output(wav_header(sample_rate, n_samples))
        yield AudioWriter(lambda samples: write_standard_output(_pcm(samples)))
        return
    parts: list[bytes] = []
    yield AudioWriter(lambda samples: parts.append(_pcm(samples)))
    data = b"".join(parts)
    write_standard_output(wav_header(sample_rate, len(data) // 2) + data)


def _pcm(samples: np.ndarray) -> bytes:
    return samples.astype("<i2").tobytes()


def save_audio(
    path: str | Path, wav: np.ndarray, sample_rate: int, *, overwrite: bool = False
) -> None:
    """Write float32 samples [n] in -1..1 as 16-bit audio, whole or not at all."""
    with audio_writer(path, sample_rate, overwrite=overwrite) as file:
        file.write(wav)


def open_audio(path: str | Path, data: bytes | None = None) -> SoundFile:
    """Open an audio file; "-" is standard input. Raises `FileRefused` as `AudioReader` does.

    data: its bytes, where it is no file of its own; `path` then names it in messages.
    """
    source: io.BytesIO | bytes | str
    if data is not None:
        source = io.BytesIO(data)
    elif str(path) == STDIO:
        source = io.BytesIO(read_standard_input())
    else:
        _check_readable(path)
        source = spelled(path)
    try:
        file = SoundFile(source)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise FileRefused(
            f"{path} is not audio that libsndfile reads (WAV, FLAC, OGG, Opus, MP3, AIFF, ...)."
        ) from error
    try:
        check_rate(file.samplerate, str(path))
    except FileRefused:
        file.close()
        raise
    return file


def spelled(path: str | Path) -> bytes | str:
    """A path as soundfile takes it: names that are not of the system's encoding included."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def check_rate(rate: int, name: str) -> None:
    """Raise `FileRefused` for a sample rate in Hz that no sound has; `name` is in the message.

    A file of a few bytes that claims such a rate would be resampled to gigabytes.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise FileRefused(
            f"{name} has a sample rate of {rate} Hz; rates of {LOWEST_RATE} to {HIGHEST_RATE} Hz "
            "are read."
        )


def check_level(samples: np.ndarray, name: str) -> None:
    """Raise `FileRefused` for samples that are not finite or beyond `HIGHEST_LEVEL`.

    `name` is in the message.
    """
    level = float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(level):
        raise FileRefused(
            f"{name} holds samples that are not finite (NaN or infinity); convert it to PCM."
        )
    if level > HIGHEST_LEVEL:
        raise FileRefused(
            f"{name} holds samples of up to {level:g} where full scale is 1; convert it to PCM."
        )


def _check_readable(path: str | Path) -> None:
    """Raise `FileRefused` when there is no file to read, with the reason that libsndfile hides."""
    with refuse_unreadable(path):
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise FileRefused(f"{path} is a folder; name an audio file.")
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused(f'{path} is a device or pipe; give "-" to read standard input.')
        with open(path, "rb"):
            pass
    if status.st_size == 0:
        raise FileRefused(f"{path} is an empty file; give an audio file.")
