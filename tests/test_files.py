"""Outputs appear whole or not at all."""

import os
import stat
import subprocess
import sys
import time

import pytest

from audiovq import files
from audiovq.files import (
    FileRefused,
    OutputExists,
    atomic_output,
    files_below,
    read_text,
    refuse_existing,
)


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
    for name, message in (
        ("file/x", "file is no folder"),
        ("file/y/x", "cannot be written: Not a"),
    ):
        with pytest.raises(FileRefused, match=message), atomic_output(tmp_path / name):
            pass


def test_an_output_that_is_there_is_told_from_one_that_is_refused(tmp_path):
    (tmp_path / "there").write_text("old")
    with pytest.raises(OutputExists, match="--force"):
        refuse_existing(tmp_path / "there", overwrite=False)
    refuse_existing(tmp_path / "there", overwrite=True)
    with pytest.raises(FileRefused, match="is a folder") as caught:
        refuse_existing(tmp_path, overwrite=False)
    assert not isinstance(caught.value, OutputExists)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_regular_file_is_never_replaced(tmp_path, overwrite):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    names = [fifo, tmp_path / "link", "/dev/null", "/dev/full", "/dev/stdout", "/dev/fd/1"]
    for name in [*names, "/proc/self/fd/1", "/dev/new.npy"]:
        with pytest.raises(FileRefused, match="standard output"):
            with atomic_output(name, overwrite=overwrite) as temporary:
                temporary.write_text("new")
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "link"]


def test_a_link_is_replaced_when_asked_and_never_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for target in ("mine", "nothing"):
        link = tmp_path / "link"
        link.symlink_to(target)
        with pytest.raises(OutputExists), atomic_output(link):
            pass
        assert link.is_symlink()
        with atomic_output(link, overwrite=True) as temporary:
            temporary.write_text("new")
        assert not link.is_symlink()
        assert link.read_text() == "new"
        link.unlink()
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "out"
    path.write_text("old")
    path.chmod(mode)
    with atomic_output(path, overwrite=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600  # while it is not complete
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_output_that_comes_in_the_meantime_is_kept(tmp_path):
    with pytest.raises(OutputExists), atomic_output(tmp_path / "out") as temporary:
        temporary.write_text("new")
        (tmp_path / "out").write_text("another's")
    assert (tmp_path / "out").read_text() == "another's"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".npy", "a\0b", "a\ud800b", "l/a"])
def test_names_that_the_system_does_not_take_are_one_sentence(tmp_path, name):
    (tmp_path / "l").symlink_to("l")  # a link to itself
    for overwrite in (False, True):
        with pytest.raises(FileRefused), atomic_output(tmp_path / name, overwrite=overwrite):
            pass


def test_a_name_as_long_as_the_system_takes_is_written(tmp_path):
    for name in ("x" * 255, "x" * 251 + ".npy", "é" * 120 + ".y", "a." + "y" * 200):
        with atomic_output(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"


def test_a_folder_that_may_not_be_entered_is_one_sentence(tmp_path):
    inside = tmp_path / "closed" / "out"
    inside.parent.mkdir()
    is_root = os.geteuid() == 0
    for mode in (0o000, 0o555):
        inside.parent.chmod(mode)
        if is_root:  # who may do anything
            os.seteuid(65534)
        try:
            with pytest.raises(FileRefused, match="Permission denied"), atomic_output(inside):
                pass
        finally:
            if is_root:
                os.seteuid(0)
            inside.parent.chmod(0o755)


def test_a_stat_that_is_denied_is_one_sentence(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "stat", denied)
    with pytest.raises(FileRefused, match="cannot be written: Permission denied"):
        refuse_existing(tmp_path / "out", overwrite=True)


def test_what_a_killed_writer_left_goes_with_the_next_output(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from audiovq.files import atomic_output\n"
        "with atomic_output(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npy")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.npy.")
    assert left.suffix == ".npy"
    # Of writers that live, here or elsewhere, and of others' programs: all of these stay.
    machine, process = files._machine(), os.getpid()
    stay = [
        f".b.{machine}-{process}-00000000.audiovq-tmp",
        f".b.{'0' * 8}-999999999-00000000.audiovq-tmp",
        f"b.{machine}-999999999-00000000.audiovq-tmp",
        ".b.audiovq-tmp",
        ".b.npy",
    ]
    for name in stay:
        (tmp_path / name).write_text("")
    old = tmp_path / f".c.{'0' * 8}-{process}-00000000.audiovq-tmp.wav"
    old.write_text("")
    os.utime(old, (0, time.time() - 25 * 3600))
    gone = tmp_path / f".c.jsonl.gz.{machine}-999999999-00000000.audiovq-tmp.gz.jsonl.gz"
    gone.write_text("")  # another program's name for the temporary file
    page = tmp_path / f".page.{machine}-999999999-00000000.audiovq-tmp"
    (page / "sound").mkdir(parents=True)
    with atomic_output(tmp_path / "b.npy") as temporary:
        temporary.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*stay, "b.npy"])


def test_a_durable_output_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "out", []
    fsync = os.fsync

    def watched(handle):
        seen.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))
        fsync(handle)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc on this system")
    monkeypatch.setattr(files.os, "fsync", watched)
    with atomic_output(path) as temporary:
        temporary.write_text("new")
    assert seen == []
    with atomic_output(path, overwrite=True, durable=True) as temporary:
        temporary.write_text("new")
        path.unlink()
    assert seen == [(str(temporary), False), (str(tmp_path), True)]


@pytest.mark.parametrize("closing", ["<&-", ">&-", "> /dev/full", "| true"])
def test_standard_streams_that_are_closed_or_full_are_one_sentence(closing):
    if "full" in closing and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    call = "read_standard_input()" if closing == "<&-" else "write_standard_output(bytes(1 << 20))"
    code = (
        "import sys, audiovq.files as files\n"
        f"try: files.{call}\n"
        "except files.FileRefused as error: print(error, file=sys.stderr)\n"
    )
    command = f"{sys.executable} -c '{code}' {closing}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("Standard ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 0


def test_standard_streams_carry_bytes():
    code = "import audiovq.files as f; f.write_standard_output(f.read_standard_input())"
    data = bytes(range(256)) * 100
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout == data


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    for name, message in (
        ("absent", "absent does not exist"),
        ("a/b", "does not exist"),
        ("a", "is not UTF-8 text"),
        (".", "cannot be read: Is a directory"),
        ("a\0b", "is not a file name"),
        ("\ud800", "is not a file name"),
    ):
        with pytest.raises(FileRefused, match=message):
            read_text(f"{tmp_path}/{name}")


def test_hidden_files_and_folders_are_no_sources(tmp_path):
    for name in ("b/c.wav", "a.wav", "._a.wav", ".git/d.wav", "b/.d/e.wav"):
        path = tmp_path / ".above" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folder = tmp_path / ".above"
    assert files_below(folder) == [folder / "a.wav", folder / "b" / "c.wav"]
