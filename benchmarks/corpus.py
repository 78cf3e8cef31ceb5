"""What a corpus costs around the codec: plan, driver, readers, and faults.

    python benchmarks/corpus.py plan           time and memory of the driver, up to a million rows
    python benchmarks/corpus.py read           a DataLoader over shards, MB/s of tokens
    python benchmarks/corpus.py scale          two workers against one, codec asleep
    python benchmarks/corpus.py engines DIR    real audio through all engines, killed on the way

The first three have a faked reader and codec; the last one encodes a folder with a model.
"""

import argparse
import csv
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audiovq.corpus import encode, layout
from audiovq.corpus.codec import Encoded
from audiovq.corpus.layout import Settings
from audiovq.corpus.rows import Row
from audiovq.corpus.sources import open_sources

SETTINGS = Settings("fake", "f", 16_000, 320, 1024, n_q=8, shard_rows=1000)
KILLS, RESTARTS = 10, 3
ROUNDS = 3
"""Of which the best counts."""
WAYS = "pool 1,pool 2,ray 2,pool 2 killed,ray 2 killed"


@dataclass(frozen=True)
class Fake:
    """A codec that reads nothing: codes of so many frames, after so many seconds."""

    frames: int
    seconds: float = 0.0
    n_q: int = 8
    preload: tuple[str, ...] = ("audiovq.corpus.worker",)

    def __call__(self, slot: int) -> "Fake":
        return self

    def encode(self, rows, started) -> Iterator[Encoded]:
        rng = np.random.default_rng(len(rows))
        size = (self.n_q, self.frames * len(rows))
        # Squares: codes are not used evenly, which a real codebook's are not either.
        codes = (rng.random(size) ** 2 * 1024).astype(np.uint16)
        for index, _ in enumerate(rows):
            started(index)
            if self.seconds:
                time.sleep(self.seconds)
            first = index * self.frames
            yield Encoded(codes[:, first : first + self.frames], self.frames * 320)


def megabytes() -> float:
    """The most memory that this process has had, of its own program: not of what started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def plan(args: argparse.Namespace) -> None:
    """Manifests of many rows: planned, walked by a worker, planned again and found done."""
    from machine import table

    header = ["rows", "driver's processor time: plan", "walk", "plan again, nothing left"]
    header += ["its memory before", "at most", "plan, bytes a row"]
    rows = []
    for n_rows in map(int, args.rows.split(",")):
        context = multiprocessing.get_context("spawn")  # a process of its own has its own maximum
        with ProcessPoolExecutor(1, context) as executor:
            rows.append(executor.submit(_planned, n_rows, args.frames).result())
        print(rows[-1], flush=True)
    print(table(header, rows))


def _planned(n_rows: int, frames: int) -> list[str]:
    """A row of the table of `plan`."""
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = Path(folder, "rows.csv"), Path(folder, "out")
        with manifest.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "text", "speaker"])
            for i in range(n_rows):
                speaker = f"speaker{i % 997}"
                writer.writerow([f"{speaker}/{i:08d}.flac", f"some words of row {i}", speaker])
        before, marks = megabytes(), [time.process_time()]

        def on_event(progress, event) -> None:
            if event is None:
                marks.append(time.process_time())

        settings = replace(SETTINGS, n_q=1)
        for _ in range(2):
            source = open_sources([manifest])
            encode.run(source, out, settings, Fake(frames, n_q=1), on_event=on_event)
            marks.append(time.process_time())
        size = (out / layout.PLAN_FILE).stat().st_size
        planned, walked, again, rest = np.diff(marks)
        return [
            f"{n_rows:,}",
            *(f"{took:.1f} s" for took in (planned, walked, again + rest)),
            f"{before:.0f} MB",
            f"{megabytes():.0f} MB",
            f"{size / n_rows:.1f}",
        ]


def read(args: argparse.Namespace) -> None:
    """Tokens a second that reach a trainer, on one thread."""
    import torch
    from torch.utils.data import DataLoader

    from audiovq.corpus import TokenStream, collate

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [Row(f"r{i}", f"{i}.wav", stamp="") for i in range(args.rows)]
        source = encode.Source("/", lambda: iter(rows))
        encode.run(source, Path(folder, "out"), SETTINGS, Fake(args.frames))
        n_bytes = sum(path.stat().st_size for path in Path(folder, "out").glob("shard-*"))
        tokens = args.rows * args.frames * 8
        print(f"{8 * n_bytes / tokens:.2f} bits a token of 10 in the shards")
        for n_q in (8, 1):
            took = []
            for _ in range(ROUNDS):
                stream, n = TokenStream(Path(folder, "out"), n_q), 0
                start = time.perf_counter(), time.process_time()
                for batch in DataLoader(stream, args.batch, collate_fn=collate):
                    n += int(batch.n_frames.sum()) * n_q
                    stream.advance(batch.positions)
                took.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            wall, cpu = map(min, zip(*took))
            print(
                f"{n_q} levels, batches of {args.batch}: {2 * n / cpu / 1e6:.0f} MB of tokens "
                f"(uint16) a second of processor time, {2 * n / wall / 1e6:.0f} of the clock",
                flush=True,
            )


def scale(args: argparse.Namespace) -> None:
    """What the engine loses when workers are doubled; a codec that sleeps needs no cores."""
    rows = [Row(f"r{i}", f"{i}.wav", stamp="") for i in range(args.rows)]
    source = encode.Source("/", lambda: iter(rows))
    settings = replace(SETTINGS, shard_rows=max(1, args.rows // 20))
    for engine in args.engines.split(","):
        took = {}
        for jobs in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                loader = Fake(50, seconds=args.seconds)
                run = encode.run(source, Path(folder), settings, loader, engine=engine, jobs=jobs)
                took[jobs] = run.elapsed
        print(
            f"{engine}: one worker {took[1]:.1f} s, two {took[2]:.1f} s, "
            f"{took[1] / took[2]:.2f} times as fast; {args.rows * args.seconds:.1f} s of sleep"
        )


def engines(args: argparse.Namespace) -> None:
    """A folder encoded by each engine, undisturbed and while it is killed: the same shards."""
    from machine import table

    _adopt_orphans()
    work = Path(tempfile.mkdtemp(prefix="corpus-"))
    header = ["way", "killed", "clock", "processors", "audio a second of a processor", "the same"]
    rows, took = [], {}
    for number, way in enumerate(args.ways.split(",")):
        engine, jobs, *disturbed = way.split()
        out = work / str(number)
        command = [sys.executable, "-m", "audiovq_cli", "corpus", "encode", args.folder]
        command += ["--model", args.model, "--n-q", str(args.n_q), "-q", "-o", str(out)]
        command += ["--shard-rows", str(args.shard_rows), "--engine", engine, "--jobs", jobs]
        start, before = time.perf_counter(), _children_seconds()
        killed = "nobody"
        if disturbed:
            usual = took.get((engine, jobs), max(took.values(), default=60.0))
            killed = _disturb(command, usual, random.Random(args.seed))
        else:
            _check(command, subprocess.run(command).returncode)
        wall = time.perf_counter() - start
        took[engine, jobs] = wall
        seconds = 3600 * json.loads((out / layout.SUMMARY_FILE).read_text())["hours"]
        cpu = _children_seconds() - before
        check = [sys.executable, "-m", "audiovq_cli", "corpus", "verify", str(out)]
        _check(check, subprocess.run(check, stdout=subprocess.DEVNULL).returncode, allowed=(0,))
        same = "yes" if _same(work / "0", out) else "NO"
        facts = [f"{wall:.0f} s", f"{cpu:.0f} s", f"{seconds / cpu:.0f} s", same]
        rows.append([f"{engine}, {jobs} workers", killed, *facts])
        print(rows[-1], flush=True)
    print(f"{seconds / 3600:.2f} h in {len(_sums(out))} shards")
    print(table(header, rows))
    shutil.rmtree(work)
    if any(row[-1] == "NO" for row in rows):
        sys.exit("the shards are not the same")


def _disturb(command: list[str], usual: float, rng: random.Random) -> str:
    """Run a command to its end, killing its workers and itself on the way, at random moments.

    usual: seconds that it takes undisturbed; the kills are spread over about half of them.
    """
    kills = restarts = 0
    while True:
        driver = subprocess.Popen(command)
        while driver.poll() is None:
            time.sleep(rng.uniform(0, usual / (KILLS + RESTARTS)))
            workers = _workers(driver.pid)
            if restarts < RESTARTS and kills >= (restarts + 1) * KILLS / (RESTARTS + 1):
                driver.kill()
                restarts += 1
            elif kills < KILLS and workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills += 1
        if driver.wait() != -signal.SIGKILL:
            break
    _check(command, driver.returncode)
    if (kills, restarts) != (KILLS, RESTARTS):
        sys.exit(f"it ended after {kills} and {restarts} kills; give it a larger folder")
    return f"{kills} workers, {restarts} drivers"


def _check(command: list[str], code: int, allowed: tuple[int, ...] = (0, 1)) -> None:
    if code not in allowed:  # 1: something was refused
        sys.exit(f"{' '.join(command)} ended with {code}")


def _adopt_orphans() -> None:
    """Become the parent of what survives its own, so that its time can be counted. Linux."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _children_seconds() -> float:
    """Seconds of processors of all processes below this one, once they have ended."""
    for _ in range(600):
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.1)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _same(one: Path, other: Path) -> bool:
    return bool(_sums(one)) and _sums(one) == _sums(other)


def _sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("shard-*")
    }


def _workers(driver: int) -> list[int]:
    """The processes of the workers below a driver: of its forkserver, or Ray's actors."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append((int(entry.name), name))
    found, todo = [], [(driver, 0)]
    while todo:
        pid, depth = todo.pop()
        for child, name in children.get(pid, []):
            todo.append((child, depth + 1))
            if (depth == 1 and "forkserver" in name) or "MapWorker" in name:
                found.append(child)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    parts = verbs.add_parser("plan")
    parts.add_argument("--rows", default="100000,300000,1000000")
    parts.add_argument("--frames", type=int, default=10, help="of a recording")
    parts = verbs.add_parser("read")
    parts.add_argument("--rows", type=int, default=20_000)
    parts.add_argument("--frames", type=int, default=250, help="of a recording")
    parts.add_argument("--batch", type=int, default=32)
    parts = verbs.add_parser("scale")
    parts.add_argument("--rows", type=int, default=400)
    parts.add_argument("--seconds", type=float, default=0.05, help="that a recording takes")
    parts.add_argument("--engines", default="pool,ray")
    parts = verbs.add_parser("engines")
    parts.add_argument("folder")
    parts.add_argument("--model", default="default")
    parts.add_argument("--n-q", type=int, default=2)
    parts.add_argument("--shard-rows", type=int, default=200)
    parts.add_argument("--seed", type=int, default=0)
    about = "engine, workers, and `killed` where it is; the others must equal the first"
    parts.add_argument("--ways", default=WAYS, help=about)
    args = parser.parse_args()
    from machine import describe  # imports torch, whose memory is not the driver's

    print(describe(), flush=True)
    {"plan": plan, "read": read, "scale": scale, "engines": engines}[args.verb](args)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
