"""Time that a live stream takes for each chunk (a group of frames), encode and decode, on one core.

    python benchmarks/latency.py --seconds 30

Prints median, 99th percentile, maximum and mean in milliseconds by wall clock, for encode and
decode in turn, for both by processor time, which does not count the time that other programs had
the core, and for each of the two alone, as on different machines; and the algorithmic delay.
"""

import argparse
import time

import machine
import numpy as np
import torch

from audiovq import AudioVQ


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="default", help='"default", "random" or a folder')
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model == "random":
        model = AudioVQ(AudioVQ.from_pretrained().config).eval().round_weights()
    else:
        model = AudioVQ.from_pretrained(arguments.model)
    config = model.config
    wav = torch.from_numpy(machine.speech(arguments.seconds, config.sample_rate))[None, None]
    stream = model.stream()
    size = config.hop_length * config.group_frames
    spent: list[list[float]] = []
    received = []
    for chunk in wav.split(size, dim=2):
        times, cpu = [time.perf_counter()], time.thread_time()
        received.append(stream.encode(chunk))
        times.append(time.perf_counter())
        stream.decode(received[-1])
        times.append(time.perf_counter())
        encode, decode = np.diff(times)
        spent.append([encode, decode, encode + decode, time.thread_time() - cpu])
    for row, chunk in zip(spent, wav.split(size, dim=2)):
        start = time.perf_counter()
        stream.encode(chunk)
        row.append(time.perf_counter() - start)
    for row, codes in zip(spent, received):
        start = time.perf_counter()
        stream.decode(codes)
        row.append(time.perf_counter() - start)
    spent = spent[10:]  # the first chunks pack the weights and try the kernels
    print(machine.describe())
    single = "single frames" if stream._engine.takes_single_frames else "whole blocks"
    milliseconds = 1000 * size / config.sample_rate
    print(f"{len(spent)} chunks of {milliseconds:g} ms; the encoder takes {single}")
    rows = []
    names = ["encode", "decode", "both", "both, processor time", "encode alone", "decode alone"]
    for name, column in zip(names, 1000 * np.array(spent).T):
        numbers = (np.median(column), np.percentile(column, 99), column.max(), column.mean())
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    print(machine.table(["ms", "median", "99 %", "maximum", "mean"], rows))
    hop = 1000 * config.hop_length / config.sample_rate
    parts = (hop * config.group_frames, hop * config.lookahead, hop * config.overlap_frames)
    print(
        f"algorithmic delay: {sum(parts):g} ms = {parts[0]:g} ms group + {parts[1]:g} ms lookahead "
        f"+ {parts[2]:g} ms overlap of the synthesis windows"
    )


if __name__ == "__main__":
    machine.run_benchmark(main)
