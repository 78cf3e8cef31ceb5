"""Scans, reports and splits of recordings."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.files import FileRefused
from audiovq.training.data import read_manifest
from audiovq.training.prepare import (
    find_recordings,
    prepare,
    recording_cut,
    scan_file,
    shuffled,
    split_validation,
)

EXAMPLES = Path(__file__).parents[1] / "examples"


def cuts(durations: dict[str, list[float]]):
    """Cuts of speakers; a name that begins with "?" is unknown."""
    return [
        recording_cut(
            f"{speaker}-{number}",
            "x.wav",
            16_000,
            1,
            round(16_000 * seconds),
            speaker=None if speaker.startswith("?") else speaker,
        )
        for speaker, lengths in durations.items()
        for number, seconds in enumerate(lengths)
    ]


def names(found) -> list[str]:
    return [cut.id for cut in found]


def write(path: Path, wav: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav, rate, subtype)


def test_scan_counts_samples_clipping_and_silence(tmp_path):
    tone = 0.5 * np.sin(np.arange(16_000) / 5)
    clipped = np.array([0, 1, 1, 1, 0, 1, 0, -1, -1, 0])  # runs of 3 and 2; a lone 1 may be a peak
    write(tmp_path / "a.wav", np.concatenate([tone, np.zeros(8000), clipped]))
    scan = scan_file(tmp_path / "a.wav")
    assert (scan.sample_rate, scan.channels, scan.n_samples) == (16_000, 1, 24_010)
    assert scan.peak == pytest.approx(1, abs=1e-3)
    assert scan.clipped == 5
    assert scan.silent == pytest.approx(0.5, abs=0.03)


def test_scan_does_not_depend_on_where_blocks_end(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    wav = np.repeat(rng.uniform(-0.5, 0.5, (100, 1)), 2, 1)[np.arange(50_000) % 100]
    wav[20_000:40_000] = 0
    write(tmp_path / "a.wav", wav)
    whole = scan_file(tmp_path / "a.wav")
    monkeypatch.setattr("audiovq.training.recordings._BLOCK_SECONDS", 1)
    assert scan_file(tmp_path / "a.wav") == whole


def test_scan_refuses_what_cannot_be_read(tmp_path):
    write(tmp_path / "nan.wav", np.full(5000, np.nan), subtype="FLOAT")
    write(tmp_path / "empty.wav", np.zeros(0))
    (tmp_path / "text.wav").write_text("no audio")
    source = (EXAMPLES / "sense_and_sensibility_01_austen_64kb-0880.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(source[: len(source) // 2])
    for name in ("nan.wav", "empty.wav", "text.wav", "cut.flac", "absent.wav"):
        with pytest.raises(FileRefused):
            scan_file(tmp_path / name)
    write(tmp_path / "loud.wav", np.full(5000, 32_768.0), subtype="FLOAT")  # nobody encodes it
    with pytest.raises(FileRefused, match="up to 32768 where full scale is 1"):
        scan_file(tmp_path / "loud.wav")


def test_find_recordings_names_cuts_and_speakers(tmp_path):
    tone = np.sin(np.arange(8000) / 5) / 2
    write(tmp_path / "anna" / "one.wav", tone)
    write(tmp_path / "anna" / "one.flac", tone)
    write(tmp_path / "p225_001.wav", np.stack([tone, tone], 1), 44_100)
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / "bad.mp3").write_text("not audio either")
    write(tmp_path / ".hidden.wav", tone)
    write(tmp_path / ".trash" / "old.wav", tone)
    found, unreadable = find_recordings(tmp_path, "parent")
    assert names(found) == ["anna/one", "anna/one.wav", "p225_001"]
    assert [cut.supervisions[0].speaker for cut in found] == ["anna", "anna", None]
    assert [cut.recording.num_channels for cut in found] == [1, 1, 2]
    assert list(unreadable) == [str(tmp_path / "bad.mp3")]
    found, _ = find_recordings(tmp_path, "prefix")
    assert [cut.supervisions[0].speaker for cut in found] == ["one", "one", "p225"]


def test_headers_and_names_that_cannot_be_are_listed(tmp_path):
    tone = np.sin(np.arange(8000) / 5) / 2
    write(tmp_path / "good.wav", tone)
    write(tmp_path / "fast.wav", tone)
    content = bytearray((tmp_path / "fast.wav").read_bytes())
    content[24:28] = (201_000_000).to_bytes(4, "little")  # 20 s of it would take 15 GiB
    (tmp_path / "fast.wav").write_bytes(content)
    with pytest.raises(FileRefused, match="rate of 201000000 Hz"):
        scan_file(tmp_path / "fast.wav")
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    try:
        os.rename(tmp_path / "good.wav", latin)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    write(tmp_path / "good.wav", tone)
    found, unreadable = find_recordings(tmp_path)
    assert names(found) == ["good"]
    assert [reason.partition(";")[0] for reason in unreadable.values()] == [
        "its name is not UTF-8",
        f"{tmp_path / 'fast.wav'} has a sample rate of 201000000 Hz",
    ]
    prepare(found, tmp_path / "out", unreadable=unreadable)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["unreadable"]) == 2


def test_a_block_of_many_channels_is_shorter(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 8)))
    whole = scan_file(tmp_path / "a.wav")
    monkeypatch.setattr("audiovq.training.recordings._BLOCK_SAMPLES", 8 * 2000)
    asked, read = [], soundfile.SoundFile.read

    def spy(self, frames=-1, **options):
        asked.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    assert scan_file(tmp_path / "a.wav") == whole
    assert max(asked) * 8 <= 8 * 2000


def test_find_recordings_refuses_folders_without_audio(tmp_path):
    with pytest.raises(FileRefused, match="not a folder"):
        find_recordings(tmp_path / "absent")
    with pytest.raises(FileRefused, match="no audio"):
        find_recordings(tmp_path)
    with pytest.raises(ValueError, match="speaker_from"):
        find_recordings(tmp_path, "name")


def test_validation_holds_whole_speakers():
    corpus = cuts({f"s{number}": [10.0, 20.0] for number in range(50)})
    train, held, how = split_validation(corpus, 0.1)
    assert how == "by speaker"
    assert sorted(names(train + held)) == sorted(names(corpus))
    speakers = {cut.supervisions[0].speaker for cut in held}
    assert not speakers & {cut.supervisions[0].speaker for cut in train}
    assert len(speakers) == 5


def test_split_depends_on_names_alone():
    corpus = cuts({f"s{number}": [10.0] for number in range(40)})
    _, held, _ = split_validation(corpus, 0.1)
    _, again, _ = split_validation(corpus[::-1], 0.1)
    assert sorted(names(held)) == sorted(names(again))
    grown = corpus + cuts({f"new{number}": [10.0] for number in range(10)})
    _, later, _ = split_validation(grown, 0.1)
    new = {name for name in names(later) if name.startswith("new")}
    assert len(set(names(later)) - new - set(names(held))) <= 1  # the share has grown by one


def test_few_or_unknown_speakers_split_by_recording():
    train, held, how = split_validation(cuts({"?": [5.0] * 100}), 0.05)
    assert (len(train), len(held)) == (95, 5)
    assert "unknown" in how
    train, held, how = split_validation(cuts({"a": [5.0] * 50, "b": [5.0] * 50}), 0.05)
    assert (len(train), len(held)) == (95, 5)
    assert "too few" in how


def test_split_of_little():
    assert [len(part) for part in split_validation(cuts({"a": [5.0]}), 0.1)[:2]] == [1, 0]
    assert [len(part) for part in split_validation(cuts({"a": [5.0, 4.0]}), 0.1)[:2]] == [1, 1]
    assert [len(part) for part in split_validation(cuts({"a": [5.0, 4.0]}), 0)[:2]] == [2, 0]
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share"):
            split_validation(cuts({"a": [5.0]}), share)


def test_a_speaker_without_name_does_not_vanish():
    corpus = cuts({f"s{number}": [10.0] for number in range(40)} | {"?": [10.0] * 3})
    train, held, how = split_validation(corpus, 0.1)
    assert how == "by speaker"
    assert len(train) + len(held) == 43


def test_prepare_writes_manifests_and_report(tmp_path):
    rng = np.random.default_rng(0)
    for speaker in range(20):
        for number in range(2):
            write(tmp_path / "in" / f"s{speaker}-{number}.wav", rng.normal(size=16_000) / 10)
    write(tmp_path / "in" / "s0-8.flac", np.zeros(22_050), 22_050)
    write(tmp_path / "in" / "s0-9.wav", np.zeros(1000))
    (tmp_path / "in" / "bad.wav").write_text("no audio")
    damaged = tmp_path / "in" / "damaged.wav"
    write(damaged, np.full(16_000, np.inf), subtype="FLOAT")
    found, unreadable = find_recordings(tmp_path / "in", "prefix")
    seen = []
    report = prepare(
        found,
        tmp_path / "out",
        validation=0.09,
        unreadable=unreadable,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 43) for n in range(1, 44)]
    assert (report.recordings, report.speakers) == (41, 20)
    assert report.hours == pytest.approx(41 / 3600)
    assert report.sample_rates == pytest.approx({16_000: 40 / 3600, 22_050: 1 / 3600})
    assert report.silence == pytest.approx(1 / 41, abs=0.001)
    assert report.silent_recordings == [str(tmp_path / "in" / "s0-8.flac")]
    assert report.too_short == [str(tmp_path / "in" / "s0-9.wav")]
    assert set(report.unreadable) == {str(tmp_path / "in" / "bad.wav"), str(damaged)}
    assert report.train_recordings + report.validation_recordings == 41
    assert report.languages == pytest.approx({"unknown": 41 / 3600})
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["recordings"] == 41
    train = read_manifest(tmp_path / "out" / "train.jsonl.gz")
    validation = read_manifest(tmp_path / "out" / "validation.jsonl.gz")
    assert len(validation) == report.validation_recordings == 4
    assert len(train) == 37
    summary = report.summary()
    assert "41, 0.7 min" in summary
    assert "bad.wav" in summary
    assert "by speaker" in summary


def test_prepare_takes_the_split_of_the_corpus(tmp_path):
    paths = sorted(EXAMPLES.glob("*.flac"))
    whole = find_recordings(EXAMPLES)[0]
    report = prepare(whole[:3], tmp_path, validation=whole[3:])
    assert (report.train_recordings, report.validation_recordings) == (3, len(paths) - 3)
    assert report.validation_split == "the corpus's own"
    assert {cut.path for cut in read_manifest(tmp_path / "train.jsonl.gz")} == set(
        map(str, paths[:3])
    )


def test_nothing_to_train_on_is_refused(tmp_path):
    write(tmp_path / "in" / "short.wav", np.zeros(100))
    with pytest.raises(FileRefused, match="1 are shorter"):
        prepare(find_recordings(tmp_path / "in")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shuffled_mixes_speakers_in_one_way():
    corpus = cuts({f"s{number}": [1.0] * 10 for number in range(8)})
    mixed = shuffled(corpus)
    assert names(mixed) == names(shuffled(corpus[::-1]))
    assert len({cut.supervisions[0].speaker for cut in mixed[:8]}) > 3
