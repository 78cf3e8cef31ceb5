"""Whether every reader gives the contents of a file or a refusal, whatever the bytes are.

    python benchmarks/fuzz.py --seconds 60

Changes valid files of every kind at random, some blindly, some so that checksums and lengths hold
and what they guard is reached, and hands them to their readers, each in a process of its own. The
table says for each reader how many inputs were tried, accepted and refused with `FileRefused`, how
many ended in any other way, the CPU time of the slowest one, and by how much the process's memory
grew at most. What ended in another way, took over 10 s or a GB of memory is kept with --keep, and
the exit code is then 1. The same seed tries the same inputs.
"""

import argparse
import functools
import gzip
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SLOWEST = 10.0  # seconds
LARGEST = 1 << 30  # bytes
LONGEST = 1 << 24  # bytes of a text after its changes, which can double many times over
HANGS = 120.0  # seconds without a word from the process

NUMBERS = [
    b"0", b"-1", b"-0.0", b"0.5", b"1e-320", b"1e308", b"1e999", b"nan", b"inf", b"-Infinity",
    b"65536", b"671088", b"33554432", b"80000000", b"1000000000", b"4611686018427387904",
    b"18446744073709551616", b"9" * 400, b"9" * 5000, b"0x" + b"f" * 400, b"1L", b"null", b"true",
    b'"x"', b"[]", b"{}", b"()", b"'", b"2020-01-01",
]  # fmt: skip
INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1]
IMPORTS = [
    "lhotse",
    "audiovq.live",
    "audiovq.training.recordings",
    "audiovq.transcode",
    "audiovq.units.files",
]
"""Done once for all processes."""

Random = np.random.Generator
Mutate = Callable[[bytes, Random], bytes]


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """A few changes anywhere, half of them near the start, where headers are."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        end = len(out) if rng.random() < 0.5 else min(len(out), 100)
        at = int(rng.integers(end + 1))
        size = int(rng.integers(1, 64)) if rng.random() < 0.8 else int(rng.integers(1, 5000))
        kind = rng.integers(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            width = int(rng.choice([1, 2, 4, 8]))
            value = INTEGERS[rng.integers(len(INTEGERS))] % (1 << 8 * width)
            out[at : at + width] = value.to_bytes(width, "big" if rng.random() < 0.3 else "little")
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size] * int(rng.integers(1, 4))
        elif kind == 4:
            out[at : at + size] = rng.bytes(size)
        else:
            out = out[: max(at, 1)]
    return bytes(out)


def mutate_text(data: bytes, rng: Random) -> bytes:
    """Numbers that no file should hold, brackets without end, lines lost, doubled and moved."""
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.random()
        if kind < 0.5:
            spans = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", data)]
            if spans:
                start, end = spans[rng.integers(len(spans))]
                data = data[:start] + NUMBERS[rng.integers(len(NUMBERS))] + data[end:]
        elif kind < 0.6:
            at = int(rng.integers(len(data) + 1))
            deep = [b"[", b'{"a":', b"(", b"-", b"'", b"\t", b"a."][rng.integers(7)]
            data = data[:at] + deep * int(rng.choice([1, 100, 9_000, 60_000])) + data[at:]
        elif kind < 0.8:
            lines = data.split(b"\n")
            some, other = rng.integers(len(lines), size=2)
            again = min(100, LONGEST // (len(lines[some]) + 1))  # of which memory is no reader's
            lines[some] = lines[other] if rng.random() < 0.7 else lines[some] * again
            data = b"\n".join(lines)
        else:
            data = mutate_bytes(data, rng)
        data = data[:LONGEST]
    return data


def mutate_npy(data: bytes, rng: Random) -> bytes:
    """The header, with its length as it then is, or anything."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack("<H", data[8:10])
    header = mutate_text(data[10 : 10 + length], rng)[: 1 << 20]
    if len(header) > 0xFFFF:
        return data[:6] + b"\2\0" + struct.pack("<I", len(header)) + header + data[10 + length :]
    return data[:8] + struct.pack("<H", len(header)) + header + data[10 + length :]


def mutate_avq(data: bytes, rng: Random) -> bytes:
    """Header and codes of either form of `.avq`, mostly with lengths and checksums that hold."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack(">H", data[4:6])
    header, rest = data[6 : 6 + length], data[6 + length :]
    if rng.random() < 0.7:
        header = mutate_text(header, rng)[:0xFFFF]
    if rng.random() < 0.5:
        rest = mutate_bytes(rest, rng)
    body = data[:4] + struct.pack(">H", len(header)) + header
    if data[:4] == b"AVQT":  # what holds a checksum is found by decoding alone
        return mutate_bytes(data, rng)
    if data[:4] in (b"AVQ1", b"AVQ2"):
        body += rest[:-4]
        return body + struct.pack(">I", zlib.crc32(body))
    return _sealed_stream(body, rest[4:], header)


def _sealed_stream(body: bytes, chunks: bytes, header: bytes) -> bytes:
    """The chunks of a live stream with their checksums; those of strange headers as they are."""
    try:
        values = json.loads(header)
        bits = values["n_q"] * max(1, (values["codebook_size"] - 1).bit_length())
        packed = [-(-n * bits // 8) for n in (1, 0xFFFF)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        packed, bits = [0, 0], 0
    body += struct.pack(">I", zlib.crc32(body))
    if type(bits) is not int or not 0 < packed[1] < 1 << 30:
        return body + chunks
    at = 0
    while at + 2 <= len(chunks):
        (n_frames,) = struct.unpack(">H", chunks[at : at + 2])
        size = 2 + (-(-n_frames * bits // 8) if n_frames else 8)
        body += chunks[at : at + size]
        body += struct.pack(">I", zlib.crc32(body))
        at += size + 4
    return body


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """The header, with its length as it then is, the numbers, or anything."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.7:
        header = mutate_text(header, rng)
    if rng.random() < 0.4:
        at = int(rng.integers(len(rest)))
        rest = rest[:at] + b"\xff" * 8 + rest[at + 8 :]  # not a number
    return struct.pack("<Q", len(header)) + header + rest


def mutate_gzip(data: bytes, rng: Random) -> bytes:
    """What is compressed, or anything."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    return gzip.compress(mutate_text(gzip.decompress(data), rng), 1)


@dataclass(frozen=True)
class Reader:
    """A reader and how to make its inputs."""

    name: str
    file: str
    """Name of the file that it reads, in a folder."""
    mutate: Mutate
    prepare: Callable[[Path], tuple[list[bytes], Callable[[Path], object]]]
    """Writes what must stand beside the file and returns valid contents and the reader itself."""


# Each imports what it needs: readers are tried in processes of their own.


def _arrays(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.codes import npy_bytes, read_tokens

    codes = np.arange(24).reshape(3, 8) % 7
    others = []
    for array in (codes, codes.astype(np.int8), np.asfortranarray(codes), codes.astype(">u4")):
        file = io.BytesIO()
        np.save(file, array)
        others.append(file.getvalue())
    return [npy_bytes(codes), npy_bytes(_coarse(), (2, 4, 1)), *others], read_tokens


def _coarse() -> np.ndarray:
    """Codes of 8 frames that stand for 2, 4 and 1 of them."""
    return np.arange(24).reshape(3, 8) // np.array([[2], [4], [1]]) % 7


def _packed(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.codes import Header, pack_avq, read_tokens

    coarse = pack_avq(_coarse(), Header("m", "f", 16_000, 320, 7, 3, 2_500, (2, 4, 1)))
    return [
        coarse,
        *(
            pack_avq(
                np.arange(24).reshape(3, 8) % size, Header("m", "f", 16_000, 320, size, 3, 2_500)
            )
            for size in (1, 2, 7, 65_536)
        ),
    ], read_tokens


def _coded_tokens(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.codes import Header, StreamWriter, pack_avq, read_tokens
    from audiovq.entropy import register

    tables, header = _some_tables(), Header("m", "f", 16_000, 320, 7, 3, 6_400)
    register(tables)
    codes = np.repeat(np.arange(12).reshape(3, 4) % 7, 5, axis=1)
    seeds = [pack_avq(codes, header, tables)]
    for chunk in (1, 7, 20):
        file = io.BytesIO()
        writer = StreamWriter(file, header, tables)
        for start in range(0, 20, chunk):
            writer.write(codes[:, start : start + chunk])
        writer.end(6_400)
        seeds.append(file.getvalue())
    return seeds, read_tokens


def _some_tables() -> Any:
    """For codes 0..6 of three levels."""
    import torch

    from audiovq.training.tables import Net

    torch.manual_seed(0)
    slots = np.tile(np.arange(7, dtype=np.uint16), (3, 1))
    return Net((1, 1, 1), groups=2, slots=8).tables("f", slots)


def _tables(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.entropy import read_tables, write_tables

    write_tables(folder / "seed", _some_tables())
    return [(folder / "seed").read_bytes()], read_tables


def _live_tokens(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.codes import Header, StreamWriter, read_tokens

    seeds = []
    for chunk in (1, 3, 8):
        file = io.BytesIO()
        writer = StreamWriter(file, Header("m", "f", 16_000, 320, 7, 3, 0))
        for start in range(0, 8, chunk):
            writer.write(np.arange(24).reshape(3, 8)[:, start : start + chunk] % 7)
        writer.end(2_500)
        seeds.append(file.getvalue())
    file = io.BytesIO()
    writer = StreamWriter(file, Header("m", "f", 16_000, 320, 7, 3, 0, (2, 4, 1)))
    for start in (0, 4):
        writer.write(_coarse()[:, start : start + 4])
    writer.end(2_500)
    return [*seeds, file.getvalue()], read_tokens


@functools.cache
def sounds() -> list[bytes]:
    """Speech-like noise in every container and coding that libsndfile writes here."""
    import soundfile

    rng = np.random.default_rng(0)
    wav = (0.1 * rng.standard_normal(2_000)).astype(np.float32)
    seeds = []
    for container in soundfile.available_formats():
        for coding in soundfile.available_subtypes(container):
            if container in ("RAW", "SD2"):  # no header; a header in a file of its own
                continue
            for rate, channels in ((8_000, 1), (44_100, 2)):
                file = io.BytesIO()
                try:
                    sound = np.repeat(wav[:, None], channels, 1)
                    soundfile.write(file, sound, rate, coding, format=container)
                except (RuntimeError, ValueError, TypeError):
                    continue  # not in this container, or only in files
                seeds.append(file.getvalue())
    return seeds


def _audio(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.audio import load_audio

    return sounds(), lambda path: load_audio(path, 16_000)


def _crops(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.training.data import read_crop

    return sounds(), lambda path: read_crop(path, 320, 16_000, 16_000)


def _scans(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.training.recordings import scan_file

    return sounds(), scan_file


def _segments(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.segment import Segment, expand, read_segments, write_segments

    write_segments(folder / "seed.tsv", [Segment(5, 0, 3), Segment(7, 3, 1), Segment(5, 4, 20)])
    return [(folder / "seed.tsv").read_bytes()], lambda path: expand(read_segments(path))


def _text(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.transcode import repack_file

    model = _small_model(folder, level_strides=(4, 1))  # in which a unit lasts four frames
    return [b"5 5 2 7 2\n", b"5:2 2:7 0:1\n"], lambda path: repack_file(
        model, path, folder / "out.npy", token_format="npy", overwrite=True
    )


def _phones(*texts: str) -> Callable[[Path], tuple[list[bytes], Any]]:
    def prepare(folder: Path) -> tuple[list[bytes], Any]:
        from audiovq.units.alignments import read_alignment

        return [text.encode() for text in texts], read_alignment

    return prepare


TEXT_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.9
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.9
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.9
            text = "see"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.9
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.4
            text = "S"
        intervals [2]:
            xmin = 0.4
            xmax = 0.9
            text = "IY1"
"""
SHORT_TEXT_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.9
<exists>
1
"IntervalTier"
"phones"
0
0.9
2
0
0.4
"S"
0.4
0.9
"IY1"
"""


def _speakers(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.units.files import speakers_by_rule

    seeds = [b"a.wav\ts1\nb/c.wav\ts2\n", b"id\tpath\tspeaker\n1\ta.wav\ts1\n2\tb/c.wav\ts2\n"]
    return seeds, lambda path: speakers_by_rule(["a", "b/c"], str(path))


def _small_model(folder: Path, **changes: Any) -> Any:
    import torch

    from audiovq import AudioVQ, ModelConfig

    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"strides": (40, 8), "channels": (8, 8), "encoder_blocks": (1, 1), "n_fft": 640}
    decoder = {"decoder_channels": 8, "decoder_blocks": 1, "block_frames": 4}
    codebooks = {"n_codebooks": 2, "codebook_size": 8, "codebook_dim": 4}
    config = ModelConfig(**sizes, **decoder, **codebooks, **changes)
    model = AudioVQ(config, {"name": "small"}).eval()
    model.save_pretrained(folder, overwrite=True)
    return model


def _model(file: str) -> Callable[[Path], tuple[list[bytes], Any]]:
    def prepare(folder: Path) -> tuple[list[bytes], Any]:
        from audiovq import AudioVQ

        _small_model(folder)
        return [(folder / file).read_bytes()], lambda path: AudioVQ.from_pretrained(path.parent)

    return prepare


def _recipe(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.training.recipe import read_recipe

    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*/recipe.toml"))
    return [path.read_bytes() for path in recipes], read_recipe


def _manifest(file: str) -> Callable[[Path], tuple[list[bytes], Any]]:
    def prepare(folder: Path) -> tuple[list[bytes], Any]:
        from audiovq.training.data import read_manifest
        from audiovq.training.recordings import recording_cut, write_manifest

        names = {"speaker": "s", "language": "en", "text": "see"}
        cuts = [recording_cut(f"b/{i}", f"/b/{i}.wav", 16_000, 1, 32_000, **names) for i in "123"]
        write_manifest(cuts, folder / file)
        return [(folder / file).read_bytes()], read_manifest

    return prepare


def _checkpoint(folder: Path) -> tuple[list[bytes], Any]:
    import torch

    from audiovq.training.checkpoint import load_checkpoint, save_checkpoint

    tensors = {"x": torch.ones(3, 4), "n": torch.tensor(7), "h": torch.ones(2).half()}
    save_checkpoint(folder / "seed", tensors, {"step": 5, "card": {"name": "a"}})
    return [(folder / "seed").read_bytes()], load_checkpoint


def _stream_encode(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.live import encode_live

    model, seeds = _small_model(folder), [data for data in sounds() if data[:4] == b"RIFF"]
    return seeds, lambda path: encode_live(model, io.BytesIO(path.read_bytes()), io.BytesIO())


def _stream_decode(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.live import decode_live, encode_live

    model, seeds = _small_model(folder), []
    for rate in (8_000, 16_000):
        file = io.BytesIO()
        encode_live(model, io.BytesIO(bytes(8_000)), file, raw_rate=rate)
        seeds.append(file.getvalue())
    return seeds, lambda path: decode_live(model, io.BytesIO(path.read_bytes()), io.BytesIO())


def _decode(folder: Path) -> tuple[list[bytes], Any]:
    from audiovq.transcode import decode_file

    model, (seeds, _) = _small_model(folder), _stream_decode(folder)
    return [*seeds, *_arrays(folder)[0]], lambda path: decode_file(
        model, path, folder / "out.wav", overwrite=True
    )


READERS = [
    Reader("tokens .npy", "a.npy", mutate_npy, _arrays),
    Reader("tokens .avq", "a.avq", mutate_avq, _packed),
    Reader("tokens, live .avq", "a.avq", mutate_avq, _live_tokens),
    Reader("tokens, coded .avq", "a.avq", mutate_avq, _coded_tokens),
    Reader("tables", "tables.safetensors", mutate_safetensors, _tables),
    Reader("audio", "a.wav", mutate_bytes, _audio),
    Reader("audio, crops of training", "a.wav", mutate_bytes, _crops),
    Reader("audio, scan of prepare", "a.wav", mutate_bytes, _scans),
    Reader("segments", "a.tsv", mutate_text, _segments),
    Reader("units as text", "a.txt", mutate_text, _text),
    Reader("alignment .TextGrid", "a.TextGrid", mutate_text, _phones(TEXT_GRID, SHORT_TEXT_GRID)),
    Reader("alignment .phn", "a.phn", mutate_text, _phones("0 800 s\n800 1600 iy\n", "0.0 .1 s\n")),
    Reader("alignment .lab", "a.lab", mutate_text, _phones("0 50000 s\n", "#\n0.1 121 s\n")),
    Reader("alignment .ctm", "a.ctm", mutate_text, _phones("u 1 0.0 0.1 S_B\nu 1 0.1 0.2 IY1_E\n")),
    Reader("speakers", "a.tsv", mutate_text, _speakers),
    Reader("model, config.json", "config.json", mutate_text, _model("config.json")),
    Reader("model, weights", "model.safetensors", mutate_safetensors, _model("model.safetensors")),
    Reader("recipe", "recipe.toml", mutate_text, _recipe),
    Reader("manifest .jsonl", "a.jsonl", mutate_text, _manifest("a.jsonl")),
    Reader("manifest .jsonl.gz", "a.jsonl.gz", mutate_gzip, _manifest("a.jsonl.gz")),
    Reader("checkpoint", "a.safetensors", mutate_safetensors, _checkpoint),
    Reader("stream encode", "a.wav", mutate_bytes, _stream_encode),
    Reader("stream decode", "a.avq", mutate_avq, _stream_decode),
    Reader("decode", "a.avq", lambda data, rng: _either(data, rng), _decode),
]


def _either(data: bytes, rng: Random) -> bytes:
    return mutate_avq(data, rng) if data[:3] == b"AVQ" else mutate_npy(data, rng)


@dataclass
class Result:
    """What became of the inputs of a reader."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    escaped: int = 0
    slowest: float = 0.0
    memory: int = 0
    """Bytes by which the peak of the process grew."""
    kinds: dict[str, int] = field(default_factory=dict)
    """What escaped and where, and how often."""

    @property
    def is_good(self) -> bool:
        """Whether nothing escaped, took too long or too much memory."""
        return not self.escaped and self.slowest < SLOWEST and self.memory < LARGEST

    def add(self, other: "Result") -> None:
        """Add the inputs of another process."""
        for name in ("tried", "accepted", "refused", "escaped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.memory = max(self.memory, other.memory)
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count


def attempt(
    reader: Reader,
    folder: Path,
    *,
    seed: int,
    first: int = 0,
    inputs: int | None = None,
    seconds: float = 1e9,
    keep: Path | None = None,
    tell: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Try inputs `first`, `first` + 1, ... in this process."""
    from audiovq.files import FileRefused

    result = Result()
    contents, read = reader.prepare(folder)
    path, started = folder / reader.file, _peak_memory()
    end = time.monotonic() + seconds
    tell(result)
    for number in itertools.count(first):
        if number - first == inputs or time.monotonic() > end:
            return result
        rng = np.random.default_rng([seed, zlib.crc32(reader.name.encode()), number])
        data = reader.mutate(contents[rng.integers(len(contents))], rng)
        path.write_bytes(data)
        before, start = result.memory, time.process_time()
        bad = ""
        try:
            read(path)
            result.accepted += 1
        except FileRefused:
            result.refused += 1
        except Exception as error:
            result.escaped += 1
            bad = _place(error)
        took = time.process_time() - start
        result.tried += 1
        result.slowest = max(result.slowest, took)
        result.memory = max(result.memory, _peak_memory() - started)
        if took > SLOWEST:
            bad = bad or "slow"
        if before < LARGEST < result.memory:
            bad = bad or "memory"
        if bad:
            result.kinds[bad] = result.kinds.get(bad, 0) + 1
            if keep is not None and result.kinds[bad] == 1:
                _keep(keep, reader, number, bad, data)
        tell(result)
    return result


def _place(error: Exception) -> str:
    """The kind of an error and the line of audiovq where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}audiovq{os.sep}" in frame.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    return f"{type(error).__name__} at {where}: {str(error)[:80]!r}"


def _keep(folder: Path, reader: Reader, number: int, what: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", f"{reader.name}-{number}-{what.partition(':')[0]}")
    (folder / f"{name}-{reader.file}").write_bytes(data)


def _peak_memory() -> int:
    """Bytes that this process had in memory at most so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _work(
    connection: multiprocessing.connection.Connection,
    number: int,
    folder: Path,
    options: dict[str, Any],
) -> None:
    """Try a reader in a process of its own, and tell every second how it is going."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # C libraries say what they think of a file
    os.dup2(null, 2)
    told = 0.0

    def tell(result: Result) -> None:
        nonlocal told
        if time.monotonic() - told > 1:
            connection.send(result)
            told = time.monotonic()

    connection.send(attempt(READERS[number], folder, tell=tell, **options))
    connection.send(None)


def fuzz(number: int, *, seed: int, inputs: int, seconds: float, keep: Path | None) -> Result:
    """Try a reader until `inputs` or `seconds` are through, with new processes for lost ones."""
    total, end = Result(), time.monotonic() + seconds
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTS)
    while total.tried < inputs and (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = server.Pipe()
            options = {"seed": seed, "first": total.tried, "inputs": inputs - total.tried}
            options |= {"seconds": left, "keep": keep}
            process = server.Process(target=_work, args=(theirs, number, Path(folder), options))
            process.start()
            theirs.close()
            result: Result | None = Result()
            lost = ""
            try:
                while result is not None:
                    last = result
                    if not ours.poll(HANGS):
                        raise TimeoutError
                    if not last.tried:  # imports take longer than some inputs
                        end = max(end, time.monotonic() + left)
                    result = ours.recv()
            except TimeoutError:
                lost = f"nothing heard for {HANGS:.0f} s"
            except EOFError:
                lost = "the process died"
            process.kill()
            process.join()
            total.add(last)
            if lost:
                total.add(Result(tried=1, escaped=1, kinds={lost: 1}))
                path = Path(folder) / READERS[number].file
                if keep is not None and path.exists():
                    _keep(keep, READERS[number], total.tried, lost, path.read_bytes())
    return total


def main() -> None:
    """Try the readers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each reader")
    parser.add_argument("--inputs", type=int, default=1 << 40, help="for each reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only readers with this in their name")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were not refused")
    arguments = parser.parse_args()
    print("| reader | inputs | accepted | refused | escaped | slowest s | memory MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    total, escapes = Result(), []
    for number, reader in enumerate(READERS):
        if arguments.reader and not any(part in reader.name for part in arguments.reader):
            continue
        result = fuzz(
            number,
            seed=arguments.seed,
            inputs=arguments.inputs,
            seconds=arguments.seconds,
            keep=arguments.keep,
        )
        print(_row(reader.name, result), flush=True)
        escapes += [f"{reader.name}: {count} x {kind}" for kind, count in result.kinds.items()]
        total.add(result)
    print(_row("all", total))
    print(*escapes, sep="\n")
    sys.exit(0 if total.is_good else 1)


def _row(name: str, result: Result) -> str:
    counts = [result.tried, result.accepted, result.refused, result.escaped]
    cells = [f"{count:,}" for count in counts]
    cells += [f"{result.slowest:.2f}", f"{result.memory / 1e6:.0f}"]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
