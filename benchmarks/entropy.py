"""What contexts are worth in bits, what coded files save, and how fast coding is.

    audiovq encode -r train/ -o tokens/train/ --format avq
    audiovq encode -r heldout/ -o tokens/heldout/ --format avq
    python benchmarks/entropy.py tokens/train/ tokens/heldout/ --tables tables.safetensors

The rows of counts say how many bits the codes of the second folder would take with the counts of
the first one in hand, of single codes (order 0) or of pairs: with the code that the level had in
the frame before, or with that of the level below. Pairs that are rare back off to single codes
(Witten and Bell, 1991). Counts of pairs are millions of numbers, so they are a yardstick. The last
row, mixed, is files as they are coded: by tables learnt from the first folder, which --tables
names, or the model's own. Its codes are decoded and compared, and timed one recording after the
other on one thread: seconds of audio a second of CPU time. Idle machines only.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audiovq import AudioVQ
from audiovq.entropy import Tables, read_tables
from audiovq.files import files_below
from audiovq.training.tables import read_recordings

Codes = Sequence[np.ndarray]


def contexts(name: str, codes: np.ndarray, level: int) -> np.ndarray:
    """A number for the context of each code [T] of a level; 0 where there is none."""
    before = np.zeros(codes.shape[1], np.int64)
    if name == "previous frame":
        before[1:] = codes[level, :-1] + np.int64(1)
    elif name == "previous level" and level:
        before += codes[level - 1] + np.int64(1)
    return before


def counted_bits(learnt: Codes, heard: Codes, n_codes: int, name: str, level: int) -> float:
    """Bits that the codes of a level of `heard` take by the counts of `learnt`."""
    (codes, before), (new, given) = (
        (
            np.concatenate([part[level].astype(np.int64) for part in some]),
            np.concatenate([contexts(name, part, level) for part in some]),
        )
        for some in (learnt, heard)
    )
    singles = np.bincount(codes, minlength=n_codes) + 0.5
    likely = (singles / singles.sum())[new]
    if name != "order 0":
        pairs, counts = np.unique(before * n_codes + codes, return_counts=True)
        times = np.bincount(before, minlength=n_codes + 1)[given]
        kinds = np.bincount(pairs // n_codes, minlength=n_codes + 1)[given]
        asked = given * n_codes + new
        at = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
        found = np.where(pairs[at] == asked, counts[at], 0)
        backed_off = (found + kinds * likely) / np.maximum(times + kinds, 1)
        likely = np.where(times > 0, backed_off, likely)
    return float(-np.log2(likely).sum())


def coded(tables: Tables, heard: Codes, strides: Sequence[int]) -> tuple[int, float, float]:
    """Bytes of the codes of levels of such strides, and seconds of CPU time to encode and to decode
    them."""
    n_q = len(strides)
    n_bytes, times = 0, [0.0, 0.0]
    for codes in heard:
        codes = np.ascontiguousarray(codes[:n_q])
        start = time.process_time()
        data = tables.coder(n_q, strides).encode(codes)
        middle = time.process_time()
        decoded = tables.coder(n_q, strides).decode(data, codes.shape[1])
        times = [times[0] + middle - start, times[1] + time.process_time() - middle]
        if not np.array_equal(decoded, codes):
            raise SystemExit("other codes came back")
        n_bytes += len(data)
    return n_bytes, times[0], times[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learnt", type=Path, help="folder of tokens that tables are learnt from")
    parser.add_argument("heard", type=Path, help="folder of tokens to code")
    parser.add_argument("--model", default="default")
    parser.add_argument("--tables", type=Path, help="the model's own if unset")
    parser.add_argument("--n-q", type=int, nargs="+", help="unset: where the bitrate doubles")
    arguments = parser.parse_args()
    model = AudioVQ.from_pretrained(arguments.model)
    tables = read_tables(arguments.tables) if arguments.tables else model.coding_tables()
    if tables is None:
        raise SystemExit(f"{model.name} has no tables; name some with --tables.")
    learnt, heard = (
        read_recordings(model, files_below(folder))
        for folder in (arguments.learnt, arguments.heard)
    )
    for folder, recordings in ((arguments.learnt, learnt), (arguments.heard, heard)):
        if not recordings:
            parser.error(f"{folder} holds no tokens; `audiovq encode -r` makes some.")
    strides = model.config.frames_per_code
    n_frames = sum(codes.shape[1] for codes in heard)
    seconds = n_frames / model.config.frame_rate
    minutes = sum(codes.shape[1] for codes in learnt) / model.config.frame_rate / 60
    print(f"{len(heard)} recordings, {seconds:.0f} s; counts of {minutes:.0f} minutes\n")
    print("| n_q | contexts | bytes | bits a frame | fewer | encodes | decodes |")
    print("|---|---|---|---|---|---|---|")
    for n_q in arguments.n_q or model.config.doubling_levels():
        packed = model.config.bitrate(n_q) / model.config.frame_rate

        def row(name: str, bits: float, *speeds: float, n_q: int = n_q, packed: float = packed):
            cells = [f"{speed:.0f} s/s" for speed in speeds] or ["", ""]
            fewer = 100 - 100 * bits / n_frames / packed
            cells = [f"{bits / 8:,.0f}", f"{bits / n_frames:.2f}", f"{fewer:.1f} %", *cells]
            print(f"| {n_q} | {name} | {' | '.join(cells)} |", flush=True)

        row("packed", sum(-(-codes.shape[1] * packed // 8) * 8 for codes in heard))
        for name in ("order 0", "previous frame", "previous level"):
            row(
                name,
                sum(
                    counted_bits(
                        [codes[:, :: strides[level]] for codes in learnt],
                        [codes[:, :: strides[level]] for codes in heard],
                        model.config.codebook_size,
                        name,
                        level,
                    )
                    for level in range(n_q)
                ),
            )
        n_bytes, *times = coded(tables, heard, strides[:n_q])
        row("mixed, coded files", 8 * n_bytes, *(seconds / took for took in times))


if __name__ == "__main__":
    main()
