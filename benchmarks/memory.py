"""Peak memory of encoding and decoding a file, against its length.

    python benchmarks/memory.py --minutes 1 10 60

Prints, for each length, the peak resident memory of a fresh process that encodes a WAV file and of
one that decodes the tokens, beside that of a process that only loads the model.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import numpy as np
import soundfile

CHILD = """
import resource, sys
from audiovq import AudioVQ
from audiovq.transcode import decode_file, encode_file
model = AudioVQ.from_pretrained(sys.argv[1])
if sys.argv[2] == "encode":
    encode_file(model, sys.argv[3], sys.argv[4], token_format="avq")
elif sys.argv[2] == "decode":
    decode_file(model, sys.argv[3], sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(*arguments: str) -> str:
    """MiB of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
    )
    return f"{float(done.stdout):.0f}"


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="default", help='"default" or a folder')
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 60])
    arguments = parser.parse_args()
    print(machine.describe())
    rows = [["model alone", peak(arguments.model, "load"), peak(arguments.model, "load")]]
    minute = (machine.speech(60.0) * 32767).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            wav, tokens, out = (
                str(Path(folder) / f"{minutes}{suffix}") for suffix in (".wav", ".avq", ".out.wav")
            )
            with soundfile.SoundFile(wav, "w", 16_000, 1, "PCM_16") as file:
                for _ in range(minutes):
                    file.write(minute)
            encode = peak(arguments.model, "encode", wav, tokens)
            rows.append([f"{minutes} min", encode, peak(arguments.model, "decode", tokens, out)])
    print(machine.table(["length", "encode, MiB", "decode, MiB"], rows))


if __name__ == "__main__":
    machine.run_benchmark(main)
