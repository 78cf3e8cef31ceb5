"""What corpora are made of: every kind of source gives the same rows, and bad ones a reason."""

import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny import EXAMPLES

pytest.importorskip("pyarrow", reason="needs the extra corpus")

import pyarrow as pa
import pyarrow.parquet as pq

from audiovq.audio import AudioReader, load_audio, save_audio
from audiovq.corpus.reading import read_row
from audiovq.corpus.rows import Problem, Row, from_table, to_table
from audiovq.corpus.sources import open_sources
from audiovq.files import FileRefused

NAMES = ["a", "b", "c/d"]


@pytest.fixture(scope="module")
def sounds() -> dict[str, np.ndarray]:
    """A second of noise for each name."""
    rng = np.random.default_rng(0)
    return {name: rng.uniform(-0.1, 0.1, 16_000).astype(np.float32) for name in NAMES}


@pytest.fixture
def folder(tmp_path, sounds) -> Path:
    for name, wav in sounds.items():
        save_audio(tmp_path / "wavs" / f"{name}.wav", wav, 16_000)
    (tmp_path / "wavs" / "notes.md").touch()
    (tmp_path / "wavs" / ".hidden.wav").touch()
    return tmp_path / "wavs"


def rows_of(*sources, **options) -> list[Row]:
    found = [*open_sources(sources, **options).walk()]
    assert all(isinstance(row, Row) for row in found), found
    return found


def sound(row: Row, root: str) -> np.ndarray:
    return np.concatenate([*read_row(row, root, 16_000)])


def heard(*sources, **options) -> dict[str, np.ndarray]:
    """The sound of every row of sources by its id."""
    source = open_sources(sources, **options)
    return {row.id: sound(row, source.root) for row in source.walk()}


def same(found: dict[str, np.ndarray], sounds: dict[str, np.ndarray]) -> None:
    assert list(found) == list(sounds)
    for name, wav in sounds.items():
        np.testing.assert_allclose(found[name], wav, atol=1 / 32768)


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_a_folder_is_walked_in_order_with_paths_below_it(folder, sounds):
    same(heard(folder), sounds)
    rows = rows_of(folder)
    assert [row.source for row in rows] == ["a.wav", "b.wav", "c/d.wav"]
    assert all(row.stamp.startswith("32044:") for row in rows)


def test_files_that_differ_in_their_suffix_alone_keep_it(folder):
    shutil.copy(folder / "a.wav", folder / "a.ogg")
    assert [row.id for row in rows_of(folder)] == ["a.ogg", "a.wav", "b", "c/d"]


def test_an_output_among_the_sources_is_none(folder):
    (folder / "corpus").mkdir()
    (folder / "corpus" / "_corpus.json").touch()
    shutil.copy(folder / "a.wav", folder / "corpus")
    assert len(rows_of(folder)) == 3


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_name_files_and_say_what_is_known(folder, sounds, suffix):
    path = folder / f"table{suffix}"
    columns = {
        "path": [f"{name}.wav" for name in NAMES],
        "text": ["one", "", 'two "three'],
        "speaker": ["x", "y", "z"],
        "other": ["1", "2", "3"],
    }
    write_table(path, columns)
    same(heard(path), sounds)
    rows = rows_of(path)
    assert [row.text for row in rows] == ["one", None, 'two "three']
    assert [row.speaker for row in rows] == ["x", "y", "z"]


def write_table(path: Path, columns: dict[str, list]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    import csv

    rows = [[*columns], *zip(*columns.values())]
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows(rows)
        else:
            file.writelines("\t".join(row) + "\n" for row in rows)


def test_parts_of_files_are_read_as_parts(folder, sounds):
    path = folder / "parts.csv"
    path.write_text("audio,start,duration\na.wav,0.25,0.5\na.wav,0.75,\nb.wav,,\n")
    found = heard(path, columns={"path": "audio"})
    assert list(found) == ["a@0.25", "a@0.75", "b"]
    np.testing.assert_allclose(found["a@0.25"], sounds["a"][4_000:12_000], atol=1 / 32768)
    np.testing.assert_allclose(found["a@0.75"], sounds["a"][12_000:], atol=1 / 32768)


def test_bad_rows_of_tables_are_problems_and_the_others_rows(folder):
    path = folder / "bad.csv"
    lines = [
        "path,start,duration",
        "a.wav,x,",
        ",0,1",
        "a.wav,-1,1",
        "a.wav,0,0",
        "a.wav",
        "a.wav,nan,1",
        "a.wav,0,inf",
        "b.wav,,",
    ]
    path.write_text("\n".join(lines) + "\n")
    found = [*open_sources([path]).walk()]
    assert [item.why for item in found[:7]] == [
        "its start is 'x', which is no number",
        "it has no path",
        "its start is -1; give seconds from 0 on",
        "its duration is 0; give seconds above 0",
        "it has another number of fields than the header",
        "its start is 'nan', which is no number",
        "its duration is 'inf', which is no number",
    ]
    assert found[0].source == f"{path}, row 1"
    assert found[7].id == "b"


def test_values_of_odd_types_are_problems(folder):
    pq.write_table(pa.table({"path": [1, 2]}), folder / "numbers.parquet")
    (folder / "channels.csv").write_text("path,channel\na.wav,0.5\na.wav,1e999\n")
    found = [*open_sources([folder / "numbers.parquet", folder / "channels.csv"]).walk()]
    assert [item.why for item in found] == [
        "its path is 1, which is no text",
        "its path is 2, which is no text",
        "its channel is 0.5; give a whole number from 0 on",
        "its channel is '1e999', which is no number",
    ]


def test_a_table_that_is_damaged_is_refused(folder, rng):
    path = folder / "t.parquet"
    pq.write_table(pa.table({"path": [str(x) for x in rng.integers(1 << 40, size=5_000)]}), path)
    data = bytearray(path.read_bytes())
    data[4:4_000] = bytes(3_996)
    path.write_bytes(data)
    with pytest.raises(FileRefused, match=r"t.parquet is damaged after row 0"):
        [*open_sources([path]).walk()]


def test_a_missing_file_is_a_row_without_a_stamp_that_is_refused(folder):
    path = folder / "table.csv"
    path.write_text("path\nnone.wav\n")
    (row,) = rows_of(path)
    assert row.stamp is None
    with pytest.raises(FileRefused, match=r"none.wav does not exist"):
        sound(row, str(folder))


def test_a_file_that_changes_after_the_plan_is_refused(folder, sounds):
    row = rows_of(folder)[0]
    save_audio(folder / "a.wav", sounds["a"][:-5], 16_000, overwrite=True)
    with pytest.raises(FileRefused, match=r"a.wav has changed since it was planned"):
        sound(row, str(folder))


def test_tars_give_their_members_with_what_stands_beside_them(folder, sounds, tmp_path):
    members = {}
    for name in NAMES:
        members[f"{name}.wav"] = (folder / f"{name}.wav").read_bytes()
        members[f"{name}.txt"] = f"text of {name}\n".encode()
        members[f"{name}.json"] = json.dumps({"speaker": f"s {name}"}).encode()
    tar(tmp_path / "s.tar", members)
    same(heard(tmp_path / "s.tar"), sounds)
    rows = rows_of(tmp_path / "s.tar", prefix_ids=True)
    assert [(row.id, row.text, row.speaker) for row in rows] == [
        (f"s/{name}", f"text of {name}", f"s {name}") for name in NAMES
    ]
    assert rows[2].name == "s.tar#c/d.wav"
    (folder / "tars").mkdir()
    shutil.move(tmp_path / "s.tar", folder / "tars" / "s.tar")
    (folder / "a.wav").unlink()
    assert [row.id for row in rows_of(folder)][:3] == ["b", "c/d", "a"]
    assert [row.id for row in rows_of(folder, prefix_ids=True)][2:] == [
        f"tars/s/{name}" for name in NAMES
    ]


def test_odd_members_of_tars_are_passed_over_or_named(folder, tmp_path):
    wav = (folder / "a.wav").read_bytes()
    odd = {"._0.wav": b"\0" * 9, "0.wav": wav, "0.json": b'{"text": "ha \\ud83d"}', "1.wav": wav}
    tar(tmp_path / "mac.tar", odd)
    assert [(row.id, row.text) for row in rows_of(tmp_path / "mac.tar")] == [
        ("0", "ha \\ud83d"),
        ("1", None),
    ]
    with tarfile.open(
        tmp_path / "latin.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as file:
        for name in ("caf\xe9.wav", "plain.wav"):
            info = tarfile.TarInfo(name)
            info.size = len(wav)
            file.addfile(info, io.BytesIO(wav))
    problem, row = open_sources([tmp_path / "latin.tar"]).walk()
    assert isinstance(problem, Problem)
    assert "not UTF-8" in problem.why
    assert row.id == "plain"


def test_a_tar_with_a_broken_member_gives_what_is_before_it(folder, sounds, tmp_path):
    path = tmp_path / "s.tar"
    tar(path, {f"{name}.wav": (folder / f"{name}.wav").read_bytes() for name in ("a", "b")})
    whole = path.read_bytes()
    second = rows_of(path)[1]

    path.write_bytes(whole[: second.offset + 100])  # it ends inside the second
    row, problem = open_sources([path]).walk()
    assert row.id == "a"
    assert isinstance(problem, Problem)
    assert "ends inside it" in problem.why

    damaged = bytearray(whole)
    damaged[second.offset - 512 : second.offset - 400] = b"\xff" * 112  # its header
    path.write_bytes(damaged)
    row, problem = open_sources([path]).walk()
    assert row.id == "a"
    assert "damaged from byte" in problem.why

    damaged = bytearray(whole)
    damaged[second.offset : second.offset + 40] = b"\xff" * 40  # its sound
    path.write_bytes(damaged)
    _, row = open_sources([path]).walk()
    with pytest.raises(FileRefused, match=r"s.tar#b.wav is not audio"):
        sound(row, str(tmp_path))


def test_lhotse_cuts_are_read_as_files_or_by_lhotse(folder, sounds, tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs the extra train")
    whole = lhotse.Recording.from_file(folder / "a.wav").to_cut()
    whole.supervisions = [lhotse.SupervisionSegment("s", "a", 0, 1, text="one two", speaker="x")]
    part = lhotse.Recording.from_file(folder / "b.wav").to_cut().truncate(offset=0.5, duration=0.25)
    mixed = whole.pad(duration=1.5)
    cuts = [c.with_id(name) for c, name in [(whole, "whole"), (part, "part"), (mixed, "mixed")]]
    path = tmp_path / "cuts.jsonl.gz"
    lhotse.CutSet.from_cuts(cuts).to_file(path)
    found = heard(path)
    assert list(found) == ["whole", "part", "mixed"]
    assert [row.kind for row in rows_of(path)] == ["file", "file", "cut"]
    assert (rows_of(path)[0].text, rows_of(path)[0].speaker) == ("one two", "x")
    np.testing.assert_allclose(found["whole"], sounds["a"], atol=1 / 32768)
    np.testing.assert_allclose(found["part"], sounds["b"][8_000:12_000], atol=1 / 32768)
    assert found["mixed"].shape == (24_000,)
    manifest = gzip.decompress(path.read_bytes()).decode().replace(f"{folder}{os.sep}", "")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cuts.jsonl").write_text(manifest)  # its paths are relative
    again = heard(tmp_path / "elsewhere" / "cuts.jsonl", audio_root=folder)
    assert all((again[name] == wav).all() for name, wav in found.items())


def test_datasets_on_disk_give_their_audio(folder, sounds, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    datasets.disable_progress_bars()
    records = [
        {"sound": {"bytes": (folder / f"{name}.wav").read_bytes(), "path": None}, "text": name}
        for name in NAMES
    ]
    data = datasets.Dataset.from_list(records).cast_column("sound", datasets.Audio(decode=False))
    data.save_to_disk(tmp_path / "data")
    with pytest.raises(FileRefused, match="no column 'audio', but sound, text"):
        open_sources([tmp_path / "data"])
    found = heard(tmp_path / "data", columns={"audio": "sound", "id": "text"})
    same(found, sounds)
    assert rows_of(tmp_path / "data", columns={"audio": "sound"})[1].name == "data#sound:1"
    datasets.DatasetDict({"train": datasets.load_from_disk(tmp_path / "data")}).save_to_disk(
        tmp_path / "many"
    )
    with pytest.raises(FileRefused, match=r"several datasets \(train\)"):
        open_sources([tmp_path / "many"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none", None, "does not exist"),
        ("x.csv", "file,text\n", "no column 'path', but file, text; .*--column path=NAME"),
        ("x.csv", "", "is empty"),
        ("x.csv", "path\n".encode("utf-16"), "not a table of text in UTF-8"),
        ("x.parquet", "text", "not a Parquet table"),
        ("x.tar.gz", "text", "compressed tar"),
        ("x.docx", "text", "is no source of a corpus"),
        ("x.jsonl", '{"a": 1}\n', "holds no lhotse cuts"),
        ("x.jsonl", "text", "JSON lines"),
    ],
)
def test_what_is_no_source_is_a_sentence(tmp_path, name, text, said):
    if name.endswith(".jsonl"):
        pytest.importorskip("lhotse", reason="needs the extra train")
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileRefused, match=said):
        [*open_sources([tmp_path / name]).walk()]


def test_a_column_that_no_row_has_is_a_wrong_argument(folder):
    (folder / "t.csv").write_text("path\n")
    with pytest.raises(ValueError, match="'txt' is no column"):
        open_sources([folder / "t.csv"], columns={"txt": "path"})


def test_rows_survive_a_table():
    rows = [Row("a", "b"), Row("c", "d", "tar", "e", 1, 2, 3.0, 4.0, 0, "t", "s", "1:2")]
    assert from_table(to_table(rows)) == rows
    assert from_table(to_table([])) == []


def test_a_part_of_audio_is_the_same_however_it_is_read(tmp_path, rng):
    """At the file's own rate, parts are the samples; beside another rate, they are resampled."""
    wav = rng.uniform(-0.1, 0.1, (24_000, 2))
    import soundfile

    soundfile.write(tmp_path / "a.wav", wav, 24_000, subtype="FLOAT")
    part = AudioReader(tmp_path / "a.wav", 24_000, start=0.25, duration=0.5, channel=1)
    np.testing.assert_allclose(np.concatenate([*part]), wav[6_000:18_000, 1], atol=1e-7)
    whole = np.concatenate([*AudioReader(tmp_path / "a.wav", 16_000, start=0.0, duration=1.0)])
    np.testing.assert_array_equal(whole, load_audio(tmp_path / "a.wav", 16_000))
    data = (tmp_path / "a.wav").read_bytes()
    of_bytes = np.concatenate([*AudioReader("a tar", 16_000, data=data)])
    np.testing.assert_array_equal(of_bytes, whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 9.0}, r"from 9 s to the end is not there: it lasts 2\.99"),
        ({"start": 2.0, "duration": 1.5}, r"from 2 s to 3\.5 s is not there"),
        ({"start": -1.0}, "is not there"),
        ({"channel": 1}, "has 1 channels; there is no channel 1"),
    ],
)
def test_a_part_that_is_not_there_is_refused(options, said):
    with pytest.raises(FileRefused, match=said):
        AudioReader(EXAMPLES[1], 16_000, **options)
