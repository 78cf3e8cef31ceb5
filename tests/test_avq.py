"""The bitstream: exact round trips, its bytes by hand, and nothing damaged gets in."""

import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from some_codes import HEADER, codes_like, live_stream
from tiny import random_tables

from audiovq import FileRefused, Header
from audiovq.avq import StreamReader, StreamWriter, pack_avq, unpack_avq
from audiovq.codes import unpack_tokens
from audiovq.entropy import register

TABLES = random_tables(HEADER.fingerprint, HEADER.n_q, HEADER.codebook_size)
register(TABLES)


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


def avq(header: bytes, data: bytes = b"") -> bytes:
    body = b"AVQ1" + struct.pack(">H", len(header)) + header + data
    return body + struct.pack(">I", zlib.crc32(body))


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


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"model": 1}', b"\xff", b"null"])
def test_a_header_of_the_wrong_kind_is_refused(header):
    body = b"AVQ1" + struct.pack(">H", len(header)) + header
    with pytest.raises(FileRefused, match="damaged"):
        unpack_avq(body + struct.pack(">I", zlib.crc32(body)))


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


@pytest.mark.parametrize("form", ["coded", "coded live"])
def test_codes_that_tables_code_come_back(form, codes):
    for some in (likely_codes(), codes, np.zeros_like(codes)):
        tokens = unpack_avq(avq_of(form, some))
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


@pytest.mark.parametrize("form", ["live", "coded live"])
def test_what_came_of_a_broken_stream_is_kept_where_that_is_asked_for(form):
    data = avq_of(form, likely_codes())[:-13]
    tokens = unpack_tokens(data, "a.avq", keep_broken=True)
    np.testing.assert_array_equal(tokens.indices, likely_codes())
    assert "a.avq broke off" in tokens.broken
    assert (tokens.coded_bytes is None) == (form == "live")
    for unpack in (unpack_tokens, unpack_avq):
        with pytest.raises(FileRefused, match=r"a\.avq broke off"):
            unpack(data, "a.avq")
