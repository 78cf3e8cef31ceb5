"""Time of `audiovq encode` of a 10 s file from the shell, start to finish.

    python benchmarks/cold_start.py [--repeats 5]

Prints the best and the median wall time of the whole command, of importing the library, and of
`audiovq --version`, which imports no library.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from audiovq.audio import load_audio, save_audio

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    command = str(Path(sys.executable).with_name("audiovq"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "ten.wav"
        parts = [load_audio(path, 16_000) for path in sorted(EXAMPLES.glob("*.flac"))]
        save_audio(source, np.resize(np.concatenate(parts), 160_000), 16_000)
        runs = {
            "audiovq encode, 10 s": [command, "encode", str(source), "--force"],
            "import audiovq": [sys.executable, "-c", "import audiovq"],
            "audiovq --version": [command, "--version"],
        }
        for name, words in runs.items():
            times = []
            for _ in range(options.repeats):
                start = time.perf_counter()
                subprocess.run(words, check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            print(f"{name:>22}: best {min(times):.2f} s, median {np.median(times):.2f} s")


if __name__ == "__main__":
    main()
