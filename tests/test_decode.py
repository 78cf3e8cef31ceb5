"""Everything that decodes: tokens in each form that is written, with all levels or fewer."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from tiny import EXAMPLES

from audiovq import FileRefused, read_tokens, write_npy
from audiovq.audio import as_int16
from audiovq.segment import MAX_FRAMES, run_lengths, to_text, write_segments
from audiovq.transcode import decode_file, encode_file


@pytest.fixture(scope="module")
def tokens(tiny_model, tmp_path_factory):
    """Tokens [4, T] of a recording, uint16."""
    path = tmp_path_factory.mktemp("tokens") / "a.npy"
    encode_file(tiny_model, EXAMPLES[1], path)
    return read_tokens(path).indices


def samples_of(model, path, **options) -> np.ndarray:
    target = path.with_name(path.name + ".wav")
    decode_file(model, path, target, overwrite=True, **options)
    return soundfile.read(target, dtype="int16")[0]


def test_units_in_every_form_are_the_first_level(tiny_model, tokens, tmp_path, monkeypatch):
    units = tokens[0]
    write_npy(tmp_path / "goal.npy", tokens[:1])
    np.save(tmp_path / "units.npy", units)
    write_segments(tmp_path / "units.tsv", run_lengths(units))
    (tmp_path / "units.txt").write_text(to_text(units) + "\n")
    (tmp_path / "merged.txt").write_text(to_text(units, durations=True) + "\n")
    goal = samples_of(tiny_model, tmp_path / "goal.npy")
    assert len(goal) == 320 * len(units)
    for name in ("units.npy", "units.tsv", "units.txt", "merged.txt"):
        path = tmp_path / name
        np.testing.assert_array_equal(samples_of(tiny_model, path), goal)
        stdin = type("Stdin", (), {"buffer": io.BytesIO(path.read_bytes())})
        monkeypatch.setattr("sys.stdin", stdin)
        decode_file(tiny_model, "-", tmp_path / "stdin.wav", overwrite=True)
        got = soundfile.read(tmp_path / "stdin.wav", dtype="int16")[0]
        np.testing.assert_array_equal(got, goal)


def test_merged_units_play_a_frame_each(tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text(to_text(np.array([3, 3, 3, 5, 5, 3]), dedup=True))
    np.save(tmp_path / "b.npy", np.array([3, 5, 3]))
    np.testing.assert_array_equal(
        samples_of(tiny_model, tmp_path / "a.txt"), samples_of(tiny_model, tmp_path / "b.npy")
    )


def test_fewer_levels_are_those_of_fewer_tokens(tiny_model, tokens, tmp_path):
    write_npy(tmp_path / "all.npy", tokens)
    for n_q in (1, 3, 4):
        write_npy(tmp_path / "few.npy", tokens[:n_q], overwrite=True)
        np.testing.assert_array_equal(
            samples_of(tiny_model, tmp_path / "all.npy", n_q=n_q),
            samples_of(tiny_model, tmp_path / "few.npy"),
        )
    write_npy(tmp_path / "few.npy", tokens[:2], overwrite=True)
    for n_q in (0, 3):
        with pytest.raises(FileRefused, match=r"few.npy has 2 levels"):
            samples_of(tiny_model, tmp_path / "few.npy", n_q=n_q)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "a.txt holds no units"),
        ("a.txt", b"1 2\n3 4\n", "not units as text: several lines"),
        ("a.txt", b"5:2 7:0", "not units as text: '7:0' ends after frame"),
        ("a.txt", b"5 seven", "not units as text"),
        ("a.txt", b"utterance|1 2", "not units as text"),
        ("a.txt", b"-1 2", "not units as text"),
        ("a.txt", b"1 32", "code 32 is out of range"),
        ("a.txt", b"1 99999", "a unit out of range"),
        ("a.txt", "\u0663 \u0664".encode(), "not units as text"),
        ("a.txt", b"1 \xff", "UTF-8"),
        ("a.tsv", b"unit\tstart\n1\t2\n", "not a segment file"),
        ("a.tsv", b"unit\tstart\tduration\n1\t0\t1e9\n", r"last|more than"),
        ("a.tsv", b"unit\tstart\tduration\n70000\t0\t1\n", "out of range"),
        ("a.tsv", b"unit\tstart\tduration\n40\t0\t1\n", "out of range"),
        ("a.npy", b"nonsense", "not a token file"),
    ],
)
def test_what_is_no_tokens_is_refused(tiny_model, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileRefused, match=message):
        decode_file(tiny_model, tmp_path / name, tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_a_week_of_one_unit_is_refused_before_the_work(tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text(f"5:{MAX_FRAMES}")
    tracemalloc.start()
    for target in (tmp_path / "a.wav", "-"):
        with pytest.raises(FileRefused, match=r"WAV holds 2147352576; write \.flac"):
            decode_file(tiny_model, tmp_path / "a.txt", target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
    assert not (tmp_path / "a.wav").exists()


def test_standard_output_has_the_bytes_of_the_file_as_they_come(
    tiny_model, tokens, tmp_path, monkeypatch
):
    write_npy(tmp_path / "a.npy", tokens)
    decode_file(tiny_model, tmp_path / "a.npy", tmp_path / "a.wav")
    parts = []
    monkeypatch.setattr("audiovq.audio.write_standard_output", parts.append)
    monkeypatch.setattr("audiovq.transcode.DECODE_FRAMES", 40)
    decode_file(tiny_model, tmp_path / "a.npy", "-")
    assert b"".join(parts) == (tmp_path / "a.wav").read_bytes()
    assert max(map(len, parts)) <= 2 * 320 * 40


def test_an_empty_standard_input_is_said_to_be_empty(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO()}))
    with pytest.raises(FileRefused, match="Standard input is empty"):
        decode_file(tiny_model, "-", tmp_path / "a.wav")
    with pytest.raises(FileRefused, match="Standard input is empty"):
        encode_file(tiny_model, "-", tmp_path / "a.npy")


def test_samples_are_rounded_to_the_nearest_and_clipped(rng):
    wav = rng.uniform(-1, 1, 999).astype(np.float32)
    assert np.abs(as_int16(wav) - (wav * 32768.0).clip(-32768, 32767)).max() <= 0.5
    integers = np.arange(-32768, 32768).astype(np.int16)
    np.testing.assert_array_equal(as_int16(integers.astype(np.float32) / 32768), integers)
    np.testing.assert_array_equal(as_int16(np.float32([2, -2, 1])), [32767, -32768, 32767])
