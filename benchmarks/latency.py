"""Delay of a stream: what the algorithm waits for, and what computing a chunk costs.

    python benchmarks/latency.py [--chunk 0.02] [--seconds 20] [--threads 1]

Streams speech through the bundled model, chunk by chunk, and prints the median and the 99th
percentile of the milliseconds that encode, decode and both take for a chunk.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from audiovq import AudioVQ
from audiovq.audio import load_audio

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chunk", type=float, default=0.02, help="in s")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AudioVQ.from_pretrained()
    config = model.config
    rate, hop = config.sample_rate, config.hop_length
    parts = [load_audio(path, rate) for path in sorted(EXAMPLES.glob("*.flac"))]
    wav = np.resize(np.concatenate(parts), round(options.seconds * rate))
    chunks = torch.from_numpy(wav)[None, None].split(round(options.chunk * rate), dim=2)
    stream = model.stream()
    stream.decode(stream.encode(torch.zeros(1, 1, rate)))  # warm up
    stream.flush()
    times = []
    with torch.inference_mode():
        for chunk in chunks:
            start = time.perf_counter()
            codes = stream.encode(chunk)
            middle = time.perf_counter()
            stream.decode(codes)
            times.append((middle - start, time.perf_counter() - middle))
    table = 1000 * np.array(times)
    print(
        f"algorithmic delay: {1000 * hop / rate:g} ms frame + "
        f"{1000 * config.lookahead * hop / rate:g} ms lookahead + "
        f"{1000 * config.overlap_frames * hop / rate:g} ms overlap = "
        f"{1000 * config.delay / rate:g} ms"
    )
    print(f"{len(chunks)} chunks of {1000 * options.chunk:g} ms, {options.threads} thread(s)")
    for name, column in zip(
        ("encode", "decode", "both"), (table[:, 0], table[:, 1], table.sum(axis=1))
    ):
        print(
            f"{name:>7}: median {np.median(column):.2f} ms, "
            f"99 % within {np.quantile(column, 0.99):.2f} ms"
        )


if __name__ == "__main__":
    main()
