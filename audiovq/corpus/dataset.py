"""Shards to trainers: datasets for `torch.utils.data.DataLoader`.

    TokenDataset    any recording by its number, for samplers
    TokenStream     shuffled, over ranks and workers, resumed in the middle of an epoch

Both give recordings as `Example`; `collate` makes batches of them.
"""

import functools
import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from audiovq.codes import Codes
from audiovq.corpus.layout import read_corpus, read_index
from audiovq.corpus.shards import open_shard
from audiovq.files import FileRefused

BLOCK_GROUPS = 8
"""Row groups that `TokenStream` shuffles together: some 2,000 recordings in memory."""
_CACHED_GROUPS = 4


class Position(NamedTuple):
    """Where in a `TokenStream` a recording stands."""

    worker: int
    workers: int
    """Of the data loader."""
    epoch: int
    block: int
    place: int
    """In the block."""


class Example(NamedTuple):
    """A recording of a corpus."""

    id: str
    codes: np.ndarray
    """uint16 [n_q, T]; a view that must not be written to. A code that stands for several frames
    stands in each of them."""
    n_samples: int
    text: str | None
    speaker: str | None
    level_strides: tuple[int, ...] = ()
    """Frames that a code of each level stands for; empty when all are 1."""
    position: Position | None = None
    """In a `TokenStream`; see `TokenStream.advance`."""


class Batch(NamedTuple):
    """What `collate` makes of B examples."""

    codes: Codes
    """int64 [B, n_q, T] with zeros after each item's end, and samples of each item."""
    n_frames: torch.Tensor
    """int64 [B]."""
    ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    speakers: tuple[str | None, ...]
    positions: tuple[Position | None, ...]


def collate(examples: Sequence[Example]) -> Batch:
    """A padded batch; for `DataLoader(..., collate_fn=collate)`."""
    ids, codes, n_samples, texts, speakers, strides, positions = zip(*examples)
    n_frames = [item.shape[1] for item in codes]
    indices = np.empty((len(codes), len(codes[0]), max(n_frames)), dtype=np.int64)
    for place, item, n in zip(indices, codes, n_frames):
        place[:, :n] = item
        place[:, n:] = 0
    padded = Codes(torch.from_numpy(indices), n_samples, strides[0])
    return Batch(padded, torch.tensor(n_frames), ids, texts, speakers, positions)


class Groups:
    """The row groups of a corpus: what is read at once.

    n_q: levels to read, the first ones; all when None. Fewer levels read less of the files.

    Raises `FileRefused` when the folder holds no complete corpus of Parquet shards, and
    `ValueError` for n_q.
    """

    def __init__(self, folder: str | Path, n_q: int | None = None) -> None:
        self.folder = Path(folder)
        settings = read_corpus(folder).settings
        if settings.format != "parquet":
            raise FileRefused(f"{folder} has tars; read them with the package webdataset.")
        if n_q is not None and not 1 <= n_q <= settings.n_q:
            raise ValueError(f"n_q must be in 1..{settings.n_q}, not {n_q}.")
        self.settings = settings
        self.n_q = n_q or settings.n_q
        self.level_strides = settings.level_strides[: self.n_q]
        """Of the levels that are read."""
        self._code_columns = [f"codes_{level}" for level in range(self.n_q)]
        entries = read_index(folder)
        self.places = [(e.file, group) for e in entries for group in range(len(e.groups))]
        """File and number of each row group."""
        self.sizes = [size for entry in entries for size in entry.groups]
        """Recordings of each."""

    def read(self, number: int) -> list[Example]:
        """The recordings of a row group."""
        name, group = self.places[number]
        columns = ["id", "n_samples", "text", "speaker", *self._code_columns]
        with open_shard(self.folder / name) as file:
            try:
                table = file.read_row_group(group, columns, use_threads=False)
                return self._examples(table)
            except (OSError, ValueError, LookupError) as error:
                raise FileRefused(
                    f"{self.folder / name} is damaged; run `audiovq corpus verify`."
                ) from error

    def _examples(self, table: pa.Table) -> list[Example]:
        """The recordings of a table. Raises `ValueError` or `LookupError` for a damaged one."""
        n_frames = -(-table["n_samples"].to_numpy() // self.settings.hop_length)
        ends = np.cumsum(np.append(0, n_frames))
        levels = [
            _in_frames(table[name].chunk(0), n_frames, ends, stride)
            for name, stride in zip(self._code_columns, self.settings.frames_per_code)
        ]
        codes = np.stack(levels)
        if codes.shape != (self.n_q, ends[-1]):
            raise ValueError(f"codes are {codes.shape}, not {(self.n_q, ends[-1])}")
        items = [codes[:, start:end] for start, end in itertools.pairwise(ends.tolist())]
        told = (table[c].to_pylist() for c in ("n_samples", "text", "speaker"))
        strides = itertools.repeat(self.level_strides)
        return [*map(Example, table["id"].to_pylist(), items, *told, strides)]


def _in_frames(
    lists: pa.ListArray, n_frames: np.ndarray, ends: np.ndarray, stride: int
) -> np.ndarray:
    """The codes of a level of a row group, uint16 [sum of T], in each frame that they stand for.

    n_frames: int64 [B], of each recording. ends: their sums, from 0 on.
    """
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    if stride == 1:
        return values[offsets[0] : offsets[-1]]
    frames = np.arange(ends[-1]) - np.repeat(ends[:-1], n_frames)
    return values[np.repeat(offsets[:-1], n_frames) + frames // stride]


class TokenDataset(Dataset):
    """The recordings of a corpus by their number, in the order of its sources.

    A recording costs the reading of its row group of 256, of which the last few are kept: ask for
    them in order, or for random order take `TokenStream`. n_q and errors: see `Groups`.
    """

    def __init__(self, folder: str | Path, n_q: int | None = None) -> None:
        self._groups = Groups(folder, n_q)
        self._ends = list(itertools.accumulate(self._groups.sizes))
        self._cached: dict[int, list[Example]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} recordings; there is no {index}.")
        index %= len(self)
        group = bisect_right(self._ends, index)
        if group not in self._cached:
            if len(self._cached) >= _CACHED_GROUPS:
                del self._cached[next(iter(self._cached))]
            self._cached[group] = self._groups.read(group)
        first = self._ends[group] - self._groups.sizes[group]
        return self._cached[group][index - first]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}}  # workers read their own


class TokenStream(IterableDataset):
    """The recordings of a corpus in random order, each once an epoch over all ranks and workers.

    Row groups are shuffled, each `block_groups` of them become a block, and the recordings of a
    block are shuffled together. Blocks go round to ranks, and those of a rank to the workers of
    its data loader. The order hangs on `seed`, the epoch, ranks and workers alone.

    To go on where training stopped, tell the stream what was trained on, and keep its state:

        stream = TokenStream("corpus")
        stream.load_state_dict(saved)                       # in a later run
        for batch in DataLoader(stream, 16, collate_fn=collate, num_workers=2):
            train(batch)
            stream.advance(batch.positions)
            saved = stream.state_dict()

    With the same batch size and workers the batches that follow are the ones that would have
    followed. With others, each recording that was not trained on comes once all the same.

    epochs: how many times the corpus is gone through; without end when None. Ranks differ by up
        to a block in an epoch: where all must do the same number of steps, count steps, and let
        it be None. rank, world: those of `torch.distributed` where it is initialised, else 0 of 1.
    block_groups: more is better shuffled, and takes more memory. shuffle: False keeps the order
        of the sources within and among blocks. n_q and errors: see `Groups`.

    Raises `ValueError` when there are fewer blocks than ranks.
    """

    def __init__(
        self,
        folder: str | Path,
        n_q: int | None = None,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        shuffle: bool = True,
        rank: int | None = None,
        world: int | None = None,
        block_groups: int = BLOCK_GROUPS,
    ) -> None:
        if rank is None or world is None:
            is_there = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if is_there else 0
            world = torch.distributed.get_world_size() if is_there else 1
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1}, not {rank}.")
        if block_groups < 1:
            raise ValueError(f"block_groups must be at least 1, not {block_groups}.")
        self._groups = Groups(folder, n_q)
        self._seed, self._epochs, self._shuffle = seed, epochs, shuffle
        self._rank, self._world, self._block_groups = rank, world, block_groups
        self._n_blocks = -(-len(self._groups.places) // block_groups)
        if self._n_blocks < world:
            raise ValueError(
                f"{folder} has {len(self._groups.places)} row groups, which are {self._n_blocks} "
                f"blocks for {world} ranks; give a smaller block_groups, or fewer ranks."
            )
        self._epoch = 0  # the first that is not done
        self._done: dict[tuple[int, int], int] = {}  # recordings of a block of an epoch
        self._n_done: Counter[int] = Counter()  # recordings of an epoch
        self._rows: dict[tuple[int, int, int], int] = {}  # of an epoch, a rank and a world
        self._first = 0  # the worker whose batch is next

    @property
    def epoch(self) -> int:
        """The first epoch that was not trained on whole, from 0."""
        return self._epoch

    def __iter__(self) -> Iterator[Example]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        worker = (number + self._first) % workers
        for epoch in itertools.count(self._epoch):
            if self._epochs is not None and epoch >= self._epochs:
                return
            for block in range(self._rank, self._n_blocks, self._world)[worker::workers]:
                done = self._done.get((epoch, block), 0)
                if done == self._block_rows(epoch, block):
                    continue
                groups = self._block(epoch, block)
                examples = [example for group in groups for example in self._groups.read(group)]
                order = self._order(len(examples), epoch, block + 1)
                for place in range(done, len(examples)):
                    position = Position(worker, workers, epoch, block, place)
                    yield Example(*examples[order[place]][:-1], position)

    def _block(self, epoch: int, block: int) -> list[int]:
        """The row groups of a block."""
        first = block * self._block_groups
        return self._group_order(epoch)[first : first + self._block_groups].tolist()

    def _group_order(self, epoch: int) -> np.ndarray:
        return _permutation(
            len(self._groups.places), (self._seed, epoch, 0) if self._shuffle else None
        )

    def _order(self, n: int, epoch: int, part: int) -> list[int]:
        key = (self._seed, epoch, part) if self._shuffle else None
        return _permutation(n, key).tolist()

    def advance(self, positions: Iterable[Position | None]) -> None:
        """Note that recordings were trained on: those of a batch, in the order that they came."""
        for position in positions:
            if position is not None:
                worker, workers, epoch, block, place = position
                self._n_done[epoch] += place + 1 - self._done.get((epoch, block), 0)
                self._done[epoch, block] = place + 1
                self._first = (worker + 1) % workers
        while self._n_done[self._epoch] >= self._n_rows(self._epoch, self._rank, self._world):
            self._done = {k: v for k, v in self._done.items() if k[0] != self._epoch}
            self._epoch += 1

    def _n_rows(self, epoch: int, rank: int, world: int) -> int:
        """Recordings of a rank in an epoch."""
        key = (epoch, rank, world)
        if key not in self._rows:
            self._rows[key] = sum(
                self._block_rows(epoch, block) for block in range(rank, self._n_blocks, world)
            )
        return self._rows[key]

    def _block_rows(self, epoch: int, block: int) -> int:
        return sum(self._groups.sizes[group] for group in self._block(epoch, block))

    def state_dict(self) -> dict[str, Any]:
        """What was trained on, as plain values; each rank keeps its own."""
        return {
            "seed": self._seed,
            "block_groups": self._block_groups,
            "row_groups": len(self._groups.places),
            "rank": self._rank,
            "world": self._world,
            "epoch": self._epoch,
            "first_worker": self._first,
            "done": [[*key, n] for key, n in sorted(self._done.items())],
        }

    def load_state_dict(self, *states: dict[str, Any]) -> None:
        """Go on after what was trained on: the rank's state, or those of all ranks where their
        number changes.

        Raises `ValueError` for a state of another corpus, seed or block_groups.
        """
        for name, own in list(self.state_dict().items())[:3]:
            for state in states:
                if state[name] != own:
                    raise ValueError(
                        f"the state is of {name.replace('_', ' ')} {state[name]}, not {own}; give "
                        "the stream the corpus and settings that it was saved with."
                    )
        self._epoch = min(state["epoch"] for state in states)
        self._first = states[0]["first_worker"] if len(states) == 1 else 0
        self._done = {(e, block): n for state in states for e, block, n in state["done"]}
        for state in states:  # one rank may have begun an epoch before another has ended its own
            blocks = range(state["rank"], self._n_blocks, state["world"])
            for key in itertools.product(range(self._epoch, state["epoch"]), blocks):
                self._done[key] = self._block_rows(*key)
        self._n_done = Counter()
        for (epoch, block), n in self._done.items():
            if block % self._world == self._rank:
                self._n_done[epoch] += n


@functools.lru_cache(maxsize=4)
def _permutation(n: int, key: tuple[int, int, int] | None) -> np.ndarray:
    """The numbers below n, in an order that hangs on `key` alone; in their own without one."""
    return np.arange(n) if key is None else np.random.default_rng(key).permutation(n)
