"""The engine of a cluster: Ray Data, whose actors hold the models."""

import json
import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

from audiovq.corpus.layout import Entry
from audiovq.corpus.worker import Job, Result, Task, encode_shard
from audiovq.files import FileRefused

MOST_BLOCKS = 2000
"""Ray schedules so many pieces of work at most; of more shards, several are one piece."""
LOCAL_STORE = 100 << 20
"""Bytes of a local Ray's object store: what goes through it is numbers and entries."""


def run_ray(
    job: Job, tasks: Sequence[Task], n_workers: int, *, address: str | None, gpu: bool
) -> Generator[Result, None, None]:
    """Encode shards in `n_workers` actors, each with a core, and with a GPU if `gpu`.

    address: of a cluster ("auto", "ray://host:10001"); None starts Ray on this machine for the
        run. Every node must have audiovq and see the sources and the output by the same paths.

    Ray starts actors anew that die, and gives their work again. Raises `FileRefused` when a worker
    cannot load its model or write its shard.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every run
    how: dict[str, Any] = {}  # what the Ray of a cluster has not decided
    if not address:
        how = {"num_cpus": n_workers, "object_store_memory": LOCAL_STORE}
        how |= {"include_dashboard": False}
    if not address or "://" not in address:
        how |= {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **how)
    except Exception as error:  # all kinds of them
        raise FileRefused(f"Ray at {address or 'this machine'} cannot be used: {error}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.enable_operator_progress_bars = False
        items = [asdict(task) for task in tasks]
        data: Any = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
        data = data.map_batches(
            _Encoder,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(items))),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if gpu else 0,
        )
        for row in data.iter_rows():
            yield _unpacked(row)
    finally:
        ray.shutdown()


class _Encoder:
    """An actor: it holds a model and encodes shards."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._said: str | None = None
        try:
            self._codec = job.loader(0)  # Ray shows each actor its own GPU alone
        except FileRefused as error:  # Ray would try for ever
            self._said = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Encode the one shard of a batch; numpy arrays of Ray's in, JSON out."""
        if self._said is not None:
            return {"result": [json.dumps({"failed": self._said})]}
        task = Task(int(batch["shard"][0]), str(batch["digest"][0]))
        try:
            result = encode_shard(self._job, task, self._codec)
        except FileRefused as error:
            return {"result": [json.dumps({"failed": str(error)})]}
        return {"result": [json.dumps(asdict(result))]}


def _unpacked(row: dict[str, Any]) -> Result:
    facts = json.loads(row["result"])
    if "failed" in facts:
        raise FileRefused(facts["failed"])
    entry = Entry.from_json(json.dumps(facts.pop("entry")))
    return Result(entry, **facts)
