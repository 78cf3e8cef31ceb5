"""A corpus from its sources: plan, encode what is missing, say what came of it."""

import json
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import audiovq.corpus.layout as layout
from audiovq.corpus.codec import ModelLoader
from audiovq.corpus.layout import Corpus, Entry, Settings, done_entry, read_corpus
from audiovq.corpus.planning import write_plan
from audiovq.corpus.pool import Event, run_pool
from audiovq.corpus.progress import Progress
from audiovq.corpus.sources import Source, open_sources
from audiovq.corpus.worker import Job, Loader, Task
from audiovq.files import FileRefused

SHARD_ROWS = 1000
"""Recordings of a shard by default."""

OnEvent = Callable[[Progress, Event | None], None]
"""Called when work begins (with None), and with whatever happens; see `Progress`."""


def encode_corpus(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    model: str = "default",
    device: str = "cpu",
    n_q: int | None = None,
    segments: bool | float = False,
    format: str = "parquet",
    shard_rows: int = SHARD_ROWS,
    columns: dict[str, str] | None = None,
    audio_root: str | Path | None = None,
    prefix_ids: bool = False,
    engine: str = "pool",
    address: str | None = None,
    jobs: int | None = None,
    update: bool = False,
    retry: bool = False,
    on_event: OnEvent | None = None,
) -> Progress:
    """Encode a corpus to shards in the folder `out`, or what of it is missing there.

    sources, columns, audio_root, prefix_ids: see `open_sources`. model, device, n_q: as for
    `AudioVQ`. segments: also the units' segments, at this price or at that of the model's card.
    format: "parquet" or "webdataset". shard_rows: recordings a shard. engine: "pool", processes
    of this machine, or "ray", at `address`. jobs: workers; one a core, or a GPU, by default.
    update: encode anew what changed sources, settings or another model ask for. retry: encode
    shards anew in which recordings were refused.

    The bytes of the shards depend on sources, model and settings alone.

    Raises `FileRefused` when sources or output cannot be used, and `ValueError` for arguments.
    """
    from audiovq.model import AudioVQ

    if engine not in ("pool", "ray"):
        raise ValueError(f'engine must be "pool" or "ray", not {engine!r}.')
    source = open_sources(sources, columns=columns, audio_root=audio_root, prefix_ids=prefix_ids)
    codec = AudioVQ.from_pretrained(model)
    price = None if segments is False else segments
    if price is True:
        if (price := codec.card.get("segment_price")) is None:
            raise ValueError(f"the card of {codec.name} has no segment_price; give one.")
    settings = Settings(
        model=codec.name,
        fingerprint=codec.fingerprint,
        sample_rate=codec.config.sample_rate,
        hop_length=codec.config.hop_length,
        codebook_size=codec.config.codebook_size,
        n_q=codec.check_n_q(n_q),
        shard_rows=shard_rows,
        format=format,
        segment_price=None if price is None else float(price),
        level_strides=codec.config.level_strides[: codec.check_n_q(n_q)],
    )
    if os.path.isdir(model):
        model = os.path.abspath(model)  # workers may stand elsewhere
    return run(
        source,
        Path(os.path.abspath(out)),
        settings,
        ModelLoader(model, settings, source.root, device),
        engine=engine,
        address=address,
        jobs=jobs or default_jobs(device),
        update=update,
        retry=retry,
        on_event=on_event,
    )


def default_jobs(device: str) -> int:
    """One worker for each core that this process may use, or for each GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    source: Source,
    out: Path,
    settings: Settings,
    loader: Loader,
    *,
    engine: str = "pool",
    address: str | None = None,
    jobs: int = 1,
    update: bool = False,
    retry: bool = False,
    on_event: OnEvent | None = None,
) -> Progress:
    """`encode_corpus` with any codec; tests and benchmarks have their own."""
    corpus = _plan(source, out, settings, update=update)
    progress = Progress(corpus, jobs)
    tasks = _missing(out, corpus, progress, retry=retry)
    if on_event is not None:
        on_event(progress, None)
    if tasks:
        with suppress(FileNotFoundError):
            (out / layout.INDEX_FILE).unlink()  # it must not speak of what is being replaced
        job = Job(out, settings, loader, secrets.token_hex(4))
        with closing(_events(job, tasks, engine, address, jobs)) as events:
            for event in events:
                progress.update(event)
                if on_event is not None:
                    on_event(progress, event)
    finish(out, corpus, progress)
    return progress


def _events(
    job: Job, tasks: list[Task], engine: str, address: str | None, jobs: int
) -> Generator[Event, None, None]:
    if engine == "pool":
        return run_pool(job, tasks, jobs)
    from audiovq.corpus.cluster import run_ray

    gpu = getattr(job.loader, "device", "cpu") != "cpu"
    return run_ray(job, tasks, jobs, address=address, gpu=gpu)


def _plan(source: Source, out: Path, settings: Settings, *, update: bool) -> Corpus:
    """Plan the sources as they are now, and see that it is what `out` was begun with."""
    if out.exists() and not out.is_dir():
        raise FileRefused(f"{out} is not a folder; name one for the shards.")
    before = read_corpus(out) if (out / layout.CORPUS_FILE).exists() else None
    if before is not None and not update:
        _refuse_other_settings(out, before.settings, settings)
    new = out / "_plan.new.parquet"
    try:
        corpus = write_plan(source, settings, new)
        if before is not None and not update and before.digests != corpus.digests:
            n = sum(a != b for a, b in zip(before.digests, corpus.digests))
            n += abs(before.n_shards - corpus.n_shards)
            raise FileRefused(
                f"{out} was begun with other recordings: {before.rows} were planned, {corpus.rows} "
                f"are there now, and {n} of {corpus.n_shards} shards differ. Add --update to "
                "encode these anew, or name another output."
            )
        os.replace(new, out / layout.PLAN_FILE)
    finally:
        new.unlink(missing_ok=True)
    if before != corpus:
        layout.write_corpus(out, corpus)
    if before is not None and before.digests != corpus.digests:
        _remove_stale(out, before, corpus)
    return corpus


def _refuse_other_settings(out: Path, before: Settings, now: Settings) -> None:
    for name, value in vars(before).items():
        if value != getattr(now, name):
            raise FileRefused(
                f"{out} was begun with {name} {value}, not {getattr(now, name)}. "
                "Name another output, or add --update to encode it anew."
            )


def _remove_stale(out: Path, before: Corpus, corpus: Corpus) -> None:
    """Remove shards that the plan no longer has, and the entries of those that it changed."""
    for shard, digest in enumerate(before.digests):
        same = shard < corpus.n_shards and digest == corpus.digests[shard]
        if not same:
            layout.entry_path(out, shard).unlink(missing_ok=True)
        if shard >= corpus.n_shards or before.settings.format != corpus.settings.format:
            (out / layout.shard_file(shard, before.settings.format)).unlink(missing_ok=True)


def _missing(out: Path, corpus: Corpus, progress: Progress, *, retry: bool) -> list[Task]:
    """The shards to encode. `progress` counts the others, whose entries are not kept: they name
    all that was refused."""
    tasks: list[Task] = []
    for shard, digest in enumerate(corpus.digests):
        entry = done_entry(out, corpus, shard)
        if entry is not None and retry and entry.refused:
            layout.entry_path(out, shard).unlink()
            entry = None
        if entry is None:
            tasks.append(Task(shard, digest))
        else:
            progress.was_there(entry)
    return tasks


def finish(out: Path, corpus: Corpus, progress: Progress) -> None:
    """Write the index, what was refused, and the summary, from the shards' entries."""

    def entries() -> Iterator[Entry]:
        for shard in range(corpus.n_shards):
            entry = layout.read_entry(out, shard)
            if entry is None:
                raise FileRefused(f"{out} has lost the entry of shard {shard}; encode it again.")
            yield entry

    def refused() -> Iterator[str]:
        for source, why in corpus.problems:
            yield _line({"id": None, "source": source, "why": why})
        for entry in entries():
            yield from (_line(item) for item in entry.refused)

    layout.write_lines(out / layout.REFUSED_FILE, refused())
    layout.write_lines(out / layout.INDEX_FILE, (entry.to_json() for entry in entries()))
    layout.write_json(out / layout.SUMMARY_FILE, progress.summary())


def _line(facts: Mapping[str, str | None]) -> str:
    return json.dumps(facts, ensure_ascii=False)
