"""Whether a model's tokens depend on how the sound reaches it, and its sound on how the tokens do.

    python benchmarks/exactness.py FOLDER --onnx

Prints, over all recordings of a folder, the number of tokens that differ from those of the whole
file at once on one thread: cut at random, live in chunks of 20 ms, restarted from a saved state,
in a padded batch, the items of a batch at once as a GPU does, on two threads, in blocks alone as on
machines where no other shape is exact, through ONNX Runtime, and on another device. The same for
the samples that are decoded: frame by frame, cut at random and on two threads, beside those of all
frames at once on one. Then the slice consistency: the share of tokens that stay the same when a
slice of 2 s is encoded alone, frame-aligned and at random offsets, over all levels and over the
units; and what has been published of other codecs.

With --capabilities all of it runs three times: with all that this CPU can do, as on a CPU with
AVX2, and with neither AVX2 nor packed weights; and at the end come the tokens and samples that
differ between the three. Those are of whole files; --ways says how many recordings go all the other
ways.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import torch

from audiovq import AudioVQ
from audiovq.audio import audio_suffixes, load_audio
from audiovq.files import files_below

PUBLISHED = {"EnCodec": 47.4, "DAC": 39.1, "SpeechTokenizer": 14.7}
"""Share in percent of tokens of a slice that agree with those of the whole, all levels."""
CAPABILITIES: dict[str, dict[str, str]] = {
    "all of this CPU": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "nothing packed": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
"""The switches of torch's own kernels, oneDNN, MKL and FBGEMM: each looks at the CPU for itself."""


def streamed(model: AudioVQ, wav: torch.Tensor, sizes: list[int], restart: int = 0) -> torch.Tensor:
    """Codes of wav in pieces; after every `restart` pieces another stream goes on."""
    stream, codes = model.stream(), []
    for number, piece in enumerate(wav.split(sizes, dim=2)):
        codes.append(stream.encode(piece))
        if restart and number % restart == restart - 1:
            state = stream.state_dict()
            stream = model.stream()
            stream.load_state_dict(state)
    return torch.cat([*codes, stream.flush_encode()], dim=2)


def sizes_like(n: int, largest: int, rng: np.random.Generator) -> list[int]:
    """Random numbers in 0..largest with the sum n."""
    sizes: list[int] = []
    left = n
    while left:
        sizes.append(min(left, int(rng.integers(0, largest + 1))))
        left -= sizes[-1]
    return sizes


def chunks(wav: torch.Tensor, size: int) -> list[int]:
    """Lengths of pieces of `size` samples, the last one shorter."""
    return [min(size, wav.shape[2] - start) for start in range(0, wav.shape[2], size)]


def on_two_threads(
    compute: Callable[[torch.Tensor], torch.Tensor], whole: torch.Tensor
) -> torch.Tensor:
    """What it computes of the whole, on two threads."""
    torch.set_num_threads(2)
    result = compute(whole)
    torch.set_num_threads(1)
    return result


def decoded(model: AudioVQ, codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Samples of codes in pieces of so many frames."""
    stream = model.stream()
    wavs = [stream.decode(piece) for piece in codes.split(sizes, dim=2)]
    return torch.cat([*wavs, stream.flush_decode()], dim=2)


def in_blocks(model: AudioVQ, wav: torch.Tensor) -> torch.Tensor:
    """Live, as if no shape but the block were exact here."""
    engine = model.stream()._engine
    known = engine.takes_single_frames, engine.takes_long_pieces
    engine.takes_single_frames = engine.takes_long_pieces = False
    codes = streamed(model, wav, chunks(wav, 8 * model.config.hop_length))
    engine.takes_single_frames, engine.takes_long_pieces = known
    return codes


def slice_agreement(
    model: AudioVQ, wav: torch.Tensor, whole: torch.Tensor, start: int, n_frames: int
) -> torch.Tensor:
    """Which of the tokens [n_q, n_frames] of a slice alone are those of the whole."""
    hop = model.config.hop_length
    alone = model.encode(wav[:, :, start : start + n_frames * hop]).indices[0]
    first = round(start / hop)
    return alone == whole[0, :, first : first + n_frames]


def write_answers(model: AudioVQ, paths: list[Path], answers: str, decode: str | None) -> None:
    """Tokens of whole files, and the samples of these tokens or of those in the file `decode`."""
    arrays: dict[str, np.ndarray] = {}
    given = np.load(decode) if decode else arrays
    for number, path in enumerate(paths):
        wav = torch.from_numpy(load_audio(path, model.config.sample_rate))[None, None]
        arrays[f"codes{number}"] = model.encode(wav).indices.numpy()
        arrays[f"wav{number}"] = model.decode(torch.from_numpy(given[f"codes{number}"])).numpy()
    np.savez(answers, **arrays)


def between_capabilities(own_arguments: list[str]) -> None:
    """Run this file once for each of `CAPABILITIES` and count what differs between their answers.

    All decode the tokens of the first one, so that the samples tell of decoding alone.
    """
    answers: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder, f"{i}.npz")) for i, name in enumerate(CAPABILITIES)}
        first = next(iter(paths.values()))
        for name, path in paths.items():
            print(f"\n{name}", flush=True)
            command = [sys.executable, __file__, *own_arguments, "--answers", path]
            if path != first:
                command += ["--decode", first]
            subprocess.run(command, env=os.environ | CAPABILITIES[name], check=True)
            with np.load(path) as arrays:
                answers[name] = dict(arrays)
    rows = []
    reference_name, *names = answers
    reference = answers[reference_name]
    for name in names:
        tokens = units = samples = n_tokens = n_samples = 0
        most = 0.0
        for key, array in reference.items():
            other = answers[name][key]
            if key.startswith("codes"):
                tokens += int((array != other).sum())
                units += int((array[:, 0] != other[:, 0]).sum())
                n_tokens += array.size
            else:
                samples += int((array != other).sum())
                most = max(most, float(np.abs(array - other).max()))
                n_samples += array.size
        row = [str(n) for n in (tokens, n_tokens, units, samples, n_samples)]
        rows.append([f"{name}, {reference_name}", *row, f"{most:.1e}"])
    header = ["between", "tokens", "of", "units among them", "samples", "of", "by at most"]
    print("\n" + machine.table(header, rows))


def spread(paths: list[Path], n: int | None) -> list[Path]:
    """`n` of the paths, evenly spaced; all when there are no more."""
    n = min(n or len(paths), len(paths))
    return [paths[i * len(paths) // n] for i in range(n)]


def main() -> None:
    """See the head of this file."""
    if "--capabilities" in sys.argv:
        between_capabilities([a for a in sys.argv[1:] if a != "--capabilities"])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="default", help='"default" or a folder')
    parser.add_argument("--limit", type=int, help="so many recordings, evenly spaced")
    parser.add_argument("--device", help="also in batches on this device, for example cuda")
    parser.add_argument("--onnx", action="store_true", help="also through ONNX Runtime")
    parser.add_argument("--ways", type=int, help="so many of the recordings in all ways")
    parser.add_argument("--capabilities", action="store_true", help="as on three kinds of CPU")
    parser.add_argument("--answers", help="write tokens and samples of whole files, .npz")
    parser.add_argument("--decode", help="samples in --answers are of the tokens in this file")
    arguments = parser.parse_args()
    model = AudioVQ.from_pretrained(arguments.model)
    hop, rng = model.config.hop_length, np.random.default_rng(0)
    suffixes = audio_suffixes()
    paths = [p for p in files_below(arguments.folder) if p.suffix.lower() in suffixes]
    if not paths:
        parser.error(f"{arguments.folder} holds no recordings")
    paths = spread(paths, arguments.limit)
    torch.set_num_threads(1)

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "cut at random": lambda w: streamed(model, w, sizes_like(w.shape[2], 12_000, rng)),
        "live, 20 ms": lambda w: streamed(model, w, chunks(w, hop)),
        "restarted": lambda w: streamed(model, w, sizes_like(w.shape[2], 9_000, rng), restart=3),
        "two threads": lambda w: on_two_threads(lambda x: model.encode(x).indices, w),
        "blocks alone": lambda w: in_blocks(model, w),
    }
    decoded_ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "live, frame by frame": lambda c: decoded(model, c, [1] * c.shape[2]),
        "cut at random": lambda c: decoded(model, c, sizes_like(c.shape[2], 40, rng)),
        "two threads": lambda c: on_two_threads(model.decode, c),
    }
    samples = {name: [0, 0.0] for name in decoded_ways}  # that differ, and by how much at most
    n_samples = 0
    with tempfile.TemporaryDirectory() as folder:
        if arguments.onnx:
            from audiovq.onnx import OnnxModel, export_onnx

            export_onnx(model, folder)
            exported = OnnxModel(folder)
            ways["ONNX Runtime"] = lambda w: torch.from_numpy(exported.encode(w[0, 0].numpy()))[
                None
            ]
    different = dict.fromkeys([*ways, "padded batch", "items at once, as on a GPU"], 0)
    if arguments.device:
        elsewhere = AudioVQ.from_pretrained(arguments.model).to(arguments.device)
        different[f"padded batch, {arguments.device}"] = 0
    agree: dict[str, list[torch.Tensor]] = {"frame-aligned": [], "random offset": []}
    n_tokens, n_seconds, n_frames = 0, 0.0, round(2 * model.config.frame_rate)
    batch: list[tuple[torch.Tensor, torch.Tensor]] = []
    if arguments.answers:
        write_answers(model, paths, arguments.answers, arguments.decode)
    paths = spread(paths, arguments.ways)
    for number, path in enumerate(paths):
        wav = torch.from_numpy(load_audio(path, model.config.sample_rate))[None, None]
        whole = model.encode(wav).indices
        n_tokens += whole.numel()
        n_seconds += wav.shape[2] / model.config.sample_rate
        for name, encode in ways.items():
            different[name] += int((encode(wav) != whole).sum())
        sound = model.decode(whole)
        n_samples += sound.numel()
        for name, decode in decoded_ways.items():
            error = (decode(whole) - sound).abs()
            samples[name][0] += int((error > 0).sum())
            samples[name][1] = max(samples[name][1], float(error.max()))
        batch.append((wav, whole))
        if len(batch) == 4 or number == len(paths) - 1:
            lengths = [w.shape[2] for w, _ in batch]
            padded = torch.randn(len(batch), 1, max(lengths))
            for item, (w, _) in enumerate(batch):
                padded[item, :, : w.shape[2]] = w[0]
            batched = {
                "padded batch": model.encode(padded, lengths=lengths).indices,
                "items at once, as on a GPU": model._encode_batch(
                    padded, lengths, model.config.n_codebooks
                ),
            }
            if arguments.device:
                indices = elsewhere.encode(padded, lengths=lengths).indices.cpu()
                batched[f"padded batch, {arguments.device}"] = indices
            for name, indices in batched.items():
                for item, (_, w) in zip(indices, batch):
                    different[name] += int((item[:, : w.shape[2]] != w[0]).sum())
            batch.clear()
        if whole.shape[2] > n_frames + 1:
            start = int(rng.integers(0, wav.shape[2] - (n_frames + 1) * hop))
            group = hop * model.config.group_frames
            for name, at in (("frame-aligned", start // group * group), ("random offset", start)):
                agree[name].append(slice_agreement(model, wav, whole, at, n_frames))
    print(machine.describe())
    print(f"{model.name} {model.fingerprint}: {len(paths)} recordings, {n_seconds:.0f} s")
    rows = [[name, str(count), str(n_tokens)] for name, count in different.items()]
    print(machine.table(["encoded", "differing tokens", "of"], rows))
    rows = [
        [name, str(count), str(n_samples), f"{most:.1e}"] for name, (count, most) in samples.items()
    ]
    print(machine.table(["decoded", "differing samples", "of", "by at most"], rows))
    early = -(-model.config.receptive_field // hop)
    rows = []
    for name, parts in agree.items():
        if not parts:  # no recording is longer than a slice
            continue
        shares = torch.stack(parts).float()  # [slices, n_q, n_frames]
        columns = (shares, shares[:, :1], shares[:, :, early:])
        means = [f"{100 * part.mean():.1f} %" if part.numel() else "-" for part in columns]
        rows.append([f"audiovq, {name}", *means])
    rows += [[f"{name}, published", f"{share} %", "", ""] for name, share in PUBLISHED.items()]
    header = ["slice of 2 s alone", "all levels", "units", "all, past the receptive field"]
    print(machine.table(header, rows))


if __name__ == "__main__":
    machine.run_benchmark(main)
