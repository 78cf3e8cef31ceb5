"""Audio files: any rate and number of channels, refused clearly, written whole."""

import os
import struct

import numpy as np
import pytest
import soundfile
from tiny import EXAMPLES

from audiovq.audio import AudioReader, audio_suffixes, load_audio, save_audio
from audiovq.files import FileRefused
from audiovq.quality import files
from audiovq.training import recordings
from audiovq.training.data import read_crop
from audiovq.units.files import find_audio


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("n_samples", [1, 441, 70_001])
def test_the_length_is_the_ratio_of_the_rates(tmp_path, rng, rate, n_samples):
    path = tmp_path / "a.wav"
    soundfile.write(path, rng.uniform(-0.1, 0.1, n_samples), rate)
    assert len(load_audio(path, 16_000)) == max(1, round(n_samples * 16_000 / rate))


def test_resampling_keeps_a_tone(tmp_path):
    path = tmp_path / "tone.wav"
    t = np.arange(48_000) / 48_000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * t), 48_000, subtype="FLOAT")
    wav = load_audio(path, 16_000)
    goal = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(wav - goal)[200:-200].max() < 1e-3


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_blocks_do_not_change_the_samples(tmp_path, rng, rate, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, rng.uniform(-0.5, 0.5, 50_000), rate)
    whole = load_audio(path, 16_000)
    monkeypatch.setattr("audiovq.audio._BLOCK", 1_234)
    assert np.array_equal(load_audio(path, 16_000), whole)


def test_channels_are_averaged(tmp_path, rng):
    path = tmp_path / "a.wav"
    sound = rng.uniform(-0.5, 0.5, (1_000, 3)).astype(np.float32)
    soundfile.write(path, sound, 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(path, 16_000), sound.mean(axis=1), atol=1e-6)
    assert AudioReader(path, 16_000).source.channels == 3


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_saving_and_loading_keep_16_bits(tmp_path, rng, name):
    wav = rng.uniform(-1, 1, 5_000).astype(np.float32)
    save_audio(tmp_path / name, wav, 16_000)
    assert np.abs(load_audio(tmp_path / name, 16_000) - wav).max() <= 1 / 32_768


def test_saving_clips_what_is_too_loud(tmp_path):
    save_audio(tmp_path / "a.wav", np.array([2.0, -2.0], dtype=np.float32), 16_000)
    assert np.allclose(load_audio(tmp_path / "a.wav", 16_000), [1, -1], atol=1e-4)


def test_bad_files_are_refused_in_a_sentence(tmp_path):
    cases = {"empty.wav": (b"", "empty file"), "text.wav": (b"hello, world\n" * 9, "not audio")}
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileRefused, match=message):
            load_audio(tmp_path / name, 16_000)
    with pytest.raises(FileRefused, match="does not exist"):
        load_audio(tmp_path / "none.wav", 16_000)
    with pytest.raises(FileRefused, match="is a folder"):
        load_audio(tmp_path, 16_000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    with pytest.raises(FileRefused, match="no samples"):
        load_audio(tmp_path / "none.wav", 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(FileRefused, match="not finite"):
        load_audio(tmp_path / "nan.wav", 16_000)


def test_an_output_that_exists_stays_as_it_was(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("mine")
    with pytest.raises(FileRefused, match="exists"):
        save_audio(path, np.zeros(10), 16_000)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_name_without_a_known_container_is_refused(tmp_path):
    with pytest.raises(FileRefused, match=r"\.wav or \.flac"):
        save_audio(tmp_path / "a.mp3", np.zeros(10), 16_000)


def test_every_folder_is_searched_for_the_same_suffixes(tmp_path, rng):
    suffixes = audio_suffixes()
    assert len(set(suffixes)) == len(suffixes) > 20
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in suffixes)
    assert {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".w64", ".caf"} <= set(suffixes)
    assert not {".raw", ".npy", ".avq", ".txt", ".tsv", ".m4a"} & set(suffixes)
    for suffix in suffixes:
        soundfile.write(tmp_path / f"{suffix[1:]}{suffix}", np.zeros(20_000), 16_000, format="WAV")
    (tmp_path / "notes.txt").write_text("none")
    names = {suffix[1:] for suffix in suffixes}
    assert set(find_audio(tmp_path)) == names
    assert {path.stem for path in files.list_audio(tmp_path)[1]} == names
    cuts, unreadable = recordings.find_recordings(tmp_path)
    assert {cut.id for cut in cuts} == names
    assert not unreadable


def wav_at(rate: int, n_samples: int) -> bytes:
    """16-bit mono WAV whose header says this rate."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 2 * n_samples, b"WAVE", b"fmt ", 16, 1, 1,
        rate, 2 * rate, 2, 16, b"data", 2 * n_samples,
    ) + bytes(2 * n_samples)  # fmt: skip


@pytest.mark.parametrize("rate", [1, 999, 768_001, 201_000_000])
def test_a_rate_that_no_sound_has_is_refused(tmp_path, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_at(rate, 70_000))
    read = (lambda: load_audio(path, 16_000), lambda: read_crop(path, 0, 100, 16_000))
    for attempt in (*read, lambda: recordings.scan_file(path)):
        with pytest.raises(FileRefused, match=f"sample rate of {rate} Hz"):
            attempt()


@pytest.mark.parametrize("rate", [1_000, 768_000])
def test_the_outermost_rates_are_read(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(wav_at(rate, 4_000))
    assert len(load_audio(tmp_path / "a.wav", 16_000)) == round(4_000 * 16_000 / rate)


def test_many_channels_cost_no_more_memory(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros((3_000, 1_000), np.int16), 16_000)
    sizes = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, n, **options: sizes.append(n) or read(file, n, **options),
    )
    assert load_audio(tmp_path / "a.wav", 16_000).tolist() == [0.0] * 3_000
    assert max(sizes) * 1_000 <= 1 << 21


@pytest.mark.parametrize("peak", [32_767.0, 3e38])
def test_samples_far_beyond_full_scale_are_refused(tmp_path, peak):
    wav = np.full((9, 2), -peak, np.float32)
    soundfile.write(tmp_path / "a.wav", wav, 16_000, subtype="FLOAT")
    with pytest.raises(FileRefused, match="full scale is 1"):
        load_audio(tmp_path / "a.wav", 16_000)
    soundfile.write(tmp_path / "a.wav", wav / peak * 3, 16_000, subtype="FLOAT")
    assert load_audio(tmp_path / "a.wav", 16_000).tolist() == [-3.0] * 9


def test_what_resampling_raises_beyond_the_largest_level_is_refused(tmp_path):
    wav = np.tile(np.repeat(np.float32([7.9, -7.9]), 100), 40)  # its steps overshoot
    soundfile.write(tmp_path / "a.wav", wav, 16_000, subtype="FLOAT")
    assert len(load_audio(tmp_path / "a.wav", 16_000)) == 8_000
    with pytest.raises(FileRefused, match=r"a\.wav holds samples of up to 9"):
        load_audio(tmp_path / "a.wav", 8_000)


@pytest.mark.parametrize("error", [soundfile.LibsndfileError(2), RuntimeError("x"), OSError("x")])
def test_whatever_libsndfile_raises_is_a_refusal(tmp_path, monkeypatch, error):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_at(16_000, 10))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(FileRefused, match="damaged"):
        load_audio(path, 16_000)
    monkeypatch.setattr(soundfile.SoundFile, "__init__", fail)
    monkeypatch.setattr(soundfile.SoundFile, "__del__", lambda _: None)
    with pytest.raises(FileRefused, match="not audio"):
        load_audio(path, 16_000)


def test_what_may_not_be_read_is_not_called_something_else(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_at(16_000, 10))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileRefused, match="device or pipe"):
        load_audio(tmp_path / "fifo", 16_000)
    for name in ("a\0b.wav", "x" * 300 + ".wav", path / "b.wav"):
        with pytest.raises(FileRefused):
            load_audio(tmp_path / name, 16_000)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root may read what has mode 000
    with pytest.raises(FileRefused, match="cannot be read: Permission denied"):
        load_audio(path, 16_000)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_in_another_encoding_are_read_and_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    wav = np.linspace(-0.5, 0.5, 5_000, dtype=np.float32)
    save_audio(path, wav, 16_000)
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.wav"]
    assert np.allclose(load_audio(path, 16_000), wav, atol=1 / 32_768)
    assert np.allclose(read_crop(path, 0, 5_000, 16_000), wav, atol=1 / 32_768)
    assert recordings.scan_file(path).n_samples == 5_000


def test_a_flac_that_does_not_say_how_long_it_is_is_read_to_its_end(tmp_path):
    """As programs write it to pipes."""
    data = bytearray(EXAMPLES[1].read_bytes())
    data[21] &= 0xF0  # the number of samples in STREAMINFO
    data[22:26] = bytes(4)
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    reader = AudioReader(path, 16_000)
    assert reader.source.n_samples == 0
    np.testing.assert_array_equal(np.concatenate(list(reader)), load_audio(EXAMPLES[1], 16_000))
    with pytest.raises(FileRefused, match="does not say how long it is"):
        AudioReader(path, 16_000, start=1.0)
    _, unreadable = recordings.find_recordings(tmp_path)
    assert unreadable == {str(path): "it does not say how long it is"}
