"""Corpora: what is planned is encoded once, whatever dies, and whoever does it."""

import errno
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra corpus")

import pyarrow.parquet as pq
from fake_corpus import SETTINGS, FakeLoader, codes_of, fake_rows, run, shards

from audiovq.corpus import layout, worker
from audiovq.corpus.checking import verify
from audiovq.corpus.codec import batches
from audiovq.corpus.pool import Death, Tick
from audiovq.corpus.rows import Row
from audiovq.corpus.shards import tar_records
from audiovq.files import FileRefused

KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A corpus of 23 recordings, two of them refused, that nothing has disturbed."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    run(out)
    return out


def ids(out: Path) -> list[str]:
    """The ids in all shards, in their order."""
    return [
        name
        for path in sorted(out.glob("shard-*"))
        for name in pq.read_table(path)["id"].to_pylist()
    ]


def refused(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / layout.REFUSED_FILE).read_text().splitlines()]


def test_every_recording_has_its_tokens_or_a_reason(undisturbed):
    assert ids(undisturbed) == [f"r{i}" for i in range(23) if i not in (4, 11)]
    assert [(item["id"], item["why"]) for item in refused(undisturbed)] == [
        ("r4bad", "4.wav is bad."),
        ("r11bad", "11.wav is bad."),
    ]
    assert verify(undisturbed) == []


def test_the_schema_is_that_of_the_page(undisturbed):
    table = pq.read_table(undisturbed / "shard-000001.parquet")
    assert table.schema.names == [
        *("id", "source", "start", "duration", "n_samples", "n_q"),
        *("codes_0", "codes_1", "codes_2", "text", "speaker"),
    ]
    assert str(table.schema.field("codes_2").type) == "list<element: uint16 not null>"
    about = json.loads(table.schema.metadata[b"audiovq"])
    assert (about["model"], about["fingerprint"], about["n_q"]) == ("fake", "f0", 3)
    row = table.to_pylist()[0]
    assert (row["id"], row["source"]) == ("r5", "5.wav")
    codes = codes_of("r5")
    assert [row[f"codes_{k}"] for k in range(3)] == codes.tolist()
    assert row["duration"] * 16_000 == row["n_samples"] == codes.shape[1] * 320 - 7


def test_folders_of_shards_are_read_by_others_as_they_are(undisturbed):
    import pyarrow.dataset

    assert pyarrow.dataset.dataset(undisturbed).count_rows() == 21


def test_tars_hold_the_same(tmp_path):
    tariterators = pytest.importorskip("webdataset.tariterators")
    run(tmp_path / "out", settings=replace(SETTINGS, format="webdataset"))
    paths = sorted((tmp_path / "out").glob("shard-*.tar"))
    assert len(paths) == 5
    assert verify(tmp_path / "out") == []
    with paths[0].open("rb") as file:  # what webdataset.WebDataset does with each
        members = tariterators.tar_file_expander([{"url": "shard", "stream": file}])
        samples = [*tariterators.group_by_keys(members)]
    names = [json.loads(sample["json"])["id"] for sample in samples]
    assert names == ["r0", "r1", "r2", "r3"]
    for name, sample in zip(names, samples):
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["npy"])), codes_of(name))
    assert [len([*tar_records(path)]) for path in paths] == [4, 5, 4, 5, 3]


def test_the_bytes_do_not_depend_on_workers_nor_on_runs(undisturbed, tmp_path):
    run(tmp_path / "out", jobs=2)
    assert shards(tmp_path / "out") == shards(undisturbed)


def test_a_second_run_does_what_is_missing_and_nothing_else(undisturbed, tmp_path):
    out = tmp_path / "out"
    run(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert run(out).workers == {}
    assert {path: path.stat().st_mtime_ns for path in out.glob("shard-*")} == before
    (out / "shard-000002.parquet").unlink()
    layout.entry_path(out, 3).unlink()
    os.truncate(out / "shard-000001.parquet", 2_000)
    progress = run(out)
    assert sum(load.shards for load in progress.workers.values()) == 3
    assert progress.encoded == 21
    assert shards(out) == shards(undisturbed)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_workers_that_are_killed_lose_and_double_nothing(undisturbed, tmp_path):
    rng, deaths = random.Random(0), []

    def kill(progress, event):
        if isinstance(event, Death):
            deaths.append(event)
        if isinstance(event, Tick) and len(deaths) < KILLS and rng.random() < 0.5:
            time.sleep(rng.random() * 0.02)
            if children := multiprocessing.active_children():  # none while all begin anew
                os.kill(rng.choice(children).pid, signal.SIGKILL)

    progress = run(tmp_path / "out", loader=FakeLoader(seconds=0.01), jobs=2, on_event=kill)
    assert len(deaths) >= KILLS
    assert progress.deaths == len(deaths)
    assert {death.exit_code for death in deaths} == {-signal.SIGKILL}
    assert shards(tmp_path / "out") == shards(undisturbed)
    assert verify(tmp_path / "out") == []
    assert [p.name for p in (tmp_path / "out").rglob(".*")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_driver_that_is_killed_goes_on_where_it_was(undisturbed, tmp_path):
    out, tests = tmp_path / "out", Path(__file__).parent
    command = [sys.executable, str(tests / "fake_corpus.py"), str(out)]
    rng = random.Random(1)
    for n_wanted in range(1, 4):
        driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len([*out.glob("_shards/*.json")]) < n_wanted and driver.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        driver.kill()
        driver.wait()
    n_done = len([*out.glob("_shards/*.json")])
    assert n_done >= 3
    with pytest.raises(FileRefused, match="not complete"):
        layout.read_index(out)
    run(out, jobs=1)
    assert shards(out) == shards(undisturbed)
    assert verify(out) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_recording_that_kills_its_process_is_refused_in_the_end(tmp_path):
    progress = run(tmp_path / "out", fake_rows(7, ()), loader=FakeLoader(deadly="r6"))
    assert progress.deaths == worker.MOST_DEATHS
    assert ids(tmp_path / "out") == [f"r{i}" for i in range(6)]
    (item,) = refused(tmp_path / "out")
    assert item["why"] == "6.wav: 5 processes died while they encoded it."


def test_workers_that_cannot_begin_are_no_endless_loop(tmp_path, monkeypatch):
    from audiovq.corpus import pool

    monkeypatch.setattr(pool, "MOST_BARREN_DEATHS", 2)
    with pytest.raises(FileRefused, match=r"3 workers died before .* fewer --jobs"):
        run(tmp_path / "out", fake_rows(1, ()), loader=FakeLoader(deadly="r0"))


def test_changed_sources_are_noticed_and_only_what_they_change_is_encoded(tmp_path):
    out = tmp_path / "out"
    run(out)
    rows = fake_rows()
    rows[7] = rows[7]._replace(stamp="2:2")
    with pytest.raises(
        FileRefused, match=r"23 were planned, 23 are there now, and 1 of 5 .*--update"
    ):
        run(out, rows)
    assert run(out).workers == {}  # nothing was touched
    progress = run(out, rows, update=True)
    assert sum(load.shards for load in progress.workers.values()) == 1
    progress = run(out, rows[:9], update=True)
    assert sorted(shards(out)) == ["shard-000000.parquet", "shard-000001.parquet"]
    assert ids(out) == ["r0", "r1", "r2", "r3", "r5", "r6", "r7", "r8"]
    assert verify(out) == []


def test_another_model_is_noticed(tmp_path):
    run(tmp_path / "out", fake_rows(3))
    other = replace(SETTINGS, fingerprint="f1")
    with pytest.raises(FileRefused, match="begun with fingerprint f0, not f1"):
        run(tmp_path / "out", fake_rows(3), settings=other)
    run(tmp_path / "out", fake_rows(3), settings=other, update=True)
    assert layout.read_corpus(tmp_path / "out").settings == other


def test_what_was_refused_is_tried_again_when_that_is_asked_for(tmp_path):
    out = tmp_path / "out"
    run(out)
    assert sum(load.shards for load in run(out, retry=True).workers.values()) == 2


def test_two_rows_with_one_id_are_refused_before_the_work(tmp_path):
    rows = [*fake_rows(3, ()), Row("r1", "other.wav")]
    with pytest.raises(FileRefused, match=r"one id: 'r1' \(1.wav and other.wav\)"):
        run(tmp_path / "out", rows)
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_refused_name_may_hold_any_end_of_line(tmp_path):
    """Also those that only Python's splitlines() takes for one."""
    run(
        tmp_path / "out", [Row("a", "a.wav", stamp="1:1"), Row("w\u2028 bad", "b.wav", stamp="1:1")]
    )
    assert verify(tmp_path / "out") == []


def test_a_source_without_recordings_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="gives no recordings"):
        run(tmp_path / "out", [])


def test_a_full_disk_is_a_sentence_and_the_next_run_goes_on(undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(out, fake_rows(), jobs=1)
    (out / "shard-000004.parquet").unlink()
    job = worker.Job(out, SETTINGS, FakeLoader(), "run")
    task = worker.Task(4, layout.read_corpus(out).digests[4])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(FileRefused, match=r"shard-000004.* cannot be written: No space left"):
            worker.encode_shard(job, task, FakeLoader())
    assert not (out / "shard-000004.parquet").exists()
    run(out)
    assert shards(out) == shards(undisturbed)


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileRefused, match="file is not a folder; name one for the shards"):
        run(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / layout.ENTRY_FOLDER).touch()
    with pytest.raises(
        FileRefused, match=r"is no folder; name another output than .*000000\..*trail"
    ):
        run(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda out: (out / "shard-000001.parquet").unlink(),
            "shard-000001.parquet does not exist",
        ),
        (lambda out: layout.entry_path(out, 2).unlink(), r"shard-000002.* is missing"),
        (lambda out: (out / "shard-000009.parquet").touch(), "is no shard of this corpus"),
        (lambda out: flip(out / "shard-000003.parquet"), "shard-000003.* its checksum"),
        (lambda out: cut(out / "shard-000003.parquet"), "shard-000003.* bytes"),
        (lambda out: (out / layout.PLAN_FILE).write_bytes(b"x"), "_plan.parquet cannot be read"),
        (lambda out: blot(out / layout.PLAN_FILE), "_plan.parquet is damaged at the rows of shard"),
        (lambda out: drop_line(out / layout.INDEX_FILE), "is not complete"),
    ],
)
def test_verify_names_what_is_missing_or_damaged(undisturbed, tmp_path, damage, said):
    import re
    import shutil

    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    damage(out)
    wrong = verify(out)
    assert wrong
    assert re.search(said, wrong[0])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def blot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:300] = bytes(296)
    path.write_bytes(data)


def drop_line(path: Path) -> None:
    path.write_text(path.read_text().partition("\n")[2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_the_summary_counts(undisturbed):
    facts = json.loads((undisturbed / layout.SUMMARY_FILE).read_text())
    frames = sum(codes_of(name).shape[1] for name in ids(undisturbed))
    assert (facts["recordings"], facts["encoded"], facts["refused"]) == (23, 21, 2)
    assert facts["hours"] * 3600 * 16_000 == pytest.approx(frames * 320 - 21 * 7)
    assert facts["bytes"] == sum(map(len, shards(undisturbed).values()))
    (load,) = facts["this_run"]["load"].values()
    assert load["shards"] == 5
    assert 0 < load["busy"] <= 1


def test_batches_are_of_like_lengths_and_bounded():
    rng = np.random.default_rng(0)
    lengths = [*enumerate(rng.integers(1, 400 * 16_000, 50).tolist())]
    found = [*batches(lengths, 16_000)]
    assert sorted(i for batch in found for i in batch) == [*range(50)]
    known = dict(lengths)
    for batch in found:
        assert len(batch) * max(known[i] for i in batch) <= 600 * 16_000 or len(batch) == 1
    longest = [max(known[i] for i in batch) for batch in found]
    assert longest == sorted(longest)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_writes_the_same_bytes(undisturbed, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra scale")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.getcwd()]))
    progress = run(tmp_path / "out", engine="ray", jobs=2)
    assert progress.encoded == 21
    assert shards(tmp_path / "out") == shards(undisturbed)
