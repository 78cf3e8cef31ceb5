"""Whether a corpus is whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

import audiovq.corpus.layout as layout
from audiovq.corpus.layout import Corpus, Entry, read_corpus, read_entry
from audiovq.corpus.shards import open_shard, shard_metadata, tar_records
from audiovq.corpus.worker import checksum
from audiovq.files import FileRefused


def verify(out: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """What is wrong with a corpus, a sentence each; none when it is whole.

    Every planned recording must be in its shard, or refused with a reason; every shard must have
    its size and checksum and be of the corpus's model; nothing may be there twice or besides.

    progress: called with the shards that were checked and their number.

    Raises `FileRefused` when the folder holds no corpus.
    """
    out = Path(out)
    corpus = read_corpus(out)
    wrong: list[str] = []
    try:
        plan = pq.ParquetFile(out / layout.PLAN_FILE)
        if plan.num_row_groups != corpus.n_shards or plan.metadata.num_rows != corpus.rows:
            wrong.append(f"{layout.PLAN_FILE} is of other rows than {layout.CORPUS_FILE} says.")
            plan = None
    except (OSError, ValueError) as error:
        wrong.append(f"{layout.PLAN_FILE} cannot be read ({error}).")
        plan = None
    for shard in range(corpus.n_shards):
        wrong += _wrong_with(out, corpus, shard, plan)
        if progress is not None:
            progress(shard + 1, corpus.n_shards)
    wrong += _strangers(out, corpus)
    if not wrong:
        try:
            layout.read_index(out)
        except FileRefused as error:
            wrong.append(str(error))
    return wrong


def _wrong_with(
    out: Path, corpus: Corpus, shard: int, plan: pq.ParquetFile | None
) -> Iterator[str]:
    name = layout.shard_file(shard, corpus.settings.format)
    entry = read_entry(out, shard)
    planned = plan.metadata.row_group(shard).num_rows if plan is not None else None
    if entry is None:
        of = f", with its {planned} recordings," if planned is not None else ""
        yield f"{name}{of} is missing: it was not encoded."
        return
    if entry.digest != corpus.digests[shard]:
        yield f"{name} is of an older plan."
    try:
        n_bytes, sha256 = checksum(out / name)
    except FileRefused as error:
        yield str(error)
        return
    if n_bytes != entry.bytes:
        yield f"{name} has {n_bytes} bytes; its entry says {entry.bytes}."
        return
    if sha256 != entry.sha256:
        yield (
            f"{name} is damaged: its checksum is another one than when it was written; delete it "
            "and run the same `audiovq corpus encode` again."
        )
        return
    if plan is not None:
        try:
            planned_ids = plan.read_row_group(shard, columns=["id"])["id"].to_pylist()
        except (OSError, ValueError) as error:
            yield f"{layout.PLAN_FILE} is damaged at the rows of {name} ({error})."
            return
        yield from _lost(out, corpus, entry, planned_ids)


def _lost(out: Path, corpus: Corpus, entry: Entry, wanted: list[str]) -> Iterator[str]:
    """Recordings that are planned and not there, or there and not planned, in order."""
    refused = {item["id"] for item in entry.refused}
    try:
        held = _ids(out / entry.file, corpus)
    except FileRefused as error:
        yield str(error)
        return
    expected = [name for name in wanted if name not in refused]
    if held != expected or len(expected) + len(refused) != len(wanted):
        missing = sorted(set(expected) - set(held))
        more = sorted(set(held) - set(expected))
        yield (
            f"{entry.file} holds {len(held)} recordings in the place of {len(expected)}; missing: "
            f"{', '.join(missing[:5]) or 'none'}; not planned: {', '.join(more[:5]) or 'none'}."
        )


def _ids(path: Path, corpus: Corpus) -> list[str]:
    """The ids in a shard. Raises `FileRefused` when it is of another model."""
    if corpus.settings.format == "webdataset":
        return [facts["id"] for facts, _ in tar_records(path)]
    with open_shard(path) as file:
        about = shard_metadata(file)
        if about["fingerprint"] != corpus.settings.fingerprint:
            raise FileRefused(
                f"{path} is of the model {about['model']} ({about['fingerprint']}), not of "
                f"{corpus.settings.model} ({corpus.settings.fingerprint})."
            )
        return list(file.read(columns=["id"])["id"].to_pylist())


def _strangers(out: Path, corpus: Corpus) -> Iterator[str]:
    known = {layout.shard_file(shard, corpus.settings.format) for shard in range(corpus.n_shards)}
    for path in sorted(out.iterdir()):
        if not path.name.startswith(("_", ".")) and path.name not in known:
            yield f"{path.name} is no shard of this corpus; take it out of the folder."
