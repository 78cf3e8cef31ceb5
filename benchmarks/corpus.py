"""What a corpus costs around the codec: plan, driver, readers, and faults.

    python benchmarks/corpus.py plan --rows 1000000      time and memory of the driver
    python benchmarks/corpus.py read                     a DataLoader over shards, MB/s of tokens
    python benchmarks/corpus.py scale                    two workers against one, codec asleep
    python benchmarks/corpus.py kill DIR --engine pool   kill -9 of workers and drivers, real audio

The first three have a faked reader and codec; the last one encodes a folder with a model.
"""

import argparse
import csv
import hashlib
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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from machine import describe

from audiovq.corpus import encode
from audiovq.corpus.codec import Encoded
from audiovq.corpus.layout import Settings
from audiovq.corpus.rows import Row
from audiovq.corpus.sources import open_sources

SETTINGS = Settings("fake", "f", 16_000, 320, 1024, n_q=8, shard_rows=1000)
KILLS, RESTARTS = 10, 3


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
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan(args: argparse.Namespace) -> None:
    """A manifest of many rows: planned, walked by a worker, planned again and found done."""
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder, "rows.csv"), Path(folder, "out")
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "text", "speaker"])
            for i in range(args.rows):
                speaker = f"speaker{i % 997}"
                writer.writerow([f"{speaker}/{i:08d}.flac", f"some words of row {i}", speaker])
        before = megabytes()
        settings = replace(SETTINGS, n_q=1)
        for what in ("planned and encoded", "planned again, nothing left"):
            marks = [time.perf_counter(), 0.0]

            def on_event(progress, event, marks=marks) -> None:
                if event is None:
                    marks[1] = time.perf_counter()

            encode.run(
                open_sources([table]), out, settings, Fake(args.frames, n_q=1), on_event=on_event
            )
            end, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            print(
                f"{args.rows} rows, {what}: plan {marks[1] - marks[0]:.1f} s, rest "
                f"{end - marks[1]:.1f} s; driver {megabytes():.0f} MB at most ({before:.0f} before "
                f"it began), {cpu.ru_utime + cpu.ru_stime:.1f} s of its processor time so far",
                flush=True,
            )
        size = sum(path.stat().st_size for path in out.glob("_plan.parquet"))
        print(f"the plan has {size / args.rows:.1f} bytes a row", flush=True)


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
            stream = TokenStream(Path(folder, "out"), n_q)
            wall, cpu = time.perf_counter(), time.process_time()
            n = 0
            for batch in DataLoader(stream, args.batch, collate_fn=collate):
                n += int(batch.n_frames.sum()) * n_q
                stream.advance(batch.positions)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
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
    for engine in args.engine.split(","):
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


def kill(args: argparse.Namespace) -> None:
    """A folder encoded undisturbed, and while workers and drivers are killed: the same shards."""
    work = Path(tempfile.mkdtemp(prefix="corpus-"))
    command = [sys.executable, "-m", "audiovq_cli", "corpus", "encode", args.folder]
    command += ["--model", args.model, "--n-q", str(args.n_q), "--shard-rows", "50", "-q"]
    command += ["--jobs", str(args.jobs)]
    start = time.perf_counter()
    _run([*command, "-o", str(work / "calm")])
    calm = time.perf_counter() - start
    print(f"undisturbed, pool, {args.jobs} workers: {calm:.1f} s", flush=True)
    if args.engine != "pool":
        start = time.perf_counter()
        _run([*command, "-o", str(work / args.engine), "--engine", args.engine])
        print(f"undisturbed, {args.engine}: {time.perf_counter() - start:.1f} s", flush=True)
        print(f"{args.engine} is the same: {_same(work / 'calm', work / args.engine)}", flush=True)
    rng, out = random.Random(args.seed), work / "killed"
    command += ["-o", str(out), "--engine", args.engine]
    kills = restarts = 0
    while True:
        driver = subprocess.Popen(command)
        while driver.poll() is None:
            time.sleep(rng.uniform(0.2, calm / 4))
            workers = _workers(driver.pid)
            if restarts < RESTARTS and kills >= (restarts + 1) * KILLS / (RESTARTS + 1):
                driver.kill()
                restarts += 1
            elif kills < KILLS and workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills += 1
        if driver.wait() != -signal.SIGKILL:
            break
    print(f"{kills} workers and {restarts} drivers killed -9; exit code {driver.returncode}")
    print(f"the same shards: {_same(work / 'calm', out)}")
    subprocess.run([sys.executable, "-m", "audiovq_cli", "corpus", "verify", str(out)], check=True)
    shutil.rmtree(work)


def _run(command: list[str]) -> None:
    if subprocess.run(command).returncode not in (0, 1):  # 1: something was refused
        sys.exit(f"{' '.join(command)} failed")


def _same(one: Path, other: Path) -> bool:
    def sums(folder: Path) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.glob("shard-*")
        }

    return bool(sums(one)) and sums(one) == sums(other)


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
            if (depth == 1 and "forkserver" in name) or "_MapWorker" in name:
                found.append(child)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, rows, frames in (("plan", 1_000_000, 10), ("read", 20_000, 250), ("scale", 400, 50)):
        parts = verbs.add_parser(verb)
        parts.add_argument("--rows", type=int, default=rows)
        parts.add_argument("--frames", type=int, default=frames, help="of a recording")
        parts.add_argument("--batch", type=int, default=32)
        parts.add_argument("--seconds", type=float, default=0.05, help="that a recording takes")
        parts.add_argument("--engine", default="pool")
    parts = verbs.add_parser("kill")
    parts.add_argument("folder")
    parts.add_argument("--model", default="default")
    parts.add_argument("--n-q", type=int, default=2)
    parts.add_argument("--jobs", type=int, default=2)
    parts.add_argument("--seed", type=int, default=0)
    parts.add_argument("--engine", default="pool", choices=("pool", "ray"))
    args = parser.parse_args()
    print(describe())
    {"plan": plan, "read": read, "scale": scale, "kill": kill}[args.verb](args)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
