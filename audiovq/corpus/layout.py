"""What lies where in the folder of a corpus.

    shard-000000.parquet    the tokens of the plan's first rows; or .tar
    ...
    _corpus.json            how it is made: `Settings`, the root of its sources, their problems
    _plan.parquet           its rows: a row group for each shard
    _shards/000000.json     what a shard holds, its checksum, and what was refused: `Entry`
    _index.jsonl            all entries, a line each, once every shard has one
    _refused.jsonl          every recording that has no tokens, and why
    _summary.json           counts, hours and speed of the last run

Names that begin with "_" are passed over by what reads folders of Parquet (pyarrow, pandas, Spark,
DuckDB), which so sees the shards alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audiovq.files import FileRefused, atomic_output, read_text
from audiovq.flatten import checked_strides

CORPUS_FILE = "_corpus.json"
PLAN_FILE = "_plan.parquet"
ENTRY_FOLDER = "_shards"
INDEX_FILE = "_index.jsonl"
REFUSED_FILE = "_refused.jsonl"
SUMMARY_FILE = "_summary.json"
VERSION = 1
"""Of the layout and of the schema of shards."""
FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""Kinds of shards and their suffixes."""


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the shards, beside the recordings."""

    model: str
    """Name of the model, from its card."""
    fingerprint: str
    """Hash of what decides the model's tokens."""
    sample_rate: int
    """In Hz; samples are counted at this rate."""
    hop_length: int
    """Samples per frame."""
    codebook_size: int
    n_q: int
    """Levels."""
    shard_rows: int
    """Rows of the plan that go into one shard."""
    format: str = "parquet"
    """One of `FORMATS`."""
    segment_price: float | None = None
    """Price of the units' segments; None when there are none."""
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for; empty when all are 1."""

    def __post_init__(self) -> None:
        strides = checked_strides(self.level_strides, self.n_q)
        object.__setattr__(self, "level_strides", strides)
        if self.format not in FORMATS:
            raise ValueError(f"format must be {' or '.join(FORMATS)}, not {self.format!r}.")
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, not {self.shard_rows}.")

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def frames_per_code(self) -> tuple[int, ...]:
        """`level_strides`, all 1 written out."""
        return self.level_strides or (1,) * self.n_q

    def n_frames(self, n_samples: int) -> int:
        """Frames that cover so many samples."""
        return -(-n_samples // self.hop_length)

    def facts(self) -> dict[str, Any]:
        """The settings as plain values."""
        facts = asdict(self)
        if not self.level_strides:
            del facts["level_strides"]  # as in corpora from before there was any
        return facts

    def metadata(self) -> dict[str, Any]:
        """What shards say of their tokens, in the schema's metadata under `audiovq`."""
        facts = self.facts() | {"version": VERSION}
        del facts["shard_rows"], facts["format"]
        return facts


@dataclass(frozen=True)
class Entry:
    """A shard that is complete."""

    shard: int
    file: str
    digest: str
    """Of the rows that were planned for it, their files' sizes and times, and the settings."""
    rows: int
    """Recordings in it."""
    samples: int
    frames: int
    bytes: int
    sha256: str
    """Of the file."""
    groups: tuple[int, ...] = ()
    """Recordings of each row group, in the order of the file."""
    refused: tuple[dict[str, str], ...] = ()
    """`id`, `source` and `why` of the planned recordings that have no tokens."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        """The inverse of `to_json`. Raises `ValueError` or `TypeError` for anything else."""
        values = json.loads(text)
        lists = {name: tuple(values[name]) for name in ("groups", "refused")}
        return cls(**{**values, **lists})


@dataclass(frozen=True)
class Corpus:
    """What `_corpus.json` says."""

    settings: Settings
    root: str
    """The folder that paths of rows are below."""
    rows: int
    """Planned."""
    digests: tuple[str, ...]
    """Of each shard's plan; see `Entry.digest`."""
    problems: tuple[tuple[str, str], ...] = ()
    """What in the sources gave no row, and why."""

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self.digests)


def shard_file(shard: int, format_: str) -> str:
    """The name of a shard's file."""
    return f"shard-{shard:06d}{FORMATS[format_]}"


def entry_path(out: Path, shard: int) -> Path:
    """Where a shard's entry is."""
    return out / ENTRY_FOLDER / f"{shard:06d}.json"


def write_corpus(out: Path, corpus: Corpus) -> None:
    """Write `_corpus.json`."""
    facts = {"version": VERSION, **asdict(corpus), "settings": corpus.settings.facts()}
    write_json(out / CORPUS_FILE, facts)


def read_corpus(out: str | Path) -> Corpus:
    """Read `_corpus.json`. Raises `FileRefused` when the folder holds no corpus."""
    out = Path(out)
    path = out / CORPUS_FILE
    if out.is_dir() and not path.exists():
        raise FileRefused(f"{out} holds no corpus; make one with `audiovq corpus encode`.")
    try:
        values = json.loads(read_text(path))
        if values.pop("version") != VERSION:
            raise FileRefused(f"{path} is of a newer version; update audiovq to read it.")
        settings = Settings(**values.pop("settings"))
        digests = tuple(values.pop("digests"))
        problems = tuple((str(source), str(why)) for source, why in values.pop("problems"))
        return Corpus(settings=settings, digests=digests, problems=problems, **values)
    except FileRefused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileRefused(f"{path} is damaged ({error}); encode the corpus again.") from error


def read_entry(out: Path, shard: int) -> Entry | None:
    """The entry of a shard; None when it is not there, or damaged."""
    try:
        return Entry.from_json(entry_path(out, shard).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def done_entry(out: Path, corpus: Corpus, shard: int) -> Entry | None:
    """The entry of a shard that is there, whole, and of what is planned; else None."""
    return whole_entry(out, shard, corpus.digests[shard])


def whole_entry(out: Path, shard: int, digest: str) -> Entry | None:
    """The entry of a shard of that digest whose file is there in its size; else None."""
    entry = read_entry(out, shard)
    if entry is None or entry.digest != digest:
        return None
    try:
        size = (out / entry.file).stat().st_size
    except OSError:
        return None
    return entry if size == entry.bytes else None


def read_index(out: str | Path) -> list[Entry]:
    """The entries of all shards.

    Raises `FileRefused` when the corpus is not encoded to its end, or the index is damaged.
    """
    path, corpus = Path(out) / INDEX_FILE, read_corpus(out)
    if path.exists():
        try:
            entries = [Entry.from_json(line) for line in read_text(path).split("\n") if line]
        except (ValueError, KeyError, TypeError) as error:
            raise FileRefused(
                f"{path} is damaged; run the same `audiovq corpus encode` again, which writes it."
            ) from error
        if tuple(entry.digest for entry in entries) == corpus.digests:
            return entries
    raise FileRefused(f"{out} is not complete; run the same `audiovq corpus encode` again.")


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write one indented JSON object, whole or not at all."""
    with atomic_output(path, overwrite=True, durable=True) as temporary:
        temporary.write_text(
            json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Write lines, whole or not at all."""
    with (
        atomic_output(path, overwrite=True, durable=True) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.writelines(f"{line}\n" for line in lines)
