"""Other codecs to compare with: command-line tools of this machine, at a named rate.

A peer is written TOOL:RATE. `opus:6` is Opus (RFC 6716) at 6 kbit/s through opusenc and opusdec;
`codec2:3200` is Codec 2 (Rowe, "Techniques for harmonic sinusoidal coding", 1997) at 3200 bit/s
through c2enc and c2dec, which work at 8 kHz.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audiovq.audio import fit_length
from audiovq.hearing import SAMPLE_RATE

CODEC2_MODES = {
    "3200": (160, 160),
    "2400": (160, 160),
    "1600": (320, 160),
    "1400": (320, 160),
    "1300": (320, 160),
    "1200": (320, 160),
    "700C": (320, 240),
    "450": (320, 240),
}
"""Codec 2's modes: (samples in a frame, samples of delay) at 8 kHz.

The delay is the shift at which the decoded speech has the highest STOI, measured on 1.0.5.
"""


@dataclass(frozen=True)
class Peer:
    """A codec at one rate, as `parse_peer` reads it."""

    tool: str
    rate: str

    @property
    def name(self) -> str:
        """TOOL:RATE."""
        return f"{self.tool}:{self.rate}"


@dataclass(frozen=True)
class PeerResult:
    """What a peer made of a clip.

    `wav` is float32 [n] at 16 kHz, as long as the original and aligned with it; `n_bytes` is the
    size of the coded file with its container; the times include the start of the programs.
    """

    wav: np.ndarray
    n_bytes: int
    encode_seconds: float
    decode_seconds: float


def parse_peer(text: str) -> Peer:
    """Read "opus:6" (6 to 256 kbit/s) or "codec2:3200" (a mode of `CODEC2_MODES`).

    Raises `ValueError` when the tool or its rate is not known.
    """
    tool, _, rate = text.strip().partition(":")
    if tool not in _TOOLS:
        raise ValueError(f"peer {text!r} is not known; write {_EXAMPLES}.")
    if tool == "opus":
        try:
            allowed = 6 <= float(rate) <= 256
        except ValueError:
            allowed = False
        if not allowed:
            raise ValueError(f"peer {text!r}: opus takes 6 to 256 kbit/s, as in opus:6.")
    if tool == "codec2" and rate not in CODEC2_MODES:
        raise ValueError(f"peer {text!r}: codec2 takes one of {', '.join(CODEC2_MODES)}.")
    return Peer(tool, rate)


def missing_programs(peer: Peer) -> str | None:
    """A sentence that says what to install for `peer`, or None if all is there."""
    tool = _TOOLS[peer.tool]
    absent = [program for program in tool.programs if shutil.which(program) is None]
    if not absent:
        return None
    return (
        f"{peer.name} needs {' and '.join(absent)} on the PATH "
        f"(on Debian: apt-get install {tool.debian_package})."
    )


def run_peer(peer: Peer, wav: np.ndarray) -> PeerResult:
    """Send float32 samples [n] in -1..1 at 16 kHz through a peer and back.

    Raises `ValueError` when a program is missing or fails.
    """
    absent = missing_programs(peer)
    if absent:
        raise ValueError(absent)
    wav = np.asarray(wav, dtype=np.float32)
    if wav.ndim != 1 or not len(wav):
        raise ValueError(f"wav must be samples [n], n >= 1, not {wav.shape}.")
    with tempfile.TemporaryDirectory() as folder:
        return _TOOLS[peer.tool].run(wav, peer.rate, Path(folder))


def _opus(wav: np.ndarray, rate: str, folder: Path) -> PeerResult:
    original, coded, decoded = folder / "in.wav", folder / "coded.opus", folder / "out.wav"
    soundfile.write(original, wav, SAMPLE_RATE, "PCM_16")
    encode_seconds = _call(
        *("opusenc", "--quiet", "--bitrate", rate, "--discard-comments", "--padding", "0"),
        *(str(original), str(coded)),
    )
    decode_seconds = _call("opusdec", "--quiet", "--rate", str(SAMPLE_RATE), coded, decoded)
    # The Ogg container carries the delay and the length, and opusdec removes both.
    out, _ = soundfile.read(decoded, dtype="float32")
    return PeerResult(
        fit_length(out, len(wav)), coded.stat().st_size, encode_seconds, decode_seconds
    )


def _codec2(wav: np.ndarray, rate: str, folder: Path) -> PeerResult:
    frame, delay = CODEC2_MODES[rate]
    original, coded, decoded = folder / "in.raw", folder / "coded.c2", folder / "out.raw"
    narrow = soxr.resample(wav, SAMPLE_RATE, 8000)
    # c2enc drops the part of a frame at the end, and the delay pushes the clip's end past it.
    n_frames = -(-(len(narrow) + delay) // frame)
    pcm = (narrow.clip(-1, 1) * 32767).round().astype("<i2")
    np.pad(pcm, (0, n_frames * frame - len(pcm))).tofile(original)
    encode_seconds = _call("c2enc", rate, original, coded)
    decode_seconds = _call("c2dec", rate, coded, decoded)
    out = np.fromfile(decoded, "<i2").astype(np.float32)[delay:] / 32768
    wide = soxr.resample(out, 8000, SAMPLE_RATE)
    return PeerResult(
        fit_length(wide, len(wav)), coded.stat().st_size, encode_seconds, decode_seconds
    )


@dataclass(frozen=True)
class _Tool:
    run: Callable[[np.ndarray, str, Path], PeerResult]
    programs: tuple[str, str]
    debian_package: str


_TOOLS = {
    "opus": _Tool(_opus, ("opusenc", "opusdec"), "opus-tools"),
    "codec2": _Tool(_codec2, ("c2enc", "c2dec"), "codec2"),
}
_EXAMPLES = "opus:6 (kbit/s) or codec2:3200 (bit/s)"


def _call(*command: str | Path) -> float:
    """Run a program and return the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "nothing"
        raise ValueError(
            f"{command[0]} failed with status {done.returncode} and said: {said.splitlines()[-1]}"
        )
    return seconds
