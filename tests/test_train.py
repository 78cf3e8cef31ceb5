"""Laws of training: it learns, it resumes exactly, its ranks agree, it survives bad input."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, MonoCut, Recording
from tiny import EXAMPLES, TINY

from audiovq import AudioVQ, FileRefused
from audiovq.checkpoint import load_checkpoint, newest_checkpoint
from audiovq.recipe import DataSettings, ManifestSettings, Recipe, TrainSettings
from audiovq.train import export, train

pytestmark = pytest.mark.filterwarnings(
    # Fabric's own, on every start; none of them is about what is done here.
    "ignore:.*(broadcast_buffers|num_workers|does not have many workers|pin_memory).*"
)


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
        recipe.train, steps=240, autoencoder_steps=100, adversarial_from=200, log_every=20
    )
    longer = replace(
        recipe, train=settings, data=replace(recipe.data, validation=str(manifest), batch_size=8)
    )
    out = train(longer, tmp_path / "run")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "mel" in line]
    assert logs[-1]["mel"] < 0.75 * logs[0]["mel"]
    assert all(0 < line["mel_short"] < line["mel"] for line in logs)
    assert min(logs[-1]["active"]) >= 0.5 * TINY.codebook_size
    assert "adversarial" in logs[-1]
    assert len(logs[-1]["perplexity"]) == TINY.n_codebooks
    assert lines[-1]["validation_mel_n_q_4"] < lines[-1]["validation_mel_n_q_1"]
    model = export(out, tmp_path / "model")
    loaded = AudioVQ.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.name == "test"


def test_short_windows_count_more_when_asked(recipe, tmp_path):
    short = replace(recipe, train=replace(recipe.train, steps=2, autoencoder_steps=2))
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

    from audiovq.losses import MelLoss

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
        train(recipe, tmp_path / "run", resume=True)
    settings = replace(settings, initial_model=str(tiny_folder))
    with pytest.raises(FileRefused, match="an export would round"):
        train(replace(recipe, train=settings), tmp_path / "other")


def test_a_run_goes_on_from_a_model(recipe, tiny_folder, tmp_path):
    settings = replace(recipe.train, initial_model=str(tiny_folder), steps=1)
    for change in ({}, {"unit_blocks": 1}, {"unit_blocks": 1, "spectrum_size": 512}):
        changed = replace(recipe, train=settings, model=replace(TINY, **change))
        train(changed, tmp_path / f"run{len(change)}")
    with pytest.raises(FileRefused, match="kernel_size is 7 in the model and 5 in the recipe"):
        train(
            replace(recipe, train=settings, model=replace(TINY, kernel_size=5)), tmp_path / "wrong"
        )
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
    early = replace(recipe.train, steps=4, autoencoder_steps=4)
    train(replace(recipe, train=early), tmp_path / "run")
    with pytest.raises(FileRefused, match="before the quantizer"):
        export(tmp_path / "run", tmp_path / "model")
    with pytest.raises(FileRefused, match="no checkpoint"):
        export(tmp_path / "none", tmp_path / "model")


def small(manifest: str, **changes: int | float) -> Recipe:
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
                seed=1,  # with 5 a vector of a k-means start is halfway between two centroids
            ),
            **changes,  # type: ignore[arg-type]
        ),
        card={"name": "test"},
    )


def test_two_ranks_agree_with_one(manifest, tmp_path):
    """Two processes on halves of each batch end with the weights of one on whole batches."""
    train(small(str(manifest)), tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from audiovq.train import train\n"
        "from test_train import small\n"
        "train(small(sys.argv[1], devices=2), sys.argv[2])\n"
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(manifest), str(tmp_path / "two")),
        ],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in alone.items():
        if name.startswith(("generator.model", "ema")):
            # Adam's first steps turn gradients near 0, and their rounding, into whole steps.
            close = torch.isclose(tensor.float(), together[name].float(), atol=1e-3)
            assert close.float().mean() > 0.999, name
