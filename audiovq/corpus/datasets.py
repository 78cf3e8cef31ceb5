"""Hugging Face datasets that were saved to disk."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiovq.corpus.rows import Problem, Row
from audiovq.files import FileRefused

COLUMNS = ("audio", "id", "text", "speaker")
"""What a dataset may say of a row; `audio` it must, a feature `Audio`."""


def dataset_rows(folder: Path, columns: Mapping[str, str]) -> Callable[[], Iterator[Row | Problem]]:
    """The rows of a dataset; ids are row numbers where it has no column `id`.

    columns: the dataset's names of `COLUMNS`, where they are others.

    Raises `FileRefused` at once when it has no column of audio.
    """
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"{name!r} is no column of a row; they are {', '.join(COLUMNS)}.")
    data = opened(str(folder))
    chosen = {name: columns.get(name, name) for name in COLUMNS}
    for name in {"audio", *columns}:
        if chosen[name] not in data.column_names:
            raise FileRefused(
                f"{folder} has no column {chosen[name]!r}, but {', '.join(data.column_names)}; "
                f"name it with --column {name}=NAME."
            )
    told = {n: c for n, c in chosen.items() if c in data.column_names and n != "audio"}

    def walk() -> Iterator[Row | Problem]:
        table = data.select_columns(list(told.values())) if told else None
        for number in range(len(data)):
            facts = {n: table[number][c] for n, c in told.items()} if table is not None else {}
            known: dict[str, Any] = {n: str(v) for n, v in facts.items() if v not in (None, "")}
            yield Row(
                known.pop("id", str(number)),
                str(folder),
                kind="hf",
                part=f"{chosen['audio']}:{number}",
                stamp=data._fingerprint,
                **known,
            )

    return walk


@functools.lru_cache(maxsize=8)
def opened(folder: str) -> Any:
    """The dataset, with its audio as it is stored. Raises `FileRefused` when it is damaged."""
    import datasets

    try:
        data = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise FileRefused(f"{folder} is not a dataset that was saved to disk ({error}).") from error
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Audio):
            data = data.cast_column(name, datasets.Audio(decode=False))
    return data


def stored_audio(folder: str, part: str) -> dict[str, Any]:
    """What a dataset stores of a recording: its `bytes`, or None and the `path` of its file."""
    column, _, number = part.rpartition(":")
    audio = opened(folder)[int(number)][column]
    if not isinstance(audio, dict) or not (audio.get("bytes") or audio.get("path")):
        raise FileRefused(f"{folder}#{part} holds no audio.")
    return audio
