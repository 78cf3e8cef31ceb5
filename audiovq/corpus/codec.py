"""What workers encode rows with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from audiovq.corpus.layout import Settings
from audiovq.corpus.reading import read_row
from audiovq.corpus.rows import Row
from audiovq.files import FileRefused

T = TypeVar("T")

BATCH_SECONDS = 600.0
"""Seconds of padded audio that a GPU encodes at once."""
READERS = 4
"""Threads that read audio for a GPU."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of a row."""

    codes: np.ndarray | Sequence[np.ndarray]
    """uint16 of each level, each code once: [T], or [ceil(T / stride)]."""
    n_samples: int
    """At the model's rate."""
    segments: tuple[np.ndarray, np.ndarray] | None = None
    """Units of segments, uint16, and the codes of level 0 that each lasts, uint32."""


class Codec(Protocol):
    """Encodes rows. Tests and benchmarks have their own."""

    def encode(
        self, rows: Sequence[Row], started: Callable[[int], None]
    ) -> Iterator[Encoded | str]:
        """The tokens of each row in turn, or why it has none.

        started: called with the index of a row before it is read, where rows go one by one.
        """
        ...


@dataclass(frozen=True)
class ModelLoader:
    """How a worker gets its codec; this is sent to it in the place of a model."""

    model: str
    """As for `AudioVQ.from_pretrained`."""
    settings: Settings
    root: str
    device: str = "cpu"

    preload = ("audiovq.transcode", "audiovq.corpus.worker")
    """Modules that all workers need; see `pool`."""

    def __call__(self, slot: int) -> "ModelCodec":
        """The codec of worker `slot`, from 0, which decides its GPU."""
        return ModelCodec(self, slot)


class ModelCodec:
    """A model on one thread of a CPU, or on a GPU.

    On a CPU rows go one by one, in bounded memory, and their tokens are those of `audiovq encode`.
    On a GPU they go in padded batches of like lengths, which are the same in every run; a few
    tokens may differ from a CPU's. Raises `FileRefused` when the model is not the one that the
    corpus was planned with.
    """

    def __init__(self, loader: ModelLoader, slot: int) -> None:
        import torch

        from audiovq.model import AudioVQ

        device = loader.device
        if device == "cpu":
            torch.set_num_threads(1)
        elif device == "cuda":
            device = f"cuda:{slot % torch.cuda.device_count()}"
        self._model = AudioVQ.from_pretrained(loader.model, device=device)
        self._settings, self._root = loader.settings, loader.root
        self._batched = device != "cpu"
        if self._model.fingerprint != self._settings.fingerprint:
            raise FileRefused(
                f"{loader.model} is here the model {self._model.fingerprint}, and the corpus was "
                f"planned with {self._settings.fingerprint}; workers need the driver's model."
            )

    def encode(
        self, rows: Sequence[Row], started: Callable[[int], None]
    ) -> Iterator[Encoded | str]:
        """See `Codec`."""
        if self._batched:
            yield from self._encode_batches(rows)
            return
        for index, row in enumerate(rows):
            started(index)
            yield attempt(lambda row=row: self._encode_one(row), row)  # type: ignore[misc]

    def _blocks(self, row: Row) -> Iterator[np.ndarray]:
        return read_row(row, self._root, self._settings.sample_rate)

    def _encode_one(self, row: Row) -> Encoded:
        import torch

        from audiovq.transcode import as_array

        stream = self._model.stream(self._settings.n_q)
        n_samples, parts = 0, []
        for block in self._blocks(row):
            n_samples += len(block)
            parts.append(as_array(stream.encode_blocks(torch.from_numpy(block)[None, None])))
        parts.append(as_array(stream.flush_encode()))
        levels = self._levels(np.concatenate(parts, axis=1))
        return Encoded(levels, n_samples, self._segments(row))

    def _levels(self, indices: np.ndarray) -> list[np.ndarray]:
        """Codes uint16 [n_q, T], those of each level once."""
        return [row[::n] for row, n in zip(indices, self._settings.frames_per_code)]

    def _segments(self, row: Row) -> tuple[np.ndarray, np.ndarray] | None:
        price = self._settings.segment_price
        if price is None:
            return None
        from audiovq.segment import run_lengths, segment
        from audiovq.transcode import unit_distances

        runs = run_lengths(segment(unit_distances(self._model, self._blocks(row)), price))
        units = np.array([run.unit for run in runs], dtype=np.uint16)
        return units, np.array([run.duration for run in runs], dtype=np.uint32)

    def _encode_batches(self, rows: Sequence[Row]) -> Iterator[Encoded | str]:
        """The rows in batches of like lengths, and then in their order."""
        with ThreadPoolExecutor(READERS) as pool:  # libsndfile lets other threads run
            futures: list[Future[np.ndarray | str]] = [
                pool.submit(attempt, lambda row=row: np.concatenate([*self._blocks(row)]), row)
                for row in rows
            ]
            sounds = [future.result() for future in futures]
        found: list[Encoded | str] = [s if isinstance(s, str) else "" for s in sounds]
        heard = {i: s for i, s in enumerate(sounds) if not isinstance(s, str)}
        lengths = [(i, len(s)) for i, s in heard.items()]
        for batch in batches(lengths, self._settings.sample_rate):
            for index, encoded in zip(batch, self._encode_batch([heard[i] for i in batch])):
                segments = self._segments(rows[index])
                found[index] = Encoded(encoded.codes, encoded.n_samples, segments)
        yield from found

    def _encode_batch(self, sounds: Sequence[np.ndarray]) -> Iterator[Encoded]:
        lengths = [len(sound) for sound in sounds]
        wav = np.zeros((len(sounds), 1, max(lengths)), dtype=np.float32)
        for item, sound in zip(wav, sounds):
            item[0, : len(sound)] = sound
        codes = self._model.encode(wav, self._settings.n_q, lengths).indices.cpu().numpy()
        for item, length in zip(codes, lengths):
            indices = item[:, : self._settings.n_frames(length)].astype(np.uint16)
            yield Encoded(self._levels(indices), length)


def batches(lengths: Sequence[tuple[int, int]], sample_rate: int) -> Iterator[list[int]]:
    """Batches of like lengths, each of at most `BATCH_SECONDS` with its padding, or of one item.

    lengths: an index and a number of samples of each item. Gives their indices.
    """
    batch: list[int] = []
    for index, length in sorted(lengths, key=lambda item: (item[1], item[0])):
        if batch and (len(batch) + 1) * length > BATCH_SECONDS * sample_rate:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def attempt(read: Callable[[], T], row: Row) -> T | str:
    """What `read` gives, or why it fails in one sentence: a bad row does not stop the others."""
    try:
        return read()
    except FileRefused as error:
        return str(error)
    except MemoryError:
        return f"{row.name}: not enough memory."
    except ModuleNotFoundError:
        raise  # no row's fault
    except Exception as error:
        said = str(error).partition("\n")[0]
        return f"{row.name}: {type(error).__name__}: {said}"
