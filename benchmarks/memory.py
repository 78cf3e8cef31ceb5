"""Peak memory of encode and decode against the length of the audio.

    python benchmarks/memory.py [--minutes 1,10,60]

Each length is a process of its own that encodes a file and decodes the tokens with the bundled
model, block by block as the command does. Prints the peak resident size of the process, what of it
came after the model was loaded, and the ratio to the first length: it stays flat.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiovq import AudioVQ
from audiovq.audio import load_audio
from audiovq.transcode import decode_file, encode_file

EXAMPLES = Path(__file__).parent.parent / "examples"


def peak() -> float:
    """Peak resident size of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(minutes: float) -> None:
    """Encode and decode `minutes` of speech; print the peaks after loading and in all."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.wav"
        speech = np.concatenate([load_audio(path, 16_000) for path in EXAMPLES.glob("*.flac")])
        n_left = round(minutes * 60 * 16_000)
        with soundfile.SoundFile(source, "w", 16_000, 1, "PCM_16") as file:
            while n_left > 0:
                file.write(speech[:n_left])
                n_left -= len(speech)
        model = AudioVQ.from_pretrained()
        model.encode(torch.zeros(1, 1, 16_000))
        loaded = peak()
        encode_file(model, source, Path(folder) / "t.npy")
        decode_file(model, Path(folder) / "t.npy", Path(folder) / "out.wav")
    print(loaded, peak())


def main() -> None:
    """Run a process for each length, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", default="1,10,60")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        return measure(options.one)
    print(f"{'minutes':>8} {'peak, MB':>10} {'above the model, MB':>20} {'ratio':>7}")
    first = None
    for minutes in options.minutes.split(","):
        command = [sys.executable, __file__, "--one", minutes]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded, whole = map(float, done.stdout.split())
        first = first or whole
        print(f"{minutes:>8} {whole:>10.0f} {whole - loaded:>20.0f} {whole / first:>7.2f}")
    return None


if __name__ == "__main__":
    main()
