"""What live streams believe of their input, and what of a broken one is kept."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiovq import FileRefused, live, read_tokens
from audiovq.audio import as_int16
from audiovq.codes import StreamReader, StreamWriter, pack_avq, unpack_tokens
from audiovq.live import decode_live, encode_live
from audiovq.transcode import decode_file, encode_file

RATE = 16_000


@pytest.fixture(scope="module")
def samples(speech):
    """0.7 s of speech that 16 bits hold exactly, float32 [n], n odd."""
    return as_int16(speech[0, 0, 8_000:19_201].numpy()).astype(np.float32) / 32768


def as_wav(samples: np.ndarray, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype=subtype, format=container)
    return buffer.getvalue()


def by_hand(samples: np.ndarray, length: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """16-bit WAV whose data chunk claims `length` bytes."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    data = struct.pack("<4sI", b"data", length) + as_int16(samples).tobytes()
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + before + form + data + after


def encoded(model, data: bytes, **options) -> bytes:
    target = io.BytesIO()
    encode_live(model, io.BytesIO(data), target, **options)
    return target.getvalue()


class Slowly(io.BytesIO):
    """A pipe that gives a frame at a time."""

    def read1(self, n: int | None = -1) -> bytes:
        return self.read(640)


def in_chunks(model, samples: np.ndarray) -> bytes:
    """A live stream whose chunks are frames."""
    target = io.BytesIO()
    encode_live(model, Slowly(as_wav(samples)), target)
    return target.getvalue()


def head_of(data: bytes) -> int:
    """Bytes of a stream before its first chunk."""
    return 4 + 2 + struct.unpack(">H", data[4:6])[0] + 4


def decoded(model, data: bytes, **options) -> np.ndarray:
    target = io.BytesIO()
    decode_live(model, io.BytesIO(data), target, raw=True, **options)
    return np.frombuffer(target.getvalue(), "<i2")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_16"),
    ],
)
def test_every_kind_of_samples_gives_the_tokens_of_the_file(
    tiny_model, samples, tmp_path, container, subtype, channels
):
    several = np.stack([samples, 0.5 * samples, -0.25 * samples][:channels], axis=1)
    data = as_wav(several, subtype, container)
    (tmp_path / "a.wav").write_bytes(data)
    encode_file(tiny_model, tmp_path / "a.wav", tmp_path / "a.avq", token_format="avq")
    stored, live = read_tokens(tmp_path / "a.avq"), unpack_tokens(encoded(tiny_model, data))
    np.testing.assert_array_equal(live.indices, stored.indices)
    assert live.header == stored.header


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16"])
def test_what_follows_the_samples_is_no_sound(tiny_model, samples, subtype):
    """The samples are an odd number, so that those of 8 bits are padded."""
    data = as_wav(samples, subtype)
    tail = b"LIST" + struct.pack("<I", 4_000) + bytes(range(250)) * 16
    assert encoded(tiny_model, data + tail) == encoded(tiny_model, data)


@pytest.mark.parametrize(
    "length",
    [0, 0x7FFF0000, 0x7FFFEFFF, 0x7FFFF000, 0x7FFFFF00, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF],
)
def test_the_lengths_that_programs_write_to_pipes_are_not_believed(tiny_model, samples, length):
    expected = encoded(tiny_model, as_wav(samples))
    assert encoded(tiny_model, by_hand(samples, length)) == expected


def test_a_long_length_is_that_of_ds64(tiny_model, samples):
    expected = encoded(tiny_model, as_wav(samples))
    for length, after in ((2 * len(samples), b"LIST" + bytes(4_000)), (0, b"")):
        before = b"ds64" + struct.pack("<IQQQI", 28, 0, length, 0, 0)
        data = by_hand(samples, 0xFFFFFFFF, before, after)
        for name in (b"RF64", b"BW64"):
            assert encoded(tiny_model, name + data[4:]) == expected


@pytest.mark.parametrize("length", [0x7FFFF000, 5 << 30])
def test_the_64_bits_of_ds64_are_believed(samples, length):
    before = b"ds64" + struct.pack("<IQQQI", 28, 0, length, 0, 0)
    data = b"RF64" + by_hand(samples, 0xFFFFFFFF, before)[4:]
    assert live._read_wav_header(io.BytesIO(data)).n_bytes == length


class Counting(io.BytesIO):
    """A file that notes the largest piece that was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.largest = 0

    def read(self, n: int | None = -1) -> bytes:
        self.largest = max(self.largest, n if n is not None and n >= 0 else 1 << 62)
        return super().read(n)


def test_chunks_before_the_samples_are_passed_over_in_small_pieces(tiny_model, samples):
    before = b"LIST" + struct.pack("<I", 3_000_001) + bytes(3_000_002)
    source, target = Counting(by_hand(samples, 0, before)), io.BytesIO()
    encode_live(tiny_model, source, target)
    assert target.getvalue() == encoded(tiny_model, as_wav(samples))
    assert source.largest <= 1 << 16


@pytest.mark.parametrize("name", [b"LIST", b"fmt "])
def test_a_header_of_gigabytes_is_not_read(tiny_model, samples, name):
    source = Counting(by_hand(samples, 0, name + struct.pack("<I", 0xFFFFFFFE)))
    with pytest.raises(FileRefused, match="bytes of"):
        encode_live(tiny_model, source, io.BytesIO())
    assert source.largest <= 1 << 16


@pytest.mark.parametrize("rate", [1, 999, 768_001])
def test_rates_that_no_sound_has_are_refused(tiny_model, samples, rate):
    data = by_hand(samples, 0).replace(struct.pack("<I", RATE), struct.pack("<I", rate), 1)
    with pytest.raises(FileRefused, match=f"{rate} Hz"):
        encoded(tiny_model, data)
    with pytest.raises(ValueError, match=f"not {rate}"):
        encoded(tiny_model, data, raw_rate=rate)


def test_samples_in_wider_containers_are_refused(tiny_model, samples):
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 4 * RATE, 4, 24)
    data = b"RIFF\0\0\0\0WAVE" + form + b"data\0\0\0\0" + bytes(400)
    with pytest.raises(FileRefused, match="not WAV"):
        encoded(tiny_model, data)


def test_floats_beyond_float32_are_refused(tiny_model):
    data = as_wav(np.full(9, 1e200), "DOUBLE")
    with pytest.raises(FileRefused, match="not finite"):
        encoded(tiny_model, data)


def test_samples_far_beyond_full_scale_are_refused(tiny_model):
    encoded(tiny_model, as_wav(np.full(9, 7.0), "FLOAT"))
    with pytest.raises(FileRefused, match="up to 20000"):
        encoded(tiny_model, as_wav(np.full(9, 20_000.0), "FLOAT"))


@pytest.mark.parametrize(
    ("rate", "bad"),
    [(RATE, np.full(999, 20.0)), (44_100, np.tile([7.9] * 100 + [-7.9] * 100, 25))],
    ids=["too loud", "too loud once resampled"],
)
def test_refused_samples_in_the_middle_break_the_stream_off(tiny_model, samples, rate, bad):
    """What came before has gone to the reader, who cannot take it for the whole."""
    source, target = io.BytesIO(), io.BytesIO()
    soundfile.write(source, np.concatenate([samples, bad]), rate, subtype="FLOAT", format="WAV")
    with pytest.raises(FileRefused, match="The input holds samples of up to"):
        encode_live(tiny_model, Slowly(source.getvalue()), target)
    kept = unpack_tokens(target.getvalue(), keep_broken=True)
    assert "broke off" in str(kept.broken)
    assert kept.header.n_samples > len(samples) / rate * RATE - 1_500


def test_of_a_broken_stream_every_whole_chunk_is_kept(tiny_model, samples):
    """Wherever it is cut: no more than what came whole, and no less."""
    data = in_chunks(tiny_model, samples)
    whole = unpack_tokens(data)
    n_head = head_of(data)
    ends, position = [n_head], n_head
    for n_frames in _chunks(data, n_head):
        position += 2 + -(-n_frames * 20 // 8) + 4
        ends.append(position)
    assert position == len(data) - 14
    counts = np.cumsum([0, *_chunks(data, n_head)])
    for cut in range(n_head, len(data)):
        reader = StreamReader(io.BytesIO(data[:cut]), keep_broken=True)
        codes = np.concatenate([np.zeros((4, 0), np.uint16), *reader], axis=1)
        n_kept = counts[sum(end <= cut for end in ends) - 1]
        np.testing.assert_array_equal(codes, whole.indices[:, :n_kept])
        assert reader.header.n_samples == n_kept * 320
        assert "broke off" in str(reader.broken)
    for cut in range(n_head):
        with pytest.raises(FileRefused):
            StreamReader(io.BytesIO(data[:cut]), keep_broken=True)


def _chunks(data: bytes, position: int) -> list[int]:
    """Frames of each chunk; 4 codes of 5 bits a frame."""
    found = []
    while n_frames := struct.unpack(">H", data[position : position + 2])[0]:
        found.append(n_frames)
        position += 2 + -(-n_frames * 20 // 8) + 4
    return found


def test_of_an_altered_stream_what_came_before_is_kept(tiny_model, samples):
    data = in_chunks(tiny_model, samples)
    whole = unpack_tokens(data)
    assert whole.broken is None
    for position in range(head_of(data) + 9, len(data), 7):
        altered = bytearray(data)
        altered[position] ^= 0x10
        with pytest.raises(FileRefused):
            unpack_tokens(bytes(altered))
        kept = unpack_tokens(bytes(altered), keep_broken=True)
        n_frames = kept.indices.shape[1]
        np.testing.assert_array_equal(kept.indices, whole.indices[:, :n_frames])
        assert position < head_of(data) + 9 * (n_frames + 1) + 14
        assert kept.header.n_samples == 320 * n_frames
        assert kept.broken


def test_a_stream_followed_by_more_keeps_its_length(tiny_model, samples):
    data = encoded(tiny_model, as_wav(samples))
    kept = unpack_tokens(data + b"more", keep_broken=True)
    assert kept.header == unpack_tokens(data).header


def test_a_broken_stream_is_decoded_to_the_last_frame_that_came(tiny_model, samples, tmp_path):
    data = in_chunks(tiny_model, samples)
    (tmp_path / "a.avq").write_bytes(data[:-40])
    kept = unpack_tokens(data[:-40], keep_broken=True)
    goal = tiny_model.decode(torch.from_numpy(kept.indices.astype(np.int64))[None])[0, 0].numpy()
    got = decoded(tiny_model, data[:-40], keep_broken=True)
    assert_nearly_equal(got, as_int16(goal))
    target = io.BytesIO()
    with pytest.raises(FileRefused, match="--keep-broken"):
        decode_live(tiny_model, io.BytesIO(data[:-40]), target, raw=True)
    assert target.getvalue() == got.tobytes()
    with pytest.raises(FileRefused, match="--keep-broken"):
        decode_file(tiny_model, tmp_path / "a.avq", tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()
    done = decode_file(tiny_model, tmp_path / "a.avq", tmp_path / "a.wav", keep_broken=True)
    assert done.broken
    assert_nearly_equal(soundfile.read(tmp_path / "a.wav", dtype="int16")[0], got)


def assert_nearly_equal(got: np.ndarray, goal: np.ndarray) -> None:
    """Equal but for what another order of the decoder's sums rounds to the other side."""
    difference = np.abs(got.astype(int) - goal)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_files_and_streams_decode_to_the_same_samples(tiny_model, samples, tmp_path, suffix):
    data = in_chunks(tiny_model, samples)
    whole = unpack_tokens(data)
    (tmp_path / "live.avq").write_bytes(data)
    (tmp_path / "whole.avq").write_bytes(pack_avq(whole.indices, whole.header))
    goal = decoded(tiny_model, pack_avq(whole.indices, whole.header))
    assert len(goal) == len(samples)
    for name in ("live", "whole"):
        decode_file(tiny_model, tmp_path / f"{name}.avq", tmp_path / f"{name}.{suffix}")
        got = soundfile.read(tmp_path / f"{name}.{suffix}", dtype="int16")[0]
        np.testing.assert_array_equal(got, goal)
    assert_nearly_equal(decoded(tiny_model, data), goal)


def test_fewer_levels_of_a_stream_are_those_of_fewer_tokens(tiny_model, samples):
    few = encoded(tiny_model, as_wav(samples), n_q=2)
    all_of_them = encoded(tiny_model, as_wav(samples))
    np.testing.assert_array_equal(decoded(tiny_model, all_of_them, n_q=2), decoded(tiny_model, few))
    for n_q in (0, 3):
        with pytest.raises(FileRefused, match="has 2 levels"):
            decoded(tiny_model, few, n_q=n_q)


@pytest.mark.parametrize(
    "change",
    [
        {"hop_length": 1},
        {"hop_length": 1_000_000},
        {"codebook_size": 2_048},
        {"sample_rate": 8_000},
        {"n_q": 5},
    ],
)
@pytest.mark.parametrize("form", ["live", "whole"])
def test_headers_that_do_not_fit_the_model_are_refused(tiny_model, tmp_path, change, form):
    header = replace(tiny_model.header(4, 0), **change)
    codes = np.full((header.n_q, 3), header.codebook_size - 1)
    n_samples = 3 * header.hop_length
    if form == "live":
        buffer = io.BytesIO()
        writer = StreamWriter(buffer, header)
        writer.write(codes)
        writer.end(n_samples)
        data = buffer.getvalue()
    else:
        data = pack_avq(codes, replace(header, n_samples=n_samples))
    target = io.BytesIO()
    with pytest.raises(FileRefused, match=next(iter(change))):
        decode_live(tiny_model, io.BytesIO(data), target)
    assert not target.getvalue()
    (tmp_path / "a.avq").write_bytes(data)
    with pytest.raises(FileRefused, match=next(iter(change))):
        decode_file(tiny_model, tmp_path / "a.avq", tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_input_that_is_no_avq_is_refused(tiny_model, samples):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 9), np.uint16))
    whole = unpack_tokens(encoded(tiny_model, as_wav(samples)))
    cut = pack_avq(whole.indices, whole.header)[:-9]
    for data, message in (
        (b"", "empty"),
        (buffer.getvalue(), "audiovq decode"),
        (b"RIFF....WAVE", "not a live"),
        (cut, "damaged"),
    ):
        with pytest.raises(FileRefused, match=message):
            decoded(tiny_model, data, keep_broken=True)


def test_coded_streams_carry_the_same_tokens_frame_by_frame(coded_model, samples):
    packed, coded = io.BytesIO(), io.BytesIO()
    for target, is_coded in ((packed, False), (coded, True)):
        encode_live(coded_model, Slowly(as_wav(samples)), target, coded=is_coded)
    assert coded.getvalue()[:4] == b"AVQT"
    chunks = [list(StreamReader(io.BytesIO(target.getvalue()))) for target in (packed, coded)]
    assert [c.shape for c in chunks[1]] == [c.shape for c in chunks[0]]  # no later than packed
    for one, other in zip(*chunks):
        np.testing.assert_array_equal(one, other)
    sounds = [decoded(coded_model, target.getvalue()) for target in (packed, coded)]
    np.testing.assert_array_equal(*sounds)


def test_a_coded_stream_that_breaks_off_keeps_what_came(coded_model, samples):
    target = io.BytesIO()
    encode_live(coded_model, Slowly(as_wav(samples)), target, coded=True)
    whole = unpack_tokens(target.getvalue())
    for cut in range(len(target.getvalue()) // 2, len(target.getvalue()), 7):
        tokens = unpack_tokens(target.getvalue()[:cut], keep_broken=True)
        assert tokens.broken
        n_frames = tokens.indices.shape[1]
        np.testing.assert_array_equal(tokens.indices, whole.indices[:, :n_frames])
