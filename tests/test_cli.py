"""The command line: what it writes, what it says, and how it fails."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from tiny import EXAMPLES
from typer.testing import CliRunner

import audiovq
import audiovq_cli
from audiovq_cli.app import EXTRAS


@pytest.fixture
def run(tiny_folder):
    """Run a command with the small model; returns its result."""

    def call(*arguments, model: str | None = str(tiny_folder), code: int = 0):
        words = [str(argument) for argument in arguments]
        if model is not None and words[0] in ("encode", "decode"):
            words += ["--model", model]
        result = CliRunner().invoke(audiovq_cli.app, words)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def folder(tmp_path):
    """A folder of recordings in a tree, with a file that is no audio beside them."""
    root = tmp_path / "speech"
    (root / "deep").mkdir(parents=True)
    wav, rate = soundfile.read(EXAMPLES[1])
    soundfile.write(root / "one.wav", wav[:8_000], rate)
    soundfile.write(root / "deep" / "two.flac", wav[8_000:16_000], rate)
    (root / "notes.txt").write_text("not audio")
    return root


def test_encode_and_decode_a_file(run, tmp_path):
    result = run("encode", EXAMPLES[1], "-o", tmp_path / "a.npy")
    assert "4 x 150 tokens, 1 kbit/s, 2.99 s" in result.stderr
    tokens = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (tokens.dtype, tokens.shape) == (np.uint16, (4, 150))
    run("decode", tmp_path / "a.npy")
    assert soundfile.info(tmp_path / "a.decoded.wav").frames == 150 * 320


def test_the_name_decides_the_format(run, tmp_path):
    run("encode", EXAMPLES[1], "-o", tmp_path / "a.avq")
    assert (tmp_path / "a.avq").read_bytes()[:3] == b"AVQ"
    run("encode", EXAMPLES[1], "-o", tmp_path / "b.npy", "--format", "avq", code=2)


def test_folders_keep_their_tree(run, folder, tmp_path):
    run("encode", folder, "-o", tmp_path / "tokens", "--recursive")
    run("decode", tmp_path / "tokens", "-o", tmp_path / "wavs", "--recursive")
    written = sorted(p.relative_to(tmp_path / "wavs") for p in (tmp_path / "wavs").rglob("*.wav"))
    assert written == [Path("deep/two.wav"), Path("one.wav")]
    run("encode", folder, "-o", tmp_path / "flat")
    assert [p.name for p in (tmp_path / "flat").iterdir()] == ["one.npy"]


def test_a_bad_file_in_a_folder_does_not_stop_the_others(run, folder, tmp_path):
    (folder / "bad.wav").write_text("text")
    result = run("encode", folder, "-o", tmp_path / "tokens", code=1)
    assert "bad.wav is not audio" in result.stderr
    assert "1 of 2 files written, 1 refused" in result.stderr
    assert (tmp_path / "tokens" / "one.npy").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_name_in_another_encoding_is_a_name_like_any_other(run, folder, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (folder / "one.wav").rename(folder / f"{name}.wav")
    result = run("encode", folder, "-o", tmp_path / "tokens")
    assert "caf\\udce9.wav ->" in result.stderr
    result = run("decode", tmp_path / "tokens", "--json")
    assert json.loads(result.stdout)["source"].endswith(f"{name}.npy")
    assert soundfile.info(os.fsencode(tmp_path / "tokens" / f"{name}.decoded.wav")).frames == 8_000


def test_one_recording_is_not_replaced_by_its_tokens(run, tmp_path):
    soundfile.write(tmp_path / "a.npy", np.zeros(8_000), 16_000, format="WAV")
    before = (tmp_path / "a.npy").read_bytes()
    result = run("encode", tmp_path / "a.npy", "-o", tmp_path / "a.npy", "--force", code=2)
    assert "is a source" in " ".join(result.stderr.replace("│", "").split())
    assert (tmp_path / "a.npy").read_bytes() == before


def test_json_tells_programs_what_was_written(run, folder, tmp_path):
    (folder / "bad.wav").write_text("text")
    result = run("encode", folder, "-o", tmp_path / "tokens", "--json", code=1)
    bad, one = (json.loads(line) for line in result.stdout.splitlines())
    assert bad["refused"].startswith(bad["source"])
    assert one == {
        "source": str(folder / "one.wav"),
        "target": str(tmp_path / "tokens" / "one.npy"),
        "n_q": 4,
        "frames": 25,
        "bitrate": 1000.0,
        "seconds": 0.5,
        "bytes": (tmp_path / "tokens" / "one.npy").stat().st_size,
    }
    result = run("decode", tmp_path / "tokens", "-o", tmp_path / "wavs", "--json")
    (decoded,) = (json.loads(line) for line in result.stdout.splitlines())
    assert decoded == {
        "source": one["target"],
        "target": str(tmp_path / "wavs" / "one.wav"),
        **{key: one[key] for key in ("n_q", "frames", "bitrate", "seconds", "bytes")},
        "whole": True,
    }


def test_quiet_says_nothing_when_all_is_well(run, folder, tmp_path):
    result = run("encode", folder, EXAMPLES[1], "-o", tmp_path / "tokens", "-q")
    assert result.output == ""
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_second_run_skips_what_is_whole_and_of_this_model(run, folder, tmp_path):
    arguments = ["encode", folder, "-r", "-o", tmp_path / "tokens", "--format", "avq"]
    arguments += ["--skip-existing"]
    run(*arguments)
    one, two = tmp_path / "tokens" / "one.avq", tmp_path / "tokens" / "deep" / "two.avq"
    whole = one.read_bytes()
    two.write_bytes(two.read_bytes()[:-1])
    result = run(*arguments, "--json")
    assert "1 of 2 files written, 1 were there already" in result.stderr
    skipped, again = (json.loads(line) for line in result.stdout.splitlines())
    assert (again["target"], again["frames"]) == (str(two), 25)
    assert skipped == {"source": str(folder / "one.wav"), "target": str(one), "skipped": True}
    assert one.read_bytes() == whole
    assert "2 of 2 files written" in run(*arguments, "--n-q", "2").stderr
    header = audiovq.read_tokens(one).header
    audiovq.write_avq(
        one, audiovq.read_tokens(one).indices, replace(header, fingerprint="0"), overwrite=True
    )
    assert "1 of 2 files written, 1 were there" in run(*arguments, "--n-q", "2").stderr
    run("encode", folder, "--force", "--skip-existing", code=2)


def test_files_of_a_list_keep_their_tree_and_shares_are_disjoint(run, folder, tmp_path):
    names = [folder / "deep" / "two.flac", folder / "one.wav"]
    (tmp_path / "list").write_text("".join(f"{name}\n\n" for name in names))
    for i in (1, 2):
        out = tmp_path / f"share{i}"
        run("encode", "--files-from", tmp_path / "list", "-o", out, "--shard", f"{i}/2")
    written = [[*map(str, p.rglob("*.npy"))] for p in sorted(tmp_path.glob("share*"))]
    assert written == [
        [str(tmp_path / "share1" / "deep" / "two.npy")],
        [str(tmp_path / "share2" / "one.npy")],
    ]
    for share in ("0/2", "3/2", "x"):
        run("encode", folder, "-o", tmp_path / "no", "--shard", share, code=2)
    run("encode", "-o", tmp_path / "no", code=2)
    (tmp_path / "empty").touch()
    run("encode", "--files-from", tmp_path / "empty", "-o", tmp_path / "no", code=1)


def test_several_processes_write_the_same_and_the_manifest_tells_all(run, folder, tmp_path):
    (folder / "bad.wav").write_text("text")
    manifest = tmp_path / "done.jsonl"
    manifest.write_text('{"cut off')
    arguments = ["encode", folder, "-r", "--manifest", manifest]
    run(*arguments, "-o", tmp_path / "a", code=1)
    run(*arguments, "-o", tmp_path / "b", "--jobs", "2", code=1)
    lines = manifest.read_text().splitlines()[1:]
    one, other = ([json.loads(line) for line in part] for part in (lines[:3], lines[3:]))
    for a, b in zip(one, other):
        assert b == {**a, "target": a["target"].replace(f"{tmp_path}/a", f"{tmp_path}/b")}
    assert [list(item)[2] for item in one] == ["refused", "n_q", "n_q"]
    for name in ("one.npy", "deep/two.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_channels_are_mixed_down_with_a_word(run, tmp_path, rng):
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.1, 0.1, (8_000, 2)), 8_000)
    result = run("encode", tmp_path / "a.wav")
    assert "2 channels mixed down to one" in result.stderr


def test_standard_input_and_output(run, tmp_path, tiny_folder):
    data = EXAMPLES[1].read_bytes()
    arguments = ["encode", "-", "--model", str(tiny_folder), "--format", "avq"]
    encoded = CliRunner().invoke(audiovq_cli.app, arguments, input=data)
    assert encoded.exit_code == 0
    assert encoded.stdout_bytes[:3] == b"AVQ"
    arguments = ["decode", "-", "--model", str(tiny_folder)]
    decoded = CliRunner().invoke(audiovq_cli.app, arguments, input=encoded.stdout_bytes)
    (tmp_path / "a.wav").write_bytes(decoded.stdout_bytes)
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(EXAMPLES[1]).frames


def test_an_output_that_exists_needs_force(run, tmp_path):
    (tmp_path / "a.npy").write_text("mine")
    result = run("encode", EXAMPLES[1], "-o", tmp_path / "a.npy", code=3)
    assert "exists; add --force" in result.stderr
    assert (tmp_path / "a.npy").read_text() == "mine"
    run("encode", EXAMPLES[1], "-o", tmp_path / "a.npy", "--force")
    assert np.load(tmp_path / "a.npy").shape == (4, 150)


def test_bad_input_is_one_sentence_and_the_right_code(run, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "nan.wav", np.full(99, np.nan), 16_000, subtype="FLOAT")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "foreign.npy").write_text("hello")
    cases = [
        (["encode", tmp_path / "empty.wav"], 1, "empty file"),
        (["encode", tmp_path / "text.wav"], 1, "not audio"),
        (["encode", tmp_path / "nan.wav"], 1, "not finite"),
        (["encode", tmp_path / "none.wav"], 1, "does not exist"),
        (["encode", tmp_path / "nothing"], 1, "holds no audio files"),
        (["encode", EXAMPLES[1], "--n-q", "5"], 2, "n_q must be in 1..4, not 5"),
        (["encode", EXAMPLES[1], "--n-q", "0"], 2, "n_q must be in 1..4, not 0"),
        (["encode", EXAMPLES[1], EXAMPLES[1], "-o", tmp_path / "x"], 2, "written twice"),
        (["encode", "-", EXAMPLES[1]], 2, "stands alone"),
        (["encode", EXAMPLES[1], "-o", tmp_path / "a.wav"], 2, ".npy or .avq"),
        (["encode", EXAMPLES[1], "-o", tmp_path / "a.npy", "--segment"], 2, "is .tsv"),
        (["encode", EXAMPLES[1], "--price", "3"], 2, "--price is for --segment"),
        (["encode", EXAMPLES[1], "--segment", "--price", "nan"], 2, "must be >= 0, not nan"),
        (["encode", EXAMPLES[1], "--segment", "--n-q", "2"], 2, "leave out --n-q"),
        (["encode", EXAMPLES[1], "--segment", "--format", "avq"], 2, "leave out --format"),
        (["encode", "-", "--json"], 2, "would both go to standard output"),
        (["decode", tmp_path / "foreign.npy", "-o", tmp_path / "a.mp3"], 2, ".wav or .flac"),
        (["spectrogram", EXAMPLES[1], "-o", tmp_path / "p.jpg"], 2, "pictures are PNG"),
        (["codebook", tmp_path / "foreign.npy", "--plot", tmp_path / "p.svg"], 2, "are PNG"),
        (["evaluate", EXAMPLES[1], "--plot", tmp_path / "p.svg"], 2, "pictures are PNG"),
        (["encode", tmp_path / ("x" * 300)], 1, "is too long for a file name"),
        (["decode", tmp_path / "foreign.npy"], 1, "not a token file"),
        (["decode", tmp_path / "none.npy"], 1, "does not exist"),
        (["info", tmp_path / "none"], 1, "does not exist"),
        (["info", "folder/none.npy"], 1, "does not exist"),
        (["info", "folder/none.avq"], 1, "does not exist"),
        (["codebook", tmp_path / "nothing"], 1, "holds no tokens"),
        (["spectrogram", EXAMPLES[1], "x", "y", "-o", tmp_path / "p.png"], 2, "one or two"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, code, message in cases:
        result = run(*arguments, code=code)
        said = " ".join(result.stderr.replace("│", "").split())
        assert message in said, (arguments, said)
        assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before


def test_info_of_a_name_on_the_hub_is_that_of_the_model(run, tiny_folder, monkeypatch):
    asked = []

    def fetch(name, files):
        asked.append(name)
        return tiny_folder

    monkeypatch.setattr("audiovq.hub.fetch", fetch)
    assert json.loads(run("info", "owner/name", "--json").stdout)["model"] == "test model"
    assert asked == ["owner/name"]


def test_bad_arguments_steer_no_terminal(run, tmp_path):
    for arguments in (
        ["encode", "a", "-o", "\x1b[2J.mp3"],
        ["encode", "a", "--\x1b[2J"],
        ["\x1b[2J"],
    ):
        said = run(*arguments, code=2).output
        assert "\\x1b[2J" in said
        assert "\x1b[2J" not in said
    (tmp_path / "\x1b[2J.png").touch()
    assert "\x1b" not in run("spectrogram", "a", "-o", tmp_path / "\x1b[2J.png", code=3).output
    wrote = run("spectrogram", EXAMPLES[1], "-o", tmp_path / "\x1b[2J.png", "--force").output
    assert wrote == f"wrote {tmp_path}/\\x1b[2J.png\n"


def test_a_missing_model_is_one_sentence(run):
    result = run("encode", EXAMPLES[1], model="nowhere", code=1)
    assert "nowhere is not a model" in result.stderr


def test_an_output_that_cannot_be_is_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("encode", EXAMPLES[1], "-o", tmp_path / "file" / "a.npy", code=1)
    assert f"{tmp_path / 'file'} is no folder; name another output" in result.stderr
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        result = run("encode", EXAMPLES[1], "-o", tmp_path / "a.npy", code=1)
        assert "cannot be written" in result.stderr


def test_info_of_tokens_and_of_a_model(run, tmp_path, tiny_folder):
    run("encode", EXAMPLES[1], "-o", tmp_path / "a.avq", "--n-q", "2")
    facts = json.loads(run("info", tmp_path / "a.avq", "--json").stdout)
    assert facts["n_q"] == 2
    assert facts["frames"] == 150
    assert facts["bitrate"] == 500.0
    assert facts["model"] == "test model"
    assert facts["duration_s"] == soundfile.info(EXAMPLES[1]).duration
    facts = json.loads(run("info", tiny_folder, "--json").stdout)
    assert facts["frame_rate"] == 50.0
    assert facts["latency_ms"] == 80.0
    assert "test model" in run("info", tiny_folder).stdout


def test_codebook_counts_what_is_used(run, tmp_path):
    np.save(tmp_path / "a.npy", np.stack([np.arange(1024), np.arange(1024) % 128]).astype("uint16"))
    result = run("codebook", tmp_path / "a.npy", "--json", "--plot", tmp_path / "u.png")
    levels = json.loads(result.stdout)["levels"]
    assert [level["active"] for level in levels] == [1024, 128]
    assert [level["verdict"] for level in levels] == ["healthy", "collapsed"]
    assert levels[0]["perplexity"] == pytest.approx(1024)
    assert levels[1]["entropy_bits"] == pytest.approx(7)
    assert (tmp_path / "u.png").read_bytes()[:4] == b"\x89PNG"
    assert "collapsed" in run("codebook", tmp_path).stdout
    (tmp_path / "below").mkdir()
    (tmp_path / "a.npy").rename(tmp_path / "below/a.npy")
    assert "collapsed" in run("codebook", tmp_path).stdout
    assert "holds no tokens" in run("codebook", tmp_path, "--no-recursive", code=1).output


def test_codebook_reads_what_the_tables_of_a_model_coded(run, coded_model, tmp_path, monkeypatch):
    coded_model.save_pretrained(tmp_path / "m")
    run("encode", EXAMPLES[1], "-o", tmp_path / "a.avq", "--coded", model=str(tmp_path / "m"))
    monkeypatch.setattr("audiovq.entropy._known", {})
    assert "--model" in run("codebook", tmp_path / "a.avq", code=1).output
    levels = json.loads(
        run("codebook", tmp_path / "a.avq", "--model", tmp_path / "m", "--json").stdout
    )
    assert levels["files"] == 1


def test_spectrogram_draws_two_recordings_and_their_tokens(run, tmp_path):
    run("encode", EXAMPLES[1], "-o", tmp_path / "a.npy")
    run("decode", tmp_path / "a.npy", "-o", tmp_path / "a.wav")
    arguments = [EXAMPLES[1], tmp_path / "a.wav", "--tokens", tmp_path / "a.npy"]
    run("spectrogram", *arguments, "-o", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_segments_are_units_with_start_and_duration(run, tmp_path):
    result = run("encode", EXAMPLES[1], "-o", tmp_path / "a.tsv", "--segment", "--price", "2")
    assert "segments" in result.stderr
    lines = (tmp_path / "a.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["unit", "start", "duration"]
    result = run("encode", EXAMPLES[1], "-o", tmp_path / "b.tsv", "--segment", code=2)
    assert "no segment_price; give --price" in result.stderr
    assert sum(float(line.split("\t")[2]) for line in lines[1:]) == pytest.approx(150 / 50)


def test_every_verb_has_help_with_an_example(run):
    verbs = "encode decode info codebook spectrogram evaluate train export prepare".split()
    for verb in verbs:
        assert "Example: audiovq" in run(verb, "--help").stdout, verb
    assert "audiovq 0.1.0" in run("--version").stdout


def _commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_verb_knows_the_short_and_the_long_names(run):
    commands = dict(_commands(typer.main.get_command(audiovq_cli.app)))
    assert len(commands) > 12
    for path, command in commands.items():
        assert "Show this message" in run(*path, "-h").stdout
        for option in command.params:
            assert ("-o" in option.opts) == ("--out" in option.opts), path


def test_help_shows_all_that_it_is_made_from(monkeypatch):
    """Words in square brackets, for one, are markup to typer, and leave no trace."""

    def words(text: str) -> str:
        return " ".join(text.replace("│", " ").split())

    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 2000)  # no text is folded
    commands = dict(_commands(typer.main.get_command(audiovq_cli.app)))
    for path, command in commands.items():
        shown = words(CliRunner().invoke(audiovq_cli.app, [*path, "--help"]).output)
        for text in (command.help, command.epilog, *(param.help for param in command.params)):
            assert words(text or "") in shown, path


def test_exit_codes_and_completion_are_said(run):
    assert "3 nothing failed but outputs that exist" in " ".join(run("encode", "-h").stdout.split())
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "a/b"), 1, "a/b: Permission denied."),
        (OSError(28, "No space left on device"), 1, "standard output: No space left on device."),
        (BrokenPipeError(32, "Broken pipe"), 1, "the program that reads the output has ended."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (MemoryError(), 1, "not enough memory."),
        (KeyError("x"), 1, "KeyError: 'x' (AUDIOVQ_DEBUG=1 shows where)."),
        (ValueError("n_q must be 1."), 2, "n_q must be 1."),
        (ModuleNotFoundError(name="pesq"), 1, "pip install '.[eval]' in the checkout."),
    ],
)
def test_whatever_fails_is_one_sentence(run, monkeypatch, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("audiovq_cli.encode.load_model", fail)
    result = run("encode", EXAMPLES[1], code=code)
    assert result.stderr.startswith("audiovq: ")
    assert result.stderr.endswith(f"{said}\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a shell and /dev/full")
@pytest.mark.parametrize(
    ("redirect", "said"),
    [
        (">&-", "audiovq: standard output: Bad file descriptor."),
        ("> /dev/full", "audiovq: standard output: No space left on device."),
        ("| true", "audiovq: the program that reads the output has ended."),
    ],
)
def test_an_output_that_takes_nothing_is_one_sentence(tmp_path, redirect, said):
    np.save(tmp_path / "a.npy", np.zeros((1, 9), np.uint16))
    script = f"{sys.executable} -m audiovq_cli codebook a.npy --json {redirect}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True)
    assert done.stderr.decode() == f"{said}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a shell")
def test_lines_that_nobody_wants_are_no_failure(tmp_path, tiny_folder):
    """All files are done though no line can be said; data that goes nowhere is a failure."""
    audiovq = f"{sys.executable} -m audiovq_cli"
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((1, 9), np.uint16))
    script = f"{audiovq} decode a.npy b.npy -o out --model {tiny_folder} >&-"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "Bad file" in done.stderr) == (0, False), done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
    script = f"{audiovq} decode a.npy -o again/ --model {tiny_folder} --json >&-"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "audiovq: standard output: Bad file descriptor.\n")


def test_help_comes_without_torch():
    code = (
        "import sys, audiovq_cli\n"
        "try: audiovq_cli.app(['--help'])\n"
        "finally: print('torch' in sys.modules, 'audiovq.model' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_the_extras_that_are_named_exist():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert set(EXTRAS.values()) <= set(tomllib.loads(text)["project"]["optional-dependencies"])
    sources = [*Path(audiovq.__file__).parent.glob("*.py")]
    sources += (Path(__file__).parent.parent / "docs").glob("*.md")
    assert [path for path in sources if "audiovq[" in path.read_text()] == []
