"""Whitened features of a self-supervised or speech-recognition model, for units to learn from.

    python recipes/speech_mix/teacher.py TEACHER OUT_DIR MANIFEST...

TEACHER is `moonshine` (the package moonshine-voice<0.1 holds its encoder; needs onnxruntime too),
`hubert`, `hubert_large`, `wavlm` or `wavlm_large` (torchaudio downloads them), a folder with a
Whisper model of CTranslate2 (model.bin and config.json; needs the package ctranslate2), or a folder
of features that exist already, `<recording id>.npy` [frames, any width] at 50 frames a second.
OUT_DIR gets `<recording id>.npy`, float16 [frames, 128], and pca.npz, the projection.

The features of each frame are normalised to mean 0 and variance 1, and projected by a PCA whose
components are scaled to variance 1. Without the whitening a few directions dominate.
A run that is stopped goes on where it was.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from audiovq.files import FileRefused, atomic_output
from audiovq.training.data import Cut, read_crop, read_manifest

SAMPLE_RATE = 16_000
HOP = 320
"""Samples of a frame; all these teachers have 50 frames a second."""
DIM = 128
FIT_FRAMES = 300_000
"""Frames that the PCA is fitted to, shared evenly by the manifests."""
LAYERS = {"hubert": 9, "hubert_large": 18, "wavlm": 9, "wavlm_large": 18}
"""Transformer layer whose output is taken: the more phonetic ones lie past the middle."""
LONGEST = 1300
"""Frames that a teacher hears at once, and on either side of them `CONTEXT` more."""
CONTEXT = 50
MOONSHINE_HOP, MOONSHINE_MIDDLE = 384, 447
"""Samples between frames of Moonshine, and before the middle of what the first one hears."""

Features = Callable[[Cut], np.ndarray]
"""Features [T, D] of a recording of T = ceil(N / HOP) frames."""


def main(teacher: str, out: Path, manifests: Annotated[list[Path], typer.Argument()]) -> None:
    """Write whitened teacher features of all recordings that the manifests list."""
    try:
        corpora = [read_manifest(path) for path in manifests]
        features = open_teacher(teacher)
        mean, components = projection(features, corpora, out, teacher)
        cuts = [cut for corpus in corpora for cut in corpus]
        for done, cut in enumerate(cuts, 1):
            write_features(features, cut, mean, components, out)
            if done % 100 == 0 or done == len(cuts):
                print(f"{done} of {len(cuts)} recordings", file=sys.stderr)
    except FileRefused as error:
        sys.exit(str(error))
    print(f"Wrote {len(cuts)} recordings to {out}; name it as data.teacher_folder of the recipe.")


def open_teacher(name: str) -> Features:
    """The teacher of that name. Raises `FileRefused` for a name that is none."""
    folder = Path(name)
    if name == "moonshine":
        return in_parts(moonshine_encoder())
    if name in LAYERS:
        return in_parts(torchaudio_encoder(name))
    if (folder / "model.bin").is_file():
        return in_parts(whisper_encoder(folder))
    if folder.is_dir():
        return lambda cut: np.load(folder / f"{cut.id}.npy", allow_pickle=False)
    raise FileRefused(
        f"{name} is no teacher; give moonshine, {', '.join(LAYERS)}, a folder with a Whisper model "
        "of CTranslate2, or a folder of .npy features."
    )


def in_parts(encode: Callable[[np.ndarray], np.ndarray]) -> Features:
    """An encoder of samples [N] -> [at least N / HOP, D], on recordings of any length."""

    def features(cut: Cut) -> np.ndarray:
        start = round(cut.start * SAMPLE_RATE)
        n_frames = -(-round(cut.duration * SAMPLE_RATE) // HOP)
        wav = read_crop(cut.path, start, n_frames * HOP, SAMPLE_RATE)
        parts = []
        for first in range(0, n_frames, LONGEST):
            begin, count = max(0, first - CONTEXT), min(LONGEST, n_frames - first)
            end = first + count + CONTEXT
            part = encode(wav[begin * HOP : end * HOP])
            parts.append(part[first - begin :][:count])
        return np.concatenate(parts)

    return features


def moonshine_encoder() -> Callable[[np.ndarray], np.ndarray]:
    """Encoder of Moonshine tiny (Jeffries et al. 2024), interpolated to 50 frames a second."""
    import moonshine_voice
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en" / "encoder_model.ort"
    session = onnxruntime.InferenceSession(str(path), options)

    def encode(wav: np.ndarray) -> np.ndarray:
        # Three convolutions of strides 64, 3 and 2: a frame each 384 samples, centred on MIDDLE.
        padded = np.pad(wav, (0, SAMPLE_RATE // 2))[None].astype(np.float32)
        inputs = {"input_values": padded, "attention_mask": np.ones(padded.shape, np.int64)}
        frames = session.run(None, inputs)[0][0]
        wanted = (np.arange(-(-len(wav) // HOP)) + 0.5) * HOP
        at = np.clip((wanted - MOONSHINE_MIDDLE) / MOONSHINE_HOP, 0, len(frames) - 1)
        before = np.minimum(at.astype(int), len(frames) - 2)
        share = (at - before)[:, None]
        return frames[before] * (1 - share) + frames[before + 1] * share

    return encode


def torchaudio_encoder(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """HuBERT (Hsu et al. 2021) or WavLM (Chen et al. 2022) from torchaudio.pipelines."""
    import torch
    import torchaudio

    bundle = getattr(torchaudio.pipelines, f"{name.upper()}{'' if '_' in name else '_BASE'}")
    model = bundle.get_model().eval()

    @torch.inference_mode()
    def encode(wav: np.ndarray) -> np.ndarray:
        # The windows of 400 samples at a hop of 320 leave out what would be the last frame.
        padded = torch.from_numpy(np.pad(wav, (0, HOP)))[None]
        if "LARGE" in name.upper():  # trained on normalised input
            padded = torch.nn.functional.layer_norm(padded, padded.shape)
        layers, _ = model.extract_features(padded, num_layers=LAYERS[name])
        return layers[-1][0].numpy()

    return encode


def whisper_encoder(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Encoder of Whisper (Radford et al. 2022) as CTranslate2 stores it."""
    import ctranslate2
    import librosa

    model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=1)
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=400, n_mels=model.n_mels)

    def encode(wav: np.ndarray) -> np.ndarray:
        padded = np.pad(wav, (0, SAMPLE_RATE // 2))  # short input needs some silence after it
        spectrum = librosa.stft(padded, n_fft=400, hop_length=160, pad_mode="reflect")
        power = np.abs(spectrum[:, :-1]) ** 2
        mel = np.log10(np.maximum(filters @ power, 1e-10))
        mel = (np.maximum(mel, mel.max() - 8) + 4) / 4
        batch = np.ascontiguousarray(mel[None], dtype=np.float32)
        return np.array(model.encode(ctranslate2.StorageView.from_array(batch)))[0]

    return encode


def normalised(features: np.ndarray) -> np.ndarray:
    """Each frame of [T, D] with mean 0 and variance 1 over D."""
    features = features.astype(np.float32)
    centred = features - features.mean(axis=1, keepdims=True)
    return centred / (features.std(axis=1, keepdims=True) + 1e-6)


def projection(
    features: Features, corpora: list[list[Cut]], out: Path, teacher: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and whitened components [DIM, D], from pca.npz or fitted and written there.

    Raises `FileRefused` when they are of another teacher.
    """
    path = out / "pca.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if "teacher" in stored and str(stored["teacher"]) != teacher:
                raise FileRefused(
                    f"{out} holds features of {stored['teacher']}; name another folder."
                )
            return stored["mean"], stored["components"]
    mean, components = whitening(sample(features, corpora))
    with atomic_output(path) as temporary:
        np.savez(temporary, mean=mean, components=components, teacher=np.array(teacher))
    return mean, components


def sample(features: Features, corpora: list[list[Cut]]) -> Iterator[np.ndarray]:
    """Normalised features of recordings at random, as much of each corpus where there is enough."""
    rng = np.random.default_rng(0)
    for corpus in corpora:
        n_frames = 0
        for index in rng.permutation(len(corpus)):
            if n_frames >= FIT_FRAMES / len(corpora):
                break
            try:
                part = normalised(features(corpus[index]))
            except (FileRefused, OSError):
                continue
            n_frames += len(part)
            yield part


def whitening(parts: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and components [min(DIM, D), D] that give (x - mean) @ components.T variance 1."""
    count, total, square = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        part = part.astype(np.float64)
        count, total, square = count + len(part), total + part.sum(0), square + part.T @ part
    if not count:
        raise FileRefused("There are no features of these recordings.")
    mean = total / count
    values, vectors = np.linalg.eigh(square / count - np.outer(mean, mean))
    order = np.argsort(values)[::-1][:DIM]
    components = (vectors[:, order] / np.sqrt(np.maximum(values[order], 1e-8))).T
    return mean.astype(np.float32), components.astype(np.float32)


def write_features(
    features: Features, cut: Cut, mean: np.ndarray, components: np.ndarray, out: Path
) -> None:
    """Write the whitened features of a recording, unless they are there or it cannot be read."""
    path = out / f"{cut.id}.npy"
    if path.is_file():
        return
    try:
        whitened = (normalised(features(cut)) - mean) @ components.T
    except (FileRefused, OSError) as error:
        print(f"{cut.id} is left out: {error}", file=sys.stderr)
        return
    with atomic_output(path) as temporary:
        np.save(temporary, whitened.astype(np.float16))


if __name__ == "__main__":
    typer.run(main)
