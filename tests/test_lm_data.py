"""Prepared folders: tokens come back as they were, and batches hang on the step alone."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_tiny import TEXTS, prepared, write_tokens
from tiny import EXAMPLES, TINY, started_model

from audiovq.codes import read_tokens, write_avq, write_npy
from audiovq.files import FileRefused, OutputExists
from audiovq.lm.data import (
    CodeBatches,
    TokenDataset,
    UnitBatches,
    padded,
    whole_codes,
    whole_units,
)
from audiovq.lm.prepare import prepare, read_texts
from audiovq.lm.vocabulary import END, IGNORED, TEXT, UNITS, plain


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    prepared(tiny_model, folder)
    return folder


def test_every_utterance_comes_back(folder):
    sets = [TokenDataset(folder / "data", split) for split in ("train", "validation")]
    items = {item.name: item for data in sets for item in data}
    assert [len(data) for data in sets] == [4, 1]
    for path, text in zip(EXAMPLES, TEXTS):
        item = items[path.stem]
        tokens = read_tokens(folder / "tokens" / f"{path.stem}.avq")
        assert (item.codes == tokens.indices).all()
        assert item.text == plain(text)
    assert sets[0].vocabulary.characters == " !?aiostw"
    assert sets[0].seconds + sets[1].seconds == pytest.approx(24.76)


def test_fewer_levels_are_the_first_of_all(folder):
    whole, first = TokenDataset(folder / "data"), TokenDataset(folder / "data", n_q=2)
    assert first.vocabulary == replace(whole.vocabulary, n_q=2)
    assert (first[1].codes == whole[1].codes[:2]).all()
    for n_q in (0, 5):
        with pytest.raises(FileRefused, match=f"codes of 4 levels, not {n_q}; ask for 1 to 4"):
            TokenDataset(folder / "data", n_q=n_q)


def test_batches_hang_on_seed_and_step_alone(folder):
    data = TokenDataset(folder / "data")
    one, same = (UnitBatches(data, 40, 3, 1, 0.5) for _ in range(2))
    one.batch(0)
    assert all(map(torch.equal, one.batch(5), same.batch(5)))
    assert not torch.equal(one.batch(5)[0], one.batch(6)[0])
    assert not torch.equal(UnitBatches(data, 40, 3, 2, 0.5).batch(5)[0], same.batch(5)[0])
    codes, same_codes = (CodeBatches(data, 30, 3, 1) for _ in range(2))
    codes.batch(0)
    assert all(map(torch.equal, codes.batch(5), same_codes.batch(5)))


def test_targets_are_the_next_tokens_and_never_text(folder):
    data = TokenDataset(folder / "data")
    v = data.vocabulary
    tokens, targets = UnitBatches(data, 60, 8, 0, 1.0).batch(0)
    assert tokens.shape == targets.shape == (8, 60)
    learnt = targets != IGNORED
    assert (targets[:, :-1][learnt[:, :-1]] == tokens[:, 1:][learnt[:, :-1]]).all()
    symbols, _ = v.split(targets[learnt])
    assert ((symbols >= v.first_unit) | (symbols == END)).all()
    assert ((v.split(tokens)[0] > END) & (v.split(tokens)[0] < v.first_unit)).any()  # it is read


def test_a_text_share_of_0_gives_no_text(folder):
    data = TokenDataset(folder / "data")
    tokens, _ = UnitBatches(data, 60, 8, 0, 0.0).batch(0)
    assert not (data.vocabulary.split(tokens)[0] == TEXT).any()


def test_validation_sees_every_unit_once_and_no_ends(folder):
    data = TokenDataset(folder / "data", "validation")
    v = data.vocabulary
    ((tokens, targets),) = whole_units(data, 10_000)
    assert (targets != IGNORED).all()
    assert tokens[0, 0] == v.special(UNITS)[0]
    assert (v.to_units(targets[0].numpy()) == data[0].codes[0]).all()
    ((codes, there),) = whole_codes(data, 10_000)
    assert (codes[0].numpy() == data[0].codes).all()
    assert there.all()


def test_what_is_filled_up_is_marked():
    codes, there = padded([np.ones((2, 3), np.uint16), np.ones((2, 5), np.uint16)])
    assert codes.shape == (2, 2, 5)
    assert there.sum(1).tolist() == [3, 5]
    assert (codes.sum((1, 2)) == 2 * there.sum(1)).all()


def test_whole_speakers_are_held_out(tiny_model, tmp_path):
    header = tiny_model.header(4, 320)
    for speaker in range(6):
        for n in range(3):
            write_avq(tmp_path / f"t/{speaker}-{n}.avq", np.zeros((4, 1), np.uint16), header)
    done = prepare(tmp_path / "t", tmp_path / "d", validation=0.3, speaker_from="prefix")
    assert (done.n_train, done.n_validation) == (12, 6)
    speakers = [
        {item.name.split("-")[0] for item in TokenDataset(tmp_path / "d", split)}
        for split in ("train", "validation")
    ]
    assert not speakers[0] & speakers[1]


def test_without_validation_none_is_held_out(folder, tmp_path):
    done = prepare(folder / "tokens", tmp_path / "d", validation=0)
    assert done.n_validation == 0
    assert len(TokenDataset(tmp_path / "d", "validation")) == 0
    assert list(whole_units(TokenDataset(tmp_path / "d", "validation"), 5)) == []


def test_a_prepared_folder_is_not_overwritten_unasked(folder):
    with pytest.raises(OutputExists):
        prepare(folder / "tokens", folder / "data")
    prepare(folder / "tokens", folder / "data2")
    prepare(folder / "tokens", folder / "data2", overwrite=True)
    (folder / "own").mkdir()
    (folder / "own" / "train.jsonl").write_text("mine\n")
    with pytest.raises(OutputExists):
        prepare(folder / "tokens", folder / "own")
    assert (folder / "own" / "train.jsonl").read_text() == "mine\n"


def test_a_folder_that_was_not_finished_is_none(folder, tmp_path, monkeypatch):
    """Also where it replaces one of other tokens, whose vocabulary would say what the codes are."""
    prepare(folder / "tokens", tmp_path / "d")

    def broken(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiovq.lm.prepare._write_split", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder / "tokens", tmp_path / "d", overwrite=True)
    with pytest.raises(FileRefused, match="vocabulary"):
        TokenDataset(tmp_path / "d")


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_may_be_anything(tiny_model, tmp_path):
    names = [os.fsdecode(b"M\xfcller"), "one\u2028two", "plain"]
    for name in names:
        header = tiny_model.header(4, 320)
        write_avq(tmp_path / "t" / f"{name}.avq", np.zeros((4, 1), np.uint16), header)
    prepare(tmp_path / "t", tmp_path / "d", validation=0.3)
    found = [item.name for s in ("train", "validation") for item in TokenDataset(tmp_path / "d", s)]
    assert sorted(found) == sorted(names)


def test_tokens_of_two_tokenizers_are_refused(tiny_model, folder, tmp_path):
    write_tokens(tiny_model, tmp_path / "t")
    other = started_model(TINY)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.01)
    write_avq(tmp_path / "t/z.avq", np.zeros((4, 1), np.uint16), other.header(4, 320))
    with pytest.raises(FileRefused, match="z has fingerprint"):
        prepare(tmp_path / "t", tmp_path / "d")


def test_tokens_without_a_tokenizer_are_refused(tmp_path):
    write_npy(tmp_path / "a.npy", np.zeros((4, 1), np.uint16))
    with pytest.raises(FileRefused, match="--format avq"):
        prepare(tmp_path, tmp_path / "d")
    (tmp_path / "a.npy").rename(tmp_path / "a.avq")
    with pytest.raises(FileRefused, match="--format avq"):
        prepare(tmp_path, tmp_path / "d")


def test_units_of_several_rates_are_there_once_and_crops_begin_with_groups(tmp_path):
    header = replace(started_model(TINY).header(4, 90 * 320), level_strides=(2, 4, 1, 1))
    codes = np.stack([np.arange(90) // stride for stride in header.level_strides])
    write_avq(tmp_path / "a.avq", codes % 32, header)
    done = prepare(tmp_path, tmp_path / "d", validation=0)
    assert done.units_per_second == 25
    data = TokenDataset(tmp_path / "d")
    assert data.vocabulary.level_strides == (2, 4, 1, 1)
    assert data[0].units.tolist() == [*range(32), *range(13)]
    crops, there = CodeBatches(data, 30, 64, 0).batch(0)
    starts = set(crops[:, 2, 0].tolist())
    assert len(starts) > 4
    assert not any(start % 4 for start in starts)
    assert there.all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"validation": 1.0}, ValueError, "below 1"),
        ({"validation": 0.999}, ValueError, "nothing to train on"),
        ({"speaker_from": "face"}, ValueError, "parent or prefix"),
        ({"max_duration": 0}, ValueError, "max_duration"),
    ],
)
def test_what_cannot_be_prepared_is_said(folder, tmp_path, change, error, match):
    with pytest.raises(error, match=match):
        prepare(folder / "tokens", tmp_path / "d", **change)


def test_folders_without_tokens_are_refused(tmp_path):
    with pytest.raises(FileRefused, match="no folder"):
        prepare(tmp_path / "none", tmp_path / "d")
    with pytest.raises(FileRefused, match=r"no \.avq"):
        prepare(tmp_path, tmp_path / "d")


def test_texts_are_read_from_a_table(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("id\tpath\ttext\n1\ta/b.flac\tOne  two\n2\tc.wav\t\n")
    assert read_texts(path) == {"b": "one two"}
    path.write_text("path\ttext\na/b.flac\tx\nc/b.wav\ty\n")
    with pytest.raises(FileRefused, match="two texts for b"):
        read_texts(path)
    path.write_text('path\ttext\na.wav\t"Oh, it is you\nb.wav\the said\nc.wav\tgood "day"\n')
    assert read_texts(path) == {"a": '"oh, it is you', "b": "he said", "c": 'good "day"'}
    path.write_text("path\ttext\na.wav\t" + "x" * 200_000 + "\n")
    with pytest.raises(FileRefused, match="damaged after line"):
        read_texts(path)
    path.write_text("path\twords\n")
    with pytest.raises(FileRefused, match="`path` and `text`"):
        read_texts(path)


def test_texts_that_belong_to_no_file_are_refused(folder, tmp_path):
    (tmp_path / "t.tsv").write_text("path\ttext\nelsewhere.wav\tx\n")
    with pytest.raises(FileRefused, match="names must agree"):
        prepare(folder / "tokens", tmp_path / "d", texts=tmp_path / "t.tsv")


def test_a_damaged_folder_is_refused(folder, tmp_path):
    prepare(folder / "tokens", tmp_path, validation=0)
    with pytest.raises(ValueError, match="split"):
        TokenDataset(tmp_path, "test")
    rows = (tmp_path / "train.jsonl").read_text()
    huge = rows + '{"name": "a", "frames": 1' + "0" * 30 + ', "text": null}\n'
    for damaged in (rows + "{}\n", rows.replace('"frames"', '"frame"'), "x\n", rows + rows, huge):
        (tmp_path / "train.jsonl").write_text(damaged)
        with pytest.raises(FileRefused, match="prepare the folder again"):
            TokenDataset(tmp_path)
    (tmp_path / "train.jsonl").write_text(rows)
    data = (tmp_path / "train.npy").read_bytes()
    zipped = io.BytesIO()
    np.savez(zipped, data)
    broken = data.replace(b"'fortran", b"(fortran", 1)
    for damaged in (b"", data[:50], data[:-10], b"x" + data, zipped.getvalue(), broken):
        (tmp_path / "train.npy").write_bytes(damaged)
        with pytest.raises(FileRefused, match="prepare the folder again"):
            TokenDataset(tmp_path)
    (tmp_path / "train.npy").unlink()
    with pytest.raises(FileRefused, match="does not exist"):
        TokenDataset(tmp_path)
