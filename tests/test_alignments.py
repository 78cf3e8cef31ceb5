"""Phone alignments of every format that is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from audiovq.files import FileRefused
from audiovq.units.alignments import (
    Interval,
    find,
    is_silence,
    read_alignment,
    read_alignments,
    read_ctm,
)

WANT = [Interval(0.0, 0.5, "SIL"), Interval(0.5, 0.75, "AH"), Interval(0.75, 1.0, "t")]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1
            text = "at"
    item [2]:
        class = "IntervalTier"
        name = "{name}"
        xmin = 0
        xmax = 1
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 0.75
            text = "AH1"
        intervals [3]:
            xmin = 0.75
            xmax = 1
            text = "t"
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seconds.phn", "0.000 0.500 SIL\n0.500 0.750 AH0\n0.750 1.000 t\n"),
        ("timit.phn", "0 8000 h#\n8000 12000 AH\n12000 16000 t\n"),
        ("timit.PHN", "0 8000 pau\n8000 12000 AH\n12000 16000 t\n"),
        ("htk.lab", "0 5000000 sil\n5000000 7500000 AH -12.5\n7500000 10000000 t\n"),
        ("seconds.lab", "0.0 0.5\n0.5 0.75 AH2\n0.75 1.0 t\n"),
        ("xwaves.lab", "signal at\nnfields 1\n#\n0.5 26 pau\n0.75 26 AH\n1.0 26 t\n"),
        ("kaldi.ctm", "u 1 0.50 0.25 AH1_B\nu 1 0.00 0.50 SIL\nu 1 0.75 0.25 t_E 0.9\n"),
        ("mfa.TextGrid", TEXTGRID.format(name="phones")),
        ("mfa2.TextGrid", TEXTGRID.format(name="anna - phones")),
    ],
)
def test_every_format_gives_the_same_intervals(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith("TextGrid"):
        pytest.importorskip("praatio")
    read = read_alignment(write(tmp_path, name, text))
    assert [(i.phone, pytest.approx(i.start), pytest.approx(i.end)) for i in read] == [
        (i.phone, i.start, i.end) for i in WANT
    ]


def test_the_unit_of_whole_numbers_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.phn", "0 1 sil\n1 2 a\n")
    assert read_alignment(path, unit="seconds")[1] == Interval(1.0, 2.0, "a")
    assert read_alignment(path, unit="samples", sample_rate=10)[1] == Interval(0.1, 0.2, "a")
    assert read_alignment(path)[1] == Interval(1 / 16_000, 2 / 16_000, "a")


def test_a_textgrid_without_a_phone_tier_asks_for_one(tmp_path: Path) -> None:
    pytest.importorskip("praatio")
    path = write(tmp_path, "a.TextGrid", TEXTGRID.format(name="labels"))
    with pytest.raises(FileRefused, match="'words', 'labels'"):
        read_alignment(path)
    assert len(read_alignment(path, tier="labels")) == 3
    assert read_alignment(path, tier="words") == [Interval(0.0, 1.0, "at")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.phn", "", "is empty"),
        ("a.phn", "0.0\n", "start end phone"),
        ("a.phn", "zero 1.0 a\n", "where a time should be"),
        ("a.phn", "0.5 0.2 a\n", "times are >= 0"),
        ("a.phn", "-0.5 0.2 a\n", "times are >= 0"),
        ("a.phn", "0.0 nan a\n", "times are >= 0"),
        ("a.phn", "nan 0.5 a\n", "times are >= 0"),
        ("a.phn", "0.0 inf a\n", "times are >= 0"),
        ("a.phn", "0.0 0.5 a\n0.2 0.7 b\n", "overlapping"),
        ("a.phn", "0.5 0.5 a\n", "no intervals"),
        ("a.phn", "0.0 nan a\n", "to nan s; times are >= 0"),
        ("a.phn", "nan 0.5 a\n", "from nan"),
        ("a.phn", "0.0 inf a\n", "to inf s"),
        ("a.ctm", "u 1 0.0 1e12 a\n", "1000000 s at most"),
        ("a.ctm", "u 1 0.0 a\n", "utterance channel start"),
        ("a.ctm", "u 1 0.0 0.1 a\nv 1 0.0 0.1 a\n", "2 utterances"),
        ("a.lab", "#\n0.5\n", "end colour phone"),
        ("a.txt", "0.0 0.5 a\n", "no alignment"),
        ("a.TextGrid", "not a grid\n", "not a TextGrid"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    if name.endswith("TextGrid"):
        pytest.importorskip("praatio")
    with pytest.raises(FileRefused, match=says):
        read_alignment(write(tmp_path, name, text))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="does not exist"):
        read_alignment(tmp_path / "none.phn")
    with pytest.raises(FileRefused, match="does not exist"):
        read_alignments(tmp_path / "none")
    with pytest.raises(FileRefused, match="no alignments"):
        read_alignments(tmp_path)
    (tmp_path / "b.phn").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileRefused, match="UTF-8"):
        read_alignment(tmp_path / "b.phn")


def test_overlaps_of_rounding_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "a.phn", "0.00 0.11 a\n0.10 0.20 b\n0.20 0.20 c\n")
    assert read_alignment(path) == [Interval(0.0, 0.10, "a"), Interval(0.10, 0.20, "b")]
    path = write(tmp_path, "b.phn", "0.0 0.1 a\n0.1 0.105 b\n0.095 0.2 c\n")  # b vanishes
    assert read_alignment(path) == [Interval(0.0, 0.095, "a"), Interval(0.095, 0.2, "c")]


def test_a_folder_is_read_by_relative_names(tmp_path: Path) -> None:
    write(tmp_path, "s1/u1.phn", "0.0 0.5 a\n")
    write(tmp_path, "s2/u1.phn", "0.0 0.5 b\n")
    write(tmp_path, "s2/u1.txt", "not an alignment")
    write(tmp_path, "all.ctm", "u2 1 0.0 0.5 c\n;; a comment\nu3 A 0.1 0.2 d\n")
    found = read_alignments(tmp_path)
    assert sorted(found) == ["s1/u1", "s2/u1", "u2", "u3"]
    assert found["s2/u1"] == [Interval(0.0, 0.5, "b")]
    assert found["u3"] == [Interval(0.1, pytest.approx(0.3), "d")]
    assert list(read_alignments(tmp_path / "s1/u1.phn")) == ["u1"]
    assert list(read_ctm(tmp_path / "all.ctm")) == ["u2", "u3"]


def test_a_path_matches_itself_or_its_own_end() -> None:
    alignments = ["s1/u1", "s2/u1", "u2", "corpus/s3/u3"]
    names = ["s1/u1", "x/u2", "s3/u3", "u1", "u9"]
    assert find(names, alignments) == {"s1/u1": "s1/u1", "x/u2": "u2", "s3/u3": "corpus/s3/u3"}


@pytest.mark.parametrize(
    ("names", "alignments", "want"),
    [
        (["s1/a", "s2/a"], ["s1/a"], {"s1/a": "s1/a"}),
        (["s1/a", "s2/b"], ["s1/a", "s1/b"], {"s1/a": "s1/a"}),  # s1/b is another speaker's
        (["s1/a", "s2/a"], ["a"], {}),
        (["a"], ["s1/a", "s2/a"], {}),
        # Folders that say nothing are passed over, if last parts alone tell files apart.
        (["x/a", "x/b"], ["y/b", "y/a"], {"x/a": "y/a", "x/b": "y/b"}),
        (["x/1/a", "x/2/a", "x/2/b"], ["y/1/a", "y/1/b"], {}),
        (["x/a"], [], {}),
    ],
)
def test_what_is_ambiguous_matches_nothing(names: list, alignments: list, want: dict) -> None:
    assert find(names, alignments) == want


def test_no_alignment_is_given_to_two_files() -> None:
    random = np.random.default_rng(0)
    paths = ["/".join(random.choice(list("ab"), size=n)) for n in (1, 2, 2, 3) for _ in range(4)]
    for _ in range(300):
        names, alignments = (random.choice(paths, size=5).tolist() for _ in range(2))
        matches = find(names, alignments)
        assert len(set(matches.values())) == len(matches)
        assert matches == find(names[::-1], alignments[::-1])
        assert all(matches[name] == name for name in set(names) & set(alignments))
        assert all(n.rsplit("/", 1)[-1] == a.rsplit("/", 1)[-1] for n, a in matches.items())


def test_two_alignments_of_an_utterance_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "s1/u1.phn", "0.0 0.5 a\n")
    write(tmp_path, "s1/.u1.lab", "0.0 0.5 hidden\n")
    assert list(read_alignments(tmp_path)) == ["s1/u1"]
    write(tmp_path, "s1/u1.lab", "0.0 0.5 b\n")
    with pytest.raises(FileRefused, match="another alignment of s1/u1"):
        read_alignments(tmp_path)


def test_names_of_silence() -> None:
    assert all(map(is_silence, ["", " ", "SIL", "sp", "h#", "<eps>", "pau"]))
    assert not any(map(is_silence, ["s", "AH", "z", "p"]))
