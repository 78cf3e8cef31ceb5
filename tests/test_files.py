"""Outputs appear whole or not at all."""

import os

import pytest

from audiovq.files import FileRefused, atomic_output


def test_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "out.npy"
    with pytest.raises(RuntimeError), atomic_output(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_a_failure_keeps_what_was_there(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_output(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_success_replaces_only_when_asked(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(FileRefused, match="exists"), atomic_output(path):
        pass
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_permissions_of_open(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_output(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_one_sentence(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(FileRefused, match="cannot be written: No space left"):
        with atomic_output(tmp_path / "out"), open("/dev/full", "w") as full:
            full.write("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileRefused, match="cannot be written"), atomic_output(tmp_path / "file/x"):
        pass
