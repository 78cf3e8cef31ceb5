"""Seconds of audio that a second of training takes in, and where the time goes.

    python benchmarks/training_speed.py [--threads 1,2] [--batch 12] [--repeats 5]

Prints, for float32 and bf16 and for each number of threads, the speed of a plain step (encoder,
quantizer, decoder, mel and waveform losses) and of an adversarial one (also both updates against
all discriminators, on half of the crops as the recipes have it), their ratio, and the milliseconds
of each part. Times are the best of the repeats, on a default model and crops of one second of
noise: the arithmetic does not depend on the sound. Reading crops is timed on the recordings in
examples/.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lhotse import CutSet, MonoCut, Recording
from rich.console import Console
from rich.table import Table

from audiovq import AudioVQ, ModelConfig
from audiovq.training.data import Corpus, CropDataset, read_manifest
from audiovq.training.discriminator import Discriminator
from audiovq.training.losses import (
    MelLoss,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)

EXAMPLES = Path(__file__).parent.parent / "examples"


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Best time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def parts(batch: int, bf16: bool, repeats: int) -> dict[str, float]:
    """Milliseconds of the parts of a step, forward and backward."""
    torch.manual_seed(0)
    config = ModelConfig()
    model, mel, critic = AudioVQ(config).train(), MelLoss(config.sample_rate), Discriminator()
    wav = torch.randn(batch, 1, config.sample_rate) * 0.1
    n_q = torch.full((batch,), config.n_codebooks)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def encode() -> torch.Tensor:
        with autocast():
            return model.encoder(wav, model.encoder.initial_state(batch))[0].float()

    z = encode().detach().requires_grad_()
    z_q = model.quantizer(z, n_q).z_q.detach().requires_grad_()

    def decode() -> torch.Tensor:
        with autocast():
            return model.decoder(z_q, model.decoder.initial_state(batch))[0]

    out = decode().detach().requires_grad_()
    heard = slice(batch // 2)

    def judge() -> None:
        decoded = out[heard].detach().requires_grad_()
        with autocast():
            real, fake = critic(wav[heard], decoded)
        asked = adversarial_loss(fake) + feature_loss(real, fake)
        asked.backward(retain_graph=True, inputs=[decoded])
        discriminator_loss(real, fake).backward()

    return {
        "encoder": milliseconds(lambda: encode().sum().backward(), repeats),
        "quantizer": milliseconds(lambda: model.quantizer(z, n_q).z_q.sum().backward(), repeats),
        "decoder": milliseconds(lambda: decode().sum().backward(), repeats),
        "losses": milliseconds(
            lambda: (mel(out, wav).sum() + F.l1_loss(out, wav)).backward(), repeats
        ),
        "discriminators": milliseconds(judge, repeats),
    }


def reading(batch: int, repeats: int) -> float:
    """Milliseconds to read a batch of crops of one second from FLAC, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        cuts = []
        for file in sorted(EXAMPLES.glob("*.flac")):
            recording = Recording.from_file(file)
            cuts.append(
                MonoCut(
                    id=file.stem,
                    start=0,
                    duration=recording.duration,
                    channel=0,
                    recording=recording,
                )
            )
        manifest = Path(folder) / "examples.jsonl.gz"
        CutSet.from_cuts(cuts).to_file(manifest)
        corpus = Corpus(read_manifest(manifest), 1.0)
    dataset = CropDataset([corpus], sample_rate=16_000, hop_length=320, crop_frames=50, seed=0)
    return milliseconds(lambda: [dataset[i] for i in range(batch)], repeats)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    table = Table(title=f"Training on {options.batch} crops of 1 s: ms a part, s of audio a second")
    for column in ("precision", "threads", "encoder", "quantizer", "decoder", "losses"):
        table.add_column(column, justify="right")
    for column in ("discriminators", "plain s/s", "adversarial s/s", "ratio"):
        table.add_column(column, justify="right")
    for bf16 in (False, True):
        for threads in map(int, options.threads.split(",")):
            torch.set_num_threads(threads)
            times = parts(options.batch, bf16, options.repeats)
            whole = sum(times.values())
            plain = whole - times["discriminators"]
            table.add_row(
                "bf16" if bf16 else "float32",
                str(threads),
                *(f"{value:.0f}" for value in times.values()),
                f"{1000 * options.batch / plain:.1f}",
                f"{1000 * options.batch / whole:.1f}",
                f"{plain / whole:.2f}",
            )
    console = Console(width=120)
    console.print(table)
    took = reading(options.batch, options.repeats)
    console.print(f"reading {options.batch} crops: {took:.1f} ms")


if __name__ == "__main__":
    main()
