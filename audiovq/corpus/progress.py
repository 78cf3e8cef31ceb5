"""How far a run is: recordings, hours, speed, time left, failures, and the load of each worker."""

import time
from dataclasses import dataclass
from typing import Any

from audiovq.corpus.layout import Corpus, Entry
from audiovq.corpus.pool import Death, Event, Tick
from audiovq.corpus.worker import Result


@dataclass
class Load:
    """What one worker has done."""

    shards: int = 0
    seconds: float = 0.0
    """Of audio."""
    busy: float = 0.0
    """Seconds that it took."""


class Progress:
    """What a run has done, and what was there before.

    jobs: workers.
    """

    def __init__(self, corpus: Corpus, jobs: int) -> None:
        self.corpus = corpus
        self.jobs = jobs
        self.rows_before = 0
        self.shards = 0
        """Shards that are complete, those of earlier runs included."""
        self.encoded = 0
        """Recordings in them."""
        self.refused = 0
        """Recordings of them that have no tokens."""
        self.seconds = 0.0
        """Of audio in them."""
        self.bytes = 0
        self.deaths = 0
        """Workers that died and were replaced; Ray does not say."""
        self.workers: dict[str, Load] = {}
        self._start = time.perf_counter()
        self._seconds_new = 0.0
        self._ticked = 0  # recordings of shards that are not complete
        self._seconds_ticked = 0.0

    def update(self, event: Event) -> None:
        """Count what happened."""
        if isinstance(event, Tick):
            self._ticked += 1
            self._seconds_ticked += event.seconds
        elif isinstance(event, Death):
            self.deaths += 1
        elif isinstance(event, Result):
            self._count(event)

    def was_there(self, entry: Entry) -> None:
        """Count a shard of an earlier run."""
        self._add(entry)
        self.rows_before += entry.rows + len(entry.refused)

    def _add(self, entry: Entry) -> None:
        self.shards += 1
        self.encoded += entry.rows
        self.refused += len(entry.refused)
        self.seconds += entry.samples / self.corpus.settings.sample_rate
        self.bytes += entry.bytes

    def _count(self, result: Result) -> None:
        entry = result.entry
        seconds = entry.samples / self.corpus.settings.sample_rate
        self._add(entry)
        self._seconds_new += seconds
        # What its worker ticked is counted by now; so is what one ticked that died at it.
        self._ticked = max(0, self._ticked - entry.rows - len(entry.refused))
        self._seconds_ticked = max(0.0, self._seconds_ticked - seconds)
        load = self.workers.setdefault(result.worker, Load())
        load.shards += 1
        load.seconds += seconds
        load.busy += result.busy

    @property
    def rows(self) -> int:
        """Recordings that are done, encoded or refused, those of shards in work included."""
        return min(self.encoded + self.refused + self._ticked, self.corpus.rows)

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.perf_counter() - self._start

    @property
    def speed(self) -> float:
        """Seconds of audio a second, in this run."""
        return (self._seconds_new + self._seconds_ticked) / max(self.elapsed, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take, by the number of recordings; None at the beginning."""
        done = self.rows - self.rows_before
        if done <= 0:
            return None
        return (self.corpus.rows - self.rows) * self.elapsed / done

    def line(self) -> str:
        """How far it is, for people and logs."""
        hours = (self.seconds + self._seconds_ticked) / 3600
        parts = [
            f"{self.rows} of {self.corpus.rows} recordings",
            f"{self.shards} of {self.corpus.n_shards} shards",
            f"{hours:.2f} h",
            f"{self.speed:.1f} h an hour",
        ]
        parts += [f"{self.refused} refused"] if self.refused else []
        parts += [f"{self.deaths} workers replaced"] if self.deaths else []
        if self.left is not None:
            parts.append(f"{_duration(self.left)} left")
        return ", ".join(parts)

    def summary(self) -> dict[str, Any]:
        """What `_summary.json` says."""
        elapsed = max(self.elapsed, 1e-9)
        return {
            "recordings": self.corpus.rows,
            "encoded": self.encoded,
            "refused": self.refused,
            "problems_of_sources": len(self.corpus.problems),
            "shards": self.corpus.n_shards,
            "hours": self.seconds / 3600,
            "bytes": self.bytes,
            "this_run": {
                "seconds": elapsed,
                "hours_of_audio": self._seconds_new / 3600,
                "hours_an_hour": self._seconds_new / elapsed,
                "workers": self.jobs,
                "workers_replaced": self.deaths,
                "load": {
                    name: {
                        "shards": load.shards,
                        "hours_of_audio": load.seconds / 3600,
                        "busy": load.busy / elapsed,
                    }
                    for name, load in sorted(self.workers.items())
                },
            },
        }


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(seconds):02d}"
