"""Measures: perfect copies, hand-computed values, invariances, silence, short and long clips."""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from audiovq.audio import load_audio
from audiovq.hearing import SAMPLE_RATE
from audiovq.quality import metrics
from audiovq.quality.harmonicity import harmonicity
from audiovq.quality.metrics import METRICS, word_errors

CLIP = sorted((Path(__file__).parent.parent / "examples").glob("*.flac"))[1]  # 3 s of speech
DEFAULTS = [name for name, metric in METRICS.items() if metric.by_default]


def require(name: str) -> None:
    if metrics.missing_packages(name):
        pytest.skip(metrics.missing_packages(name))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_audio(CLIP, SAMPLE_RATE)


def noisy(wav: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    return wav + level * noise


@pytest.mark.parametrize(
    ("name", "perfect"),
    [
        ("harmonicity_4k", 1),
        ("speaker", 1),
        ("pesq", 4.6439),
        ("stoi", 1),
        ("estoi", 1),
        ("si_sdr", 138.47),
        ("mel", 0),
        ("lsd", 0),
        ("visqol", 4.5),
    ],
)
def test_a_perfect_copy_has_the_best_value(name, perfect, speech):
    require(name)
    assert METRICS[name].function(speech, speech.copy()) == pytest.approx(perfect, rel=0.05)


@pytest.mark.parametrize("name", DEFAULTS)
def test_more_noise_is_worse(name, speech):
    require(name)
    values = [METRICS[name].function(speech, noisy(speech, level)) for level in (0.001, 0.01, 0.1)]
    if METRICS[name].better == "higher":
        values = values[::-1]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", DEFAULTS)
def test_silence_for_speech_is_a_bad_value_and_not_an_undefined_one(name, speech):
    require(name)
    silent = METRICS[name].function(speech, np.zeros_like(speech))
    noise = METRICS[name].function(speech, noisy(speech, 0.001))
    assert math.isfinite(silent)
    assert (silent < noise) == (METRICS[name].better == "higher")


@pytest.mark.parametrize("name", ["harmonicity_1k", "speaker", "pesq", "stoi", "estoi", "si_sdr"])
def test_a_silent_reference_has_no_value(name, speech):
    require(name)
    assert math.isnan(METRICS[name].function(np.zeros_like(speech), speech))


@pytest.mark.parametrize(
    ("name", "n"),
    [
        (name, n)
        for name in DEFAULTS
        for n in (1, 31, 3000, 6500)
        if n == 31 or not name.endswith("mos")
    ],
)
def test_a_clip_of_any_length_has_a_value_or_nan(name, n, speech):
    require(name)
    clip = speech[8000 : 8000 + n]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = METRICS[name].function(clip, noisy(clip, 0.01))
    assert isinstance(value, float)
    assert not math.isinf(value)


def test_si_sdr_of_known_noise():
    t = np.arange(16000) / SAMPLE_RATE
    signal = np.sin(2 * np.pi * 100 * t)
    orthogonal = np.cos(2 * np.pi * 100 * t)
    # A tenth of the amplitude is a hundredth of the energy: 20 dB, at any gain and offset.
    assert metrics.si_sdr(signal, signal + 0.1 * orthogonal) == pytest.approx(20, abs=1e-3)
    assert metrics.si_sdr(signal, 0.3 + 5 * (signal + 0.1 * orthogonal)) == pytest.approx(
        20, abs=1e-3
    )


def test_a_gain_is_its_logarithm_in_the_spectral_distances():
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32) * 0.5
    assert metrics.log_spectral_distance(noise, noise * 0.1) == pytest.approx(20, abs=0.1)
    assert metrics.mel_distance(noise, noise * 0.1) == pytest.approx(1, abs=0.02)
    assert metrics.mel_distance(noise * 0.1, noise) == metrics.mel_distance(noise, noise * 0.1)


def test_pesq_survives_long_clips_of_many_utterances():
    require("pesq")
    rng = np.random.default_rng(0)
    t = np.arange(65 * SAMPLE_RATE) / SAMPLE_RATE  # 147 bursts: the C code holds 50
    wav = (rng.standard_normal(len(t)) * 0.3 * (t % 0.44 < 0.22)).astype(np.float32)
    assert 1 < metrics.pesq_wb(wav, noisy(wav, 0.01)) < 4.6


def test_pesq_of_a_long_clip_is_the_mean_of_its_pieces(speech):
    require("pesq")
    wav = np.tile(speech, 1 + 22 * SAMPLE_RATE // len(speech))[: 22 * SAMPLE_RATE]
    half = len(wav) // 2
    dec = noisy(wav, 0.01)
    pieces = [metrics.pesq_wb(wav[i : i + half], dec[i : i + half]) for i in (0, half)]
    assert metrics.pesq_wb(wav, dec) == pytest.approx(np.mean(pieces))


def test_dnsmos_is_the_one_of_speechmos(speech):
    require("dnsmos")
    run = pytest.importorskip("speechmos.dnsmos").run
    for clip in (noisy(speech, 0.01), np.tile(speech, 4)[: 11 * SAMPLE_RATE]):
        expected = run(clip, SAMPLE_RATE)["ovrl_mos"]
        assert metrics.dnsmos(clip) == pytest.approx(expected, abs=1e-4)


def test_distillmos_is_the_one_of_its_package_and_says_nothing(speech, capsys):
    require("distillmos")
    metrics._distillmos_model.cache_clear()
    threads = torch.get_num_threads()
    clips = (speech, np.tile(speech, 3)[: 8 * SAMPLE_RATE])
    found = [metrics.distillmos(clip) for clip in clips]
    assert capsys.readouterr().out == ""
    assert torch.get_num_threads() == threads
    assert metrics.distillmos(clips[0]) == found[0]
    model = metrics._distillmos_model()
    with torch.inference_mode():
        for clip, value in zip(clips, found, strict=True):
            assert value == pytest.approx(model(torch.from_numpy(clip)[None]).item(), abs=1e-4)


def test_speaker_embeddings_are_those_of_their_package(speech):
    require("speaker")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from resemblyzer import VoiceEncoder
        except (ImportError, OSError):
            pytest.skip("resemblyzer's own code does not run here; its weights do")
        encoder = VoiceEncoder("cpu", verbose=False)
    for n in (8000, 25600, len(speech)):
        clip = 0.5 * speech[:n] / np.abs(speech[:n]).max()  # above the level to which it is raised
        expected = encoder.embed_utterance(clip)
        np.testing.assert_allclose(metrics._speaker_embedding(clip), expected, atol=1e-5)


def test_another_voice_is_less_alike_than_the_same_with_noise(speech):
    require("speaker")
    squeezed = np.interp(np.arange(len(speech)) * 1.4 % len(speech), np.arange(len(speech)), speech)
    same = metrics.speaker_similarity(speech, noisy(speech, 0.001))
    assert metrics.speaker_similarity(speech, squeezed) < 0.8 < same


def test_each_harmonicity_is_its_band_of_one_analysis(speech):
    decoded = noisy(speech, 0.01)
    bands = [METRICS[f"harmonicity_{k}k"].function(speech, decoded) for k in (1, 2, 4)]
    assert tuple(bands) == harmonicity(speech, decoded)


@pytest.mark.parametrize(
    ("reference", "decoded"),
    [
        (np.zeros(0), np.zeros(0)),
        (np.zeros(10), np.zeros(11)),
        (np.zeros((1, 10)), np.zeros((1, 10))),
        (np.zeros(10), np.full(10, np.nan)),
    ],
)
def test_arrays_that_cannot_be_compared_are_refused(reference, decoded):
    for metric in METRICS.values():
        if metric.needs_reference:
            with pytest.raises(ValueError, match="must be"):
                metric.function(reference, decoded)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("the cat sat", "the cat sat", 0, 3),
        ("The cat, sat!", "the cat sat", 0, 3),
        ("the cat sat", "a cat sat down", 2, 3),
        ("the cat sat", "", 3, 3),
        ("", "the cat", 2, 0),
        ("don\u2019t go", "don't go", 0, 2),
        ("a b c d", "b c d", 1, 4),
        ("a b c d", "d c b a", 4, 4),
    ],
)
def test_word_errors(reference, hypothesis, errors, words):
    assert word_errors(reference, hypothesis) == (errors, words)


def test_transcribe_runs_the_named_command_on_a_wav_file(tmp_path, speech):
    script = tmp_path / "asr tool.py"
    script.write_text(
        "import sys, wave\n"
        "with wave.open(sys.argv[1]) as f:\n"
        "    print(f.getframerate(), f.getnchannels(), f.getsampwidth(), f.getnframes())\n"
    )
    said = metrics.transcribe(speech, f"{sys.executable} '{script}' {{}}")
    assert said == f"16000 1 2 {len(speech)}"


def test_a_recogniser_that_fails_is_one_sentence(tmp_path, speech):
    script = tmp_path / "asr.py"
    script.write_text("raise SystemExit('no model here')")
    with pytest.raises(ValueError, match="status 1 and said: no model here"):
        metrics.transcribe(speech, f"{sys.executable} {script} {{}}")
    with pytest.raises(ValueError, match="where the WAV file goes"):
        metrics.transcribe(speech, "whisper")
    with pytest.raises(ValueError, match="cannot be run"):
        metrics.transcribe(speech, f"{tmp_path}/absent {{}}")


def test_moonshine_hears_the_words_of_a_whole_clip():
    pytest.importorskip("moonshine_voice")
    first = load_audio(CLIP.with_name(CLIP.name.replace("0880", "0870")), SAMPLE_RATE)
    said = metrics.transcribe(first, "moonshine").split()
    assert len(said) > 10
    assert metrics.transcribe(first, "moonshine").split() == said


def test_a_recogniser_without_its_model_says_how_to_get_it(monkeypatch, tmp_path, speech):
    package = type("package", (), {"get_assets_path": lambda: tmp_path})
    monkeypatch.setattr(metrics, "_package", lambda name, extra: package)
    metrics._moonshine.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'audiovq\[asr\]'"):
        metrics.transcribe(speech, "moonshine")


def test_pocketsphinx_hears_words(speech):
    pytest.importorskip("pocketsphinx")
    assert len(metrics.transcribe(speech, "pocketsphinx").split()) > 2


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, speech):
    monkeypatch.setattr(metrics, "_installed", lambda package: False)
    assert "pesq: pip install '.[eval]'" in (metrics.missing_packages("pesq") or "")
    assert ".[visqol]" in (metrics.missing_packages("visqol") or "")
    assert metrics.missing_packages("si_sdr") is None
    with pytest.raises(ImportError, match=r"pip install '\.\[eval\]'"):
        metrics.pesq_wb(speech, speech)
