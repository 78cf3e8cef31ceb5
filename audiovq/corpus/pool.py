"""The engine of one machine: a pool of processes that outlives the death of its workers.

`concurrent.futures` and `multiprocessing.Pool` lose their other workers, or wait for ever, when one
is killed. Here each worker has one shard and a pipe of its own: whoever dies is replaced, and its
shard is encoded from its beginning.
"""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from audiovq.corpus.worker import Job, Result, Task, encode_shard
from audiovq.files import FileRefused

MOST_BARREN_DEATHS = 20
"""Workers that may die one after the other without a recording between them."""


@dataclass(frozen=True)
class Tick:
    """A recording of so many seconds was encoded, or refused (0)."""

    seconds: float


@dataclass(frozen=True)
class Death:
    """A worker died; its shard, if it had one, is encoded again."""

    exit_code: int | None
    shard: int | None


Event = Tick | Result | Death


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    slot: int
    task: Task | None = None


def run_pool(job: Job, tasks: Sequence[Task], n_workers: int) -> Generator[Event, None, None]:
    """Encode shards in `n_workers` processes, one thread each; gives what happens.

    Raises `FileRefused` when a worker cannot load its model or write its shard, and when they die
    before they have done anything.
    """
    context = _context(job)
    pending = deque(tasks)
    workers: list[_Worker] = []
    n_barren = 0
    try:
        while pending or any(worker.task for worker in workers):
            n_busy = sum(worker.task is not None for worker in workers)
            while len(workers) < min(n_workers, len(pending) + n_busy):
                free = min(set(range(n_workers)) - {worker.slot for worker in workers})
                workers.append(_start(context, job, free))
            for worker in workers:
                if worker.task is None and pending:
                    worker.task = pending.popleft()
                    _send(worker, worker.task)
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    event = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    workers.remove(worker)
                    worker.pipe.close()
                    n_barren += 1
                    _check_deaths(n_barren, worker.process.exitcode)
                    if worker.task is not None:
                        pending.appendleft(worker.task)
                    shard = None if worker.task is None else worker.task.shard
                    yield Death(worker.process.exitcode, shard)
                    continue
                if isinstance(event, Exception):
                    raise event
                n_barren = 0
                if isinstance(event, Result):
                    worker.task = None
                yield event
    finally:
        for worker in workers:
            worker.pipe.close()  # it ends when it sees that
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _context(job: Job) -> Any:
    """How processes start: never as a copy of this one, whose torch may have threads."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # One server imports torch once; its children, and those that replace them, begin at once.
    context.set_forkserver_preload([*job.loader.preload])
    return context


def _start(context: Any, job: Job, slot: int) -> _Worker:
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(job, its, slot), daemon=True)
    process.start()
    its.close()  # or nobody would see that the worker's end is gone
    return _Worker(process, mine, slot)


def _send(worker: _Worker, task: Task) -> None:
    try:
        worker.pipe.send(task)
    except OSError:
        pass  # it is dead, as the pipe says next


def _check_deaths(n_barren: int, exit_code: int | None) -> None:
    if n_barren > MOST_BARREN_DEATHS:
        raise FileRefused(
            f"{n_barren} workers died before they had encoded anything, the last one with exit "
            f"code {exit_code}; with -9 it is often the memory: try fewer --jobs."
        )


def _work(job: Job, pipe: Connection, slot: int) -> None:
    """A worker: shard after shard, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's affair
    try:
        codec = job.loader(slot)

        def tick(seconds: float) -> None:
            if pipe.poll():  # while a shard is at hand the driver sends nothing: it has ended
                raise EOFError
            pipe.send(Tick(seconds))

        while True:
            pipe.send(encode_shard(job, pipe.recv(), codec, tick))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        said = error if isinstance(error, FileRefused | ModuleNotFoundError) else None
        pipe.send(said or FileRefused(f"A worker failed: {type(error).__name__}: {error}"))
