"""Reading corpora: each recording once, in an order that is exact over restarts."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

pytest.importorskip("pyarrow", reason="needs the extra corpus")

import pyarrow.parquet as pq
from fake_corpus import SETTINGS, FakeLoader, codes_of, fake_rows, run

from audiovq import read_tokens
from audiovq.corpus import TokenDataset, TokenStream, collate, encode
from audiovq.corpus.export import export_datasets, export_lhotse, export_npy, export_text
from audiovq.corpus.layout import read_corpus
from audiovq.corpus.rows import Row
from audiovq.corpus.shards import tar_records
from audiovq.corpus.sources import Source
from audiovq.corpus.statistics import NGrams, statistics
from audiovq.files import FileRefused
from audiovq.segment import run_lengths

N = 61


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """61 recordings in 13 shards of one row group each; two are refused."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    run(out, fake_rows(N, (4, 11)))
    return out


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    """The first recordings of levels at several rates, in two shards."""
    out = tmp_path_factory.mktemp("coarse") / "out"
    settings = replace(SETTINGS, level_strides=STRIDES)
    run(out, fake_rows(10, (4,)), settings=settings, loader=FakeLoader(strides=STRIDES))
    return out


WANTED = [f"r{i}" for i in range(N) if i not in (4, 11)]


def stream_of(corpus, **options) -> TokenStream:
    return TokenStream(corpus, **{"block_groups": 2, **options})


def names(stream) -> list[str]:
    return [example.id for example in stream]


def test_a_recording_by_its_number(corpus):
    data = TokenDataset(corpus)
    assert len(data) == len(WANTED)
    assert [data[i].id for i in range(len(data))] == WANTED
    assert data[-1].id == WANTED[-1]
    np.testing.assert_array_equal(data[7].codes, codes_of(WANTED[7]))
    assert data[7].codes.dtype == np.uint16
    with pytest.raises(IndexError):
        data[len(data)]


def test_fewer_levels_are_the_first_ones(corpus):
    np.testing.assert_array_equal(TokenDataset(corpus, 1)[3].codes, codes_of(WANTED[3])[:1])
    with pytest.raises(ValueError, match=r"n_q must be in 1..3"):
        TokenDataset(corpus, 4)


def test_an_epoch_is_every_recording_once_in_an_order_of_its_own(corpus):
    orders = [names(stream_of(corpus, seed=seed)) for seed in (0, 0, 1)]
    assert all(sorted(order) == sorted(WANTED) for order in orders)
    assert orders[0] == orders[1] != orders[2] != WANTED
    both = names(stream_of(corpus, epochs=2))
    assert Counter(both) == dict.fromkeys(WANTED, 2)
    assert both[: len(WANTED)] == orders[0] != both[len(WANTED) :]
    assert names(stream_of(corpus, shuffle=False)) == WANTED


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_disjoint_and_together_all(corpus, world):
    parts = [names(stream_of(corpus, rank=rank, world=world)) for rank in range(world)]
    assert sorted(itertools.chain(*parts)) == sorted(WANTED)


def batches(stream, workers: int = 0, size: int = 4) -> list:
    return [*DataLoader(stream, size, collate_fn=collate, num_workers=workers)]


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stopped_epoch_goes_on_with_the_batches_that_would_have_come(corpus, stop):
    whole = [batch.ids for batch in batches(stream_of(corpus, epochs=2))]
    stream = stream_of(corpus, epochs=2)
    for batch in batches(stream)[:stop]:
        stream.advance(batch.positions)
    state = json.loads(json.dumps(stream.state_dict()))
    other = stream_of(corpus, epochs=2)
    other.load_state_dict(state)
    assert [batch.ids for batch in batches(other)] == whole[stop:]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_with_workers_too(corpus):
    whole = [batch.ids for batch in batches(stream_of(corpus), 2)]
    assert sorted(itertools.chain(*whole)) == sorted(WANTED)
    stream = stream_of(corpus)
    for batch in batches(stream, 2)[:3]:
        stream.advance(batch.positions)
    other = stream_of(corpus)
    other.load_state_dict(stream.state_dict())
    assert [batch.ids for batch in batches(other, 2)] == whole[3:]


def test_with_other_ranks_every_recording_still_comes_once(corpus):
    states, seen = [], []
    for rank in range(2):
        stream = stream_of(corpus, rank=rank, world=2)
        for batch in batches(stream)[: 2 + 9 * rank]:  # the second ends its epoch
            stream.advance(batch.positions)
            seen += batch.ids
        states.append(stream.state_dict())
    assert [state["epoch"] for state in states] == [0, 1]
    for rank in range(3):
        stream = stream_of(corpus, rank=rank, world=3)
        stream.load_state_dict(*states)
        seen += names(stream)
    assert sorted(seen) == sorted(WANTED)


def test_an_epoch_ends_when_all_of_it_was_trained_on(corpus):
    stream = stream_of(corpus, epochs=None)
    for n, example in enumerate(stream, 1):
        stream.advance([example.position])
        if n == len(WANTED) + 5:
            break
    state = stream.state_dict()
    assert stream.epoch == state["epoch"] == 1
    assert sum(n for _, _, n in state["done"]) == 5


def test_states_of_other_corpora_are_refused(corpus):
    state = stream_of(corpus).state_dict()
    with pytest.raises(ValueError, match="is of seed 0, not 1"):
        stream_of(corpus, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="give a smaller block_groups"):
        stream_of(corpus, rank=0, world=8)
    with pytest.raises(ValueError, match="rank must be"):
        stream_of(corpus, rank=2, world=2)


def test_batches_are_codes_of_the_model(corpus):
    data = TokenDataset(corpus)
    batch = collate([data[0], data[1]])
    for item, n, n_samples, name in zip(
        batch.codes.indices, batch.n_frames, batch.codes.lengths, batch.ids
    ):
        np.testing.assert_array_equal(item[:, :n], codes_of(name))
        assert not item[:, n:].any()
        assert n == -(-n_samples // 320)


STRIDES = (4, 1, 2)


def in_frames(name: str) -> np.ndarray:
    """`codes_of` for levels of `STRIDES`: uint16 [3, T], each code in all its frames."""
    codes = codes_of(name)
    rows = [np.repeat(row[::n], n)[: codes.shape[1]] for row, n in zip(codes, STRIDES)]
    return np.stack(rows)


@pytest.mark.parametrize("n_q", [None, 1, 2])
def test_codes_of_coarser_levels_are_stored_once_and_stand_in_all_their_frames(
    coarse, tmp_path, n_q
):
    rows = pq.read_table(coarse)  # the folder as others read it
    for name, once in zip(rows["id"].to_pylist(), rows["codes_0"].to_pylist()):
        assert once == codes_of(name)[0, ::4].tolist()
    data = TokenDataset(coarse, n_q)
    assert [example.id for example in data] == WANTED[:9]
    for example in data:
        np.testing.assert_array_equal(example.codes, in_frames(example.id)[:n_q])
    batch = collate([data[0], data[1]])
    assert batch.codes.level_strides == STRIDES[:n_q]
    for name, level in zip(batch.ids, batch.codes.levels[0].numpy()):
        once = codes_of(name)[0, ::4]
        np.testing.assert_array_equal(level[: len(once)], once)


def test_exports_and_statistics_count_coarse_codes_once(coarse, tmp_path):
    export_text(coarse, tmp_path / "u.txt", names=True)
    lines = dict(line.split("|") for line in (tmp_path / "u.txt").read_text().splitlines())
    assert lines["r3"] == " ".join(map(str, codes_of("r3")[0, ::4]))
    export_npy(coarse, tmp_path / "tree")
    tokens = read_tokens(tmp_path / "tree" / "r3.npy")
    assert tokens.level_strides == STRIDES
    np.testing.assert_array_equal(tokens.indices, in_frames("r3"))
    facts = statistics(coarse)
    frames = [codes_of(name).shape[1] for name in WANTED[:9]]
    assert facts["frames"] == sum(frames)
    assert facts["tokens"] == sum(-(-n // stride) for n in frames for stride in STRIDES)


def test_tars_keep_the_rates_of_levels(tmp_path):
    settings = replace(SETTINGS, level_strides=STRIDES, format="webdataset")
    run(tmp_path / "out", fake_rows(3, ()), settings=settings, loader=FakeLoader(strides=STRIDES))
    records = [*tar_records(tmp_path / "out" / "shard-000000.tar")]
    assert [facts["audiovq"]["level_strides"] for facts, _ in records] == [list(STRIDES)] * 3
    for facts, indices in records:
        np.testing.assert_array_equal(indices, in_frames(facts["id"]))


def test_corpora_of_one_rate_are_as_they_were_before_there_were_others(corpus):
    assert "level_strides" not in SETTINGS.facts()
    about = pq.read_schema(corpus / "shard-000000.parquet").metadata[b"audiovq"]
    assert "level_strides" not in json.loads(about)
    assert read_corpus(corpus).digests[0] == "898e7060ca43c61515792e62165c30c9"


def test_a_corpus_that_is_not_complete_is_refused(corpus, tmp_path):
    with pytest.raises(FileRefused, match="holds no corpus"):
        TokenDataset(tmp_path)
    with pytest.raises(FileRefused, match="does not exist"):
        TokenDataset(tmp_path / "none")
    run(tmp_path / "tars", fake_rows(3), settings=replace(SETTINGS, format="webdataset"))
    with pytest.raises(FileRefused, match="has tars"):
        TokenDataset(tmp_path / "tars")


def test_text_is_a_line_of_units_each(corpus, tmp_path):
    export_text(corpus, tmp_path / "u.txt", names=True)
    lines = dict(line.split("|") for line in (tmp_path / "u.txt").read_text().splitlines())
    assert list(lines) == WANTED
    assert all(line == " ".join(map(str, codes_of(name)[0])) for name, line in lines.items())
    export_text(corpus, tmp_path / "m.txt", level=2, dedup=True)
    first = (tmp_path / "m.txt").read_text().splitlines()[0]
    assert first == " ".join(str(run.unit) for run in run_lengths(codes_of("r0")[2]))
    with pytest.raises(ValueError, match="there is no level 3"):
        export_text(corpus, tmp_path / "n.txt", level=3)


def test_npy_trees_are_the_ids(corpus, tmp_path):
    export_npy(corpus, tmp_path / "tree")
    assert len([*(tmp_path / "tree").iterdir()]) == len(WANTED)
    np.testing.assert_array_equal(np.load(tmp_path / "tree" / "r9.npy"), codes_of("r9"))
    run(tmp_path / "odd", [fake_rows(1)[0]._replace(id="../x")])
    with pytest.raises(FileRefused, match=r"'\.\./x' is no name of a file"):
        export_npy(tmp_path / "odd", tmp_path / "tree2")


def test_datasets_have_the_columns_of_the_shards(corpus, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    export_datasets(corpus, tmp_path / "data")
    data = datasets.load_from_disk(tmp_path / "data")
    assert data["id"][:] == WANTED
    assert data[5]["codes_1"] == codes_of(WANTED[5])[1].tolist()
    with pytest.raises(FileRefused, match="is not empty"):
        export_datasets(corpus, tmp_path / "data")
    run(tmp_path / "none", [row for row in fake_rows() if row.id.endswith("bad")])
    with pytest.raises(FileRefused, match="has no recordings"):
        export_datasets(tmp_path / "none", tmp_path / "empty")


def test_lhotse_cuts_load_their_codes(corpus, tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs the extra train")
    export_lhotse(corpus, tmp_path / "cuts")
    cuts = [*lhotse.CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz")]
    assert [cut.id for cut in cuts] == WANTED
    np.testing.assert_array_equal(cuts[5].load_codes(), codes_of(WANTED[5]).T)


def test_lhotse_cuts_are_of_the_channel_that_was_encoded(tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs the extra train")
    frames = {name: codes_of(name).shape[1] for name in ("left", "right", "mean")}
    wav = np.zeros((320 * max(frames.values()), 2), np.float32)
    wav[:, 1] = 0.5
    soundfile.write(tmp_path / "call.wav", wav, 16_000)
    channels = {"left": 0, "right": 1, "mean": None}
    rows = [
        Row(name, "call.wav", start=0.0, channel=channel, stamp="1:1")
        for name, channel in channels.items()
    ]
    encode.run(Source(str(tmp_path), lambda: iter(rows)), tmp_path / "c", SETTINGS, FakeLoader())
    export_lhotse(tmp_path / "c", tmp_path / "cuts")
    cuts = {cut.id: cut for cut in lhotse.CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz")}
    assert [cuts[name].load_audio().mean() for name in ("left", "right")] == [0, 0.5]
    assert cuts["mean"].recording is None


def test_statistics_count_what_is_there(corpus):
    facts = statistics(corpus)
    codes = [codes_of(name) for name in WANTED]
    assert facts["recordings"] == len(WANTED)
    assert facts["frames"] == sum(item.shape[1] for item in codes)
    assert facts["tokens"] == 3 * facts["frames"]
    assert facts["refused"] == 2
    assert [level["active"] for level in facts["levels"]] == [32, 32, 32]
    merged = [[run.unit for run in run_lengths(item[0])] for item in codes]
    pairs = Counter(pair for units in merged for pair in itertools.pairwise(units))
    first, second = facts["ngrams"]
    assert first["total"] == sum(map(len, merged))
    assert (second["total"], second["distinct"]) == (pairs.total(), len(pairs))
    top = second["most_frequent"][0]
    assert top["count"] == pairs[tuple(top["units"])] == max(pairs.values())
    assert facts["duplicates"] == {"recordings": 0, "groups": []}


def test_duplicates_are_named(tmp_path):
    rows = [row._replace(id=name) for row, name in zip(fake_rows(5, ()), ["a", "b", "c", "A", "B"])]
    run(tmp_path / "out", rows)
    # The codec makes the same of names that differ in their case alone.
    found = statistics(tmp_path / "out")["duplicates"]
    assert found["recordings"] == 2
    assert sorted(found["groups"]) == [["a", "A"], ["b", "B"]]


def test_n_grams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n-grams of 1024"):
        NGrams(7, 1024)
