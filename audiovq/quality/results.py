"""What an evaluation finds: a row for each clip of each system, and means with intervals."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from audiovq.quality.metrics import METRICS, Metric

ORIGINAL = "original"
"""The system that leaves the clip as it is; it has the measures that need no reference."""


def _no_asr(reference: np.ndarray, decoded: np.ndarray) -> float:
    raise ValueError("the word error rate needs a recogniser; give asr.")


WER = Metric(_no_asr, "WER", "%", "lower", by_default=False)
"""Words that a recogniser gets wrong in the decoded clip.

Right is what the text says, or what the recogniser hears in the original where there is no text.
The mean is over words: all errors by all words of the originals.
"""

TABLE = {**METRICS, "wer": WER}
"""Every measure that `evaluate` takes, by name."""


@dataclass(frozen=True)
class Row:
    """One clip through one system."""

    file: str
    """The original, below the folder that was given."""
    system: str
    seconds: float
    """Length of the original."""
    values: dict[str, float | None]
    """Measure by name; None where it is not defined for the clip."""
    n_bytes: int | None = None
    """Size of the coded file; None where it is not known."""
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    n_words: int | None = None
    """Words of the original, where a recogniser was named."""
    audio: str | None = None
    """The decoded clip, below the folder that `evaluate` was told to write to."""


@dataclass(frozen=True)
class Mean:
    """Mean of n clips with the 95 % bootstrap interval (none for fewer than two clips)."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Summary:
    """All clips of one system.

    `bitrate` is in bit/s as stored on disk, headers included. The speeds are seconds of audio for
    a second of work (the real-time factor of Défossez et al. 2022; above 1 is faster than sound).
    """

    system: str
    n_files: int
    seconds: float
    bitrate: float | None
    encode_speed: float | None
    decode_speed: float | None
    metrics: dict[str, Mean | None]

    @property
    def family(self) -> str:
        """The system's name without its rate: "opus" of "opus:6"."""
        return self.system.split(":")[0].split(" n_q=")[0]


@dataclass
class Evaluation:
    """What `evaluate` found. `notes` are sentences on what was left out and why."""

    metrics: list[str]
    systems: list[str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None

    def summary(self) -> list[Summary]:
        """One `Summary` a system, in the order in which they were asked for."""
        return [self._summarise(system) for system in self.systems]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON's types: means under "systems", clips under "files"."""
        return {
            "model": self.model,
            "metrics": {
                name: {
                    "label": TABLE[name].label,
                    "unit": TABLE[name].unit,
                    "better": TABLE[name].better,
                }
                for name in self.metrics
            },
            "systems": [asdict(summary) for summary in self.summary()],
            "files": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }

    def _summarise(self, system: str) -> Summary:
        rows = [row for row in self.rows if row.system == system]
        seconds = sum(row.seconds for row in rows)

        def total(name: str) -> float | None:
            values = [getattr(row, name) for row in rows]
            return None if None in values or not values else sum(values)

        n_bytes = total("n_bytes")
        encode, decode = total("encode_seconds"), total("decode_seconds")
        return Summary(
            system,
            len(rows),
            seconds,
            None if n_bytes is None else 8 * n_bytes / seconds,
            seconds / encode if encode else None,
            seconds / decode if decode else None,
            {name: self._mean(name, rows) for name in self.metrics},
        )

    def _mean(self, name: str, rows: list[Row]) -> Mean | None:
        pairs = [
            (value, row.n_words if name == "wer" else 1)
            for row in rows
            if (value := row.values.get(name)) is not None
        ]
        if not pairs:
            return None
        values, weights = (
            np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)
        )
        return bootstrap_mean(values, weights)


def bootstrap_mean(
    values: np.ndarray, weights: np.ndarray | None = None, n_resamples: int = 1000
) -> Mean:
    """Weighted mean of values [n] with the 95 % percentile bootstrap interval over them.

    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979. The
    resamples are the same in every call.
    """
    weights = np.ones(len(values)) if weights is None else weights
    mean = float(np.average(values, weights=weights))
    if len(values) < 2:
        return Mean(mean, None, None, len(values))
    draws = np.random.default_rng(0).integers(len(values), size=(n_resamples, len(values)))
    means = (values * weights)[draws].sum(axis=1) / weights[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(mean, float(low), float(high), len(values))
