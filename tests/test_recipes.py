"""Each recipe on a tiny corpus laid out as the real one: prepare, then a step of training."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny import EXAMPLES, started_model
from tiny import TINY as TINY_MODEL

from audiovq import AudioVQ
from audiovq.training.data import Cut, read_manifest
from audiovq.training.recipe import read_recipe
from audiovq.training.recordings import recording_cut

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = [
    "model.strides=[320]",
    "model.channels=[32]",
    "model.encoder_blocks=[1]",
    "model.decoder_channels=32",
    "model.decoder_blocks=1",
    "model.n_codebooks=2",
    "model.codebook_size=8",
    "model.codebook_dim=8",
    "data.crop_seconds=0.2",
    "data.batch_size=2",
    "data.workers=0",
    "train.steps=1",
    "train.autoencoder_steps=0",
    "train.accelerator=cpu",
    "train.precision=32-true",
    "train.threads=1",
]


def speak(path: Path, rate: int, seconds: float = 0.6, **options) -> None:
    """Write a recording that stands for an utterance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), rate, **options)


def librispeech(root: Path) -> None:
    for part, speaker in (
        ("train-clean-100", "103"),
        ("train-other-500", "20"),
        ("dev-clean", "84"),
        ("test-clean", "61"),
    ):
        chapter = root / part / speaker / "7"
        for number in range(2):
            speak(chapter / f"{speaker}-7-000{number}.flac", 16_000)
        lines = [f"{speaker}-7-000{number} SOME WORDS\n" for number in range(2)]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))


def ljspeech(root: Path) -> None:
    names = [f"LJ001-{number:04}" for number in range(1, 61)]
    for name in names:
        speak(root / "wavs" / f"{name}.wav", 22_050)
    (root / "metadata.csv").write_text("".join(f"{name}|Words.|Words.\n" for name in names))


def vctk(root: Path) -> None:
    (root / "txt").mkdir(parents=True)
    header = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\n"
    speakers = [f"p{number}" for number in range(225, 285)]
    rows = [f"{name}  23  F    English    Southern  England\n" for name in speakers]
    (root / "speaker-info.txt").write_text(header + "".join(rows))
    for name in speakers:
        (root / "txt" / name).mkdir()
        (root / "txt" / name / f"{name}_001.txt").write_text("Please call Stella.\n")
        for mic in ("mic1", "mic2"):
            audio = root / "wav48_silence_trimmed" / name / f"{name}_001_{mic}.flac"
            speak(audio, 48_000)


def libritts(root: Path) -> None:
    for part, speaker in (("train-clean-100", "103"), ("dev-clean", "84"), ("test-other", "9")):
        chapter = root / part / speaker / "7"
        names = [f"{speaker}_7_00000{number}_000000" for number in range(2)]
        for name in names:
            speak(chapter / f"{name}.wav", 24_000)
        rows = "".join(f"{name}\tSome words.\tSome words.\n" for name in names)
        (chapter / f"{speaker}_7.trans.tsv").write_text(rows)
        snr = "".join(f"{name}\tSome\t20.5\n" for name in names)
        (chapter / f"{speaker}_7.book.tsv").write_text(snr)


def commonvoice(root: Path) -> None:
    columns = (
        "client_id path sentence up_votes down_votes age gender accents variant locale segment"
    )
    for language in ("sw",):
        for part in ("train", "dev"):
            names = [f"common_voice_{language}_{part}{number}.mp3" for number in range(2)]
            for name in names:
                speak(root / language / "clips" / name, 32_000, format="MP3")
            rows = [f"{part}{name}\t{name}\tWords.\t2\t0\t\t\t\t\t{language}\t" for name in names]
            table = "\n".join(["\t".join(columns.split()), *rows]) + "\n"
            (root / language / f"{part}.tsv").write_text(table)


def prepare(recipe: str, arguments: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a recipe's prepare.py, in this process: importing lhotse anew takes long."""
    monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}/prepare.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / recipe / "prepare.py"), run_name="__main__")
    if end.value.code:
        raise end.value


def train_one_step(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiovq.training.loop import train

    monkeypatch.chdir(folder)  # paths in recipes are relative to where training runs
    settings = read_recipe(RECIPES / recipe / "recipe.toml", TINY)
    train(settings, folder / "run")
    assert list((folder / "run").glob("checkpoint-00000001.safetensors"))


CORPORA = [
    # make it, recordings in train and validation, speakers known, rate
    (librispeech, 4, 2, 3, 16_000),
    (ljspeech, 59, 1, 0, 22_050),
    (vctk, 59, 1, 60, 48_000),
    (libritts, 2, 2, 2, 24_000),
    (commonvoice, 2, 2, 4, 32_000),
]


@pytest.mark.parametrize("case", CORPORA, ids=lambda case: case[0].__name__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_recipe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    case: tuple[Callable, int, int, int, int],
):
    make, n_train, n_validation, n_speakers, rate = case
    # lhotse starts processes for Common Voice, each of which imports lhotse anew.
    monkeypatch.setattr(
        "lhotse.recipes.commonvoice.ProcessPoolExecutor",
        lambda max_workers, mp_context: ThreadPoolExecutor(max_workers),
    )
    name = make.__name__
    make(tmp_path / "corpus")
    out = tmp_path / "data" / name
    prepare(name, [tmp_path / "corpus", out], monkeypatch)
    printed = capsys.readouterr().out
    train = read_manifest(out / "train.jsonl.gz")
    validation = read_manifest(out / "validation.jsonl.gz")
    assert (len(train), len(validation)) == (n_train, n_validation)
    assert not {cut.id for cut in train} & {cut.id for cut in validation}
    assert all(Path(cut.path).is_absolute() for cut in train)
    assert f"recordings   {n_train + n_validation}, " in printed
    assert f"{rate} Hz" in printed
    assert ("without a name" in printed) == (n_speakers == 0)
    assert f"{n_speakers} known" in printed
    train_one_step(name, tmp_path, monkeypatch)


def speech_mix(root: Path) -> None:
    rows = ["path corpus speaker language duration_s split licence source text".split()]
    for number, (split, corpus) in enumerate(
        [("train", "one"), ("train", "one"), ("train", "two"), ("heldout", "three"), ("other", "x")]
    ):
        path = f"{split}/{corpus}/{number}.flac"
        speak(root / path, 16_000)
        rows.append([path, corpus, f"s{number}", "en", "0.6", split, "CC0", "here", 'he said "yes'])
    rows.append(["train/gone.flac", "two", "", "", "1", "train", "CC0", "here", ""])
    (root / "manifest.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


def test_speech_mix_writes_a_manifest_for_each_corpus(tmp_path, monkeypatch, capsys):
    speech_mix(tmp_path / "corpus")
    prepare("speech_mix", [tmp_path / "corpus", tmp_path / "out"], monkeypatch)
    printed = capsys.readouterr().out
    written = {
        path.relative_to(tmp_path / "out").as_posix(): [cut.id for cut in read_manifest(path)]
        for path in (tmp_path / "out").rglob("*.jsonl.gz")
    }
    assert written == {
        "train/one.jsonl.gz": ["train/one/0", "train/one/1"],
        "train/two.jsonl.gz": ["train/two/2"],
        "heldout.jsonl.gz": ["heldout/three/3"],
    }
    assert "gone.flac" in printed


def test_speech_mix_trains_on_teacher_and_labels(tmp_path, monkeypatch):
    from audiovq.training.loop import train

    speech_mix(tmp_path / "corpus")
    out = tmp_path / "data" / "speech_mix"
    prepare("speech_mix", [tmp_path / "corpus", out], monkeypatch)
    raw = np.random.default_rng(0).normal(size=(3, 30, 4))
    for name, features in zip(("one/0", "one/1", "two/2"), raw, strict=True):
        for folder in ("raw", "labels"):
            (out / folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(out / "raw" / "train" / f"{name}.npy", features)
        np.save(out / "labels" / "train" / f"{name}.npy", np.zeros(30, np.int8))
    teacher = runpy.run_path(str(RECIPES / "speech_mix" / "teacher.py"))
    manifests = sorted((out / "train").glob("*.jsonl.gz"))
    for _ in range(2):  # the second run finds everything there
        teacher["main"](str(out / "raw"), out / "teacher", manifests)
    shutil.copytree(out / "raw", out / "other")
    with pytest.raises(SystemExit, match=r"holds features of .*raw; name another"):
        teacher["main"](str(out / "other"), out / "teacher", manifests)
    monkeypatch.chdir(tmp_path)
    settings = read_recipe(
        RECIPES / "speech_mix" / "recipe.toml",
        [
            *TINY,
            'data.train=[{path="data/speech_mix/train/one.jsonl.gz"}]',
            "data.teacher_dim=4",
            "train.log_every=1",
        ],
    )
    train(settings, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["teacher"] > 0
    assert metrics["labels"] > 0


def test_teacher_features_are_whitened():
    teacher = runpy.run_path(str(RECIPES / "speech_mix" / "teacher.py"))
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) * [1, 1, 1, 1, 1, 50] + 3
    mean, components = teacher["whitening"](iter(np.array_split(mixed, 7)))
    whitened = (mixed - mean) @ components.T
    assert whitened.mean(0) == pytest.approx(np.zeros(6), abs=1e-3)
    assert np.cov(whitened.T) == pytest.approx(np.eye(6), abs=2e-3)
    assert components.shape == (6, 6)


def test_long_recordings_are_encoded_in_parts_on_the_same_frames(tmp_path):
    """A teacher that sees only its own frame gives the same features in parts as at once."""
    teacher = runpy.run_path(str(RECIPES / "speech_mix" / "teacher.py"))
    n_frames = 3001
    frames = np.arange(n_frames) / n_frames
    soundfile.write(tmp_path / "a.wav", np.repeat(frames, 320)[:-100], 16_000, "FLOAT")
    cut = Cut("a", str(tmp_path / "a.wav"), 0.0, n_frames * 0.02 - 100 / 16_000)
    found = teacher["in_parts"](lambda wav: wav.reshape(-1, 320)[:, :1])(cut)
    assert found[:, 0] == pytest.approx(frames, abs=1e-6)


def test_moonshine_is_heard_in_the_middle_of_each_frame(monkeypatch):
    """Its frames, 24 ms apart, become frames 20 ms apart: of an encoder that says their middles."""

    class Session:
        def __init__(self, *_):
            pass

        def run(self, _, inputs):
            n_frames = (inputs["input_values"].shape[1] - 447) // 384
            return [np.arange(n_frames)[None, :, None] * 384.0 + 447]

    runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    package = SimpleNamespace(__file__="moonshine_voice/__init__.py")
    monkeypatch.setitem(sys.modules, "moonshine_voice", package)
    teacher = runpy.run_path(str(RECIPES / "speech_mix" / "teacher.py"))
    found = teacher["moonshine_encoder"]()(np.zeros(16_000, np.float32))
    middles = 320 * np.arange(50) + 160.0
    assert found[:, 0] == pytest.approx(np.maximum(middles, 447))


def test_labels_are_those_of_the_middle_of_each_frame():
    labels = runpy.run_path(str(RECIPES / "speech_mix" / "labels.py"))
    phones = labels["PHONES"]
    assert len(phones) == 40
    found = labels["frame_labels"]([("AH0", 0, 3), ("<sil>", 3, 2), ("T", 5, 9)], 4)
    assert [phones[label] for label in found] == ["AH", "SIL", "T", "T"]
    known = {"don't", "stop", "well"}
    assert labels["spoken"]("Don't stop, 'well'!", known) == ["don't", "stop", "well"]
    assert labels["spoken"]("Stop zork", known) == ["stop", "zork"]


def test_a_word_without_pronunciation_is_aligned_as_one_like_it_and_has_no_label():
    labels = runpy.run_path(str(RECIPES / "speech_mix" / "labels.py"))
    assert labels["like"]("balt", {"baltz", "tablet", "b"}) == "baltz"
    assert labels["like"]("zork", {"pemberton", "stop"}) == ""
    found = labels["frame_labels"]([("T", 0, 2), ("", 2, 4), ("T", 6, 2)], 4)
    assert found.tolist() == [labels["PHONES"].index("T"), -1, -1, labels["PHONES"].index("T")]


@pytest.mark.parametrize("name", ["librispeech", "ljspeech", "vctk", "libritts", "commonvoice"])
def test_a_folder_that_is_not_the_corpus_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    with pytest.raises(SystemExit) as stop:
        prepare(name, [tmp_path, tmp_path / "out"], monkeypatch)
    assert str(tmp_path) in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_a_corpus_is_prepared_anew_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.jsonl.gz").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        prepare("ljspeech", [tmp_path, out], monkeypatch)
    assert "exists; add --force" in str(stop.value)
    ljspeech(tmp_path / "corpus")
    prepare("ljspeech", [tmp_path / "corpus", out, Path("--force")], monkeypatch)
    assert len(read_manifest(out / "train.jsonl.gz")) == 59


def test_arguments_are_explained(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit) as stop:
        prepare("ljspeech", [], monkeypatch)
    assert stop.value.code == 2
    assert "CORPUS_DIR" in capsys.readouterr().err


def test_the_mean_of_decoders_keeps_the_tokens(tmp_path):
    model = started_model(TINY_MODEL)
    main = runpy.run_path(str(RECIPES / "speech_mix" / "mean.py"))["main"]
    weight = model.decoder.head.weight
    first = weight.detach().half()
    second = first.flip(0)
    for name, values in (("one", first), ("two", second)):
        with torch.no_grad():
            weight.copy_(values)
        model.save_pretrained(tmp_path / name)
    one, two, out = (tmp_path / name for name in ("one", "two", "mean"))
    main([str(one), str(two)], out)
    mean = AudioVQ.from_pretrained(out)
    expected = ((first.float() + second.float()) / 2).half().float()
    assert torch.equal(mean.decoder.head.weight, expected)
    assert mean.fingerprint == model.fingerprint
    main([str(one), str(two), str(two)], tmp_path / "thirds")
    thirds = AudioVQ.from_pretrained(tmp_path / "thirds").decoder.head.weight
    assert torch.equal(thirds, ((first.double() + 2 * second.double()) / 3).half().float())
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.5)
    model.save_pretrained(tmp_path / "other")
    for models, says in (
        ([str(one)], "two or more"),
        ([str(one), str(tmp_path / "other")], "other tokens"),
        ([str(one), str(two)], "exists"),
    ):
        with pytest.raises(SystemExit, match=says):
            main(models, out)


def test_the_mean_of_units_of_one_origin_has_tokens_of_its_own(tmp_path):
    model = started_model(TINY_MODEL)
    main = runpy.run_path(str(RECIPES / "speech_mix" / "mean.py"))["main"]
    total = model.quantizer.codebooks[0].total
    for name in ("one", "two"):
        model.round_weights().save_pretrained(tmp_path / name)
        total.mul_(1.25)
        with torch.no_grad():
            next(model.encoder.parameters()).add_(0.5)
    main([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "mean", new_tokens=True)
    one, two, mean = (AudioVQ.from_pretrained(tmp_path / n) for n in ("one", "two", "mean"))
    assert len({one.fingerprint, two.fingerprint, mean.fingerprint}) == 3
    tables = [m.quantizer.codebooks[0].vectors for m in (one, two, mean)]
    torch.testing.assert_close(tables[2], (tables[0] + tables[1]) / 2)  # to float32, not float16
    assert all(torch.equal(p, p.half().float()) for p in mean.parameters())


def test_labels_refuse_a_manifest_before_they_write(tmp_path):
    labels = runpy.run_path(str(RECIPES / "speech_mix" / "labels.py"))
    (tmp_path / "bad.jsonl").write_text("no manifest")
    for name, says in (("none.jsonl", "does not exist"), ("bad.jsonl", "not a lhotse CutSet")):
        with pytest.raises(SystemExit, match=says):
            labels["main"](tmp_path / "out", [tmp_path / name])
    assert not (tmp_path / "out").exists()


def test_posteriors_name_the_frames_of_recordings_without_labels_too(tmp_path: Path, capsys):
    """Features that are each a label's own, with some noise: the network finds which is whose."""
    random = np.random.default_rng(0)
    of_label = random.standard_normal((40, 8))
    truth = {f"r{index}": random.integers(0, 40, 60) for index in range(60)}
    for folder in ("features", "labels"):
        (tmp_path / folder).mkdir()
    lines = []
    for index, (name, labels) in enumerate(truth.items()):
        features = of_label[labels] + 0.05 * random.standard_normal((60, 8))
        np.save(tmp_path / "features" / f"{name}.npy", features.astype(np.float16))
        if index % 3:
            known = np.where(random.random(60) < 0.1, -1, labels)  # a tenth is not known
            np.save(tmp_path / "labels" / f"{name}.npy", known.astype(np.int8))
        cut = recording_cut(name, EXAMPLES[0], 16_000, 1, 16_000)
        lines.append(json.dumps(cut.to_dict()))
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    posteriors = runpy.run_path(str(RECIPES / "speech_mix" / "posteriors.py"))
    posteriors["fit"].__globals__.update(EPOCHS=15, BATCH=64)
    folders = [tmp_path / name for name in ("features", "labels", "out")]
    posteriors["main"](*folders, [tmp_path / "all.jsonl"])
    assert "Wrote 60 recordings" in capsys.readouterr().out
    right = []
    for name, labels in truth.items():
        said = np.load(tmp_path / "out" / f"{name}.npy").astype(np.float32)
        assert said.shape == (60, 40)
        assert said.sum(1) == pytest.approx(np.ones(60), abs=0.01)
        right += list(said.argmax(1) == labels)
    assert np.mean(right) > 0.9
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match=r"No recording has features in .* and labels in"):
        posteriors["main"](*folders, [tmp_path / "all.jsonl"])
