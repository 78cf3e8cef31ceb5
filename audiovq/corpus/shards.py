"""Shards: the files that tokens are in, and their schema.

A row of a Parquet shard is a recording:

    id              string
    source          string; the path below the corpus's root, `tar#member` or `dataset#column:row`
    start           float64, seconds, of a part of a recording, or null
    duration        float64, seconds of audio
    n_samples       int64, at the model's sample rate
    n_q             int32, levels
    codes_0         list of uint16 [T], the units
    codes_1 ...     list of uint16 [T], the acoustic levels
    text            string or null
    speaker         string or null
    segment_units   list of uint16, with --segments
    segment_frames  list of uint32, how many codes of level 0 each segment lasts

A column for each level, so that a reader of units reads a small part of the file. Levels of coarser
rates, whose codes stand for several frames each (`level_strides`), have shorter lists: each code
once. The schema's metadata has under `audiovq` a JSON object: `Settings.metadata`.

A WebDataset shard has two members for a recording: KEY.json with the other columns, and under
`audiovq` what the metadata says, and KEY.npy, as `audiovq.codes.npy_bytes` has it: uint16 [n_q, T],
or a record where levels are of several rates.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiovq.codes import npy_bytes, unpack_tokens
from audiovq.corpus.codec import Encoded
from audiovq.corpus.layout import Settings
from audiovq.corpus.rows import Row
from audiovq.files import FileRefused
from audiovq.flatten import join_levels

GROUP_ROWS = 256
"""Rows of a row group: what a worker holds, and what a reader reads at once."""
METADATA_KEY = b"audiovq"

# What may be null is read more slowly: tokens by half.
_CODES = pa.list_(pa.field("element", pa.uint16(), nullable=False))
_FRAMES = pa.list_(pa.field("element", pa.uint32(), nullable=False))


def shard_schema(settings: Settings) -> pa.Schema:
    """The columns of a Parquet shard."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("start", pa.float64()),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("n_samples", pa.int64(), nullable=False),
        pa.field("n_q", pa.int32(), nullable=False),
        *(pa.field(f"codes_{k}", _CODES, nullable=False) for k in range(settings.n_q)),
        pa.field("text", pa.string()),
        pa.field("speaker", pa.string()),
    ]
    if settings.segment_price is not None:
        fields.append(pa.field("segment_units", _CODES, nullable=False))
        fields.append(pa.field("segment_frames", _FRAMES, nullable=False))
    about = json.dumps(settings.metadata(), sort_keys=True).encode()
    return pa.schema(fields, metadata={METADATA_KEY: about})


class ShardWriter(Protocol):
    """What `shard_writer` gives."""

    def write(self, rows: Sequence[Row], encoded: Sequence[Encoded]) -> None:
        """Append rows; each call is a row group."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def shard_writer(path: Path, settings: Settings) -> ShardWriter:
    """A writer of a shard in the settings' format. The same rows give the same bytes."""
    return (
        ParquetShard(path, settings) if settings.format == "parquet" else TarShard(path, settings)
    )


class ParquetShard:
    """Writes a Parquet shard."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        self._schema = shard_schema(settings)
        # Codes of K values go as numbers of log2 K bits into a dictionary, so that zstd, which
        # is for the texts, has nothing left to do there.
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row], encoded: Sequence[Encoded]) -> None:
        """See `ShardWriter`."""
        if not rows:
            return
        rate, n_q = self._settings.sample_rate, self._settings.n_q
        columns: dict[str, Any] = {
            "id": [row.id for row in rows],
            "source": [row.name for row in rows],
            "start": [row.start for row in rows],
            "duration": [item.n_samples / rate for item in encoded],
            "n_samples": [item.n_samples for item in encoded],
            "n_q": [n_q] * len(rows),
            "text": [row.text for row in rows],
            "speaker": [row.speaker for row in rows],
        }
        for level in range(n_q):
            columns[f"codes_{level}"] = _lists([item.codes[level] for item in encoded], _CODES)
        if self._settings.segment_price is not None:
            segments = [item.segments for item in encoded if item.segments is not None]
            columns["segment_units"] = _lists([units for units, _ in segments], _CODES)
            columns["segment_frames"] = _lists([frames for _, frames in segments], _FRAMES)
        table = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        self._writer.write_table(table, row_group_size=len(rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


def _lists(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = pa.array(np.concatenate(arrays), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


class TarShard:
    """Writes a WebDataset shard."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)
        self._n = 0

    def write(self, rows: Sequence[Row], encoded: Sequence[Encoded]) -> None:
        """See `ShardWriter`."""
        for row, item in zip(rows, encoded):
            facts: dict[str, Any] = {
                "id": row.id,
                "source": row.name,
                "start": row.start,
                "duration": item.n_samples / self._settings.sample_rate,
                "n_samples": item.n_samples,
                "n_q": self._settings.n_q,
                "text": row.text,
                "speaker": row.speaker,
            }
            if item.segments is not None:
                facts["segment_units"], facts["segment_frames"] = map(
                    np.ndarray.tolist, item.segments
                )
            facts["audiovq"] = self._settings.metadata()
            key = f"{self._n:09d}"  # ids may have dots, at which WebDataset ends the key
            self._n += 1
            self._add(f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())
            n_frames = self._settings.n_frames(item.n_samples)
            indices = join_levels(list(item.codes), n_frames, self._settings.frames_per_code)
            self._add(f"{key}.npy", npy_bytes(indices, self._settings.level_strides))

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # without times and owners: the same bytes in every run
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()


def open_shard(path: Path) -> pq.ParquetFile:
    """A Parquet shard to read. Raises `FileRefused` when it is damaged or another file."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise FileRefused(f"{path} does not exist; run `audiovq corpus verify`.") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise FileRefused(f"{path} is damaged; run `audiovq corpus verify`.") from error
    if METADATA_KEY not in (file.schema_arrow.metadata or {}):
        raise FileRefused(f"{path} holds no tokens of audiovq.")
    return file


def shard_metadata(file: pq.ParquetFile) -> dict[str, Any]:
    """What a shard says of its tokens: `Settings.metadata`."""
    return dict(json.loads(file.schema_arrow.metadata[METADATA_KEY]))


def tar_records(path: Path) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
    """The facts and the codes, uint16 [n_q, T], of each recording of a WebDataset shard."""
    try:
        with tarfile.open(path, "r:") as tar:
            facts: Mapping[str, Any] = {}
            for member in tar:
                file = tar.extractfile(member)
                data = b"" if file is None else file.read()
                if os.path.splitext(member.name)[1] == ".json":
                    facts = json.loads(data)
                else:
                    yield facts, unpack_tokens(data, f"{path}#{member.name}").indices
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        raise FileRefused(f"{path} is damaged; run `audiovq corpus verify`.") from error
