"""Measures of decoded speech against its original, and one that needs no original.

Every function takes float32 samples in -1..1 at 16 kHz: a reference [n] and a decoded clip [n] of
the same length, aligned to the sample. Each returns one float, and NaN where the measure is not
defined for the clip (a silent reference, a clip that is too short): say so, do not average it in.
`METRICS` lists them by name.
"""

import contextlib
import importlib
import importlib.resources
import importlib.util
import io
import math
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from audiovq.hearing import MEL_SCALES, SAMPLE_RATE
from audiovq.levenshtein import edit_distance
from audiovq.quality.harmonicity import BANDS, harmonicity

_PESQ_SECONDS = 20  # the C code overruns an array past 50 utterances, which 20 s cannot hold
_DNSMOS_SAMPLES = 144160  # 9.01 s, the model's fixed input
_DISTILLMOS_SAMPLES = 122880  # 7.68 s, the same of the other


@dataclass(frozen=True)
class Metric:
    """One row of `METRICS`.

    `function(reference, decoded) -> float` takes float32 [n] at 16 kHz; `needs_reference` is false
    where it looks at the decoded clip alone. `packages` are imported when it runs, and `extra` is
    the extra of audiovq that installs them.
    """

    function: Callable[[np.ndarray, np.ndarray], float]
    label: str
    unit: str
    better: Literal["higher", "lower"]
    packages: tuple[str, ...] = ()
    extra: str = "eval"
    needs_reference: bool = True
    by_default: bool = True


def pesq_wb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Wide-band PESQ, MOS-LQO from 1 to 4.64. NaN without speech or below 0.25 s.

    ITU-T P.862 (Rix et al., "Perceptual evaluation of speech quality", ICASSP 2001) with the
    wide-band mapping of P.862.2. A clip longer than 20 s is cut into equal pieces of at most 20 s,
    for which the measure was made, and their mean is taken. A silent decoded piece gets 1.
    """
    reference, decoded = _pair(reference, decoded)
    pesq = _package("pesq", "eval")
    n_pieces = math.ceil(len(reference) / (_PESQ_SECONDS * SAMPLE_RATE))
    scores = []
    for ref, dec in zip(
        np.array_split(reference, n_pieces), np.array_split(decoded, n_pieces), strict=True
    ):
        if not ref.any():
            continue
        if not dec.any():
            scores.append(1.0)  # the C code divides by zero
            continue
        try:
            scores.append(float(pesq.pesq(SAMPLE_RATE, ref, dec, "wb")))
        except (pesq.NoUtterancesError, pesq.BufferTooShortError):
            continue
    return float(np.mean(scores)) if scores else math.nan


def stoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Short-time objective intelligibility, 0..1. NaN without 0.4 s of speech.

    Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy
    speech", IEEE TASLP 2011.
    """
    return _stoi(reference, decoded, extended=False)


def estoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Extended short-time objective intelligibility, 0..1. NaN without 0.4 s of speech.

    Jensen and Taal, "An algorithm for predicting the intelligibility of speech masked by modulated
    noise maskers", IEEE/ACM TASLP 2016.
    """
    return _stoi(reference, decoded, extended=True)


def si_sdr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, at most 138.5. NaN for a silent reference.

    Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019. Both clips are centred first.
    It compares waveforms: a parametric codec scores far below zero however well it sounds.
    """
    reference, decoded = (x - x.mean() for x in _pair(reference, decoded, dtype=np.float64))
    energy = float(reference @ reference)
    if energy == 0:
        return math.nan
    target = (float(decoded @ reference) / energy) * reference
    noise = decoded - target
    # The floor is float32's own rounding, so that a perfect copy has a finite score.
    floor = float(np.finfo(np.float32).eps) ** 2
    signal = float(target @ target)
    if signal == 0:
        return 10 * math.log10(floor)
    return 10 * math.log10(max(signal, floor * energy) / max(float(noise @ noise), floor * signal))


def mel_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Multi-resolution mel distance: mean |log10 mel(reference) - log10 mel(decoded)|.

    Kumar et al., "High-fidelity audio compression with improved RVQGAN", NeurIPS 2023, with the
    seven scales of `MEL_SCALES`, hops of a quarter window, magnitudes floored at 1e-5, and the mean
    over the scales. One unit is a factor of ten, 20 dB.
    """
    reference, decoded = _pair(reference, decoded)
    distances = []
    for window, n_mels in MEL_SCALES:
        basis = _mel_basis(window, n_mels)
        logs = [
            np.log10(np.maximum(basis @ _magnitudes(x, window, window // 4), 1e-5))
            for x in (reference, decoded)
        ]
        distances.append(np.abs(logs[0] - logs[1]).mean())
    return float(np.mean(distances))


def log_spectral_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Log-spectral distance in dB: the root mean square over frequency, averaged over time.

    Gray and Markel, "Distance measures for speech processing", IEEE TASSP 1976. Hann windows of
    2048 samples, hop 512, power floored at 1e-8. Papers on bandwidth extension print a tenth of it.
    """
    logs = [
        10 * np.log10(np.maximum(_magnitudes(x, 2048, 512) ** 2, 1e-8))
        for x in _pair(reference, decoded)
    ]
    return float(np.sqrt(((logs[0] - logs[1]) ** 2).mean(axis=0)).mean())


def dnsmos(wav: np.ndarray) -> float:
    """DNSMOS P.835, overall quality, MOS from 1 to 5, of a clip [n] without a reference.

    Reddy et al., "DNSMOS P.835: a non-intrusive perceptual objective speech quality metric to
    evaluate noise suppressors", ICASSP 2022. The network is the one of the package speechmos, run
    on one thread; clips below 9.01 s are repeated to that length and longer ones are windowed every
    second, as there. A prediction, and one that can exceed the original's: read it beside others.
    """
    clip, _ = _pair(wav, wav)
    clip = clip.clip(-1, 1)
    while len(clip) < _DNSMOS_SAMPLES:
        clip = np.concatenate([clip, clip])
    n_windows = int(len(clip) // SAMPLE_RATE - 9.01) + 1
    session = _dnsmos_session()
    scores = []
    for start in range(0, n_windows * SAMPLE_RATE, SAMPLE_RATE):
        # As there, rounding included: it drops a window now and then.
        end = int((start // SAMPLE_RATE + 9.01) * SAMPLE_RATE)
        window = clip[None, start:end]
        if window.shape[1] == _DNSMOS_SAMPLES:
            (_, _, overall), *_ = session.run(None, {"input_1": window})[0]
            scores.append(-0.06766283 * overall**2 + 1.11546468 * overall + 0.04602535)
    return float(np.mean(scores))


def distillmos(wav: np.ndarray) -> float:
    """DistillMOS, MOS from 1 to 5, of a clip [n] without a reference.

    Stahl and Gamper, "Distillation and pruning for scalable self-supervised representation-based
    speech quality assessment", ICASSP 2025. The network is the one of the package distillmos, run
    on one thread over the windows that it takes: 7.68 s, at most a second apart, and the mean over
    them. A clip that is shorter is filled up with silence, which costs it some tenths: compare it
    with its original alone.
    """
    import torch

    clip, _ = _pair(wav, wav)
    clip = np.pad(clip, (0, max(0, _DISTILLMOS_SAMPLES - len(clip))))
    over = len(clip) - _DISTILLMOS_SAMPLES
    starts = np.linspace(0, over, math.ceil(over / SAMPLE_RATE) + 1).astype(int)
    model = _distillmos_model()
    with _one_thread():  # and a window at a time: those of a long clip would fill the memory
        windows = [torch.from_numpy(clip[None, s : s + _DISTILLMOS_SAMPLES]) for s in starts]
        return float(np.mean([model(window).item() for window in windows]))


def speaker_similarity(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Cosine of the speaker embeddings of both clips, 0..1: whether it is the same voice.

    Wan et al., "Generalized end-to-end loss for speaker verification", ICASSP 2018, with the
    weights of the package Resemblyzer; pauses are not cut out as there. NaN for a silent reference,
    0 for a silent decoded clip.
    """
    reference, decoded = _pair(reference, decoded)
    if not reference.any():
        return math.nan
    if not decoded.any():
        return 0.0
    return float(_speaker_embedding(reference) @ _speaker_embedding(decoded))


def visqol(reference: np.ndarray, decoded: np.ndarray) -> float:
    """ViSQOL in speech mode, MOS-LQO from 1 to 5. About a second of work for a second of sound.

    Chinen et al., "ViSQOL v3: an open source production ready objective speech and audio metric",
    QoMEX 2020, with the lattice mapping that the C++ program uses.
    """
    reference, decoded = _pair(reference, decoded, dtype=np.float64)
    if not reference.any():
        return math.nan
    api = _visqol_api()
    return float(api.measure_from_arrays(reference, decoded, SAMPLE_RATE).moslqo)


def _harmonicity(band: int, reference: np.ndarray, decoded: np.ndarray) -> float:
    reference, decoded = _pair(reference, decoded)
    return _harmonicities(reference.tobytes(), decoded.tobytes())[band]


@lru_cache(maxsize=1)  # one analysis gives all bands
def _harmonicities(reference: bytes, decoded: bytes) -> tuple[float, ...]:
    return harmonicity(*(np.frombuffer(wav, dtype=np.float32) for wav in (reference, decoded)))


METRICS: dict[str, Metric] = {
    "distillmos": Metric(
        lambda reference, decoded: distillmos(decoded),
        "DistillMOS",
        "MOS",
        "higher",
        ("distillmos",),
        needs_reference=False,
    ),
    **{
        f"harmonicity_{high // 1000}k": Metric(
            partial(_harmonicity, i), f"harm {low // 1000}-{high // 1000}k", "0..1", "higher"
        )
        for i, (low, high) in enumerate(BANDS)
    },
    "pesq": Metric(pesq_wb, "PESQ", "MOS-LQO", "higher", ("pesq",)),
    "stoi": Metric(stoi, "STOI", "0..1", "higher", ("pystoi",)),
    "speaker": Metric(
        speaker_similarity, "speaker", "cosine", "higher", ("resemblyzer",), "speaker"
    ),
    "estoi": Metric(estoi, "ESTOI", "0..1", "higher", ("pystoi",)),
    "si_sdr": Metric(si_sdr, "SI-SDR", "dB", "higher"),
    "mel": Metric(mel_distance, "mel", "log10", "lower"),
    "lsd": Metric(log_spectral_distance, "LSD", "dB", "lower"),
    "dnsmos": Metric(
        lambda reference, decoded: dnsmos(decoded),
        "DNSMOS",
        "MOS",
        "higher",
        ("speechmos", "onnxruntime"),
        needs_reference=False,
    ),
    "visqol": Metric(
        visqol,
        "ViSQOL",
        "MOS-LQO",
        "higher",
        ("visqol", "ai_edge_litert"),
        "visqol",
        by_default=False,
    ),
}


def missing_packages(name: str) -> str | None:
    """A sentence that says what to install for the measure `name`, or None if all is there."""
    metric = METRICS[name]
    absent = [package for package in metric.packages if not _installed(package)]
    if not absent:
        return None
    return _how_to_install(" and ".join(absent), metric.extra, metric.label)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Word errors and reference words: (substitutions + deletions + insertions, words).

    The Levenshtein distance over words; case and all but letters, digits and apostrophes are
    ignored. The word error rate of many clips is the ratio of the sums.
    """
    ref, hyp = _words(reference), _words(hypothesis)
    return edit_distance(ref, hyp), len(ref)


def transcribe(wav: np.ndarray, asr: str) -> str:
    """The words that a speech recogniser hears in float32 samples [n] at 16 kHz.

    `asr` is "moonshine" (the package moonshine-voice below 0.1, which holds Moonshine's tiny
    English model: Jeffries et al., "Moonshine: speech recognition for live transcription and voice
    commands", 2024), "pocketsphinx" (the Python package with its US English model: Huggins-Daines
    et al., ICASSP 2006) or a command with `{}` where the name of a 16-bit WAV file goes, which
    prints the text. The command is run without a shell.

    Raises `ValueError` when the command cannot be used, and `ImportError` without the package.
    """
    pcm = (np.asarray(wav, dtype=np.float32).clip(-1, 1) * 32767).astype("<i2")
    if asr == "pocketsphinx":
        decoder = _pocketsphinx()
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""
    if asr == "moonshine":
        clip = (pcm / np.float32(32768)).tolist()
        lines = _moonshine().transcribe_without_streaming(clip, SAMPLE_RATE).lines
        return " ".join(line.text for line in lines)
    words = shlex.split(asr)
    if not any("{}" in word for word in words):
        raise ValueError(
            f"asr is {asr!r}; give moonshine, pocketsphinx, or a command with {{}} where the WAV "
            "file goes."
        )
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        soundfile.write(path, pcm, SAMPLE_RATE, "PCM_16")
        command = [word.replace("{}", str(path)) for word in words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(f"{command[0]} cannot be run: {error.strerror}.") from error
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(f"{command[0]} failed with status {done.returncode} and said: {said}")
    return done.stdout.strip()


def _pair(reference: Any, decoded: Any, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    reference, decoded = np.asarray(reference, dtype=dtype), np.asarray(decoded, dtype=dtype)
    if reference.ndim != 1 or reference.shape != decoded.shape or not len(reference):
        raise ValueError(
            f"reference {reference.shape} and decoded {decoded.shape} must be samples [n] of the "
            "same length, n >= 1."
        )
    if not (np.isfinite(reference).all() and np.isfinite(decoded).all()):
        raise ValueError("reference and decoded must be finite; they hold NaN or infinity.")
    return reference, decoded


def _stoi(reference: np.ndarray, decoded: np.ndarray, *, extended: bool) -> float:
    reference, decoded = _pair(reference, decoded)
    pystoi = _package("pystoi", "eval")
    # 30 frames of 25.6 ms with half overlap must be left when silent frames are removed.
    if len(reference) < 0.4 * SAMPLE_RATE or not reference.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, decoded, SAMPLE_RATE, extended=extended))
        except RuntimeWarning:
            return math.nan


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread and without gradients: the same value on any machine."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(n_threads)


def _speaker_embedding(wav: np.ndarray) -> np.ndarray:
    """Resemblyzer's embedding [256] of a clip [n], of length 1.

    Its own code imports webrtcvad, which needs pkg_resources, and parts of SciPy that are gone.
    """
    import torch

    librosa = _package("librosa", "eval")
    quiet = 10 ** (-30 / 20) / math.sqrt(float(np.square(wav, dtype=np.float64).mean()))
    wav = wav * np.float32(max(1.0, quiet))
    length, step = 160, 77  # frames of 10 ms: windows of 1.6 s, 1.3 of them a second
    n_frames = len(wav) // 160 + 1
    starts = list(range(0, max(1, n_frames - length + step + 1), step))
    if len(starts) > 1 and len(wav) / 160 - starts[-1] < 0.75 * length:
        starts.pop()  # three quarters of a window must be sound
    wav = np.pad(wav, (0, max(0, (starts[-1] + length) * 160 - len(wav))))
    mel = librosa.feature.melspectrogram(
        y=wav, sr=SAMPLE_RATE, n_fft=400, hop_length=160, n_mels=40
    ).T
    windows = torch.from_numpy(np.stack([mel[s : s + length] for s in starts]))
    lstm, linear = _speaker_layers()
    with _one_thread():
        _, (hidden, _) = lstm(windows)
        units = torch.nn.functional.normalize(linear(hidden[-1]).relu())
        embedding = torch.nn.functional.normalize(units.mean(dim=0), dim=0)
        return embedding.numpy()


@lru_cache(maxsize=1)
def _speaker_layers() -> Any:
    import torch

    spec = importlib.util.find_spec("resemblyzer")  # finds its weights without running its code
    if spec is None or spec.origin is None:
        raise ImportError(_how_to_install("resemblyzer", "speaker", "This measure"))
    path = Path(spec.origin).with_name("pretrained.pt")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    layers = torch.nn.ModuleDict(
        {"lstm": torch.nn.LSTM(40, 256, 3, batch_first=True), "linear": torch.nn.Linear(256, 256)}
    )
    layers.load_state_dict(state, strict=False)
    return layers["lstm"], layers["linear"]


def _magnitudes(wav: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Magnitudes [window / 2 + 1, frames] of centred Hann frames, a full-scale sine near 0.5."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(wav, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(np.fft.rfft(frames * hann.astype(np.float32))).T / (window / 2)


@lru_cache(maxsize=len(MEL_SCALES))
def _mel_basis(window: int, n_mels: int) -> np.ndarray:
    librosa = _package("librosa", "eval")
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=window, n_mels=n_mels)


@lru_cache(maxsize=1)
def _dnsmos_session() -> Any:
    # speechmos itself starts a thread per core and runs a second network beside this one.
    onnxruntime = _package("onnxruntime", "eval")
    _package("speechmos", "eval")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = importlib.resources.files("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(
        model.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


@lru_cache(maxsize=1)
def _distillmos_model() -> Any:
    package = _package("distillmos", "eval")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
        return package.ConvTransformerSQAModel().eval()


@lru_cache(maxsize=1)
def _visqol_api() -> Any:
    api = _package("visqol", "visqol").VisqolApi()
    _package("ai_edge_litert", "visqol")
    api.create(mode="speech", use_lattice_model=True)
    return api


@lru_cache(maxsize=1)
def _pocketsphinx() -> Any:
    if not _installed("pocketsphinx"):
        raise ImportError("The word error rate by pocketsphinx needs it: pip install pocketsphinx.")
    return importlib.import_module("pocketsphinx").Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


@lru_cache(maxsize=1)
def _moonshine() -> Any:
    package = _package("moonshine_voice", "asr")
    model = Path(package.get_assets_path()) / "tiny-en"
    if not (model / "encoder_model.ort").is_file():
        raise ImportError("moonshine-voice 0.1 has no model inside: pip install 'audiovq[asr]'.")
    # Its voice activity detection cuts words off; the model takes 64 s.
    options = {"vad_threshold": 0, "vad_max_segment_duration": 60}
    return package.Transcriber(str(model), package.ModelArch.TINY, options=options)


def _words(text: str) -> list[str]:
    kept = (c if c.isalnum() or c == "'" else " " for c in text.lower().replace("\u2019", "'"))
    return "".join(kept).split()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _package(name: str, extra: str) -> ModuleType:
    if not _installed(name):
        raise ImportError(_how_to_install(name, extra, "This measure"))
    return importlib.import_module(name)


def _how_to_install(packages: str, extra: str, what: str) -> str:
    return f"{what} needs {packages}: pip install '.[{extra}]'."
