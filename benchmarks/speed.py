"""Real-time factor of encode and decode, beside other codecs, in one run.

    python benchmarks/speed.py [--seconds 10] [--threads 1] [--rounds 5] [--peers encodec,dac,...]
    python benchmarks/speed.py --seconds 3600 --peers ""

Prints seconds of audio per second (higher is faster) of encode and of decode for audiovq, EnCodec
24 kHz, DAC 16 kHz, Mimi and SNAC 24 kHz, and audiovq's ratio to each. The rounds are interleaved,
so that whatever else the machine does falls on all of them; the figure is the best round of each.
The peers are built from their packages (transformers, snac) with random weights: the arithmetic
does not depend on the weights. Opus, if opusenc and opusdec are installed, is timed as whole
commands. Everything is float32 on the CPU; each model at its own sample rate.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from audiovq import AudioVQ
from audiovq.audio import load_audio, save_audio

EXAMPLES = Path(__file__).parent.parent / "examples"
Pair = tuple[Callable[[], object], Callable[[], object]]


def speech(sample_rate: int, seconds: float) -> torch.Tensor:
    """The recordings in examples/, repeated to `seconds`: [1, 1, N]."""
    parts = [load_audio(path, sample_rate) for path in sorted(EXAMPLES.glob("*.flac"))]
    wav = np.resize(np.concatenate(parts), round(seconds * sample_rate))
    return torch.from_numpy(wav)[None, None]


def audiovq(seconds: float) -> Pair:
    """The bundled model, or one of its sizes when there is none."""
    model = AudioVQ.from_pretrained()
    wav = speech(model.config.sample_rate, seconds)
    codes = model.encode(wav)
    return lambda: model.encode(wav), lambda: model.decode(codes)


def encodec(seconds: float) -> Pair:
    """EnCodec 24 kHz at 6 kbit/s."""
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig()).eval()
    wav = speech(24_000, seconds)
    out = model.encode(wav, bandwidth=6.0)
    return (
        lambda: model.encode(wav, bandwidth=6.0),
        lambda: model.decode(out.audio_codes, out.audio_scales),
    )


def dac(seconds: float) -> Pair:
    """DAC 16 kHz, 12 codebooks."""
    from transformers import DacConfig, DacModel

    # The sizes of the released 16 kHz model: hop 320, 12 codebooks.
    config = DacConfig(
        sampling_rate=16_000, downsampling_ratios=[2, 4, 5, 8], upsampling_ratios=[8, 5, 4, 2],
        n_codebooks=12,
    )  # fmt: skip
    model = DacModel(config).eval()
    wav = speech(16_000, seconds)
    out = model.encode(wav)
    return lambda: model.encode(wav), lambda: model.decode(out.quantized_representation)


def mimi(seconds: float) -> Pair:
    """Mimi, 8 codebooks."""
    from transformers import MimiConfig, MimiModel

    model = MimiModel(MimiConfig()).eval()
    wav = speech(24_000, seconds)
    out = model.encode(wav, num_quantizers=8)
    return (
        lambda: model.encode(wav, num_quantizers=8),
        lambda: model.decode(out.audio_codes),
    )


def snac(seconds: float) -> Pair:
    """SNAC 24 kHz."""
    from snac import SNAC

    model = SNAC(
        sampling_rate=24_000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
        decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=4096, codebook_dim=8,
        vq_strides=[4, 2, 1],
    ).eval()  # fmt: skip
    wav = speech(24_000, seconds)
    codes = model.encode(wav)
    return lambda: model.encode(wav), lambda: model.decode(codes)


def opus(seconds: float) -> Pair:
    """opusenc and opusdec at 6 kbit/s, as commands from file to file."""
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        raise ImportError("opusenc and opusdec (opus-tools)")
    folder = Path(tempfile.mkdtemp(prefix="audiovq-speed-"))
    save_audio(folder / "in.wav", speech(16_000, seconds).flatten().numpy(), 16_000)

    def encode() -> None:
        command = ["opusenc", "--quiet", "--bitrate", "6", folder / "in.wav", folder / "a.opus"]
        subprocess.run(command, check=True)

    def decode() -> None:
        command = ["opusdec", "--quiet", "--rate", "16000", folder / "a.opus", folder / "out.wav"]
        subprocess.run(command, check=True, capture_output=True)

    encode()
    return encode, decode


PEERS = {"encodec": encodec, "dac": dac, "mimi": mimi, "snac": snac, "opus": opus}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS), help="which, by commas")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=100)
    systems = {"audiovq": audiovq(options.seconds)}
    for name in filter(None, options.peers.split(",")):
        try:
            systems[name] = PEERS[name](options.seconds)
        except ImportError as error:
            console.print(f"{name} is left out; it needs {error}.")
    best = {(name, way): float("inf") for name in systems for way in range(2)}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, pair in systems.items():
                for way, call in enumerate(pair):
                    start = time.perf_counter()
                    call()
                    best[name, way] = min(best[name, way], time.perf_counter() - start)
    table = Table(title=f"{options.seconds:g} s of speech, {options.threads} thread(s)")
    for column in ("codec", "encode, s/s", "decode, s/s", "audiovq encodes", "audiovq decodes"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for name in systems:
        speeds = [options.seconds / best[name, way] for way in range(2)]
        ratios = [best[name, way] / best["audiovq", way] for way in range(2)]
        table.add_row(
            name, *(f"{speed:.1f}" for speed in speeds), *(f"{ratio:.1f} x" for ratio in ratios)
        )
    console.print(table)


if __name__ == "__main__":
    main()
