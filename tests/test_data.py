"""Crops: where they start, what they hold, in which order they come."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiovq.audio import load_audio
from audiovq.files import FileRefused
from audiovq.training.data import (
    Corpus,
    CropDataset,
    Cut,
    StepBatches,
    _change_level,
    read_crop,
    read_manifest,
    read_part,
)
from audiovq.training.recordings import recording_cut, write_manifest

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"  # where there is one core only
)

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.flac"))
HOP = 320


def dataset(cuts: list[Cut], **settings) -> CropDataset:
    values = {"sample_rate": 16_000, "hop_length": HOP, "crop_frames": 25, "seed": 3}
    return CropDataset([Corpus(cuts, 1.0)], **(values | settings))


def example_cuts() -> list[Cut]:
    return [
        Cut(path.stem, str(path), 0.0, soundfile.info(path).frames / 16_000) for path in EXAMPLES
    ]


def voice(seconds: float, rate: int) -> np.ndarray:
    """A tone that glides, with some noise: every crop of it differs."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=len(time))
    return (0.4 * np.sin(2 * np.pi * (200 + 150 * time) * time) + 0.01 * noise).astype(np.float32)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem[-4:])
def test_a_crop_of_flac_is_that_part_of_the_whole(path):
    whole = load_audio(path, 16_000)
    for start in (0, 1, 320, len(whole) // 2 + 7, len(whole) - 4000):
        assert np.array_equal(read_crop(str(path), start, 4000, 16_000), whole[start:][:4000])


@pytest.mark.parametrize(
    ("container", "subtype", "rate", "tolerance"),
    [("OGG", "OPUS", 16_000, 0.02), ("OGG", "OPUS", 48_000, 0.02), ("MP3", None, 16_000, 0.02)],
)
def test_a_crop_of_a_coded_file_is_aligned_with_the_whole(
    tmp_path, container, subtype, rate, tolerance
):
    path = tmp_path / f"voice.{container.lower()}"
    soundfile.write(path, voice(6, rate), rate, subtype, format=container)
    whole = load_audio(path, 16_000)
    for start in (320, 16_000, 40_001, 70_400):
        crop = read_crop(str(path), start, 8000, 16_000)
        part = whole[start : start + 8000]
        lags = range(-20, 21)
        errors = [np.abs(np.roll(crop, lag) - part)[50:-50].mean() for lag in lags]
        assert lags[int(np.argmin(errors))] == 0
        assert errors[20] < tolerance


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
def test_a_resampled_crop_is_that_part_of_the_whole_resampled(tmp_path, rate):
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice(3, rate), rate, "FLOAT")
    whole = load_audio(path, 16_000)
    for start in (0, 320, 16_003, 40_000):
        crop = read_crop(str(path), start, 6400, 16_000)
        assert np.abs(crop - whole[start : start + 6400]).max() < 1e-4


def test_channels_are_mixed_and_past_the_end_there_is_silence(tmp_path):
    left = voice(0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -0.5 * left], 1), 16_000, "FLOAT")
    crop = read_crop(str(tmp_path / "a.wav"), 4000, 8000, 16_000)
    assert crop == pytest.approx(np.pad(left[4000:] / 4, (0, 4000)))


def test_unreadable_recordings_are_refused(tmp_path):
    (tmp_path / "no.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "nan.wav", np.full(900, np.nan, np.float32), 16_000, "FLOAT")
    for name, word in (("no.wav", "read"), ("nan.wav", "finite"), ("absent.wav", "read")):
        with pytest.raises(FileRefused, match=word):
            read_crop(str(tmp_path / name), 0, 320, 16_000)


def test_samples_of_another_scale_are_refused_as_they_are_in_encoding(tmp_path):
    loud = 32_768 * voice(0.5, 16_000)
    soundfile.write(tmp_path / "loud.wav", loud, 16_000, "FLOAT")
    soundfile.write(tmp_path / "cancel.wav", np.stack([loud, -loud], 1), 16_000, "FLOAT")
    for name in ("loud.wav", "cancel.wav"):
        with pytest.raises(FileRefused, match=f"{name} holds samples of up to"):
            read_crop(str(tmp_path / name), 0, 8000, 16_000)


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_a_recording_that_ends_before_the_crop_is_no_silence(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", voice(0.5, rate), rate)
    for start in (8000, 80_000):
        with pytest.raises(FileRefused, match="nothing from"):
            read_crop(str(tmp_path / "a.wav"), start, 320, 16_000)
    assert len(read_part(str(tmp_path / "a.wav"), 4000, 1 << 40, 16_000)) == 4000


def test_order_depends_on_seed_and_index_alone():
    crops = dataset(example_cuts())
    indices = [list(range(k, k + 3)) for k in range(0, 24, 3)]

    def order(workers: int, batches: list[list[int]]) -> list[torch.Tensor]:
        def collate(items):
            return torch.stack([item["wav"] for item in items])

        return list(
            DataLoader(crops, batch_sampler=batches, num_workers=workers, collate_fn=collate)
        )

    alone, shared = order(0, indices), order(2, indices)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    resumed = order(0, indices[5:])
    assert all(torch.equal(a, b) for a, b in zip(alone[5:], resumed, strict=True))
    assert not torch.equal(alone[0], order(0, indices[1:2])[0])
    assert not torch.equal(dataset(example_cuts(), seed=4)[0]["wav"], crops[0]["wav"])


def test_corpora_are_drawn_by_weight_and_recordings_by_duration():
    long, short = Cut("long", "", 0, 9.0), Cut("short", "", 0, 1.0)
    crops = CropDataset(
        [Corpus([long, short], 3.0), Corpus([Cut("other", "", 0, 50.0)], 1.0)],
        sample_rate=16_000,
        hop_length=HOP,
        crop_frames=25,
        seed=0,
    )
    rng = np.random.default_rng(0)
    drawn = [crops._draw(rng).id for _ in range(4000)]
    shares = [drawn.count(name) / 4000 for name in ("long", "short", "other")]
    assert shares == pytest.approx([0.675, 0.075, 0.25], abs=0.02)


def test_weights_must_be_positive():
    with pytest.raises(ValueError, match="weight above 0"):
        CropDataset(
            [Corpus(example_cuts(), 0.0)], sample_rate=16_000, hop_length=HOP, crop_frames=1, seed=0
        )


def test_level_changes_but_never_clips():
    rng = np.random.default_rng(0)
    for peak in (1e-6, 0.01, 0.3, 0.9, 1.0, 1.7):
        wav = np.array([0.5, -1.0], np.float32) * peak
        gains = []
        for _ in range(200):
            changed = _change_level(wav, 12.0, rng)
            assert np.abs(changed).max() <= 1 + 1e-6
            gains.append(20 * np.log10(changed[1] / wav[1]))
        assert min(gains) >= -12.01
        assert max(gains) <= min(12.0, -20 * np.log10(peak)) + 0.01
        assert max(gains) - min(gains) > 5
    assert np.array_equal(_change_level(wav / 2, 0.0, rng), wav / 2)
    assert not _change_level(np.zeros(4, np.float32), 12.0, rng).any()


def test_unreadable_recordings_are_replaced_and_reach_the_training_process(tmp_path):
    bad = tmp_path / "bad.flac"
    bad.write_bytes(b"no audio")
    cuts = [*example_cuts(), Cut("bad", str(bad), 0.0, 20.0)]
    loader = DataLoader(
        dataset(cuts), batch_sampler=[[i] for i in range(12)], num_workers=2, collate_fn=list
    )
    items = [item for batch in loader for item in batch]
    assert "bad" not in {item["id"] for item in items}
    reasons = {reason for item in items for reason in item["skipped"]}
    assert len(reasons) == 1
    assert "bad.flac" in reasons.pop()


def test_a_corpus_of_unreadable_recordings_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="in a row"):
        dataset([Cut("absent", str(tmp_path / "absent.wav"), 0.0, 1.0)])[0]


def test_a_cut_ends_where_it_says(tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(3, 16_000), 16_000, "FLOAT")
    wav = dataset([Cut("part", str(tmp_path / "a.wav"), 1.0, 0.2)])[0]["wav"][0].numpy()
    assert wav[:3200] == pytest.approx(voice(3, 16_000)[16_000:19_200])
    assert not wav[3200:].any()


def test_teacher_and_labels_lie_on_the_frames_of_the_crop(tmp_path):
    """A recording whose samples, teacher and labels all are the number of their frame."""
    n_frames = 90
    frames = np.arange(n_frames)
    samples = np.repeat(frames / 1000, HOP).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    np.save(tmp_path / "a.npy", np.stack([frames, -frames], 1).astype(np.float16))
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "a.npy", frames.astype(np.int8))
    cut = Cut("a", str(tmp_path / "a.wav"), 0.0, n_frames * HOP / 16_000)
    other = Cut("b", str(tmp_path / "a.wav"), 0.0, n_frames * HOP / 16_000)
    folders = {"teacher_folder": str(tmp_path), "labels_folder": str(tmp_path / "labels")}
    starts = set()
    for index in range(8):
        item = dataset([cut], teacher_dim=2, n_labels=90, **folders)[index]
        number = np.round(item["wav"][0, ::HOP].numpy() * 1000)
        assert np.array_equal(item["teacher"][:, 0], number)
        assert np.array_equal(item["labels"].argmax(1), number)
        assert (item["labels"].sum(1) == 1).all()
        assert item["has_teacher"]
        starts.add(number[0])
    assert len(starts) > 4
    without = dataset([other], teacher_dim=2, **folders)[0]
    assert not without["has_teacher"]
    assert without["labels"].shape == (25, 40)
    assert not without["labels"].any()


def test_teacher_and_labels_keep_to_a_crop_of_another_speed(tmp_path):
    """A recording whose samples rise by 1 / 1000 a frame: a sample tells where it was taken."""
    n_frames = 90
    samples = np.arange(n_frames * HOP) / HOP / 1000
    soundfile.write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    np.save(tmp_path / "a.npy", np.arange(n_frames, dtype=np.int8))
    cut = Cut("a", str(tmp_path / "a.wav"), 0.0, n_frames * HOP / 16_000)
    speeds = []
    for index in range(40):
        item = dataset([cut], speed_range=0.25, n_labels=90, labels_folder=str(tmp_path))[index]
        assert item["wav"].shape == (1, 25 * HOP)
        middle = item["wav"][0, HOP // 2 :: HOP].numpy() * 1000  # frame number, with its fraction
        whole = slice(2, -2)  # the ends of a resampled crop ring
        labels = item["labels"].argmax(1).numpy()
        assert np.abs(labels + 0.5 - middle)[whole].max() < 0.52
        speeds.append(np.diff(middle[whole]).mean())
    assert 0.79 < min(speeds) < 0.85
    assert 1.18 < max(speeds) < 1.26


def test_codes_and_pitch_lie_on_the_frames_of_the_crop_and_the_last_row_goes_on(tmp_path):
    cut = Cut("a", str(EXAMPLES[0]), 0.0, 25 * HOP / 16_000)  # one crop
    for name in ("tokens", "pitch", "labels"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "tokens" / "a.npy", np.stack([np.arange(25), 25 - np.arange(25)], 1))
    folders = {f"{name}_folder": str(tmp_path / name) for name in ("tokens", "pitch", "labels")}
    data = dataset([cut], n_codebooks=2, **folders)
    assert not data[0]["pitch"].any()
    np.save(tmp_path / "pitch" / "a.npy", 100.0 + np.arange(25))
    np.save(tmp_path / "labels" / "a.npy", np.array([3, 7], np.int8))
    item = data[0]
    assert item["tokens"].tolist() == [[*range(25)], [*range(25, 0, -1)]]
    assert item["pitch"].tolist() == [*range(100, 125)]
    assert item["labels"].argmax(1).tolist() == [3, *[7] * 24]
    with pytest.raises(FileRefused, match=r"holds the label 7, and data\.n_labels is 4"):
        dataset([cut], n_labels=4, labels_folder=folders["labels_folder"])[0]
    with pytest.raises(FileRefused, match="has no codes in"):
        dataset([cut], n_codebooks=2, tokens_folder=str(tmp_path / "labels" / "none"))[0]


def test_a_damaged_teacher_file_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    cut = Cut("a", str(EXAMPLES[0]), 0.0, 2.0)
    with pytest.raises(FileRefused, match=r"a\.npy"):
        dataset([cut], teacher_dim=2, teacher_folder=str(tmp_path))[0]


def test_teacher_and_labels_of_another_kind_are_refused(tmp_path):
    cut = Cut("a", str(EXAMPLES[0]), 0.0, 2.0)
    teacher = dataset([cut], teacher_dim=2, teacher_folder=str(tmp_path))
    for wrong in (np.zeros((9, 3)), np.zeros(9), np.zeros((9, 2), "U3"), np.float32(1)):
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(FileRefused, match=r"not numbers \[frames, 2\]"):
            teacher[0]
    labels = dataset([cut], labels_folder=str(tmp_path), n_labels=40)
    for label in (40, -2):
        np.save(tmp_path / "a.npy", np.full(9, label))
        with pytest.raises(FileRefused, match=f"holds the label {label}, and data.n_labels is 40"):
            labels[0]
    np.save(tmp_path / "a.npy", np.full(9, 39))
    assert (labels[0]["labels"].argmax(1) == 39).all()


def test_labels_may_be_probabilities(tmp_path):
    cut = Cut("a", str(EXAMPLES[0]), 0.0, 25 * HOP / 16_000)  # one crop
    labels = dataset([cut], labels_folder=str(tmp_path), n_labels=4)
    wanted = np.random.default_rng(0).dirichlet(np.ones(4), 25)
    wanted[3] = 0  # it is not known there
    np.save(tmp_path / "a.npy", wanted.astype(np.float16))
    assert labels[0]["labels"].dtype == torch.float32
    assert labels[0]["labels"].numpy() == pytest.approx(wanted, abs=1e-3)
    for wrong in (2 * wanted, wanted - 0.2, np.full((25, 4), np.nan)):
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(FileRefused, match="no probabilities: they sum to 1"):
            labels[0]
    np.save(tmp_path / "a.npy", wanted[:, :3])
    with pytest.raises(FileRefused, match=r"not numbers \[frames\] or \[frames, 4\]"):
        labels[0]


def test_rates_that_no_recording_has_are_refused(tmp_path):
    """A header's rate decides how much of the file a second is."""
    soundfile.write(tmp_path / "a.wav", np.zeros(900), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    for rate in (1, 999, 768_001, 201_000_000):
        content[24:28] = rate.to_bytes(4, "little")
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(FileRefused, match=f"rate of {rate} Hz; rates of 1000 to 768000"):
            read_crop(tmp_path / "a.wav", 0, 320, 16_000)


def test_batches_of_all_ranks_are_the_batches_of_one_and_are_made_when_asked_for():
    whole = list(StepBatches(3, 7, 6, rank=0, ranks=1))
    assert whole[0] == [18, 19, 20, 21, 22, 23]
    halves = [list(StepBatches(3, 7, 6, rank=rank, ranks=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    endless = StepBatches(0, 10**12, 64, rank=0, ranks=1)  # a list of it would not fit anywhere
    assert len(endless) == 10**12
    loader = DataLoader(dataset(example_cuts()), batch_sampler=endless, collate_fn=list)
    assert len(next(iter(loader))) == 64


def test_manifests_are_read(tmp_path):
    cut = recording_cut("one", EXAMPLES[0], 16_000, 1, 48_000, speaker="s", language="en")
    write_manifest([cut], tmp_path / "a.jsonl.gz")
    assert read_manifest(tmp_path / "a.jsonl.gz") == [Cut("one", str(EXAMPLES[0]), 0.0, 3.0)]


def test_manifests_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(FileRefused, match="does not exist"):
        read_manifest(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(FileRefused):
        read_manifest(tmp_path / "empty.jsonl")
    (tmp_path / "foreign.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(FileRefused, match="not a lhotse CutSet"):
        read_manifest(tmp_path / "foreign.jsonl")


@pytest.mark.parametrize(
    ("name", "start", "duration", "sentence"),
    [
        ("a", 0, math.inf, "says that a lasts inf s"),
        ("a", 0, -1.0, "says that a lasts -1.0 s"),
        ("a", 0, math.nan, "says that a lasts nan s"),
        ("a", 0, 0.0, "says that a lasts 0.0 s"),
        ("a", 0, 1e300, r"says that a lasts 1e\+300 s"),
        ("a", -1.0, 1.0, "says that a starts at -1.0 s"),
        ("a", math.inf, 1.0, "says that a starts at inf s"),
        ("../../a", 0, 1.0, "is no name for a file"),
        ("/a", 0, 1.0, "is no name for a file"),
        ("", 0, 1.0, "is no name for a file"),
        (7, 0, 1.0, "the id 7 is no text"),
        ("a", {}, 1.0, "not a lhotse CutSet"),
        ("a", 0, "long", "not a lhotse CutSet"),
    ],
)
def test_impossible_times_and_ids_are_refused_at_the_start(
    tmp_path, name, start, duration, sentence
):
    cut = recording_cut("a", EXAMPLES[0], 16_000, 1, 48_000)
    line = cut.to_dict() | {"id": name, "start": start, "duration": duration}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(FileRefused, match=sentence):
        read_manifest(tmp_path / "a.jsonl")


def test_an_augmented_crop_is_a_function_of_its_index_and_keeps_the_clean_one():
    plain, changed = dataset(example_cuts()), dataset(example_cuts(), augment_share=1.0)
    differ = 0
    for index in range(12):
        item, again = changed[index], changed[index]
        assert torch.equal(item["wav"], again["wav"])
        assert torch.equal(item["clean"], plain[index]["wav"])
        assert item["wav"].shape == item["clean"].shape
        assert item["wav"].dtype == torch.float32
        differ += not torch.equal(item["wav"], item["clean"])
    assert differ > 6
    assert "clean" not in plain[0]


def test_some_augmented_crops_are_in_another_voice_and_their_pitch_says_so(tmp_path):
    np.save(tmp_path / f"{EXAMPLES[0].stem}.npy", np.full(900, 200.0))
    cuts = example_cuts()[:1]
    settings = {"augment_share": 1.0, "pitch_folder": str(tmp_path)}
    pitches = [dataset(cuts, voice_range=4.0, **settings)[index]["pitch"] for index in range(24)]
    moved = [float(pitch[0]) for pitch in pitches if pitch[0] != 200]
    assert 3 < len(moved) < 18
    assert all(200 * 2 ** (-4 / 12) < pitch < 200 * 2 ** (4 / 12) for pitch in moved)
    assert min(moved) < 200 < max(moved)


def test_a_share_of_the_crops_is_augmented():
    half = dataset(example_cuts(), augment_share=0.5)
    same = [torch.equal(half[index]["wav"], half[index]["clean"]) for index in range(40)]
    assert 12 < sum(same) < 34  # half, and those of the others that no change came to
