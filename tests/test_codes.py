"""Token files: exact round trips, and nothing damaged or foreign gets in."""

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from some_codes import HEADER, codes_like, live_stream

from audiovq import FileRefused, Header, Tokens, read_tokens, write_avq, write_npy
from audiovq.codes import (
    FORMATS,
    TOKEN_SUFFIXES,
    Format,
    StreamWriter,
    format_of,
    npy_bytes,
    pack_avq,
    read_avq,
    unpack_avq,
    unpack_tokens,
)


@pytest.fixture
def codes(rng):
    return codes_like(HEADER, rng)


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


def test_a_record_of_many_levels_is_read(tmp_path):
    strides = (1, 2) * 128
    codes = np.zeros((256, 10_000), np.uint16)
    write_npy(tmp_path / "a.npy", codes, level_strides=strides)
    assert read_tokens(tmp_path / "a.npy").indices.shape == codes.shape


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
        npy(npy_header("(1, 1)") + "\t" * 9000 + "'"),  # which takes NumPy a minute
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
