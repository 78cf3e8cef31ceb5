"""Peers: the real tools where they are, and the logic around them with stand-ins."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from audiovq.audio import load_audio
from audiovq.quality.peers import (
    CODEC2_MODES,
    SAMPLE_RATE,
    Peer,
    missing_programs,
    parse_peer,
    run_peer,
)

CLIP = sorted((Path(__file__).parent.parent / "examples").glob("*.flac"))[1]

# Stand-ins: the encoders keep the bytes, Codec 2's adds its header; c2dec delays by 160 samples.
STAND_INS = {
    "opusenc": "shutil.copy(sys.argv[-2], sys.argv[-1])",
    "opusdec": "shutil.copy(sys.argv[-2], sys.argv[-1])",
    "c2enc": "open(sys.argv[3], 'wb').write(b'header.' + open(sys.argv[2], 'rb').read())",
    "c2dec": "raw = open(sys.argv[2], 'rb').read()[7:]\n"
    "open(sys.argv[3], 'wb').write((bytes(320) + raw)[:len(raw)])",
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    def install(**programs: str) -> None:
        for name, body in programs.items():
            path = tmp_path / name
            path.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
            path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    install(**STAND_INS)
    return install


def tone(n: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 200 * np.arange(n) / SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("opus:6", Peer("opus", "6")),
        (" opus:7.5 ", Peer("opus", "7.5")),
        ("codec2:700C", Peer("codec2", "700C")),
    ],
)
def test_a_peer_is_read_as_it_is_written(text, peer):
    assert parse_peer(text) == peer
    assert parse_peer(peer.name) == peer


@pytest.mark.parametrize("text", ["", "mp3:32", "opus", "opus:5", "opus:nan", "opus:x", "codec2:6"])
def test_an_unknown_peer_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"peer .* (write opus:6|takes)"):
        parse_peer(text)


@pytest.mark.parametrize("name", ["opus:6", "codec2:3200", "codec2:2400", "codec2:1300"])
@pytest.mark.parametrize("n", [1, 319, 16000, 16001])
def test_length_and_alignment_are_the_original_s(name, n, stand_ins):
    wav = tone(n)
    result = run_peer(parse_peer(name), wav)
    assert result.wav.shape == wav.shape
    assert result.wav.dtype == np.float32
    if n > 1000:  # away from the resampler's edges
        assert np.abs(result.wav - wav)[200:-200].max() < 2e-3


def test_the_size_is_that_of_the_coded_file_with_whole_frames(stand_ins):
    # 1 s at 8 kHz and 160 samples of delay are 51 frames of 160, at 2 bytes a sample here.
    assert run_peer(parse_peer("codec2:3200"), tone(16000)).n_bytes == 51 * 160 * 2 + 7
    assert run_peer(parse_peer("opus:6"), tone(16000)).n_bytes == 44 + 32000


def test_the_rate_reaches_the_encoder(stand_ins):
    stand_ins(opusenc="sys.exit(' '.join(sys.argv[1:4]))")
    with pytest.raises(ValueError, match="opusenc failed with status 1 and said: --quiet --bit"):
        run_peer(parse_peer("opus:12"), tone(1600))
    stand_ins(c2enc="sys.exit(sys.argv[1])")
    with pytest.raises(ValueError, match="said: 700C"):
        run_peer(parse_peer("codec2:700C"), tone(1600))


def test_the_times_are_those_of_the_programs(stand_ins):
    stand_ins(opusdec="import time; time.sleep(0.3)\n" + STAND_INS["opusdec"])
    result = run_peer(parse_peer("opus:6"), tone(1600))
    assert result.decode_seconds > 0.3 > result.encode_seconds > 0


def test_a_missing_program_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    peer = parse_peer("codec2:3200")
    assert missing_programs(peer) == (
        "codec2:3200 needs c2enc and c2dec on the PATH (on Debian: apt-get install codec2)."
    )
    with pytest.raises(ValueError, match="apt-get install codec2"):
        run_peer(peer, tone(100))


def test_samples_of_another_shape_are_refused(stand_ins):
    with pytest.raises(ValueError, match=r"\(1, 100\)"):
        run_peer(parse_peer("opus:6"), tone(100)[None])


@pytest.mark.parametrize(
    "name", ["opus:6", "opus:32", *(f"codec2:{mode}" for mode in CODEC2_MODES)]
)
def test_the_real_tool_is_aligned_and_keeps_its_rate(name):
    peer = parse_peer(name)
    absent = missing_programs(peer)
    if absent:
        pytest.skip(absent)
    wav = load_audio(CLIP, SAMPLE_RATE)
    result = run_peer(peer, wav)
    assert result.wav.shape == wav.shape
    # The loudness contour over 10 ms lines up best within a frame of no shift.
    contours = [
        np.sqrt((x[: len(x) // 160 * 160].reshape(-1, 160) ** 2).mean(1)) for x in (wav, result.wav)
    ]
    contours = [c - c.mean() for c in contours]
    shifts = range(-8, 9)
    best = max(shifts, key=lambda s: float(contours[0] @ np.roll(contours[1], s)))
    assert abs(best) <= 1
    bitrate = result.n_bytes * 8 * SAMPLE_RATE / len(wav)
    nominal = float(peer.rate) * 1000 if peer.tool == "opus" else float(peer.rate.rstrip("C"))
    assert 0.7 < bitrate / nominal < 1.6
