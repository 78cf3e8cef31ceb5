"""What becomes of speech when its codes are mixed or edited.

    python benchmarks/editing.py FOLDER --pairs 3

Takes pairs of recordings of a folder, each with the one half the folder further on, and prints the
means over the pairs of: DistillMOS of every step of an interpolation, and STOI of its ends against
the original recordings, beside plain decoding; and for edits of the first recording DistillMOS, and
how alike the voice is to the original of the first and of the second (Resemblyzer, extra speaker).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import torch
from torch import Tensor

from audiovq import AudioVQ, Codes, edit
from audiovq.audio import audio_suffixes, load_audio
from audiovq.exploration.facts import nearest_codes
from audiovq.exploration.interpolate import align, interpolate, path_frames
from audiovq.files import files_below
from audiovq.quality.metrics import distillmos, speaker_similarity, stoi


def edits(model: AudioVQ, a: Tensor, b: Tensor) -> dict[str, Codes]:
    """Codes of a, [1, 1, N], edited in every way, some with the codes of b."""
    config = model.config
    own, other = model.encode(a), model.encode(b)
    n_frames = own.indices.shape[2]
    near, _ = nearest_codes(model.quantizer.tables()[0].numpy(), 1)
    nearest = Codes(own.indices.clone(), own.lengths)
    nearest.indices[0, 0] = torch.from_numpy(near[own.indices[0, 0].numpy(), 0])
    half = n_frames // 2
    rows = path_frames(align(*(_latent(model, wav) for wav in (a, b))), 0)
    timed = edit.take(other, rows[:, 1], config)  # b with the timing of a
    timed = Codes(timed.indices, own.lengths)
    return {
        "as it is": own,
        "units replaced by their nearest codes": nearest,
        "second half replaced by that of the other": edit.splice(
            [
                edit.take(own, range(half), config),
                edit.take(
                    other, range(other.indices.shape[2] // 2, other.indices.shape[2]), config
                ),
            ],
            config,
        ),
        "every frame twice": edit.take(own, np.repeat(np.arange(n_frames), 2), config),
        "acoustic levels of the other where units agree": edit.swap_acoustics(own, timed)[0],
        "acoustic levels of the other everywhere": edit.swap_acoustics(
            own, timed, only_shared=False
        )[0],
        "the other in its own codes, with this timing": timed,
    }


def _latent(model: AudioVQ, wav: Tensor) -> np.ndarray:
    whole = torch.nn.functional.pad(wav, (0, -wav.shape[2] % model.config.hop_length))
    return model.latent(whole)[0, : whole.shape[2] // model.config.hop_length].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=machine.EXAMPLES)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    model = AudioVQ.from_pretrained(arguments.model)
    rate = model.config.sample_rate
    suffixes = audio_suffixes()
    paths = [path for path in files_below(arguments.folder) if path.suffix.lower() in suffixes]
    if len(paths) < 2:
        parser.error(f"{arguments.folder} holds {len(paths)} recordings; pairs need two.")
    shares = np.linspace(0, 1, arguments.steps).tolist()
    step_marks: list[list[float]] = []
    end_stoi: list[tuple[float, float]] = []
    edit_marks: dict[str, list[tuple[float, float, float]]] = {}
    firsts = paths[: len(paths) // 2][: arguments.pairs]
    for first, last in zip(firsts, paths[len(paths) // 2 :]):
        a, b = (torch.from_numpy(load_audio(path, rate))[None, None] for path in (first, last))
        steps = interpolate(model, a, b, shares)
        step_marks.append([distillmos(_flat(step.wav)) for step in steps])
        for step, wav in zip((steps[0], steps[-1]), (a, b)):
            plain = model.decode(model.encode(wav))
            end_stoi.append((stoi(_flat(wav), _flat(step.wav)), stoi(_flat(wav), _flat(plain))))
        for name, codes in edits(model, a, b).items():
            wav = _flat(model.decode(codes))
            alike = [_alike(_flat(own), wav) for own in (a, b)]
            edit_marks.setdefault(name, []).append((distillmos(wav), alike[0], alike[1]))
    _print(model, len(step_marks), shares, step_marks, end_stoi, edit_marks)


def _alike(original: np.ndarray, wav: np.ndarray) -> float:
    """The voices' similarity, of as much of both as there is."""
    n = min(len(original), len(wav))
    return speaker_similarity(original[:n], wav[:n])


def _flat(wav: Tensor) -> np.ndarray:
    return wav.flatten().numpy()


def _print(
    model: AudioVQ,
    n_pairs: int,
    shares: list[float],
    step_marks: list[list[float]],
    end_stoi: list[tuple[float, float]],
    edit_marks: dict[str, list[tuple[float, float, float]]],
) -> None:
    mean: Callable[[list], list[float]] = lambda rows: np.mean(rows, axis=0).tolist()  # noqa: E731
    print(f"{machine.describe()}; {model.name} {model.fingerprint}; {n_pairs} pairs")
    of_step, plain = mean(end_stoi)
    print(f"STOI of the ends {of_step:.4f}, of plain decoding {plain:.4f}")
    header = ["share of the second", *(f"{share:.2f}" for share in shares)]
    print(machine.table(header, [["DistillMOS", *(f"{m:.2f}" for m in mean(step_marks))]]))
    rows = [[name, *(f"{mark:.2f}" for mark in mean(marks))] for name, marks in edit_marks.items()]
    print(machine.table(["edit", "DistillMOS", "voice of first", "voice of second"], rows))


if __name__ == "__main__":
    machine.run_benchmark(main)
