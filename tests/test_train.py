"""Laws of training: it learns, it resumes exactly, its ranks agree, it survives bad input."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lhotse import CutSet, MonoCut, Recording
from lightning_fabric import Fabric
from tiny import EXAMPLES, TINY
from typer.testing import CliRunner

import audiovq.training.adversary
import audiovq.training.loop
import audiovq_cli
from audiovq import AudioVQ, FileRefused
from audiovq.audio import load_audio
from audiovq.training.batches import make_dataset
from audiovq.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from audiovq.training.data import read_manifest
from audiovq.training.export import export, run_model
from audiovq.training.generator import Generator, dropout_levels
from audiovq.training.log import RunLog
from audiovq.training.loop import Run, train
from audiovq.training.losses import MelLoss, unit_losses
from audiovq.training.recipe import DataSettings, ManifestSettings, Recipe, TrainSettings
from audiovq.training.start import initial_model

pytestmark = pytest.mark.filterwarnings(
    # Fabric's own, on every start; none of them is about what is done here.
    "ignore:.*(broadcast_buffers|num_workers|does not have many workers|pin_memory).*"
)


CHANNELS = (2, 4, 4)
"""Of discriminators: the laws hold for any, and large ones would take most of the time."""


@pytest.fixture(scope="module", autouse=True)
def light_judges():
    """Small discriminators, and a listener that costs nothing instead of DistillMOS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiovq.training.discriminator.CHANNELS", CHANNELS)
        patch.setattr("audiovq.training.validate._listener", lambda: loudness)
        yield


def loudness(wav: torch.Tensor) -> torch.Tensor:
    assert wav.ndim == 2
    return wav.square().mean().sqrt()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """A CutSet of the example recordings."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl.gz"
    cuts = []
    for file in EXAMPLES:
        recording = Recording.from_file(file)
        cuts.append(
            MonoCut(
                id=file.stem, start=0, duration=recording.duration, channel=0, recording=recording
            )
        )
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture
def recipe(manifest) -> Recipe:
    """Ten steps through all three stages."""
    return small(
        str(manifest),
        steps=10,
        autoencoder_steps=3,
        adversarial_from=6,
        log_every=5,
        validate_every=100,
        checkpoint_every=5,
        quantizer_dropout=0.5,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint."""
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path)[0]


def test_stop_and_resume_is_no_stop_bit_for_bit(recipe, tmp_path):
    train(recipe, tmp_path / "whole")
    train(replace(recipe, train=replace(recipe.train, decay_share=0.3)), tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint-00000010.safetensors").unlink()  # as if killed after step 5
    train(recipe, tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_run_is_not_overwritten(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(FileRefused, match="holds a run already"):
        train(recipe, tmp_path / "run")


def test_only_the_newest_checkpoints_are_kept(recipe, tmp_path):
    short = replace(recipe.train, checkpoint_every=2, keep=2, adversarial_from=99)
    train(replace(recipe, train=short), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-00000008.safetensors", "checkpoint-00000010.safetensors"]


def test_it_learns_and_every_codebook_is_alive(recipe, manifest, tmp_path):
    settings = replace(
        recipe.train, steps=160, autoencoder_steps=80, adversarial_from=150, log_every=20
    )
    longer = replace(recipe, train=settings, data=replace(recipe.data, validation=str(manifest)))
    out = train(longer, tmp_path / "run")
    lines = metrics(out)
    logs = [line for line in lines if "mel" in line]
    assert logs[-1]["mel"] < 0.75 * logs[0]["mel"]
    assert all(0 < line["mel_short"] < line["mel"] for line in logs)
    assert min(logs[-1]["active"]) >= 0.5 * TINY.codebook_size
    assert "adversarial" in logs[-1]
    assert len(logs[-1]["perplexity"]) == TINY.n_codebooks
    assert lines[-1]["validation_mel_n_q_4"] < lines[-1]["validation_mel_n_q_1"]
    assert {"validation_stoi_n_q_2", "validation_distillmos_n_q_2"} <= set(lines[-1])
    model = export(out, tmp_path / "model")
    loaded = AudioVQ.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.name == "test"


def test_short_windows_count_more_when_asked(recipe, tmp_path):
    short = replace(recipe, train=replace(recipe.train, steps=2, autoencoder_steps=1))
    train(short, tmp_path / "without")
    train(replace(short, loss=replace(short.loss, mel_short=2.0)), tmp_path / "with")
    without, more = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert any(not torch.equal(without[name], more[name]) for name in without)


def test_a_loss_that_is_not_finite_is_skipped_and_named_then_stops(
    recipe, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "audiovq")
    bad = {"steps": {4}}

    def forward(self, wav, target):
        loss = original(self, wav, target)
        step = len(seen)
        seen.append(step)
        return loss * math.nan if step in bad["steps"] else loss

    original, seen = MelLoss.forward, []
    monkeypatch.setattr(MelLoss, "forward", forward)
    out = train(recipe, tmp_path / "one")
    assert any(
        "step 4 is skipped: mel, mel_short is not finite" in r.message for r in caplog.records
    )
    assert any(EXAMPLES[0].stem[:10] in r.message for r in caplog.records)
    assert all(t.isfinite().all() for t in weights(out).values())
    seen.clear()
    bad["steps"] = set(range(6, 99))
    longer = replace(recipe, train=replace(recipe.train, steps=20))
    with pytest.raises(FloatingPointError, match=r"checkpoint-000000(05|10)"):
        train(longer, tmp_path / "many")


def spoil(function, calls: set[int], seen: list[int]):
    """The same function, with a finite value but a gradient of NaN in some of its calls."""

    def spoilt(*arguments):
        loss = function(*arguments)
        if loss.requires_grad:
            if len(seen) in calls:
                loss.register_hook(lambda gradient: gradient * math.nan)
            seen.append(len(seen))
        return loss

    return spoilt


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(
    recipe, tmp_path, monkeypatch, caplog
):
    """The losses are finite, and their gradients are not."""
    monkeypatch.setattr(MelLoss, "forward", spoil(MelLoss.forward, {4}, []))
    critic = spoil(audiovq.training.adversary.discriminator_loss, {1}, [])
    monkeypatch.setattr("audiovq.training.adversary.discriminator_loss", critic)
    out = train(recipe, tmp_path / "one")
    assert any("step 4 is skipped: the gradient is not finite" in r.message for r in caplog.records)
    logs = [line for line in metrics(out) if "mel" in line]
    assert sum(line["skipped_steps"] for line in logs) == 1
    assert sum(line.get("skipped_critic_steps", 0) for line in logs) == 1
    assert all(t.isfinite().all() for t in weights(out).values())
    monkeypatch.setattr(MelLoss, "forward", spoil(MelLoss.forward, set(range(99)), []))
    with pytest.raises(FloatingPointError, match="5 steps in a row"):
        train(recipe, tmp_path / "all")


def test_one_codebook_validates(recipe, manifest, tmp_path):
    one = replace(TINY, n_codebooks=1, unit_level="residual")
    data = replace(recipe.data, validation=str(manifest), validation_clips=1)
    out = train(replace(recipe, model=one, data=data), tmp_path / "run")
    assert "validation_mel_n_q_1" in metrics(out)[-1]


def test_the_start_says_what_is_trained_and_the_first_steps_are_logged(
    recipe, manifest, tmp_path, caplog
):
    caplog.set_level("INFO", "audiovq")
    settings = replace(recipe.train, steps=11, log_every=50, adversarial_from=99)
    out = train(replace(recipe, train=settings), tmp_path / "run")
    hours = sum(cut.duration for cut in CutSet.from_file(manifest)) / 3600
    first = next(r.message for r in caplog.records if " h of audio" in r.message)
    assert f"{hours:.2f} h of audio in 5 recordings" in first
    assert "0.0 M parameters on cpu, step 0 of 11" in first
    assert str(out) in first
    assert [line["step"] for line in metrics(out)] == [1, 2, 5, 10, 11]
    assert not any("waiting for data" in r.message for r in caplog.records)


def test_resume_goes_back_to_a_checkpoint_that_can_be_read(recipe, tmp_path, caplog):
    """The newest is halved: the one before it counts, and nothing of what came after it stays."""
    short = replace(recipe, train=replace(recipe.train, adversarial_from=99, keep=1))
    train(short, tmp_path / "whole")
    kept = replace(short, train=replace(short.train, keep=2))
    out = train(kept, tmp_path / "parts")
    newest = newest_checkpoint(out)
    newest.write_bytes(newest.read_bytes()[:-99])
    train(short, out, resume=True)
    assert any(f"{newest} is damaged" in r.message for r in caplog.records)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(out)[name]), name
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-00000010.safetensors",
        "checkpoint-00000010.safetensors.damaged",
    ]
    steps = [line["step"] for line in metrics(out)]
    assert steps == sorted(set(steps))
    newest.write_bytes(b"")
    with pytest.raises(FileRefused, match="no older one"):
        train(short, out, resume=True)


def test_resume_keeps_to_the_recipe_of_the_run(recipe, tmp_path, caplog):
    caplog.set_level("INFO", "audiovq")
    with pytest.raises(FileRefused, match="leave out --resume"):
        train(recipe, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    short = replace(recipe, train=replace(recipe.train, steps=5, adversarial_from=99))
    out = train(short, tmp_path / "run")
    saved = (out / "recipe.json").read_text()
    other = replace(short, train=replace(short.train, steps=6, learning_rate=1e-5))
    with pytest.raises(
        FileRefused, match=r"learning_rate is 0.0006 .* --accept-changes"
    ) as refusal:
        train(other, out, resume=True)
    assert "train.steps" not in str(refusal.value)  # more steps are no other recipe
    assert (out / "recipe.json").read_text() == saved
    train(other, out, resume=True, accept_changes=True)
    assert any("Changed: train.learning_rate is 0.0006" in r.message for r in caplog.records)
    history = {
        path.name: json.loads(path.read_text())["train"]["learning_rate"]
        for path in out.glob("recipe-*.json")
    }
    assert history == {"recipe-00000000.json": 6e-4, "recipe-00000005.json": 1e-5}
    longer = replace(other, train=replace(other.train, steps=7, log_every=1, threads=1))
    train(longer, out, resume=True)
    assert metrics(out)[-1]["step"] == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_writes_a_checkpoint(
    recipe, tmp_path, monkeypatch, number, code
):
    """As it is typed: the command ends with the signal's code, and goes on bit for bit."""
    settings = replace(recipe.train, checkpoint_every=100, steps=6, adversarial_from=99)
    small_recipe = replace(recipe, train=settings)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(asdict(small_recipe)))

    def step(self, batch):
        if self.step == 3:
            os.kill(os.getpid(), number)
        original(self, batch)

    original = Run._train_step
    monkeypatch.setattr(Run, "_train_step", step)
    run = CliRunner().invoke(audiovq_cli.app, ["train", str(path), "-o", str(tmp_path / "run")])
    assert run.exit_code == code, run.output
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-00000004.safetensors"
    monkeypatch.setattr(Run, "_train_step", original)
    words = ["train", str(tmp_path / "run"), "--resume", "--json"]
    run = CliRunner().invoke(audiovq_cli.app, words)
    assert json.loads(run.stdout) == {"folder": str(tmp_path / "run"), "steps": 6}
    train(small_recipe, tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "run")[name]), name


def test_a_folder_is_a_run_only_with_resume(recipe, tmp_path):
    for words, code, sentence in (
        ([tmp_path], 2, "is a folder; name a recipe, or add --resume"),
        ([tmp_path, "--resume"], 1, "holds no recipe.json"),
        ([tmp_path, "--resume", "-o", tmp_path / "a"], 2, "leave out -o"),
    ):
        run = CliRunner().invoke(audiovq_cli.app, ["train", *map(str, words)])
        assert run.exit_code == code, run.output
        assert sentence in " ".join(run.output.replace("│", " ").split())


def test_a_disk_that_fills_up_is_one_sentence(recipe, tmp_path, monkeypatch):
    def full(self, step, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunLog, "write_metrics", full)
    with pytest.raises(FileRefused, match=r"broke off: .*No space left .*--resume"):
        train(recipe, tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(FileRefused, match="is a file"):
        train(recipe, tmp_path / "file")


def test_a_corpus_that_cannot_be_read_is_one_sentence_from_a_worker_too(recipe, tmp_path):
    ghost = MonoCut(
        id="ghost", start=0, duration=7.0, channel=0, recording=Recording.from_file(EXAMPLES[0])
    )
    ghost.recording.sources[0].source = str(tmp_path / "absent.flac")
    CutSet.from_cuts([ghost]).to_file(tmp_path / "a.jsonl.gz")
    data = replace(recipe.data, train=(ManifestSettings(str(tmp_path / "a.jsonl.gz")),), workers=1)
    with pytest.raises(FileRefused, match=r"^20 recordings in a row") as refusal:
        train(replace(recipe, data=data), tmp_path / "run")
    assert "\n" not in str(refusal.value)


def test_unreadable_recordings_are_skipped_and_counted(recipe, manifest, tmp_path, caplog):
    caplog.set_level("INFO", "audiovq")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    cuts = list(CutSet.from_file(manifest))
    ghost = Recording.from_file(EXAMPLES[0])
    ghost.sources[0].source = str(broken)
    cuts.append(MonoCut(id="ghost", start=0, duration=7.0, channel=0, recording=ghost))
    CutSet.from_cuts(cuts).to_file(tmp_path / "mixed.jsonl.gz")
    data = replace(recipe.data, train=(ManifestSettings(str(tmp_path / "mixed.jsonl.gz")),))
    train(replace(recipe, data=data), tmp_path / "run")
    assert any("skipped" in r.message for r in caplog.records)


def test_a_model_gets_codebooks_of_other_rates(recipe, tiny_folder, tmp_path):
    """All else is that of the model; they begin with k-means, all alive."""
    settings = replace(
        recipe.train, initial_model=str(tiny_folder), autoencoder_steps=1, steps=2, warmup_steps=0
    )
    sizes = {"n_codebooks": 3, "level_strides": (2, 4, 1), "codebook_size": 16}
    other = replace(recipe, model=replace(TINY, **sizes), train=settings)
    with pytest.raises(FileRefused, match=r"n_codebooks is 4 .* 3 .*or set train.new_codebooks"):
        train(other, tmp_path / "refused")
    anew = replace(other, train=replace(settings, new_codebooks=True))
    found, before = initial_model(anew), AudioVQ.from_pretrained(tiny_folder)
    assert found.config == anew.model
    for name, tensor in before.state_dict().items():
        if ".codebooks." not in name:
            assert torch.equal(tensor, found.state_dict()[name]), name
    train(anew, tmp_path / "run")
    codebooks = run_model(tmp_path / "run").quantizer.codebooks
    assert [len(codebook.usage) for codebook in codebooks] == [16] * 3
    assert all(codebook.started for codebook in codebooks)


def test_new_discriminators_have_a_head_start(recipe, tiny_folder, tmp_path):
    """They learn while a generator that is trained already waits, and then it learns again."""
    settings = replace(
        recipe.train,
        initial_model=str(tiny_folder),
        adversarial_from=0,
        discriminator_head_start=2,
        checkpoint_every=2,
        steps=4,
        keep=3,
    )
    changed = replace(recipe, train=settings)
    new = Run(changed, tmp_path / "new", Fabric(accelerator="cpu"))
    parts = {
        "generator": [f"generator.{name}" for name, _ in new.module.named_parameters()],
        "codebooks": [name for name in new._tensors() if ".codebooks." in name],
        "discriminator": [name for name in new._tensors() if name.startswith("discriminator")],
    }
    train(changed, tmp_path / "run")
    stages = [new._tensors()] + [
        load_checkpoint(tmp_path / "run" / f"checkpoint-{step:08d}.safetensors")[0]
        for step in (2, 4)
    ]
    moved = [
        {part for part, names in parts.items() if any(not a[n].equal(b[n]) for n in names)}
        for a, b in pairwise(stages)
    ]
    assert moved == [{"discriminator"}, set(parts)]
    lines = {line["step"]: line for line in metrics(tmp_path / "run") if "discriminator" in line}
    assert lines[2]["audio_seconds_per_second"] > 0
    assert lines[2]["learning_rate"] == 0 < lines[4]["learning_rate"]
    # And another run goes on with them, whatever its codec is.
    known = replace(
        settings, initial_discriminators=str(tmp_path / "run"), discriminator_head_start=0
    )
    other = replace(
        changed, train=known, model=replace(changed.model, decoder_channels=24, n_codebooks=3)
    )
    other = replace(other, train=replace(known, initial_model="", autoencoder_steps=1))
    went_on = Run(other, tmp_path / "other", Fabric(accelerator="cpu"))._tensors()
    for name in parts["discriminator"]:
        assert went_on[name].equal(stages[2][name]), name
    nowhere = replace(changed, train=replace(known, initial_discriminators=str(tmp_path)))
    with pytest.raises(FileRefused, match=r"no checkpoint.*train\.initial_discriminators"):
        Run(nowhere, tmp_path / "third", Fabric(accelerator="cpu"))


def test_a_run_that_never_has_discriminators_may_go_on_without(recipe, tmp_path):
    never = replace(recipe.train, steps=4, adversarial_from=4)
    train(replace(recipe, train=never), tmp_path / "run")
    longer = replace(never, steps=5, adversarial_from=5)
    train(replace(recipe, train=longer), tmp_path / "run", resume=True)
    assert "discriminator" not in metrics(tmp_path / "run")[-1]
    with pytest.raises(FileRefused, match=r"train\.adversarial_from is 5"):
        early = replace(longer, steps=6, adversarial_from=4)
        train(replace(recipe, train=early), tmp_path / "run", resume=True)


def test_what_is_found_by_ids_is_there_and_one_recording_s(recipe, manifest, tmp_path):
    for name in ("teacher_folder", "labels_folder"):
        data = replace(recipe.data, **{name: str(tmp_path / "none")})
        with pytest.raises(FileRefused, match=f"data.{name} is .*no .npy files"):
            make_dataset(replace(recipe, data=data), None, None)
    (cut, *_) = CutSet.from_file(manifest)
    other = MonoCut(id=cut.id, start=0.5, duration=1, channel=0, recording=cut.recording)
    CutSet.from_cuts([other]).to_file(tmp_path / "other.jsonl.gz")
    both = (ManifestSettings(str(manifest)), ManifestSettings(str(tmp_path / "other.jsonl.gz")))
    np.save(tmp_path / "a.npy", np.zeros(3))
    data = replace(recipe.data, train=both, labels_folder=str(tmp_path))
    with pytest.raises(FileRefused, match=f"have one id, {cut.id}"):
        make_dataset(replace(recipe, data=data), None, None)


def test_an_accelerator_that_is_not_there_is_one_sentence(recipe, tmp_path):
    if torch.backends.mps.is_available():
        pytest.skip("it is there")
    missing = replace(recipe, train=replace(recipe.train, accelerator="mps"))
    with pytest.raises(ValueError, match=r'train\.accelerator "mps" .* set train.accelerator to'):
        train(missing, tmp_path / "run")


def test_a_decoder_that_learns_alone_keeps_the_tokens(recipe, tiny_folder, speech, tmp_path):
    before = AudioVQ.from_pretrained(tiny_folder).round_weights()
    before.save_pretrained(tmp_path / "before")
    settings = replace(
        recipe.train, learn="decoder", initial_model=str(tmp_path / "before"), ema_decay=0.5
    )
    train(replace(recipe, train=settings), tmp_path / "run")
    after = export(tmp_path / "run", tmp_path / "after")
    for name, tensor in before.state_dict().items():
        if before.decides_tokens(name):
            assert torch.equal(tensor, after.state_dict()[name]), name
    codes = before.encode(speech)
    assert torch.equal(codes.indices, after.encode(speech).indices)
    assert not torch.allclose(before.decode(codes), after.decode(codes), atol=1e-3)
    assert after.fingerprint == before.fingerprint
    with pytest.raises(FileRefused, match=r'train.learn = "decoder", and the recipe says "all"'):
        train(recipe, tmp_path / "run", resume=True, accept_changes=True)
    settings = replace(settings, initial_model=str(tiny_folder))
    with pytest.raises(FileRefused, match="an export would round"):
        train(replace(recipe, train=settings), tmp_path / "other")


def test_units_learn_alone_to_stay_what_they_were(recipe, tiny_folder, speech, tmp_path):
    """They come to say of an augmented crop what a model says of the clean one; the rest stays."""
    before = AudioVQ.from_pretrained(tiny_folder).grown(unit_blocks=1, spectrum_size=512)
    before.round_weights().save_pretrained(tmp_path / "before")
    settings = replace(
        recipe.train,
        learn="units",
        initial_model=str(tmp_path / "before"),
        steps=60,
        log_every=20,
        checkpoint_every=30,
        learning_rate=1e-3,
        warmup_steps=20,
        ema_decay=0.5,
    )
    # One crop, over and over: what a small network of random weights says is hard to learn.
    recording = Recording.from_file(EXAMPLES[0])
    cut = MonoCut(id="crop", start=0.4, duration=0.48, channel=0, recording=recording)
    CutSet.from_cuts([cut]).to_file(tmp_path / "one.jsonl.gz")
    changed = replace(
        recipe,
        model=replace(before.config, level_frames=25),
        data=replace(
            recipe.data,
            train=(ManifestSettings(str(tmp_path / "one.jsonl.gz")),),
            crop_seconds=0.48,
            augment_share=0.2,
        ),
        loss=replace(recipe.loss, consistency=2.0, agreement=0.5),
        train=settings,
    )
    train(changed, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["consistency"] for line in lines if "consistency" in line}
    assert losses[60] < losses[1]  # of one crop
    assert losses[60] < 0.6 * losses[20]
    after = export(tmp_path / "run", tmp_path / "after")
    for name, tensor in before.state_dict().items():
        if not before.decides_units(name) or "codebooks" in name:
            assert torch.equal(tensor, after.state_dict()[name]), name
    codes, wanted = after.encode(speech).indices, before.encode(speech).indices
    assert torch.equal(codes[:, 1:], wanted[:, 1:])
    (tmp_path / "run" / "checkpoint-00000060.safetensors").unlink()  # as if killed after step 30
    whole = AudioVQ.from_pretrained(tmp_path / "after").state_dict()
    train(changed, tmp_path / "run", resume=True)
    again = export(tmp_path / "run", tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    # Without a model to keep to the views still come to agree, and the codebook moves.
    free = replace(changed, loss=replace(changed.loss, consistency=0.0, agreement=1.0))
    train(free, tmp_path / "free")
    lines = map(json.loads, (tmp_path / "free" / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["agreement"] for line in lines if "agreement" in line}
    assert losses[60] < 0.8 * losses[1]
    moved = export(tmp_path / "free", tmp_path / "moved")
    tables = [model.quantizer.codebooks for model in (moved, before)]
    assert not torch.equal(tables[0][0].vectors, tables[1][0].vectors)
    assert torch.equal(moved.encode(speech).indices[:, 1:], wanted[:, 1:])


def with_own_units(tiny_folder, folder) -> AudioVQ:
    """The tiny model, its units in layers of their own, as if those had learnt; saved."""
    model = AudioVQ.from_pretrained(tiny_folder).grown(
        unit_blocks=1, spectrum_size=512, level_frames=25
    )
    torch.nn.init.normal_(model.encoder.unit_front.weight, std=0.1)
    model.round_weights().save_pretrained(folder)
    return model


def label_all(manifest, folder):
    """Labels of all recordings, one after the other."""
    for cut in read_manifest(manifest):
        path = folder / f"{cut.id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(1000, dtype=np.int8) % 40)


def test_new_heads_on_the_units_learn_alone_at_first(recipe, tiny_folder, manifest, tmp_path):
    before = with_own_units(tiny_folder, tmp_path / "before")
    label_all(manifest, tmp_path / "labels")
    settings = replace(
        recipe.train,
        learn="units",
        initial_model=str(tmp_path / "before"),
        heads_alone=2,
        steps=4,
        checkpoint_every=2,
        warmup_steps=1,
    )
    changed = replace(
        recipe,
        model=before.config,
        data=replace(recipe.data, labels_folder=str(tmp_path / "labels")),
        loss=replace(recipe.loss, consistency=1.0),
        train=settings,
    )
    start = Run(changed, tmp_path / "new", Fabric(accelerator="cpu"))
    own = [f"generator.{name}" for name, p in start.module.named_parameters() if p.requires_grad]
    train(changed, tmp_path / "run")
    stages = [start._tensors()] + [
        load_checkpoint(tmp_path / "run" / f"checkpoint-{step:08d}.safetensors")[0]
        for step in (2, 4)
    ]
    heads, all_of_it = (
        {name for name in own if not stage[name].equal(start._tensors()[name])}
        for stage in stages[1:]
    )
    assert heads == {name for name in own if "label_head" in name}
    assert any(name.startswith("generator.model.encoder.unit") for name in all_of_it - heads)


def test_units_that_learn_alone_get_a_codebook_anew(
    recipe, tiny_folder, manifest, speech, tmp_path, monkeypatch
):
    """Without one at first, judged by labels; the sound keeps its own codebooks and codes."""
    before = with_own_units(tiny_folder, tmp_path / "before")
    label_all(manifest, tmp_path / "labels")
    settings = replace(
        recipe.train,
        learn="units",
        initial_model=str(tmp_path / "before"),
        new_codebooks=True,
        autoencoder_steps=2,
        steps=4,
        checkpoint_every=2,
        warmup_steps=1,
    )
    changed = replace(
        recipe,
        model=before.config,
        data=replace(recipe.data, labels_folder=str(tmp_path / "labels"), augment_share=0.5),
        loss=replace(recipe.loss, agreement=1.0),
        train=settings,
    )
    train(changed, tmp_path / "run")
    first, last = (
        load_checkpoint(tmp_path / "run" / f"checkpoint-{step:08d}.safetensors")[0]
        for step in (2, 4)
    )
    own = [name for name in first if name.startswith("generator.model.quantizer.")]
    changed_by = [name for name in own if not first[name].equal(last[name])]
    codebooks = [name for name in changed_by if "codebooks" in name]
    assert codebooks
    assert all(".units." in name for name in codebooks)
    unit_front = "generator.model.encoder.unit_front.weight"
    assert not first[unit_front].equal(before.encoder.unit_front.weight)  # without a codebook
    logged = metrics(tmp_path / "run")
    assert ["agreement" in line for line in logged if "labels" in line] == [
        line["step"] > 2 for line in logged if "labels" in line
    ]
    after = export(tmp_path / "run", tmp_path / "after")
    codes, wanted = after.encode(speech).indices, before.encode(speech).indices
    assert torch.equal(codes[:, 1:], wanted[:, 1:])
    assert not torch.equal(codes[:, 0], wanted[:, 0])
    # Two hearings cost twice as much: without what compares them there is one.
    monkeypatch.setattr("audiovq.training.loop.both_views", lambda batch: 1 / 0)
    once = replace(changed, loss=replace(changed.loss, agreement=0.0))
    train(once, tmp_path / "once")
    with pytest.raises(ZeroDivisionError):
        train(changed, tmp_path / "twice")
    with pytest.raises(ValueError, match="need what judges them without a codebook"):
        replace(changed, data=replace(changed.data, labels_folder=""))
    fewer = replace(changed, model=replace(before.config, n_codebooks=3))
    with pytest.raises(
        FileRefused, match=r"n_codebooks is 4 .* 3 .*Give the recipe the model's\.$"
    ):
        initial_model(fewer)


def test_labels_move_the_codes_of_the_units(recipe, tiny_folder, manifest, speech, tmp_path):
    """By gradients instead of moving averages; a run that was stopped goes on with them."""
    before = with_own_units(tiny_folder, tmp_path / "before")
    label_all(manifest, tmp_path / "labels")
    settings = replace(
        recipe.train,
        learn="units",
        initial_model=str(tmp_path / "before"),
        steps=4,
        checkpoint_every=2,
        warmup_steps=1,
    )
    changed = replace(
        recipe,
        model=replace(before.config, unit_labels=40),
        data=replace(recipe.data, labels_folder=str(tmp_path / "labels"), augment_share=0.5),
        loss=replace(recipe.loss, agreement=1.0, code_labels=1.0, code_context=0.5, code_use=0.1),
        train=settings,
    )
    start = Run(changed, tmp_path / "new", Fabric(accelerator="cpu"))
    assert start.module.codes.vectors.equal(before.quantizer.codebooks[0].vectors)
    train(changed, tmp_path / "run")
    logged = [line for line in metrics(tmp_path / "run") if "code_labels" in line]
    assert logged
    assert all({"agreement", "code_context", "code_use", "labels"} <= set(line) for line in logged)
    after = export(tmp_path / "run", tmp_path / "after")
    whole, was = after.state_dict(), before.state_dict()
    moved = {name for name in was if "codebooks" in name and not was[name].equal(whole[name])}
    assert moved == {f"quantizer.units.codebooks.0.{part}" for part in ("usage", "total")}
    said = after.quantizer.units.labels
    torch.testing.assert_close(said.sum(dim=1), torch.ones(len(said)))
    assert said.std() > 0
    assert torch.equal(after.encode(speech).indices[:, 1:], before.encode(speech).indices[:, 1:])
    last = tmp_path / "run" / "checkpoint-00000004.safetensors"
    run = Run(changed, tmp_path / "new", Fabric(accelerator="cpu"), read_checkpoint(last))
    torch.testing.assert_close(run.module.codes.vectors, after.quantizer.codebooks[0].vectors)
    last.unlink()  # as if killed after step 2
    train(changed, tmp_path / "run", resume=True)
    again = export(tmp_path / "run", tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    # New codes begin with the codebook, when that begins.
    anew = replace(settings, new_codebooks=True, autoencoder_steps=3)
    train(replace(changed, train=anew), tmp_path / "anew")
    steps = [line["step"] for line in metrics(tmp_path / "anew") if "code_labels" in line]
    assert steps == [4]
    with pytest.raises(ValueError, match=r"unit_labels = 40 \(data.n_labels\) or 0, not 7"):
        replace(changed, model=replace(before.config, unit_labels=7))
    with pytest.raises(ValueError, match=r"loss\.code_labels needs"):
        replace(changed, data=replace(changed.data, labels_folder=""))
    with pytest.raises(ValueError, match=r"loss\.code_context is of loss\.code_labels"):
        replace(changed, loss=replace(changed.loss, code_labels=0.0))


def test_a_floor_joins_a_model_that_has_none_or_another(recipe, tiny_folder, tmp_path):
    sizes = {"unit_blocks": 1, "spectrum_size": 512, "level_frames": 25}
    before = AudioVQ.from_pretrained(tiny_folder).grown(**sizes).round_weights()
    before.save_pretrained(tmp_path / "before")
    settings = replace(recipe.train, learn="units", initial_model=str(tmp_path / "before"))
    floored = replace(before.config, level_floor=30)
    model = initial_model(replace(recipe, model=floored, train=settings))
    assert model.config == floored
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.state_dict().items())
    model.save_pretrained(tmp_path / "before", overwrite=True)
    other = replace(floored, level_floor=20)
    assert initial_model(replace(recipe, model=other, train=settings)).config == other
    settings = replace(settings, learn="sound")
    with pytest.raises(FileRefused, match="level_floor is 30 in the model and 20 in the recipe"):
        initial_model(replace(recipe, model=other, train=settings))


def test_the_sound_learns_and_its_units_stay(recipe, tiny_folder, speech, tmp_path):
    """Encoder, acoustic codebooks and decoder move; what decides the units stays to the bit."""
    before = with_own_units(tiny_folder, tmp_path / "before")
    settings = replace(
        recipe.train,
        learn="sound",
        initial_model=str(tmp_path / "before"),
        adversarial_from=1,
        steps=3,
        checkpoint_every=3,
        learning_rate=2e-3,
        warmup_steps=1,
        ema_decay=0.5,
    )
    changed = replace(recipe, model=before.config, train=settings)
    train(changed, tmp_path / "run")
    after = export(tmp_path / "run", tmp_path / "after")
    moved = {
        name
        for name, tensor in before.state_dict().items()
        if not torch.equal(tensor, after.state_dict()[name])
    }
    assert not any(before.decides_units(name) for name in moved)
    for part in ("encoder.stack", "encoder.sound", "quantizer.acoustic.codebooks", "decoder"):
        assert any(name.startswith(part) for name in moved), part
    assert torch.equal(after.encode(speech).indices[:, 0], before.encode(speech).indices[:, 0])
    assert after.fingerprint != before.fingerprint
    sharing = replace(settings, initial_model=str(tiny_folder))  # its units share layers
    with pytest.raises(FileRefused, match="level_frames is 0 in the model"):
        train(replace(changed, train=sharing), tmp_path / "other")


def test_units_stay_what_they_were_while_all_of_a_model_learns(recipe, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "before")
    settings = replace(recipe.train, initial_model=str(tmp_path / "before"), steps=2)
    changed = replace(recipe, loss=replace(recipe.loss, consistency=1.0), train=settings)
    train(changed, tmp_path / "run")
    before = AudioVQ.from_pretrained(tiny_folder).quantizer.codebooks
    after = weights(tmp_path / "run")
    for level, branch in enumerate(("units", "acoustic")):
        usage = after[f"generator.model.quantizer.{branch}.codebooks.0.usage"]
        assert torch.equal(usage, before[level].usage) == (branch == "units")
    export(tmp_path / "run", tmp_path / "before", overwrite=True)  # other units from here on
    longer = replace(changed, train=replace(settings, steps=3))
    with pytest.raises(FileRefused, match="keeps the units of"):
        train(longer, tmp_path / "run", resume=True)


def test_a_new_source_learns_from_codes_computed_once(recipe, tiny_folder, speech, tmp_path):
    """The encoder does not run, the tokens stay, and a run that stops is the run that does not."""
    pytest.importorskip("swift_f0")
    before = AudioVQ.from_pretrained(tiny_folder).round_weights()
    before.save_pretrained(tmp_path / "before")
    settings = replace(
        recipe.train,
        learn="decoder",
        initial_model=str(tmp_path / "before"),
        adversarial_from=4,
        steps=8,
        checkpoint_every=4,
        keep=9,
    )
    data = replace(recipe.data, cache_folder=str(tmp_path / "cache"), level_range_db=0.0)
    model = replace(TINY, source_channels=8, source_blocks=1, pitch_channels=8, pitch_blocks=1)
    mine = replace(recipe, model=model, data=data, train=settings)
    out = train(mine, tmp_path / "run")
    after = run_model(out)
    assert after.fingerprint == before.fingerprint
    assert torch.equal(after.encode(speech).indices, before.encode(speech).indices)
    logged = metrics(out)[-1]
    assert {"pitch", "adversarial", "feature", "adversarial_scale"} <= set(logged)
    assert "commitment" not in logged
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    for path in cut.glob("checkpoint-00000008*"):
        path.unlink()
    train(mine, cut, resume=True)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    with pytest.raises(ValueError, match=r"data.cache_folder are those of the recordings as they"):
        replace(mine, data=replace(data, level_range_db=6.0))
    with pytest.raises(ValueError, match="name a folder for them"):
        replace(mine, train=recipe.train, data=recipe.data)


def test_a_run_that_is_left_does_not_keep_the_interpreter_from_ending(manifest, tmp_path):
    """Its processes that read ignore the signal by which multiprocessing ends its own."""
    code = (
        "from lightning_fabric import Fabric\n"
        "from pathlib import Path\n"
        "from audiovq.training.loop import Run\n"
        "from audiovq.training.recipe import DataSettings, ManifestSettings\n"
        "from audiovq.training.recipe import Recipe, TrainSettings\n"
        "from tiny import TINY\n"
        f"data = DataSettings((ManifestSettings({str(manifest)!r}),), batch_size=4, workers=1)\n"
        "train = TrainSettings(steps=9, autoencoder_steps=8, adversarial_from=9)\n"
        "fabric = Fabric(accelerator='cpu', devices=1)\n"
        f"run = Run(Recipe(TINY, data, train=train), Path({str(tmp_path / 'run')!r}), fabric)\n"
        "steps = run.steps()\n"
        "print(next(steps))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr


def test_a_run_goes_on_from_a_model(recipe, tiny_folder, tmp_path):
    settings = replace(recipe.train, initial_model=str(tiny_folder), steps=1)
    for change in ({}, {"unit_blocks": 1}, {"unit_blocks": 1, "spectrum_size": 512}):
        changed = replace(recipe, train=settings, model=replace(TINY, **change))
        train(changed, tmp_path / f"run{len(change)}")
    with pytest.raises(FileRefused, match="kernel_size is 7 in the model and 5 in the recipe"):
        train(
            replace(recipe, train=settings, model=replace(TINY, kernel_size=5)), tmp_path / "wrong"
        )
    # What the run began with may be gone when it goes on.
    (tmp_path / "gone").mkdir()
    AudioVQ.from_pretrained(tiny_folder).save_pretrained(tmp_path / "gone")
    settings = replace(settings, initial_model=str(tmp_path / "gone"))
    train(replace(recipe, train=settings), tmp_path / "run")
    shutil.rmtree(tmp_path / "gone")
    settings = replace(settings, steps=2)
    train(replace(recipe, train=settings), tmp_path / "run", resume=True)
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-00000002.safetensors"
    early = weights(tmp_path / "run1")
    wanted = AudioVQ.from_pretrained(tiny_folder).grown(unit_blocks=1).state_dict()
    for name in ("encoder.units.layers.0.up.weight", "decoder.head.weight"):  # but for one step
        close = torch.isclose(early[f"generator.model.{name}"], wanted[name], atol=1e-3)
        assert close.all(), name


def test_another_model_in_the_folder_is_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    other = replace(recipe, model=replace(TINY, codebook_size=16))
    with pytest.raises(FileRefused, match="of another model"):
        train(other, tmp_path / "run", resume=True)


def test_export_before_the_quantizer_is_refused(recipe, tmp_path):
    train(replace(recipe, train=replace(recipe.train, autoencoder_steps=6)), tmp_path / "run")
    newest_checkpoint(tmp_path / "run").unlink()  # that of step 5 stays
    with pytest.raises(FileRefused, match="before the quantizer"):
        export(tmp_path / "run", tmp_path / "model")
    with pytest.raises(FileRefused, match="no checkpoint"):
        export(tmp_path / "none", tmp_path / "model")


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory) -> Path:
    """A run of a few steps whose codebooks have begun."""
    settings = {"steps": 3, "autoencoder_steps": 1, "adversarial_from": 99}
    return train(small(str(manifest), **settings), tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ema.decoder.head.weight", math.nan, "head.weight holds numbers that are not finite"),
        (
            "ema.decoder.head.weight",
            7e4,
            "head.weight holds .* beyond the range",
        ),
        ("generator.model.quantizer.units.codebooks.0.total", math.inf, "0.total holds numbers"),
        # Finite, but not once it is divided by a small share.
        ("generator.model.quantizer.units.codebooks.0.total", 3e38, "the codebook of level 0"),
    ],
)
def test_weights_that_a_model_cannot_hold_are_not_exported(finished, tmp_path, name, value, said):
    tensors, values = load_checkpoint(newest_checkpoint(finished))
    bad = {**tensors, name: tensors[name].clone()}
    bad[name].view(-1)[1] = value
    save_checkpoint(tmp_path / "run" / "best.safetensors", bad, values)
    with pytest.raises(FileRefused, match=f"cannot be exported: .*{said}"):
        export(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_that_lacks_weights_is_not_exported(finished, tmp_path):
    tensors, values = load_checkpoint(newest_checkpoint(finished))
    del tensors["ema.decoder.head.weight"]
    save_checkpoint(tmp_path / "checkpoint-00000001.safetensors", tensors, values)
    with pytest.raises(FileRefused, match=r"lacks ema\.decoder\.head\.weight"):
        export(tmp_path, tmp_path / "model")
    save_checkpoint(tmp_path / "best.safetensors", tensors, values | {"config": {"strides": 3}})
    with pytest.raises(FileRefused, match="not possible"):
        export(tmp_path, tmp_path / "model")


def test_export_overwrites_only_when_told(finished, tmp_path):
    command = ["export", str(finished), "--out", str(tmp_path / "model")]
    run = CliRunner().invoke(audiovq_cli.app, [*command, "--json"])
    facts = json.loads(run.stdout)
    assert facts["files"] == ["config.json", "model.safetensors"]
    assert facts["fingerprint"] == AudioVQ.from_pretrained(tmp_path / "model").fingerprint
    (tmp_path / "model" / "model.safetensors").write_text("mine")
    run = CliRunner().invoke(audiovq_cli.app, command)
    assert run.exit_code == 3
    assert "exists; add --force" in run.output
    assert (tmp_path / "model" / "model.safetensors").read_text() == "mine"
    with pytest.raises(FileRefused, match="exists; add --force"):
        export(finished, tmp_path / "model")
    run = CliRunner().invoke(audiovq_cli.app, [*command, "--force", "--quiet"])
    assert (run.exit_code, run.output) == (0, "")
    assert AudioVQ.from_pretrained(tmp_path / "model").fingerprint == facts["fingerprint"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_is_exported_as_graphs(finished, tmp_path, speech):
    onnx = pytest.importorskip("audiovq.onnx")
    pytest.importorskip("onnxscript")
    out = tmp_path / "graphs"
    command = ["export", str(finished), "-o", str(out), "--onnx"]
    run = CliRunner().invoke(audiovq_cli.app, command)
    assert run.exit_code == 0, run.output
    assert sorted(path.name for path in out.iterdir() if not path.name.endswith(".data")) == [
        "config.json",
        "decoder.onnx",
        "encoder.onnx",
    ]
    codes = onnx.OnnxModel(out).encode(speech[0, 0].numpy())
    wanted = run_model(finished).encode(speech).indices[0].numpy()
    assert (codes == wanted).mean() > 0.99
    assert CliRunner().invoke(audiovq_cli.app, command).exit_code == 3
    run = CliRunner().invoke(audiovq_cli.app, command[:-1])
    assert "holds encoder.onnx" in run.output


# Each of the next tests fails for one mistake that leaves everything else as it is.


def test_units_are_compared_with_the_teacher_and_labels_of_shift_frames_before():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 9, 5, generator=generator)
    labels = torch.randint(4, (2, 9), generator=generator)
    for shift in (0, 1, 3):
        # Heads that say at frame t what was right at t - shift, and nothing of use before.
        heads = {
            "teacher": torch.cat([torch.randn(2, shift, 5), teacher[:, : 9 - shift]], dim=1),
            "labels": 99 * F.one_hot(labels.roll(shift, dims=1), 4).float(),
        }
        known = F.one_hot(labels, 4).float()
        batch = {"teacher": teacher, "has_teacher": torch.tensor([True, True]), "labels": known}
        for other in (0, 1, 3):
            losses = unit_losses(heads, batch, other)
            small_enough = [float(loss) < 1e-4 for loss in losses.values()]
            assert small_enough == [other == shift] * 2, (shift, other)


def test_recordings_without_teacher_or_labels_do_not_count():
    heads = {"teacher": torch.ones(2, 5, 3), "labels": torch.zeros(2, 5, 4)}
    teacher = torch.stack([torch.ones(5, 3), -torch.ones(5, 3)])
    labels = torch.stack([torch.eye(4)[[0] * 5], torch.zeros(5, 4)])
    batch = {"teacher": teacher, "has_teacher": torch.tensor([True, False]), "labels": labels}
    losses = unit_losses(heads, batch, 2)
    assert float(losses["teacher"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["labels"]) == pytest.approx(math.log(4))


def test_the_learning_rate_rises_stays_and_falls(recipe, tmp_path):
    settings = replace(recipe.train, steps=10, warmup_steps=4, decay_share=0.4, adversarial_from=99)
    changed = replace(recipe, train=settings)
    rates = []
    run = Run(changed, tmp_path / "run", Fabric(accelerator="cpu", devices=1))
    for _ in run.steps():
        groups = (run.optimizer.param_groups[0], run.adversary.optimizer.param_groups[0])
        rates.append([group["lr"] for group in groups])
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    wanted = (settings.learning_rate, settings.discriminator_learning_rate)
    assert rates == [pytest.approx([rate * factor for rate in wanted]) for factor in factors]


def test_items_train_with_fewer_levels(recipe, tmp_path, monkeypatch):
    levels = torch.cat([dropout_levels(recipe, step, 0, 12) for step in range(500)])
    shares = torch.bincount(levels, minlength=5)[1:] / len(levels)
    assert shares.tolist() == pytest.approx([0.125, 0.125, 0.125, 0.625], abs=0.02)
    full = replace(recipe, train=replace(recipe.train, quantizer_dropout=0.0))
    assert (dropout_levels(full, 0, 0, 99) == 4).all()
    assert not torch.equal(dropout_levels(recipe, 0, 0, 99), dropout_levels(recipe, 0, 1, 99))
    seen, original = [], Generator.forward

    def forward(self, wav, n_q, quantize, codes=None):
        seen.append(n_q)
        return original(self, wav, n_q, quantize, codes)

    monkeypatch.setattr(Generator, "forward", forward)
    train(replace(recipe, train=replace(recipe.train, adversarial_from=99)), tmp_path / "run")
    assert torch.equal(
        torch.stack(seen), torch.stack([dropout_levels(recipe, step, 0, 4) for step in range(10)])
    )


def test_validation_hears_the_averaged_weights(recipe, manifest, tmp_path):
    data = replace(recipe.data, validation=str(manifest), validation_clips=1)
    settings = replace(
        recipe.train, learning_rate=0.01, warmup_steps=0, decay_share=0.0, adversarial_from=99
    )
    out = train(replace(recipe, data=data, train=settings), tmp_path / "run")
    tensors, wav = weights(out), torch.from_numpy(load_audio(EXAMPLES[0], 16_000))[None, None]
    mel = {}
    for kind in ("ema.", "generator.model."):
        model = AudioVQ(TINY).eval()
        named = dict(model.named_parameters())
        model.load_state_dict(
            {
                name: tensors[(kind if name in named else "generator.model.") + name]
                for name in model.state_dict()
            }
        )
        clip = wav[:, :, : 12 * 16_000]
        mel[kind] = float(MelLoss(16_000)(model.decode(model.encode(clip)), clip).sum())
    assert metrics(out)[-1]["validation_mel_n_q_4"] == pytest.approx(mel["ema."], rel=1e-4)
    assert mel["generator.model."] != pytest.approx(mel["ema."], rel=1e-2)


def test_averages_of_codebooks_begin_where_kmeans_put_them(recipe, tmp_path):
    learnt = replace(recipe, model=replace(recipe.model, codebook="gradient"))
    run = Run(learnt, tmp_path / "run", Fabric(accelerator="cpu", devices=1))
    run._start_quantizer()
    for name, parameter in run.model.named_parameters():
        assert torch.equal(run.average.tensors[name], parameter), name


def test_discriminators_learn_once_their_stage_has_begun(recipe, tmp_path):
    train(replace(recipe, train=replace(recipe.train, adversarial_from=5)), tmp_path / "run")
    before = load_checkpoint(tmp_path / "run" / "checkpoint-00000005.safetensors")[0]
    after = weights(tmp_path / "run")
    names = [name for name in after if name.startswith("discriminator.")]
    assert all(not torch.equal(before[name], after[name]) for name in names)


def test_best_is_the_checkpoint_of_the_best_validation(recipe, manifest, tmp_path, monkeypatch):
    # Before there are codebooks it is perfect, and no model.
    found = iter(
        [
            {"validation_mel_autoencoder": 0.0},
            *({"validation_mel_n_q_4": mel} for mel in (0.5, 0.01, 0.2, 0.1)),
        ]
    )
    monkeypatch.setattr("audiovq.training.loop.validate", lambda *_, **__: next(found))
    data = replace(recipe.data, validation=str(manifest), validation_clips=1)
    settings = replace(recipe.train, validate_every=2, autoencoder_steps=3, adversarial_from=99)
    out = train(replace(recipe, data=data, train=settings), tmp_path / "run")
    assert load_checkpoint(out / "best.safetensors")[1]["step"] == 6


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def small(manifest: str, **changes: int | float | str) -> Recipe:
    """A recipe for runs that are compared; also read by the processes that the test starts."""
    return Recipe(
        model=TINY,
        data=DataSettings(
            train=(ManifestSettings(manifest),), batch_size=4, crop_seconds=0.5, workers=0
        ),
        train=replace(
            TrainSettings(
                steps=4,
                autoencoder_steps=2,
                adversarial_from=3,
                quantizer_dropout=0.0,
                checkpoint_every=2,
                precision="32-true",
                accelerator="cpu",
                seed=1,
            ),
            **changes,  # type: ignore[arg-type]
        ),
        card={"name": "test"},
    )


def test_two_ranks_agree_with_one(manifest, tiny_folder, tmp_path):
    """Two processes on halves of each batch end with the weights of one on whole batches, and the
    alarm names the recordings of the one that met a bad loss."""
    # From codebooks that have begun: k-means turns a difference in rounding into other centroids.
    train(small(str(manifest), initial_model=str(tiny_folder)), tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(
        "import os, sys\n"
        "import audiovq.training.discriminator\n"
        "from audiovq.training.losses import MelLoss\n"
        "from audiovq.training.loop import train\n"
        "from test_train import CHANNELS, small\n"
        "audiovq.training.discriminator.CHANNELS = CHANNELS\n"
        "train(small(sys.argv[1], devices=2, initial_model=sys.argv[3]), sys.argv[2])\n"
        "forward = MelLoss.forward\n"
        "bad = float('nan') if os.environ['RANK'] == '1' else 1.0\n"
        "MelLoss.forward = lambda *arguments: forward(*arguments) * bad\n"
        "train(small(sys.argv[1], devices=2, steps=1, autoencoder_steps=0), sys.argv[2] + '-bad')\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(manifest), str(tmp_path / "two"), str(tiny_folder)),
        ],
        check=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    dataset = make_dataset(small(str(manifest)), None, None)
    names = ", ".join(dataset[index]["id"] for index in (2, 3))  # the second half of the batch
    alarm = f"step 0 is skipped: mel, mel_short is not finite; its recordings are {names}."
    assert alarm in done.stderr, done.stderr
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in alone.items():
        if name.startswith(("generator.model", "ema")):
            # Adam's first steps turn gradients near 0, and their rounding, into whole steps.
            close = torch.isclose(tensor.float(), together[name].float(), atol=1e-3)
            # In a reservoir of 256 rows one vector may lie between two codes.
            share = 0.99 if name.endswith("reservoir") else 0.999
            assert close.float().mean() > share, name
