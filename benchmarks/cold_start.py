"""Time from the shell's prompt to the tokens of a 10 s file.

    python benchmarks/cold_start.py

Prints the fastest of several runs in seconds: the interpreter alone, with `import torch`, with
`from audiovq import AudioVQ`, and the whole of `audiovq encode`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import soundfile


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="default", help='"default" or a folder')
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        wav = str(Path(folder) / "a.wav")
        soundfile.write(wav, machine.speech(10.0), 16_000)
        encode = ["-m", "audiovq_cli", "encode", wav, "-o", f"{folder}/a.npy", "--force"]
        commands = {
            "python": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "from audiovq import AudioVQ": ["-c", "from audiovq import AudioVQ"],
            "audiovq encode, 10 s of speech": [*encode, "--model", arguments.model],
        }
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(arguments.rounds):
            for name, words in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                best[name] = min(best[name], time.perf_counter() - start)
    print(machine.table(["", "s"], [[name, f"{spent:.2f}"] for name, spent in best.items()]))


if __name__ == "__main__":
    main()
