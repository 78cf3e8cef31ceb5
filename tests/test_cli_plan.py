"""What is read and where it is written: one rule for names, and nothing is written over."""

import os
import shutil
import time
from pathlib import Path

import pytest
import typer

from audiovq.files import FileRefused
from audiovq_cli.plan import find_sources, names_folder, plan

TOKENS = (".npy", ".avq")


def make_plan(sources, out=None, *, recursive=False):
    sources = [str(source) for source in sources]
    out = None if out is None else str(out)
    suffixes = (".wav", ".flac")
    return plan(
        sources,
        out,
        suffixes,
        lambda path: path.stem + ".npy",
        TOKENS,
        recursive=recursive,
        what="audio",
    )


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("out", ["tokens", "a/b", "run-0.5", "x.npy/", "v1.train-clean", ".tokens"])
def test_a_name_without_a_suffix_is_a_folder(out):
    assert names_folder(out, TOKENS)


@pytest.mark.parametrize("out", ["a.npy", "a/b.avq", "A.NPY"])
def test_a_name_with_the_formats_suffix_is_a_file(out):
    assert not names_folder(out, TOKENS)


@pytest.mark.parametrize("out", ["a.wav", "a.tsv", "a.jpg", "a.v2", ""])
def test_a_name_with_another_suffix_is_refused(out):
    with pytest.raises(typer.BadParameter):
        names_folder(out, TOKENS)


def test_one_source_and_two_go_to_the_same_kind_of_output(tmp_path):
    touch(tmp_path, "a.wav", "b.wav")
    a, b, out = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "tokens"
    assert make_plan([a], out).pairs == [(str(a), str(out / "a.npy"))]
    assert make_plan([a, b], out).pairs[0] == (str(a), str(out / "a.npy"))
    assert make_plan([a], tmp_path / "x.npy").pairs == [(str(a), str(tmp_path / "x.npy"))]
    for many in ([a, b], [tmp_path]):
        with pytest.raises(typer.BadParameter, match="for one source"):
            make_plan(many, tmp_path / "x.npy")
    (tmp_path / "x.npy").mkdir()
    assert make_plan([a], tmp_path / "x.npy").pairs[0][1] == str(tmp_path / "x.npy" / "a.npy")


def test_every_clash_is_named_with_both_sources(tmp_path):
    touch(tmp_path, "a.wav", "a.flac", "b.wav", "b.flac", "c.wav")
    with pytest.raises(typer.BadParameter) as failed:
        make_plan([tmp_path], tmp_path / "out")
    for name in ("a.wav", "a.flac", "b.wav", "b.flac"):
        assert str(tmp_path / name) in failed.value.message
    assert "c.wav" not in failed.value.message


def test_the_time_grows_with_the_files_and_not_with_their_pairs():
    start = time.perf_counter()
    assert len(make_plan([f"no/{i}.wav" for i in range(20_000)]).pairs) == 20_000
    assert time.perf_counter() - start < 10  # every pair: 37 s


@pytest.mark.parametrize("link", [shutil.copy, os.link, os.symlink])
def test_a_source_is_never_the_target(tmp_path, link):
    touch(tmp_path, "a.npy")
    link(tmp_path / "a.npy", tmp_path / "b.npy")
    if link is shutil.copy:
        assert len(make_plan([tmp_path / "a.npy"], tmp_path / "b.npy").pairs) == 1
        with pytest.raises(typer.BadParameter, match="is a source"):
            make_plan([tmp_path / "a.npy"], tmp_path / "a.npy")
    else:
        with pytest.raises(typer.BadParameter, match="is a source"):
            make_plan([tmp_path / "a.npy"], tmp_path / "b.npy")


def test_folders_give_files_and_links_to_files_and_say_what_they_left_out(tmp_path):
    touch(tmp_path, "d/a.WAV", "d/in/b.flac", "d/._a.wav", "d/.a.npy.x1.wav", "d/.git/c.wav")
    touch(tmp_path, "d/c.m4a", "d/d.m4a", "d/README")
    (tmp_path / "d/link.wav").symlink_to("a.WAV")
    (tmp_path / "d/broken.wav").symlink_to("nowhere")
    (tmp_path / "d/round.wav").symlink_to("round.wav")
    (tmp_path / "d/in/loop").symlink_to("..")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "d/pipe.wav")
    found = make_plan([tmp_path / "d"], tmp_path / "out", recursive=True)
    targets = [str(Path(target).relative_to(tmp_path / "out")) for _, target in found.pairs]
    assert targets == ["a.npy", "link.npy", str(Path("in/b.npy"))]
    assert found.notes[0].startswith(f"{tmp_path / 'd'}: 7 other files skipped (2 ")
    for kind in ("2 .m4a", "2 broken link", "1 linked folder", "1 without a suffix"):
        assert kind in found.notes[0]
    flat = make_plan([tmp_path / "d"], tmp_path / "out")
    assert [Path(target).name for _, target in flat.pairs] == ["a.npy", "link.npy"]


def test_an_empty_folder_does_not_keep_the_others_waiting(tmp_path):
    touch(tmp_path, "d/a.wav", "e/a.m4a")
    found = make_plan([tmp_path / "e", tmp_path / "d"])
    assert len(found.pairs) == 1
    assert found.refused[0][0] == str(tmp_path / "e")
    with pytest.raises(FileRefused, match=r"holds no audio; --recursive .*1 \.m4a"):
        make_plan([tmp_path / "e"])


def test_a_folder_that_cannot_be_listed_is_refused_and_the_rest_found(tmp_path, monkeypatch):
    touch(tmp_path, "d/a.wav", "d/shut/b.wav")
    scandir = os.scandir

    def listing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    found = find_sources([str(tmp_path / "d")], [".wav"], recursive=True, what="audio")
    assert [name for _, name in found.pairs] == ["a.wav"]
    assert "Permission denied" in found.refused[0][1]
