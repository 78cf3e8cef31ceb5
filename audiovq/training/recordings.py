"""Recordings as lhotse cuts: found, read from end to end, and written as manifests."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from audiovq.audio import MOST_SAMPLES, audio_suffixes, check_level, check_rate, spelled
from audiovq.files import FileRefused, atomic_output, files_below

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

CLIPPED = 0.999
"""Samples from this magnitude on count as clipped where two or more stand side by side."""
SILENT_DB = -60.0
"""Blocks of 20 ms below this level, in dB of full scale, count as silence."""

_BLOCK_SECONDS = 20
_BLOCK_SAMPLES = 1 << 24  # of all channels together: 64 MiB


@dataclass(frozen=True)
class Scan:
    """What one recording is like."""

    sample_rate: int
    """In Hz."""
    channels: int
    n_samples: int
    """Per channel."""
    peak: float
    """Greatest magnitude of a sample; 1 is full scale."""
    clipped: int
    """Samples that are clipped."""
    silent: float
    """Seconds of silence."""

    @property
    def duration(self) -> float:
        """In s."""
        return self.n_samples / self.sample_rate


def scan_file(path: str | Path) -> Scan:
    """Read a file from end to end, block by block. Raises `FileRefused` when that fails."""
    peak, clipped, silent, n_read = 0.0, 0, 0.0, 0
    try:
        with soundfile.SoundFile(spelled(path)) as file:
            rate, channels, n_samples = file.samplerate, file.channels, file.frames
            check_rate(rate, "it")
            window = max(1, rate // 50)
            n_windows = max(1, min(_BLOCK_SECONDS * 50, _BLOCK_SAMPLES // (window * channels)))
            while True:
                block = file.read(n_windows * window, dtype="float32", always_2d=True)
                # block [n, channels]
                if not len(block):
                    break
                n_read += len(block)
                check_level(block, "it")  # as it will be when it is trained on
                level = np.abs(block)
                block_peak = float(level.max())
                peak = max(peak, block_peak)
                if block_peak >= CLIPPED:
                    flat = level >= CLIPPED
                    pairs = flat[1:] & flat[:-1]
                    clipped += int(pairs.sum()) + int((pairs & ~np.roll(pairs, 1, 0)).sum())
                mono = block.mean(axis=1)
                power = np.add.reduceat(mono * mono, np.arange(0, len(mono), window))
                silent += (power < window * 10 ** (SILENT_DB / 10)).sum() * window / rate
    except (soundfile.LibsndfileError, OSError) as error:
        raise FileRefused(f"libsndfile stopped reading it: {_words(error)}") from error
    if n_read < n_samples:
        raise FileRefused(f"it ends after {n_read} of its {n_samples} samples")
    if not n_read:
        raise FileRefused("it holds no samples")
    silent = min(silent, n_read / rate)
    return Scan(rate, channels, n_read, peak, clipped, silent)


def _words(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".")


def find_recordings(
    folder: str | Path, speaker_from: str | None = None
) -> "tuple[list[MonoCut], dict[str, str]]":
    """Every audio file below a folder, as lhotse cuts, and the unreadable ones with their reason.

    speaker_from: "parent" takes the name of a file's folder for its speaker, "prefix" what stands
    before the first "-" or "_" of its name, None leaves speakers unknown.
    A cut's id is the file's path in the folder, without its suffix.

    Raises `FileRefused` when the folder is missing or holds no audio.
    """
    folder = Path(folder).absolute()  # so that training may run from anywhere
    if not folder.is_dir():
        raise FileRefused(f"{folder} is not a folder; name a folder of audio files.")
    if speaker_from not in (None, "parent", "prefix"):
        raise ValueError(f'speaker_from must be "parent" or "prefix", not "{speaker_from}".')
    suffixes = audio_suffixes()
    paths = [path for path in files_below(folder) if path.suffix.lower() in suffixes]
    if not paths:
        raise FileRefused(f"{folder} holds no audio files (WAV, FLAC, OGG, ...).")
    cuts, unreadable, taken = [], {}, set()
    for path in paths:
        name = path.relative_to(folder)
        cut_id = name.with_suffix("").as_posix()
        if cut_id in taken:  # a.flac beside a.wav
            cut_id = name.as_posix()
        taken.add(cut_id)
        speaker = None
        if speaker_from == "parent" and name.parent != Path("."):
            speaker = name.parent.as_posix()
        elif speaker_from == "prefix":
            speaker = path.stem.replace("_", "-").split("-")[0]
        if not _is_text(str(path)):  # manifests and reports are UTF-8
            unreadable[_as_text(path)] = "its name is not UTF-8; rename it"
            continue
        try:
            info = soundfile.info(spelled(path))
            check_rate(info.samplerate, str(path))
        except FileRefused as error:
            unreadable[str(path)] = str(error)
            continue
        except (soundfile.LibsndfileError, OSError) as error:
            unreadable[str(path)] = f"libsndfile cannot open it: {_words(error)}"
            continue
        if not 1 <= info.frames <= MOST_SAMPLES:
            why = "holds no samples" if info.frames < 1 else "does not say how long it is"
            unreadable[str(path)] = f"it {why}"
            continue
        cuts.append(
            recording_cut(
                cut_id, path, info.samplerate, info.channels, info.frames, speaker=speaker
            )
        )
    return cuts, unreadable


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file name that are not UTF-8
        return False
    return True


def _as_text(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")


def recording_cut(
    cut_id: str,
    path: str | Path,
    sample_rate: int,
    channels: int,
    n_samples: int,
    *,
    speaker: str | None = None,
    language: str | None = None,
    text: str | None = None,
) -> "MonoCut":
    """A whole audio file as a lhotse cut with one supervision."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    duration = n_samples / sample_rate
    recording = Recording(
        id=cut_id,
        sources=[AudioSource("file", list(range(channels)), str(path))],
        sampling_rate=sample_rate,
        num_samples=n_samples,
        duration=duration,
    )
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=cut_id,
        start=0,
        duration=duration,
        speaker=speaker,
        language=language,
        text=text,
    )
    return MonoCut(
        id=cut_id,
        start=0,
        duration=duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )


def manifest_cuts(manifests: dict[str, Any]) -> "list[MonoCut]":
    """The cuts of what lhotse's `prepare_<corpus>` gives for a part, in the order of their ids."""
    from lhotse import CutSet

    cuts = CutSet.from_manifests(
        recordings=manifests["recordings"], supervisions=manifests["supervisions"]
    )
    by_id = {}
    for cut in cuts:
        cut.id = cut.recording_id
        by_id[cut.id] = cut
    return [by_id[name] for name in sorted(by_id)]


def write_manifest(cuts: "list[MonoCut]", path: str | Path) -> None:
    """Write a lhotse CutSet (`.jsonl` or `.jsonl.gz`), whole or not at all."""
    from lhotse import CutSet

    path = Path(path)
    suffix = "".join(path.suffixes[-2:])
    with atomic_output(path, overwrite=True) as temporary:
        # lhotse knows the format by the whole suffix, of which the temporary name keeps a part.
        named = temporary.with_name(temporary.name + suffix)
        try:
            CutSet.from_cuts(cuts).to_file(named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def speaker_of(cut: "MonoCut") -> str | None:
    """Who speaks, where that is known."""
    return cut.supervisions[0].speaker if cut.supervisions else None


def language_of(cut: "MonoCut") -> str | None:
    """The language, where it is known."""
    return cut.supervisions[0].language if cut.supervisions else None
