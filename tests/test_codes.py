"""Token files: exact round trips, and nothing damaged or foreign gets in."""

import io
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tiny import random_tables

from audiovq import FileRefused, Header, Tokens, read_tokens, write_avq, write_npy
from audiovq.codes import (
    FORMATS,
    TOKEN_SUFFIXES,
    Format,
    StreamReader,
    StreamWriter,
    format_of,
    npy_bytes,
    pack_avq,
    read_avq,
    unpack_avq,
    unpack_tokens,
)
from audiovq.entropy import register

HEADER = Header("a model", "0123456789abcdef", 16_000, 320, 1024, 3, 320 * 7 - 5)


def codes_like(header: Header, rng: np.random.Generator, n_frames: int | None = None) -> np.ndarray:
    shape = (header.n_q, header.n_frames if n_frames is None else n_frames)
    return rng.integers(header.codebook_size, size=shape, dtype=np.uint16)


TABLES = random_tables(HEADER.fingerprint, HEADER.n_q, HEADER.codebook_size)
register(TABLES)


def live_stream(codes, header: Header, n_samples: int, chunk: int = 2, tables=None) -> bytes:
    buffer = io.BytesIO()
    writer = StreamWriter(buffer, header, tables)
    for start in range(0, codes.shape[1], chunk):
        writer.write(codes[:, start : start + chunk])
    writer.end(n_samples)
    return buffer.getvalue()


@pytest.fixture
def codes(rng):
    return codes_like(HEADER, rng)


def likely_codes(n_frames: int = HEADER.n_frames) -> np.ndarray:
    """Codes that `TABLES` code in fewer bytes than packed ones: what random bits decode to."""
    data = np.random.default_rng(1).bytes(9 * n_frames)
    codes = TABLES.coder(HEADER.n_q).decode(data, n_frames)
    assert len(TABLES.coder(HEADER.n_q).encode(codes)) < codes.size * 10 / 8 - 1
    return codes


FORMS = ["whole", "live", "coded", "coded live"]


def avq_of(form: str, codes: np.ndarray) -> bytes:
    tables = TABLES if "coded" in form else None
    if "live" in form:
        return live_stream(codes, HEADER, HEADER.n_samples, tables=tables)
    return pack_avq(codes, HEADER, tables)


@pytest.fixture(params=FORMS)
def data(request, codes):
    """The bytes of an .avq file of any form."""
    return avq_of(request.param, likely_codes() if "coded" in request.param else codes)


@pytest.mark.parametrize("codebook_size", [1, 2, 5, 1000, 1024, 65_536])
@pytest.mark.parametrize("n_q", [1, 8])
@pytest.mark.parametrize("n_samples", [1, 320, 321, 9_999, 2_500 * 320])
def test_files_give_back_what_was_written(tmp_path, rng, codebook_size, n_q, n_samples):
    header = Header("modèle", "ff", 16_000, 320, codebook_size, n_q, n_samples)
    codes = codes_like(header, rng)
    codes[0, 0] = codebook_size - 1
    write_avq(tmp_path / "a.avq", codes, header)
    write_npy(tmp_path / "a.npy", codes)
    (tmp_path / "live.avq").write_bytes(live_stream(codes, header, n_samples))
    for name, expected in (("a.avq", header), ("a.npy", None), ("live.avq", header)):
        tokens = read_tokens(tmp_path / name)
        np.testing.assert_array_equal(tokens.indices, codes)
        assert tokens.indices.dtype == np.uint16
        assert tokens.header == expected


def test_avq_takes_ten_bits_for_a_code_of_1024(codes):
    fields = HEADER.__dict__.copy()
    assert fields.pop("level_strides") == ()  # is not written, so that old readers read the file
    head = len(json.dumps(fields, separators=(",", ":")))
    assert len(pack_avq(codes, HEADER)) == 4 + 2 + head + -(-codes.size * 10 // 8) + 4


def test_the_first_bits_are_the_first_code_by_hand():
    header = Header("m", "f", 16_000, 320, 8, 2, 640)
    data = pack_avq(np.array([[5, 1], [2, 7]]), header)
    # Frame 0 is 101 010, frame 1 is 001 111: 1010 1000 1111 0000.
    assert data[-6:-4] == bytes([0b10101000, 0b11110000])
    assert data[-4:] == struct.pack(">I", zlib.crc32(data[:-4]))


def test_a_code_of_several_frames_stands_at_the_first_of_them_by_hand():
    header = Header("m", "f", 16_000, 320, 8, 2, 5 * 320, (2, 1))
    data = pack_avq(np.array([[5, 5, 2, 2, 1], [1, 7, 4, 0, 3]]), header)
    # 101 001, 111, 010 100, 000, 001 011: 1010 0111 1010 1000 0000 1011.
    assert data[-7:-4] == bytes([0b10100111, 0b10101000, 0b00001011])
    assert header.codes_per_second == 75.0
    assert header.bitrate == 225.0


STRIDES = [(1, 2), (2, 4, 1), (4, 4, 2), (8, 1, 2, 4, 1), (3, 6), (32, 1)]


@pytest.fixture(params=STRIDES)
def strides(request):
    return request.param


def coarse(header: Header, rng: np.random.Generator) -> np.ndarray:
    """Codes that stand in all their frames."""
    rows = codes_like(header, rng)
    return np.stack([np.repeat(r[::s], s)[: len(r)] for r, s in zip(rows, header.level_strides)])


@pytest.mark.parametrize("n_frames", [1, 2, 5, 32, 97, 4_001])
def test_levels_at_several_rates_come_back_from_every_format(strides, n_frames, rng):
    header = Header("m", "f", 16_000, 320, 1000, len(strides), n_frames * 320 - 7, strides)
    codes = coarse(header, rng)
    for kind in FORMATS.values():
        tokens = kind.unpack(kind.pack(codes, header), "a")
        np.testing.assert_array_equal(tokens.indices, codes)
        assert tokens.level_strides == strides
        for level, stride, row in zip(tokens.levels, strides, codes):
            np.testing.assert_array_equal(level, row[::stride])
    live = live_stream(codes, header, header.n_samples, chunk=3 * max(strides))
    tokens = unpack_avq(live)
    np.testing.assert_array_equal(tokens.indices, codes)
    assert tokens.header == header


def test_nothing_is_written_twice(strides, rng):
    header = Header("m", "f", 16_000, 320, 1024, len(strides), 320 * 1_000, strides)
    codes = coarse(header, rng)
    n_codes = sum(-(-1_000 // stride) for stride in strides)
    data = pack_avq(codes, header)
    (n_head,) = struct.unpack(">H", data[4:6])
    assert len(data) == 4 + 2 + n_head + -(-10 * n_codes // 8) + 4
    assert len(npy_bytes(codes, strides)) <= 2 * n_codes + 8 + 2 * len(strides) + 512


def test_numpy_reads_levels_by_their_names(tmp_path):
    codes = np.array([[5, 5, 2], [1, 7, 4]])
    write_npy(tmp_path / "a.npy", codes, level_strides=(2, 1))
    record = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert record["level0"].tolist() == [5, 2]
    assert record["level1"].tolist() == [1, 7, 4]


def test_codes_that_change_within_their_frames_are_refused():
    header = Header("m", "f", 16_000, 320, 8, 2, 640, (2, 1))
    for kind in FORMATS.values():
        with pytest.raises(ValueError, match="level 0 change within their 2 frames"):
            kind.pack(np.array([[5, 1], [2, 7]]), header)


def test_a_live_stream_ends_within_a_group_only_at_its_end():
    header = Header("m", "f", 16_000, 320, 8, 1, 0, (4,))
    writer = StreamWriter(io.BytesIO(), header)
    writer.write(np.zeros((1, 4), np.uint16))
    writer.write(np.zeros((1, 2), np.uint16))
    writer.write(np.zeros((1, 0), np.uint16))
    with pytest.raises(ValueError, match="within a group of 4"):
        writer.write(np.zeros((1, 4), np.uint16))
    flat = live_stream(np.zeros((1, 4), np.uint16), replace(header, level_strides=()), 4 * 320, 3)
    unpack_avq(flat)


@pytest.mark.parametrize("wrong", [5, [2], [2, 3], [0, 1], [64, 1], ["2", 1], [2, True], {}, None])
def test_strides_that_no_model_has_are_refused(wrong):
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(avq(json.dumps(HEADER.__dict__ | {"n_q": 2, "level_strides": wrong}).encode()))


def test_damaged_records_are_refused(rng):
    data = npy_bytes(np.zeros((2, 9), np.uint16), (2, 1))
    for length in range(len(data)):
        with pytest.raises(FileRefused):
            FORMATS["npy"].unpack(data[:length], "a")
    for array in (
        np.zeros(3, [("level0", "<u2", (4,))]),
        np.zeros((), [("n_frames", "<u8"), ("level_strides", "<u2", (1,))]),
        np.zeros(
            (), [("n_frames", "<u8"), ("level_strides", "<u2", (1,)), ("level0", "<u2", (1,))]
        ),
        np.zeros((), [("n_frames", "<u8", (2,)), ("level_strides", "<u2"), ("level0", "<u2")]),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        with pytest.raises(FileRefused, match="records that are not tokens"):
            FORMATS["npy"].unpack(buffer.getvalue(), "a")


def test_a_flipped_bit_anywhere_is_refused(data):
    for position in range(len(data)):
        for bit in (0, 7):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(FileRefused):
                unpack_avq(bytes(flipped))


def test_every_shorter_file_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(FileRefused):
            unpack_avq(data[:length])


def test_a_longer_file_is_refused(data):
    for more in (b"\0", data):
        with pytest.raises(FileRefused):
            unpack_avq(data + more)


def test_chunks_that_are_lost_doubled_or_moved_are_refused(codes):
    chunk = live_stream(codes, HEADER, HEADER.n_samples, chunk=1)
    size = 2 + -(-HEADER.n_q * 10 // 8) + 4
    end = 2 + 8 + 4
    head = chunk[: len(chunk) - end - size * HEADER.n_frames]
    parts = [chunk[len(head) + size * i :][:size] for i in range(HEADER.n_frames)]
    assert head + b"".join(parts) + chunk[-end:] == chunk
    for wrong in (parts[1:], [parts[0], *parts], [parts[1], parts[0], *parts[2:]]):
        with pytest.raises(FileRefused):
            unpack_avq(head + b"".join(wrong) + chunk[-end:])


def test_a_live_stream_is_read_as_it_comes(codes):
    data = live_stream(codes, HEADER, HEADER.n_samples)
    reader = StreamReader(io.BytesIO(data[:-14]))  # the end has not come yet
    assert reader.header.n_samples == 0
    received = []
    with pytest.raises(FileRefused, match="broke off"):
        for chunk in reader:
            received.append(chunk)
    np.testing.assert_array_equal(np.concatenate(received, axis=1), codes)


def test_the_sample_count_of_a_live_stream_must_fit_its_frames(codes):
    for n_samples in (0, HEADER.n_samples - 320, HEADER.n_samples + 320):
        with pytest.raises(FileRefused, match="damaged"):
            unpack_avq(live_stream(codes, HEADER, n_samples))


def test_a_live_stream_that_ended_at_once_holds_no_tokens(codes):
    with pytest.raises(FileRefused, match="no tokens"):
        unpack_avq(live_stream(codes[:, :0], HEADER, 0))


def test_a_chunk_longer_than_its_counter_is_split(rng):
    header = Header("m", "f", 16_000, 320, 2, 1, 70_000 * 320)
    codes = codes_like(header, rng)
    data = live_stream(codes, header, header.n_samples, chunk=70_000)
    np.testing.assert_array_equal(unpack_avq(data).indices, codes)


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF....WAVE", b"AVQ", b"AVQ9" + bytes(40), b"{}", b"\x93NUMPY\x01\x00", bytes(100)],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    for read in (read_tokens, read_avq):
        with pytest.raises(FileRefused, match="x"):
            read(tmp_path / "x")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="does not exist"):
        read_tokens(tmp_path / "none.npy")


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"model": 1}', b"\xff", b"null"])
def test_a_header_of_the_wrong_kind_is_refused(header):
    body = b"AVQ1" + struct.pack(">H", len(header)) + header
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(body + struct.pack(">I", zlib.crc32(body)))


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "p.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(FileRefused, match="not a token file"):
        read_tokens(tmp_path / "p.npy")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), bool),
        np.zeros(0, np.int64),
        np.array(3),
        np.zeros((1, 2, 3), np.uint16),
        np.zeros((2, 0), np.uint16),
        np.array([[-1]]),
        np.array([[65_536]]),
    ],
)
def test_arrays_that_are_not_tokens_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FileRefused):
        read_tokens(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, ">u2"])
def test_any_whole_numbers_are_read_as_uint16(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 100]], dtype))
    indices = read_tokens(tmp_path / "a.npy").indices
    assert indices.dtype == np.uint16
    assert indices.tolist() == [[1, 2], [3, 100]]


def test_codes_that_do_not_match_the_header_are_not_written(tmp_path, codes):
    writer = StreamWriter(io.BytesIO(), HEADER)
    for wrong in (codes[:2], codes[:, :-1], codes + 1024, codes.astype(float), codes[0]):
        with pytest.raises(ValueError, match=r"codes?"):
            write_avq(tmp_path / "a.avq", wrong, HEADER)
    for wrong in (codes[:2], codes + 1024, codes.astype(float), codes[0]):
        with pytest.raises(ValueError, match=r"codes?"):
            writer.write(wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept(tmp_path, codes):
    (tmp_path / "a.avq").write_text("mine")
    with pytest.raises(FileRefused, match="--force"):
        write_avq(tmp_path / "a.avq", codes, HEADER)
    assert (tmp_path / "a.avq").read_text() == "mine"
    write_avq(tmp_path / "a.avq", codes, HEADER, overwrite=True)
    assert read_tokens(tmp_path / "a.avq").header == HEADER


@pytest.mark.parametrize(
    "change",
    [{"n_q": 0}, {"n_q": True}, {"n_samples": -1}, {"codebook_size": 65_537}, {"model": 3}],
)
def test_a_header_checks_its_fields(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Header(**(HEADER.__dict__ | change))


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def npy_header(shape: str, descr: str = "'<u2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "content",
    [
        b"PK\3\4",
        npy(npy_header("(2, 4398046511104)")),  # 16 TiB
        npy(npy_header("(1, 2)"), bytes(3)),
        npy(npy_header("(1, 2)"), bytes(5)),
        npy(npy_header("(-1, -2)"), bytes(4)),
        npy(npy_header(f"(0x1{'0' * 5000}, 1)")),
        npy(npy_header("(1, 1L)")),
        npy(npy_header("(1, 1)", "[]")),
        npy(npy_header("(1, 1)", "('u2', -1)")),
        npy(npy_header("(1, 1)", "[('a', 'u2', 99999999999999999999)]")),
        npy(npy_header("(1, 1)", "()")),
        npy(npy_header("(1, 1)", "('u2', [1])")),
        npy("{" + npy_header("(1, 1)")),
        npy("(" * 5000),
        npy("'''"),
        npy("9" * 5000),
        npy("{'descr': {}}"),
        npy("-" * 9000 + "1"),
        npy("1" + "+1j" * 3000),
        npy(npy_header("(1, 1)"), bytes(2), version=4),
        npy(npy_header("(1, 1)") + " " * 20_000, bytes(2), version=2),
    ],
)
def test_a_broken_array_is_refused(tmp_path, content):
    (tmp_path / "m.npy").write_bytes(content)
    with pytest.raises(FileRefused, match=r"m\.npy"):
        read_tokens(tmp_path / "m.npy")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_and_order_of_npy_is_read(tmp_path, version):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for order in "CF":
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, np.array(array, order=order), (version, 0))
        indices = read_tokens(tmp_path / "a.npy").indices
        np.testing.assert_array_equal(indices, array)
        assert indices.flags.writeable
        assert indices.flags.c_contiguous


def avq(header: bytes, data: bytes = b"") -> bytes:
    body = b"AVQ1" + struct.pack(">H", len(header)) + header + data
    return body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"n_q": 1 << 62}, b""),
        ({"n_q": 80_000_000, "codebook_size": 2, "n_samples": 1}, bytes(10_000_000)),
        ({"n_samples": 10**400}, b""),
        ({"n_samples": 1 << 63, "hop_length": 1}, b""),
        ({"sample_rate": 10**400}, bytes(27)),
        ({"hop_length": 1 << 62}, bytes(4)),
        ({"model": "m" * 2000}, bytes(27)),
    ],
)
def test_a_header_that_claims_too_much_is_refused(change, data):
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(avq(json.dumps(HEADER.__dict__ | change).encode(), data))


@pytest.mark.parametrize("header", [b"[" * 60_000, b'{"n_q":' * 8_000, b"9" * 60_000])
def test_a_header_that_the_parser_chokes_on_is_refused(header):
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(avq(header))


@pytest.mark.parametrize("n_samples", [(1 << 48) + 1, (1 << 64) - 1])
def test_an_end_that_claims_too_much_is_refused(codes, n_samples):
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(live_stream(codes, HEADER, n_samples))


def test_what_is_something_else_is_not_read_to_its_end():
    for name in ("/dev/zero", "/dev/null"):
        with pytest.raises(FileRefused, match="not a token file"):
            read_tokens(name)


@pytest.mark.parametrize("name", ["a\0b.npy", "a\ud800b.npy", "x" * 300 + ".npy"])
def test_names_that_the_system_does_not_take_are_refused(name):
    with pytest.raises(FileRefused):
        read_tokens(name)


def test_a_pipe_is_read_like_a_file(tmp_path, codes):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for data in (pack_avq(codes, HEADER), npy_bytes(codes)):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(fifo.write_bytes, data)
            np.testing.assert_array_equal(read_tokens(fifo).indices, codes)


@pytest.fixture
def hex_format(monkeypatch):
    """A further kind of token files, made of one entry."""

    def pack(indices: np.ndarray, header: Header) -> bytes:
        return b"HEX " + npy_bytes(indices).hex().encode()

    def unpack(data: bytes, name: str, *, keep_broken: bool = False) -> Tokens:
        return unpack_tokens(bytes.fromhex(data[4:].decode()), name)

    kind = Format("hex", b"HEX ", "hexadecimal text", "for eyes", pack, unpack)
    monkeypatch.setitem(FORMATS, "hex", kind)
    return kind


def test_a_further_format_is_one_entry(hex_format, tmp_path):
    path = tmp_path / "a.hex"
    indices = np.arange(12).reshape(2, 6)
    path.write_bytes(hex_format.pack(indices, HEADER))
    assert np.array_equal(read_tokens(path).indices, indices)
    path.write_bytes(b"HEY")
    with pytest.raises(FileRefused, match=" nor hexadecimal text"):
        read_tokens(path)


def test_formats_are_told_by_their_first_bytes():
    for kind in FORMATS.values():
        indices = np.zeros((HEADER.n_q, HEADER.n_frames), np.uint16)
        data = kind.pack(indices, HEADER)
        assert format_of(data) is kind
        assert np.array_equal(kind.unpack(data, "a").indices, indices)
        assert kind.suffix in TOKEN_SUFFIXES
    assert format_of(b"RIFF") is None
    assert format_of(b"") is None


@pytest.mark.parametrize("form", ["coded", "coded live"])
def test_codes_that_tables_code_come_back(form, codes):
    for some in (likely_codes(), codes, np.zeros_like(codes)):
        tokens = unpack_tokens(avq_of(form, some))
        np.testing.assert_array_equal(tokens.indices, some)
        assert tokens.header == HEADER


def test_coded_files_are_shorter_where_tables_know_the_codes_and_never_much_longer(codes):
    for some, longer in ((likely_codes(), 7), (codes, 8)):
        packed, coded = pack_avq(some, HEADER), pack_avq(some, HEADER, TABLES)
        assert len(coded) <= len(packed) + longer
        assert unpack_avq(packed).coded_bytes is None
        size = len(coded) - len(packed) - 8 + -(-some.size * 10 // 8)
        assert unpack_avq(coded).coded_bytes == size


def test_a_coded_stream_is_read_as_it_comes():
    codes = likely_codes()
    buffer = io.BytesIO()
    writer = StreamWriter(buffer, HEADER, TABLES)
    for t in range(codes.shape[1]):
        writer.write(codes[:, t : t + 1])
        reader = StreamReader(io.BytesIO(buffer.getvalue()), keep_broken=True)
        np.testing.assert_array_equal(np.concatenate(list(reader), axis=1), codes[:, : t + 1])
        assert "broke off" in reader.broken


def test_a_coded_file_whose_tables_are_not_here_says_so():
    others = random_tables("another model", HEADER.n_q, HEADER.codebook_size)
    header = Header(**(HEADER.__dict__ | {"fingerprint": others.fingerprint}))
    for data in (
        pack_avq(likely_codes(), header, others),
        live_stream(likely_codes(), header, HEADER.n_samples, tables=others),
    ):
        with pytest.raises(FileRefused, match=r"another model.*--model"):
            unpack_avq(data)


def test_tables_of_another_model_code_nothing(codes):
    for change in ({"fingerprint": "ff"}, {"codebook_size": 1025}, {"n_q": 9}):
        header = Header(**(HEADER.__dict__ | change))
        with pytest.raises(ValueError, match="tables"):
            StreamWriter(io.BytesIO(), header, TABLES)


def test_a_coded_file_that_claims_too_many_frames_is_refused():
    header = Header(**(HEADER.__dict__ | {"n_samples": 1 << 47}))
    head = json.dumps(header.__dict__).encode()
    body = b"AVQ2" + struct.pack(">H", len(head)) + head + TABLES.key + bytes(99)
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(body + struct.pack(">I", zlib.crc32(body)))


@pytest.mark.parametrize("number", [b"\x80\0", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x04"])
def test_numbers_in_a_coded_stream_have_one_spelling_and_a_bound(number):
    stream = live_stream(likely_codes()[:, :0], HEADER, 0, tables=TABLES)[:-13]
    with pytest.raises(FileRefused, match="damaged"):
        list(StreamReader(io.BytesIO(stream + number + bytes(20))))
