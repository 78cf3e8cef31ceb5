"""Whatever the bytes are, a reader gives the contents of a file or refuses it."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiovq.audio import load_audio
from audiovq.codes import Header, Tokens, npy_bytes, pack_avq, unpack_tokens
from audiovq.files import FileRefused
from audiovq.segment import MAX_FRAMES, Segment, read_segments, write_segments
from audiovq.units.alignments import ALIGNMENT_SUFFIXES, MAX_SECONDS, read_alignment
from benchmarks import fuzz

quickly = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HEADER = Header("m", "f", 16_000, 320, 7, 3, 2_500)
CODES = np.arange(24).reshape(3, 8) % 7
numbers = st.one_of(st.integers(), st.integers(0, 1 << 20), st.floats(), st.none(), st.text())
# A few bytes of a file in another's place: (where, as a share of the file; what).
edits = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=9)), min_size=1, max_size=4)


def edited(data: bytes, edits: list[tuple[float, bytes]]) -> bytes:
    out = bytearray(data)
    for share, new in edits:
        at = int(share * len(out))
        out[at : at + len(new)] = new
    return bytes(out)


def tokens_or_refusal(data: bytes) -> Tokens | None:
    try:
        tokens = unpack_tokens(data)
    except FileRefused:
        return None
    assert tokens.indices.dtype == np.uint16
    assert tokens.indices.ndim == 2
    assert 0 < tokens.indices.size <= 16 * len(data)
    return tokens


@quickly
@given(st.binary(max_size=200), st.sampled_from([b"", b"AVQ1", b"AVQS", b"\x93NUMPY\1\0"]))
def test_any_bytes_are_tokens_or_refused(data, magic):
    tokens_or_refusal(magic + data)


@quickly
@given(
    st.dictionaries(st.sampled_from(list(HEADER.__dict__)), numbers, min_size=1),
    st.binary(max_size=20),
)
def test_any_header_with_a_right_checksum_is_tokens_or_refused(change, data):
    head = json.dumps(HEADER.__dict__ | change).encode()
    for magic in (b"AVQ1", b"AVQS"):
        body = magic + struct.pack(">H", len(head)) + head
        if magic == b"AVQS":
            body += struct.pack(">I", zlib.crc32(body))
        body += data
        tokens = tokens_or_refusal(body + struct.pack(">I", zlib.crc32(body)))
        if tokens is not None and tokens.header is not None:
            assert tokens.indices.shape == (tokens.header.n_q, tokens.header.n_frames)


@quickly
@given(numbers, numbers, st.sampled_from(["<u2", ">i8", "|O", "<f4", "m8", "u2,u2"]), st.booleans())
def test_any_shape_of_an_array_is_tokens_or_refused(rows, columns, kind, by_column):
    head = repr({"descr": kind, "fortran_order": by_column, "shape": (rows, columns)}).encode()
    tokens_or_refusal(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(48))


@quickly
@given(edits)
def test_edited_tokens_are_tokens_or_refused(edits):
    tokens_or_refusal(edited(npy_bytes(CODES), edits))
    packed = pack_avq(CODES, HEADER)
    tokens = tokens_or_refusal(edited(packed, edits))
    assert tokens is None or np.array_equal(tokens.indices, CODES)


@quickly
@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=4), edits)
def test_any_segments_are_read_or_refused(tmp_path, rows, edits):
    path = tmp_path / "a.tsv"
    write_segments(path, [Segment(5, 0, 3), Segment(7, 3, 1)], overwrite=True)
    lines = ["unit\tstart\tduration", *("\t".join(map(str, row)) for row in rows)]
    whole = "\n".join(lines).encode(errors="surrogatepass")
    for data in (edited(path.read_bytes(), edits), whole, edited(whole, edits)):
        path.write_bytes(data)
        try:
            segments = read_segments(path)
        except FileRefused:
            continue
        assert segments[0].start == 0
        assert 0 < sum(segment.duration for segment in segments) <= MAX_FRAMES


@quickly
@given(
    st.lists(st.tuples(numbers, numbers, numbers, numbers, st.text()), max_size=4),
    st.sampled_from([suffix for suffix in ALIGNMENT_SUFFIXES if suffix != ".textgrid"]),
)
def test_any_alignment_is_read_or_refused(tmp_path, rows, suffix):
    path = tmp_path / f"a{suffix}"
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        intervals = read_alignment(path)
    except FileRefused:
        return
    times = [time for interval in intervals for time in (interval.start, interval.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= MAX_SECONDS


@quickly
@given(edits, st.integers(0, 999))
def test_edited_audio_is_read_or_refused(tmp_path, edits, which):
    path = tmp_path / "a.wav"
    sounds = fuzz.sounds()
    path.write_bytes(edited(sounds[which % len(sounds)], edits))
    try:
        wav = load_audio(path, 16_000)
    except FileRefused:
        return
    assert wav.dtype == np.float32
    assert len(wav)
    assert np.isfinite(wav).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of sums that overflow, before the refusal
@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.name)
def test_the_fuzzing_script_finds_nothing(tmp_path, reader):
    if "TextGrid" in reader.file:
        pytest.importorskip("praatio")
    result = fuzz.attempt(reader, tmp_path, seed=0, inputs=60)
    assert result.tried == 60
    assert result.refused > 5
    assert result.is_good, result


def test_the_fuzzing_script_tells_what_it_finds(tmp_path):
    def careless(path: Path) -> object:
        return json.loads(path.read_bytes())

    reader = fuzz.Reader("json", "a", fuzz.mutate_text, lambda folder: ([b'{"a": [1]}'], careless))
    result = fuzz.attempt(reader, tmp_path, seed=0, inputs=50, keep=tmp_path / "keep")
    assert result.escaped > 5
    assert sum(result.kinds.values()) == result.escaped
    assert result.accepted + result.escaped == result.tried == 50
    assert not result.is_good
    assert len(list((tmp_path / "keep").iterdir())) == len(result.kinds)
