"""Seconds of audio that a second encodes and decodes, beside other codecs in the same run.

    python benchmarks/speed.py --seconds 10 60 3600 --threads 1 2

Prints a table for each number of threads: the real-time factor of encode and decode by wall clock
and by processor time, and how many times as fast as EnCodec 24 kHz audiovq is. The codecs take
turns, round after round, and the fastest round counts. The other codecs have random weights, which
cost the same time as trained ones: EnCodec 24 kHz (6 kbit/s), DAC 16 kHz and Mimi (8 levels) from
transformers, SNAC 24 kHz from snac; Opus is opusenc and opusdec, started anew for each file. They
run on the first length alone.
"""

import argparse
import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import soundfile
import torch

from audiovq import AudioVQ, ModelConfig

Job = tuple[Callable[[], object], Callable[[], object]]  # encode, decode


def audiovq_job(model: AudioVQ, seconds: float) -> Job:
    """Whole signals through the model."""
    wav = torch.from_numpy(machine.speech(seconds, model.config.sample_rate))[None, None]
    codes = model.encode(wav)
    return lambda: model.encode(wav), lambda: model.decode(codes)


def onnx_job(model: AudioVQ, seconds: float, folder: Path) -> Job:
    """The same through ONNX Runtime."""
    from audiovq.onnx import OnnxModel, export_onnx

    with torch.inference_mode(False):
        export_onnx(model, folder / "onnx", overwrite=True)
    exported = OnnxModel(folder / "onnx", threads=torch.get_num_threads())
    wav = machine.speech(seconds, model.config.sample_rate)
    codes = exported.encode(wav)
    return lambda: exported.encode(wav), lambda: exported.decode(codes)


def peers(seconds: float, folder: Path) -> dict[str, Job]:
    """The other codecs that are installed."""
    jobs: dict[str, Job] = {}
    wav16 = torch.from_numpy(machine.speech(seconds))[None, None]
    wav24 = torch.from_numpy(machine.speech(seconds, 24_000))[None, None]
    if importlib.util.find_spec("transformers"):
        from transformers import (
            DacConfig,
            DacModel,
            EncodecConfig,
            EncodecModel,
            MimiConfig,
            MimiModel,
        )

        encodec = EncodecModel(EncodecConfig()).eval()
        encoded = encodec.encode(wav24, bandwidth=6.0)
        jobs["EnCodec 24 kHz"] = (
            lambda: encodec.encode(wav24, bandwidth=6.0),
            lambda: encodec.decode(
                encoded.audio_codes, encoded.audio_scales, last_frame_pad_length=0
            ),
        )
        dac = DacModel(
            DacConfig(
                sampling_rate=16_000,
                downsampling_ratios=[2, 4, 5, 8],
                upsampling_ratios=[8, 5, 4, 2],
                n_codebooks=12,
            )
        ).eval()
        z_q = dac.encode(wav16).quantized_representation
        jobs["DAC 16 kHz"] = (lambda: dac.encode(wav16), lambda: dac.decode(z_q))
        mimi = MimiModel(MimiConfig()).eval()
        mimi_codes = mimi.encode(wav24, num_quantizers=8).audio_codes
        jobs["Mimi"] = (
            lambda: mimi.encode(wav24, num_quantizers=8),
            lambda: mimi.decode(mimi_codes),
        )
    if importlib.util.find_spec("snac"):
        from snac import SNAC

        snac = SNAC(
            sampling_rate=24_000,
            encoder_dim=48,
            encoder_rates=[2, 4, 8, 8],
            decoder_dim=1024,
            decoder_rates=[8, 8, 4, 2],
            attn_window_size=None,
            codebook_size=4096,
            vq_strides=[4, 2, 1],
        ).eval()
        snac_codes = snac.encode(wav24)
        jobs["SNAC 24 kHz"] = (lambda: snac.encode(wav24), lambda: snac.decode(snac_codes))
    if shutil.which("opusenc"):
        wav, opus, out = (str(folder / name) for name in ("a.wav", "a.opus", "b.wav"))
        soundfile.write(wav, wav16[0, 0].numpy(), 16_000)

        def call(*words: str) -> None:
            subprocess.run([words[0], "--quiet", *words[1:]], check=True, capture_output=True)

        call("opusenc", "--bitrate", "12", wav, opus)
        jobs["Opus 12 kbit/s"] = (
            lambda: call("opusenc", "--bitrate", "12", wav, opus),
            lambda: call("opusdec", opus, out),
        )
    return jobs


def processor_time() -> float:
    """Of this process and of those that it waited for, in seconds."""
    import resource

    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(jobs: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """The least wall and processor seconds of encode and of decode."""
    best = {name: [float("inf")] * 4 for name in jobs}
    for _ in range(rounds):
        for name, parts in jobs.items():
            for part, call in enumerate(parts):
                start, start_cpu = time.perf_counter(), processor_time()
                call()
                spent = time.perf_counter() - start, processor_time() - start_cpu
                best[name][part] = min(best[name][part], spent[0])
                best[name][2 + part] = min(best[name][2 + part], spent[1])
    return best


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="default", help='"default", "random" or a folder')
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block-frames", type=int, help="another block than the model's own")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--onnx", action="store_true", help="also through ONNX Runtime")
    arguments = parser.parse_args()
    if arguments.model == "random":
        model = AudioVQ(AudioVQ.from_pretrained().config).eval().round_weights()
    else:
        model = AudioVQ.from_pretrained(arguments.model)
    if arguments.block_frames:
        fields = model.config.__dict__ | {"block_frames": arguments.block_frames}
        other = AudioVQ(ModelConfig(**fields), model.card).eval()
        other.load_state_dict(model.state_dict())
        model = other
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            rows, reference = [], None
            for number, seconds in enumerate(arguments.seconds):
                jobs = {"audiovq": audiovq_job(model, seconds)}
                if number == 0 and arguments.onnx:
                    jobs["audiovq, ONNX"] = onnx_job(model, seconds, Path(folder))
                if number == 0 and not arguments.no_peers:
                    jobs |= peers(seconds, Path(folder))
                rounds = arguments.rounds if seconds < 600 else 1
                best = measure(jobs, rounds)
                reference = best.get("EnCodec 24 kHz", reference)
                for name, spent in best.items():
                    factors = [f"{seconds / max(s, 1e-9):.1f}" for s in spent]
                    ratios = ["", ""]
                    if number == 0 and reference:
                        ratios = [
                            f"{reference[2 + i] / max(spent[2 + i], 1e-9):.1f}" for i in (0, 1)
                        ]
                    rows.append([name, f"{seconds:g} s", *factors, *ratios])
            print(f"\n{threads} thread{'s' * (threads > 1)}, seconds of audio a second:\n")
            header = ["codec", "length", "encode", "decode", "encode, CPU", "decode, CPU"]
            header += ["encode vs EnCodec, CPU", "decode vs EnCodec, CPU"]
            print(machine.table(header, rows), flush=True)


if __name__ == "__main__":
    machine.run_benchmark(main)
