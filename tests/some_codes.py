"""Codes and their headers that tests of token files share."""

import io

import numpy as np

from audiovq import Header
from audiovq.codes import StreamWriter

HEADER = Header("a model", "0123456789abcdef", 16_000, 320, 1024, 3, 320 * 7 - 5)


def codes_like(header: Header, rng: np.random.Generator, n_frames: int | None = None) -> np.ndarray:
    shape = (header.n_q, header.n_frames if n_frames is None else n_frames)
    return rng.integers(header.codebook_size, size=shape, dtype=np.uint16)


def live_stream(codes, header: Header, n_samples: int, chunk: int = 2, tables=None) -> bytes:
    buffer = io.BytesIO()
    writer = StreamWriter(buffer, header, tables)
    for start in range(0, codes.shape[1], chunk):
        writer.write(codes[:, start : start + chunk])
    writer.end(n_samples)
    return buffer.getvalue()
