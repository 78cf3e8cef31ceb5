"""What a corpus is like, for people and for programs."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from audiovq.files import atomic_output
from audiovq.training.recordings import Scan, language_of, speaker_of

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

SHORTEST = 0.3
"""Recordings of fewer seconds are left out."""
LISTED = 10
"""Unreadable files that a summary names."""


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

    def describe(self, cuts: "list[MonoCut]", scans: dict[str, Scan]) -> None:
        """Fill in what usable cuts are like, from what was read of them, by the cut's id."""
        languages: dict[str, float] = defaultdict(float)
        rates: dict[int, float] = defaultdict(float)
        channels: dict[int, int] = defaultdict(int)
        speakers = set()
        for cut in cuts:
            scan = scans[cut.id]
            hours = scan.duration / 3600
            rates[scan.sample_rate] += hours
            channels[scan.channels] += 1
            languages[language_of(cut) or "unknown"] += hours
            speaker = speaker_of(cut)
            if speaker is None:
                self.hours_without_speaker += hours
            else:
                speakers.add(speaker)
            self.clipped_recordings += scan.clipped > 1e-4 * scan.n_samples * scan.channels
        durations = sorted(scans[cut.id].duration for cut in cuts)
        if durations:
            self.shortest, self.longest = durations[0], durations[-1]
            self.median = durations[len(durations) // 2]
            self.silence = sum(scans[cut.id].silent for cut in cuts) / sum(durations)
        self.recordings, self.hours = len(cuts), sum(durations) / 3600
        self.speakers = len(speakers)
        self.languages = dict(sorted(languages.items(), key=lambda item: -item[1]))
        self.sample_rates, self.channels = (
            dict(sorted(rates.items())),
            dict(sorted(channels.items())),
        )

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
