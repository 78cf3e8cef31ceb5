"""From recordings to training manifests, and a report of what the recordings are like.

Manifests are lhotse CutSets. Every file is read once from end to end, so that what training would
stumble over is found, listed and left out here.
"""

import hashlib
import inspect
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from audiovq.audio import audio_suffixes, check_rate, spelled
from audiovq.files import FileRefused, atomic_output, files_below, refuse_existing

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

SHORTEST = 0.3
"""Recordings of fewer seconds are left out."""
CLIPPED = 0.999
"""Samples from this magnitude on count as clipped where two or more stand side by side."""
SILENT_DB = -60.0
"""Blocks of 20 ms below this level, in dB of full scale, count as silence."""
VALIDATION_SHARE = 0.02
LONGEST_VALIDATION = 1.5
"""A validation split may be larger than what was asked for by this factor."""

LISTED = 10
"""Unreadable files that a summary names."""

TRAIN_FILE = "train.jsonl.gz"
VALIDATION_FILE = "validation.jsonl.gz"
REPORT_FILE = "report.json"

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


@dataclass
class Report:
    """What a corpus is like."""

    recordings: int = 0
    hours: float = 0.0
    train_recordings: int = 0
    train_hours: float = 0.0
    validation_recordings: int = 0
    validation_hours: float = 0.0
    validation_split: str = ""
    """How the validation set was chosen, in words."""
    speakers: int = 0
    """Known ones."""
    hours_without_speaker: float = 0.0
    languages: dict[str, float] = field(default_factory=dict)
    """Hours of each language; "unknown" where none is given."""
    sample_rates: dict[int, float] = field(default_factory=dict)
    """Hours at each rate in Hz."""
    channels: dict[int, int] = field(default_factory=dict)
    """Recordings with each number of channels."""
    shortest: float = 0.0
    """In s; `median` and `longest` likewise."""
    median: float = 0.0
    longest: float = 0.0
    clipped_recordings: int = 0
    """Recordings of which more than one sample in 10,000 is clipped."""
    silence: float = 0.0
    """Share of the time that is silence."""
    silent_recordings: list[str] = field(default_factory=list)
    """Recordings that are nothing but silence; they stay in."""
    too_short: list[str] = field(default_factory=list)
    """Recordings under `SHORTEST`, left out."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, left out, with the reason."""

    def to_json(self) -> str:
        """All fields as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text(self.to_json() + "\n")

    def summary(self) -> str:
        """The report for people, a line for each matter."""
        speakers = f"{self.speakers} known"
        if self.hours_without_speaker:
            speakers += f", {_time(self.hours_without_speaker)} without a name"
        shares = {f"{rate} Hz": hours for rate, hours in self.sample_rates.items()}
        rows = [
            ("recordings", f"{self.recordings}, {_time(self.hours)}"),
            (
                "lengths",
                f"{self.shortest:.1f} to {self.longest:.1f} s, the median {self.median:.1f} s",
            ),
            ("speakers", speakers),
            ("languages", ", ".join(f"{k} {_time(v)}" for k, v in self.languages.items())),
            ("sample rates", ", ".join(f"{k} {_time(v)}" for k, v in shares.items())),
            ("channels", ", ".join(f"{n} with {k}" for k, n in self.channels.items())),
            ("clipping", f"{self.clipped_recordings} recordings"),
            (
                "silence",
                f"{self.silence:.1%} of the time; {len(self.silent_recordings)} recordings are "
                "nothing else",
            ),
            ("too short", f"{len(self.too_short)} recordings under {SHORTEST} s, left out"),
            ("unreadable", f"{len(self.unreadable)} files, left out"),
        ]
        rows += [("", f"{path}: {reason}") for path, reason in [*self.unreadable.items()][:LISTED]]
        if len(self.unreadable) > LISTED:
            rows.append(("", "and more, see the report's file"))
        if self.validation_split:
            rows += [
                ("training", f"{self.train_recordings} recordings, {_time(self.train_hours)}"),
                (
                    "validation",
                    f"{self.validation_recordings} recordings, {_time(self.validation_hours)}, "
                    f"split: {self.validation_split}",
                ),
            ]
        return "\n".join(f"{name:<13}{text}".rstrip() for name, text in rows)


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


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
                level = np.abs(block)
                block_peak = float(level.max())
                if not np.isfinite(block_peak):
                    raise FileRefused("it holds samples that are not finite")
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
        if info.frames < 1:
            unreadable[str(path)] = "it holds no samples"
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


def prepare(
    train: "Iterable[MonoCut]",
    out: str | Path,
    *,
    validation: "float | Iterable[MonoCut]" = VALIDATION_SHARE,
    unreadable: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> Report:
    """Scan recordings, split them, and write the manifests and the report to the folder `out`.

    train: cuts to train on. validation: the cuts to validate with, or the share of the hours of
    `train` to keep for it; see `split_validation`. unreadable: files that were left out before.
    progress: called with the number of recordings scanned and their total. overwrite: whether
    files that are there already may be replaced.

    Writes `train.jsonl.gz`, `validation.jsonl.gz` and `report.json`. Raises `FileRefused` when
    nothing is left to train on, and before the work when a file is in the way.
    """
    out = Path(out)
    if isinstance(validation, float | int):
        _check_share(validation)
    for name in (TRAIN_FILE, VALIDATION_FILE, REPORT_FILE):
        refuse_existing(out / name, overwrite=overwrite)
    train = list(train)
    given = None if isinstance(validation, float | int) else list(validation)
    usable, report = scan_recordings([*train, *(given or [])], unreadable, progress)
    if given is not None:
        names = {cut.id for cut in train}
        train = [cut for cut in usable if cut.id in names]
        held = [cut for cut in usable if cut.id not in names]
        report.validation_split = "the corpus's own"
    else:
        train, held, report.validation_split = split_validation(usable, validation)  # type: ignore
    if not train:
        raise FileRefused(
            f"No recording is left to train on: {len(report.unreadable)} cannot be read and "
            f"{len(report.too_short)} are shorter than {SHORTEST} s."
        )
    report.train_recordings, report.validation_recordings = len(train), len(held)
    report.train_hours, report.validation_hours = _hours(train), _hours(held)
    write_manifest(train, out / TRAIN_FILE)
    write_manifest(shuffled(held), out / VALIDATION_FILE)
    report.save(out / REPORT_FILE)
    return report


def scan_recordings(
    cuts: "list[MonoCut]",
    unreadable: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "tuple[list[MonoCut], Report]":
    """Read all recordings, several at a time: the cuts that can be used, and what they are like.

    unreadable and progress: as for `prepare`.
    """
    report, scans = Report(unreadable=dict(unreadable or {})), {}

    def attempt(cut: "MonoCut") -> Scan | str:
        try:
            return scan_file(cut.recording.sources[0].source)
        except FileRefused as error:
            return str(error)

    # libsndfile and numpy let other threads run.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (cut, scan) in enumerate(zip(cuts, pool.map(attempt, cuts), strict=True), 1):
            path = str(cut.recording.sources[0].source)
            if progress is not None:
                progress(done, len(cuts))
            if isinstance(scan, str):
                report.unreadable[path] = scan
            elif scan.duration < SHORTEST:
                report.too_short.append(path)
            else:
                scans[cut.id] = scan
                if scan.silent >= scan.duration:
                    report.silent_recordings.append(path)
    usable = [cut for cut in cuts if cut.id in scans]
    _summarize(report, usable, scans)
    return usable, report


def _summarize(report: Report, cuts: "list[MonoCut]", scans: dict[str, Scan]) -> None:
    """Fill in the figures of a report."""
    languages: dict[str, float] = defaultdict(float)
    rates: dict[int, float] = defaultdict(float)
    channels: dict[int, int] = defaultdict(int)
    speakers = set()
    for cut in cuts:
        scan = scans[cut.id]
        hours = scan.duration / 3600
        rates[scan.sample_rate] += hours
        channels[scan.channels] += 1
        languages[_language(cut) or "unknown"] += hours
        speaker = _speaker(cut)
        if speaker is None:
            report.hours_without_speaker += hours
        else:
            speakers.add(speaker)
        report.clipped_recordings += scan.clipped > 1e-4 * scan.n_samples * scan.channels
    durations = sorted(scans[cut.id].duration for cut in cuts)
    if durations:
        report.shortest, report.longest = durations[0], durations[-1]
        report.median = durations[len(durations) // 2]
        report.silence = sum(scans[cut.id].silent for cut in cuts) / sum(durations)
    report.recordings, report.hours = len(cuts), sum(durations) / 3600
    report.speakers = len(speakers)
    report.languages = dict(sorted(languages.items(), key=lambda item: -item[1]))
    report.sample_rates, report.channels = (
        dict(sorted(rates.items())),
        dict(sorted(channels.items())),
    )


def split_validation(
    cuts: "list[MonoCut]", share: float
) -> "tuple[list[MonoCut], list[MonoCut], str]":
    """Keep about `share` of the duration for validation: (train, validation, how in words).

    Where speakers are known, whole speakers are kept, so that validation hears new voices; where
    that would take much more than the share, or speakers are unknown, recordings are. The order of
    choice is a hash of the names: the same files give the same split, and new files do not move
    old ones about.
    """
    _check_share(share)
    total = sum(cut.duration for cut in cuts)
    if share == 0 or len(cuts) < 2:
        return list(cuts), [], "none"
    groups: dict[str, list[MonoCut]] = defaultdict(list)
    for cut in cuts:
        speaker = _speaker(cut)
        if speaker is not None:
            groups[speaker].append(cut)
    held, how = _choose(groups, total, share), "by speaker"
    if not held or len(groups) < 2:
        held = _choose({cut.id: [cut] for cut in cuts}, total, share)
        how = "by recording, because speakers are unknown"
        if groups:
            how = "by recording, because there are too few speakers to keep one apart"
    if not held:  # every recording is longer than the share
        held, how = [min(cuts, key=lambda cut: cut.duration)], "the shortest recording"
    names = {cut.id for cut in held}
    return [cut for cut in cuts if cut.id not in names], held, how


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"The validation share must be at least 0 and below 1, not {share}.")


def _choose(groups: "dict[str, list[MonoCut]]", total: float, share: float) -> "list[MonoCut]":
    """Groups in the order of a hash of their names, until they hold the share of the duration."""
    chosen, duration = [], 0.0
    for name in sorted(groups, key=_order):
        more = sum(cut.duration for cut in groups[name])
        if duration + more <= LONGEST_VALIDATION * share * total:
            chosen += groups[name]
            duration += more
        if duration >= share * total:
            break
    return chosen


def shuffled(cuts: "list[MonoCut]") -> "list[MonoCut]":
    """Cuts in an order that does not depend on anything but their ids.

    Training validates with the first few of a manifest: so they are of different speakers.
    """
    return sorted(cuts, key=lambda cut: _order(cut.id))


def _order(name: str) -> bytes:
    """A key that shuffles names, always in the same way."""
    return hashlib.sha256(name.encode()).digest()


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


def _hours(cuts: "list[MonoCut]") -> float:
    return sum(cut.duration for cut in cuts) / 3600


def _speaker(cut: "MonoCut") -> str | None:
    return cut.supervisions[0].speaker if cut.supervisions else None


def _language(cut: "MonoCut") -> str | None:
    return cut.supervisions[0].language if cut.supervisions else None


def main(prepare_corpus: Callable[[Path, Path], Report]) -> None:
    """The command line of a recipe's prepare.py: two folders in, the report out."""
    force = "--force" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--force"]
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(inspect.getdoc(prepare_corpus))
        print(f"\nUsage: python {sys.argv[0]} CORPUS_DIR OUT_DIR [--force]")
        sys.exit(0 if "--help" in sys.argv else 2)
    corpus_dir, out_dir = Path(arguments[0]).absolute(), Path(arguments[1])
    try:
        for path in (*sorted(out_dir.glob("*.jsonl.gz")), out_dir / REPORT_FILE):
            refuse_existing(path, overwrite=force)
        report = prepare_corpus(corpus_dir, out_dir)
    except FileRefused as error:
        sys.exit(str(error))
    except (AssertionError, KeyError, OSError, ValueError) as error:  # what lhotse raises
        sys.exit(f"{corpus_dir} could not be prepared; is it the corpus's own folder? ({error!r})")
    print(report.summary())
    print(f"Wrote the manifests and report.json to {out_dir}.")
