"""The sound of a row, wherever it is."""

import os
from collections.abc import Iterator

import numpy as np

from audiovq.audio import AudioReader
from audiovq.corpus.rows import Row, stamp
from audiovq.files import FileRefused, refuse_unreadable


def read_row(row: Row, root: str, sample_rate: int) -> Iterator[np.ndarray]:
    """The sound of a row: float32 blocks [n], mono, at `sample_rate` Hz.

    root: the folder that `row.source` is below.

    Raises `FileRefused` when it cannot be read, or has changed since it was planned.
    """
    path = os.path.join(root, row.source)
    data = None
    if row.kind in ("file", "tar") and stamp(path) != row.stamp:
        if row.stamp is not None and stamp(path) is not None:
            raise FileRefused(f"{row.name} has changed since it was planned; encode with --update.")
    if row.kind == "cut":
        return iter([_cut_samples(row, sample_rate)])
    if row.kind == "hf":
        from audiovq.corpus.datasets import stored_audio

        audio = stored_audio(path, row.part or "")
        data, path = audio.get("bytes"), str(audio.get("path") or path)
    elif row.kind == "tar":
        data = _member(path, row)
    return iter(
        AudioReader(
            row.name if data is not None else path,
            sample_rate,
            data=data,
            start=row.start or 0.0,
            duration=row.duration,
            channel=row.channel,
        )
    )


def _member(path: str, row: Row) -> bytes:
    with refuse_unreadable(path), open(path, "rb") as file:
        file.seek(row.offset or 0)
        data = file.read(row.size or 0)
    if len(data) != row.size:
        raise FileRefused(f"{row.name} is cut off: the tar ends inside it.")
    return data


def _cut_samples(row: Row, sample_rate: int) -> np.ndarray:
    """What lhotse makes of a cut that is more than a part of a file."""
    import json

    from lhotse.serialization import deserialize_item

    cut = deserialize_item(json.loads(row.part or ""))
    samples = cut.resample(sample_rate).load_audio()  # [channels, n]
    if samples is None or not samples.size:
        raise FileRefused(f"{row.source}: the cut {row.id} has no samples.")
    return np.asarray(samples, dtype=np.float32).mean(axis=0)
