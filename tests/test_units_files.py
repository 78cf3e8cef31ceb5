"""Speakers by rule, ABX triphones, and units of a model."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from audiovq.codes import Header, write_avq, write_npy
from audiovq.files import FileRefused
from audiovq.units.abx import abx, triphones
from audiovq.units.alignments import Interval
from audiovq.units.compare import compare
from audiovq.units.files import find_audio, read_units, speakers_by_rule, write_discophon

NAMES = ["a/84-12-0", "b/85-13-1"]


def test_speakers_come_from_names_or_a_table(tmp_path: Path) -> None:
    assert speakers_by_rule(NAMES, "parent") == ["a", "b"]
    assert speakers_by_rule(NAMES, "before:-") == ["84", "85"]
    assert speakers_by_rule(NAMES, "first:1") == ["8", "8"]
    table = tmp_path / "speakers.tsv"
    table.write_text("corpus/a/84-12-0.wav\tann\nb/85-13-1\tbob\n")
    assert speakers_by_rule(NAMES, str(table)) == ["ann", "bob"]
    table.write_text("hours\tspeaker\tpath\n1\tann\ta/84-12-0.wav\n2\tbob\tb/85-13-1.wav\n")
    assert speakers_by_rule(NAMES, str(table)) == ["ann", "bob"]


def test_speakers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "speakers.tsv"
    table.write_text("a/84-12-0\tann\n")
    with pytest.raises(FileRefused, match="no speaker for b/85-13-1"):
        speakers_by_rule(NAMES, str(table))
    table.write_text("a/84-12-0\n")
    with pytest.raises(FileRefused, match="a path, a tab, a speaker"):
        speakers_by_rule(NAMES, str(table))
    table.write_text("a/84-12-0\tann\nb/85-13-1\t\n")
    with pytest.raises(FileRefused, match="no speaker for b/85-13-1"):
        speakers_by_rule(NAMES, str(table))
    table.write_text("a/84-12-0.wav\tann\na/84-12-0.npy\tbob\n")
    with pytest.raises(FileRefused, match="two speakers for a/84-12-0: ann, bob"):
        speakers_by_rule(NAMES, str(table))
    for rule in ("before:_", "before:84"):
        with pytest.raises(FileRefused, match="that could be a speaker"):
            speakers_by_rule(NAMES, rule)
    with pytest.raises(FileRefused, match="no subfolder"):
        speakers_by_rule(["u1"], "parent")
    for rule in ("first:0", "first:x", "before:", "nothing"):
        with pytest.raises(ValueError, match="says no speakers"):
            speakers_by_rule(NAMES, rule)


def test_audio_is_found_by_name(tmp_path: Path) -> None:
    for name in ("a/u1.wav", "b/u2.FLAC", "b/u2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sorted(find_audio(tmp_path)) == ["a/u1", "b/u2"]
    assert find_audio(tmp_path, ["u2"]) == {"u2": tmp_path / "b/u2.FLAC"}
    with pytest.raises(FileRefused, match="no recording for u3"):
        find_audio(tmp_path, ["u1", "u3"])
    with pytest.raises(FileRefused, match="no folder"):
        find_audio(tmp_path / "none")
    (tmp_path / "a/u1.flac").touch()
    with pytest.raises(FileRefused, match=r"u1\.wav and u1\.flac have one name"):
        find_audio(tmp_path)


@pytest.mark.parametrize(("shift", "want"), [(0, [1, 2, 3, 4]), (1, [2, 3, 4]), (-1, [1, 1, 2, 3])])
def test_discophon_units_are_brought_in_line(tmp_path: Path, shift: int, want: list) -> None:
    path = tmp_path / "u.jsonl"
    alignment = {"x y": [Interval(0.014, 0.05, "a")]}
    phones = write_discophon(path, {"x y": np.array([1, 2, 3, 4])}, alignment, shift=shift)
    assert path.read_text() == '{"file": "x_y", "units": ' + str(want) + "}\n"
    rows = phones.read_text().splitlines()[1:]
    assert rows[:2] == ["x_y 0.00 0.01 SIL", "x_y 0.01 0.05 a"]
    assert rows[-1].split()[2] == f"{len(want) / 50:.2f}"


def test_discophon_writes_both_files_or_neither(tmp_path: Path) -> None:
    path, phones = tmp_path / "u.jsonl", tmp_path / "u.alignment.txt"
    phones.write_text("mine")
    units = {"x y": np.array([1, 2])}
    alignments = {name: [Interval(0.0, 0.04, "a")] for name in ("x y", "x_y")}
    with pytest.raises(FileRefused, match=r"u\.alignment\.txt exists"):
        write_discophon(path, units, alignments)
    assert [p.name for p in tmp_path.iterdir()] == ["u.alignment.txt"]
    assert phones.read_text() == "mine"
    with pytest.raises(FileRefused, match="'x_y' and 'x y' are both 'x_y'"):
        write_discophon(path, {**units, "x_y": np.array([3])}, alignments, overwrite=True)


def test_hidden_files_and_mixed_models_are_no_units(tmp_path: Path) -> None:
    for number, name in enumerate(("a", ".a", ".hidden/b")):
        header = Header("m", f"f{number}", 16_000, 320, 8, 1, 640)
        write_avq(tmp_path / f"{name}.avq", np.zeros((1, 2), int), header)
    assert list(read_units(tmp_path).units) == ["a"]
    write_avq(tmp_path / "b.avq", np.zeros((1, 2), int), Header("n", "g", 16_000, 320, 8, 1, 640))
    with pytest.raises(FileRefused, match=r"mixes tokens of m \(f0\) and n \(g\)"):
        read_units(tmp_path)


@pytest.mark.parametrize("name", ["mfcc", "permuted", "units"])
def test_a_given_lag_holds_whatever_the_system_is_called(name: str) -> None:
    units = {"u": np.arange(40) // 4 % 3}
    phones = {"u": [Interval(i * 0.08, (i + 1) * 0.08, "abc"[i % 3]) for i in range(10)]}
    found = compare(units, phones, name=name, shift=2, others={"other": units})
    assert {e.shift for e in found.evaluations.values()} == {2}
    assert compare(units, phones, name=name).evaluations[name].shift == 0
    with pytest.raises(ValueError, match="two systems"):
        compare(units, phones, name=name, others={name: units})


def test_systems_may_have_other_rates_than_the_measured_one(tmp_path: Path) -> None:
    slow = {"u": np.arange(40) // 2 % 3}  # 25 a second
    fast = {"u": np.repeat(slow["u"], 2)}
    phones = {"u": [Interval(i * 0.08, (i + 1) * 0.08, "abc"[i % 3]) for i in range(20)]}
    write_npy(tmp_path / "u.npy", fast["u"][None])
    found = compare(
        slow,
        phones,
        frame_rate=25.0,
        file_rate=50.0,
        others={"fast": fast},
        other_rate=50.0,
        baselines=[f"files={tmp_path}"],
        shift=0,
    )
    assert {name: e.with_silence["pnmi"].value for name, e in found.evaluations.items()} == {
        name: pytest.approx(1.0) for name in ("units", "fast", "files")
    }


def test_files_that_fit_no_alignment_for_sure_are_named() -> None:
    units = {name: np.zeros(5, int) for name in ("s1/a", "s2/a", "s2/b")}
    found = compare(units, {"s1/a": [Interval(0.0, 0.1, "p")], "s1/b": [Interval(0.0, 0.1, "q")]})
    assert found.names == ["s1/a"]
    assert found.unmatched == ["s2/a", "s2/b"]


def test_an_alignment_beyond_its_units_is_refused() -> None:
    units = {name: np.zeros(50, int) for name in "abc"}
    alignments = {name: [Interval(0.0, 0.9, "p")] for name in "abc"} | {"c": [Interval(7, 8, "p")]}
    with pytest.raises(FileRefused, match="alignment of c begins at 7 s"):
        compare(units, alignments)


def test_triphones_are_three_phones_without_silence_or_gap() -> None:
    alignment = [
        Interval(0.0, 0.1, "SIL"),
        Interval(0.1, 0.2, "a"),
        Interval(0.2, 0.3, "b"),
        Interval(0.3, 0.4, "c"),
        Interval(0.4, 0.5, "d"),
        Interval(0.55, 0.6, "e"),
    ]
    rows = triphones([np.zeros(30, dtype=int)], [alignment], ["s"], shift=1)
    assert rows == [
        ("u0", "6.000", "21.000", "b", "a", "c", "s"),
        ("u0", "11.000", "26.000", "c", "b", "d", "s"),
    ]
    assert len(triphones([np.zeros(20, dtype=int)], [alignment], ["s"])) == 1  # d ends at 25


@pytest.mark.parametrize("row", ["a", "a b"])
def test_a_table_of_speakers_with_a_broken_line_is_refused(tmp_path: Path, row: str) -> None:
    table = tmp_path / "speakers.tsv"
    table.write_text(f"a.wav\ts\n{row}\n")
    with pytest.raises(FileRefused, match="each has a path, a tab, a speaker"):
        speakers_by_rule(["a"], str(table))


def test_abx_without_fastabx_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastabx", None)
    with pytest.raises(FileRefused, match=r"Python 3.12 .* pip install"):
        abx([], [], [])
    with pytest.raises(FileRefused, match="fastabx"):  # at once, not after the other measures
        compare({"u": np.zeros(3, int)}, {"u": []}, speakers="first:1", with_abx=True)


def test_abx_of_no_triple_is_none_and_no_other_error_is_hidden(monkeypatch) -> None:
    class EmptyTaskError(ValueError):
        pass

    def fail(error: Exception):
        def call(*_, **__):
            raise error

        return call

    fake = ModuleType("fastabx")
    fake.EmptyTaskError, fake.Subsampler = EmptyTaskError, lambda *_: None
    fake.Dataset = SimpleNamespace(from_item_and_units=lambda *_, **__: None)
    fake.Task, fake.Score = fail(EmptyTaskError()), None
    monkeypatch.setitem(sys.modules, "fastabx", fake)
    phones = [Interval(0.1 * i, 0.1 * i + 0.1, phone) for i, phone in enumerate("abc")]
    found = abx([np.zeros(15, int)], [phones], ["s"])
    assert (found.within, found.across, found.n_triphones) == (None, None, 1)
    fake.Task, fake.Score = lambda *_, **__: None, fail(ValueError("labels clash"))
    with pytest.raises(ValueError, match="labels clash"):
        abx([np.zeros(15, int)], [phones], ["s"])


def test_abx_tells_perfect_units_from_random_ones() -> None:
    pytest.importorskip("fastabx")
    random = np.random.default_rng(0)
    units, alignments = [], []
    for _ in range(40):
        # No phone twice in a row: time warping cannot tell a-a-b from a-b-b.
        phones = random.integers(1, 3, size=20).cumsum() % 3
        units.append(np.repeat(phones, 3))
        alignments.append(
            [Interval(i * 0.06, i * 0.06 + 0.06, "abc"[p]) for i, p in enumerate(phones)]
        )
    speakers = [f"s{i % 2}" for i in range(40)]
    perfect = abx(units, alignments, speakers)
    assert perfect.within == perfect.across == 0.0
    assert perfect.n_triphones == 40 * 18
    noise = abx([random.integers(0, 50, len(u)) for u in units], alignments, speakers)
    assert noise.within == pytest.approx(0.5, abs=0.06)
    assert noise.across == pytest.approx(0.5, abs=0.06)
    alone = abx(units[:2], alignments[:2], ["s0", "s0"])
    assert alone.across is None
