"""Live streams through pipes: the tokens of the file, frame by frame, and clear refusals."""

import io
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import audiovq_cli
from audiovq import FileRefused, read_tokens
from audiovq.codes import unpack_tokens
from audiovq.live import decode_live, encode_live
from audiovq_cli.stream import _until_stopped, _was_stopped

RATE = 16_000


def as_wav(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def samples(speech):
    """1.3 s of speech that 16 bits hold exactly, float32 [n]."""
    samples = speech[0, 0, 8_000:29_001].numpy()
    return np.round(samples * 32768).astype(np.int16).astype(np.float32) / 32768


def run_encode(model, data: bytes, **options) -> bytes:
    target = io.BytesIO()
    encode_live(model, io.BytesIO(data), target, **options)
    return target.getvalue()


def test_the_tokens_are_those_of_the_whole(tiny_model, samples):
    whole = tiny_model.encode(torch.from_numpy(samples)[None, None]).indices[0].numpy()
    raw = (samples * 32768).astype("<i2").tobytes()
    for data, options in (
        (as_wav(samples), {}),
        (as_wav(samples, subtype="FLOAT"), {}),
        (as_wav(np.stack([samples, samples], axis=1)), {}),
        (raw, {"raw_rate": RATE}),
    ):
        tokens = unpack_tokens(run_encode(tiny_model, data, **options))
        np.testing.assert_array_equal(tokens.indices, whole)
        assert tokens.header == tiny_model.header(4, len(samples))
    tokens = unpack_tokens(run_encode(tiny_model, raw, raw_rate=RATE, n_q=2))
    np.testing.assert_array_equal(tokens.indices, whole[:2])


def test_another_rate_gives_the_tokens_of_the_file(tiny_model, samples, tmp_path):
    from audiovq.transcode import encode_file

    soundfile.write(tmp_path / "a.wav", samples, 22_050, subtype="PCM_16")
    encode_file(tiny_model, tmp_path / "a.wav", tmp_path / "a.avq", token_format="avq")
    data = run_encode(tiny_model, (tmp_path / "a.wav").read_bytes())
    live, stored = unpack_tokens(data), read_tokens(tmp_path / "a.avq")
    assert live.header == stored.header
    np.testing.assert_array_equal(live.indices, stored.indices)


@pytest.mark.parametrize("raw", [True, False])
def test_decoding_gives_the_samples_of_the_whole(tiny_model, samples, raw):
    stream = run_encode(tiny_model, as_wav(samples))
    target = io.BytesIO()
    report = decode_live(tiny_model, io.BytesIO(stream), target, raw=raw)
    assert report.n_samples == len(samples)
    data = target.getvalue()
    assert data[:4] == (b"RIFF" if not raw else data[:4])
    got = np.frombuffer(data if raw else data[44:], "<i2")
    wav = tiny_model.decode(tiny_model.encode(torch.from_numpy(samples)[None, None]))
    np.testing.assert_allclose(got, wav[0, 0].numpy().clip(-1, 1) * 32768, atol=1.1)
    if not raw:
        target.seek(0)
        np.testing.assert_array_equal(soundfile.read(target, dtype="int16")[0], got)


class Slowly(io.RawIOBase):
    """A pipe that gives a few bytes at a time, as a microphone does."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size

    def read(self, n: int = -1) -> bytes:
        n = len(self.data) if n < 0 else n
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def read1(self, n: int) -> bytes:
        return self.read(min(n, self.size))


@pytest.mark.parametrize("size", [1, 641])
def test_frames_leave_as_soon_as_they_are_known(tiny_model, samples, size):
    """After n bytes in, no frame is missing whose lookahead has come."""
    data = as_wav(samples[:3_000])
    whole = unpack_tokens(run_encode(tiny_model, data))
    seen = []

    class Target(io.BytesIO):
        def flush(self) -> None:
            seen.append((len(source.data), len(self.getvalue())))

    source = Slowly(data, size)
    target = Target()
    report = encode_live(tiny_model, source, target)
    np.testing.assert_array_equal(unpack_tokens(target.getvalue()).indices, whole.indices)
    hop = tiny_model.config.hop_length
    # A chunk is a count, 4 codes of 5 bits in 3 bytes, and a checksum; the first write is the head.
    head = seen[0][1]
    for left, written in seen:
        n_received = (len(data) - 44 - left) // 2
        n_frames = (written - head) // (2 + 3 + 4)
        if left and written > head and size == 1:
            assert n_frames == n_received // hop - tiny_model.config.lookahead
    assert report.compute_times


def test_streams_that_break_off_are_decoded_so_far_and_refused(tiny_model, samples):
    stream = run_encode(tiny_model, as_wav(samples))
    target = io.BytesIO()
    with pytest.raises(FileRefused, match="broke off"):
        decode_live(tiny_model, io.BytesIO(stream[:-20]), target, raw=True)
    n_frames = -(-len(samples) // 320)
    assert len(target.getvalue()) >= (n_frames - 10) * 640


def test_a_stream_of_another_model_is_refused(tiny_model, samples):
    stream = run_encode(tiny_model, as_wav(samples)).replace(
        tiny_model.fingerprint.encode(), b"0" * 16
    )
    with pytest.raises(FileRefused, match="damaged"):  # the checksum, before the model
        decode_live(tiny_model, io.BytesIO(stream), io.BytesIO())
    from audiovq.codes import StreamWriter

    buffer = io.BytesIO()
    header = tiny_model.header(4, 0)
    StreamWriter(buffer, type(header)(**(header.__dict__ | {"fingerprint": "0" * 16}))).end(0)
    with pytest.raises(FileRefused, match="--model"):
        decode_live(tiny_model, io.BytesIO(buffer.getvalue()), io.BytesIO())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no samples"),
        (b"fLaC" + bytes(40), "not WAV"),
        (b"RIFF\0\0\0\0WAVE", "not WAV"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0\0\0", "not WAV"),
        (as_wav(np.zeros(0, np.float32)), "no samples"),
        (as_wav(np.zeros(9, np.float32), subtype="ALAW"), "not WAV"),
        (as_wav(np.full(9, np.nan, np.float32), subtype="FLOAT"), "not finite"),
    ],
)
def test_input_that_is_no_sound_is_refused(tiny_model, data, message):
    with pytest.raises(FileRefused, match=message):
        run_encode(tiny_model, data)


def test_the_lengths_in_the_header_are_not_believed(tiny_model, samples):
    """Programs that write WAV to a pipe do not know them."""
    data = bytearray(as_wav(samples))
    expected = unpack_tokens(run_encode(tiny_model, bytes(data)))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    got = unpack_tokens(run_encode(tiny_model, bytes(data)))
    np.testing.assert_array_equal(got.indices, expected.indices)


def command(*arguments: str, data: bytes) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "audiovq_cli", "stream", *arguments],
        input=data,
        capture_output=True,
        check=False,
    )


def test_the_commands_through_real_pipes(tiny_model, tiny_folder, samples):
    model = ("--model", str(tiny_folder))
    encoded = command("encode", "--latency", *model, data=as_wav(samples))
    assert encoded.returncode == 0, encoded.stderr
    assert b"80 ms" in encoded.stderr
    assert b"20 ms frame + 20 ms lookahead" in encoded.stderr
    assert b"median" in encoded.stderr
    assert unpack_tokens(encoded.stdout).header == tiny_model.header(4, len(samples))
    decoded = command("decode", *model, data=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    assert len(decoded.stdout) == 44 + 2 * len(samples)


def test_the_commands_say_what_is_wrong(tiny_folder):
    model = ("--model", str(tiny_folder))
    for arguments, data, code, message in (
        (("encode", "--raw"), b"", 2, "--rate"),
        (("encode", *model), b"", 1, "no samples"),
        (("decode", *model), b"AVQ1", 1, "damaged"),
        (("decode", *model), b"AVQS", 1, "broke off"),
    ):
        done = CliRunner().invoke(audiovq_cli.app, ["stream", *arguments], input=data)
        assert (done.exit_code, done.stdout_bytes) == (code, b"")
        assert message in done.stderr


def test_what_is_no_pipe_is_one_sentence(tiny_folder, samples, tmp_path):
    """Closed ones, full ones, and ones that nobody reads any more."""
    (tmp_path / "a.wav").write_bytes(as_wav(samples))
    audiovq = f"{sys.executable} -m audiovq_cli stream"
    sound = f"--model {tiny_folder} < {tmp_path}/a.wav"
    for line, message in (
        (f"{audiovq} encode <&-", "pipe sound into it"),
        (f"{audiovq} decode < /dev/null >&-", "pipe an .avq stream"),
        (f"{audiovq} encode {sound} > /dev/full", "No space left"),
        (f"{audiovq} encode {sound} | true; exit ${{PIPESTATUS[0]}}", "has ended"),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=False, text=True)
        assert done.returncode == 1, (line, done.stderr)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_input(monkeypatch, request, name):
    """What is in the pipe by then is read, and nobody has to close it."""
    kept = signal.signal(signal.Signals[name], signal.SIG_DFL)  # under nohup one is ignored
    request.addfinalizer(lambda: signal.signal(signal.Signals[name], kept))
    before = signal.getsignal(signal.Signals[name])
    out, into = os.pipe()
    with open(out) as stdin, open(into, "wb", buffering=0) as microphone:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("audiovq_cli.stream.GRACE", 0.1)
        microphone.write(bytes(10))
        with _until_stopped() as source:
            assert source.read(10) == bytes(10)
            microphone.write(bytes(60_000))
            os.kill(os.getpid(), signal.Signals[name])
            assert source.read() == bytes(60_000)
            assert _was_stopped(source)
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_signal_ends_a_file_of_any_length(monkeypatch, tmp_path):
    (tmp_path / "long").write_bytes(bytes(1 << 23))
    with open(tmp_path / "long") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with _until_stopped() as source:
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(source.read()) <= 1 << 21


def test_signals_that_are_ignored_stay_so(monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open(os.devnull) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            with _until_stopped() as source:
                os.kill(os.getpid(), signal.SIGHUP)
                assert not _was_stopped(source)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_recording_is_whole(tiny_model, tiny_folder, samples):
    """Nobody ends the input, as nobody ends a microphone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "audiovq_cli", "stream", "encode", "--model", str(tiny_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdin.write(as_wav(samples))
        process.stdin.flush()
        head = process.stdout.read(100)  # it is at work
        process.send_signal(signal.SIGINT)
        data = head + process.stdout.read()
    assert process.returncode == 0
    assert unpack_tokens(data).header == tiny_model.header(4, len(samples))
    whole = run_encode(tiny_model, as_wav(samples))
    np.testing.assert_array_equal(unpack_tokens(data).indices, unpack_tokens(whole).indices)
