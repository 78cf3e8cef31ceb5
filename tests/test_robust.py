"""Conditions that do what they say, and what units make of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import EXAMPLES
from typer.testing import CliRunner

from audiovq.audio import load_audio
from audiovq.files import FileRefused
from audiovq.hearing import SAMPLE_RATE
from audiovq.units.alignments import Interval
from audiovq.units.augment import CONDITIONS, augment, missing, mix, power
from audiovq.units.files import UnitFiles
from audiovq.units.measures import Measure
from audiovq.units.robust import (
    Speech,
    command_tokenizer,
    load_speech,
    mfcc_tokenizer,
    robustness,
    speaker_probe,
)
from audiovq_cli.units import units as units_app

pytest.importorskip("sklearn")

HERE = [name for name in CONDITIONS if missing(name) is None]
SPEECH = load_audio(EXAMPLES[0], SAMPLE_RATE)[:32_000]
OTHERS = [load_audio(path, SAMPLE_RATE)[:20_000] for path in EXAMPLES[1:4]]


@pytest.mark.parametrize("name", HERE)
def test_conditions_keep_the_length_and_repeat_themselves(name: str) -> None:
    for wav in (SPEECH, SPEECH[:4001], SPEECH[:1]):
        out = augment(name, wav, "a", OTHERS)
        assert out.dtype == np.float32
        assert len(out) == max(1, round(len(wav) / CONDITIONS[name].speed))
        assert np.isfinite(out).all()
        assert (out == augment(name, wav, "a", OTHERS)).all()
    assert not np.array_equal(augment(name, SPEECH, "a", OTHERS), SPEECH)


@pytest.mark.parametrize("name", [n for n in HERE if not n.startswith(("late", "speed", "pitch"))])
def test_conditions_stay_in_line_with_the_original(name: str) -> None:
    out = augment(name, SPEECH, "a", OTHERS)
    margin = 400
    lags = range(-margin, margin + 1)
    middle = SPEECH[margin:-margin]
    fit = [middle @ out[margin + lag : len(out) - margin + lag] for lag in lags]
    assert abs(lags[int(np.argmax(fit))]) <= 1


@pytest.mark.parametrize("name", ["white-20", "white-10", "babble-20", "babble-10"])
def test_noise_has_the_snr_that_was_asked_for(name: str) -> None:
    noise = augment(name, SPEECH, "a", OTHERS).astype(np.float64) - SPEECH
    snr = 10 * np.log10(power(SPEECH) / power(noise))
    assert snr == pytest.approx(float(name.split("-")[1]), abs=0.05)
    other = augment(name, SPEECH, "b", OTHERS) - SPEECH
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.5  # a recording's noise is its own
    silence = np.zeros(1000, dtype=np.float32)
    assert not augment(name, silence, "a", OTHERS).any()
    assert (mix(SPEECH, np.zeros(len(SPEECH)), 10) == SPEECH).all()


def test_levels_shifts_bands_and_speeds_are_what_they_say() -> None:
    t = np.arange(16_000) / SAMPLE_RATE

    def tone(hertz: float) -> np.ndarray:
        return (0.3 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)

    def pitch(wav: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(wav[2000:-2000], 1 << 18)).argmax() / (1 << 18) * 16_000)

    assert power(augment("level-20", SPEECH, "a")) == pytest.approx(power(SPEECH) / 100)
    assert (augment("late-5ms", SPEECH, "a")[80:] == SPEECH[:-80]).all()
    for hertz, kept in ((100, 0), (1000, 1), (5000, 0)):
        share = power(augment("telephone", tone(hertz), "a")[2000:-2000]) / power(tone(hertz))
        assert share == pytest.approx(kept, abs=0.05)
    assert pitch(augment("speed+5", tone(1000), "a")) == pytest.approx(1050, abs=3)
    assert pitch(augment("pitch+2", tone(1000), "a")) == pytest.approx(
        1000 * 2 ** (1 / 6), rel=0.01
    )


def test_conditions_that_cannot_be_made_say_why() -> None:
    with pytest.raises(ValueError, match="no condition"):
        augment("louder", SPEECH, "a")
    with pytest.raises(ValueError, match="other recordings"):
        augment("babble-20", SPEECH, "a")
    with pytest.raises(ValueError, match="samples"):
        augment("level+6", SPEECH[None], "a")
    if missing("room-0.3"):
        with pytest.raises(ValueError, match=r"needs pyroomacoustics; pip install '.\[robust\]'"):
            augment("room-0.3", SPEECH, "a")


# --- Units of speech made up here -----------------------------------------------------------------

PITCH = [0.0, 300.0, 900.0, 1800.0]


def made_up() -> Speech:
    """Three speakers, two recordings each: a tone for each phone."""
    random = np.random.default_rng(0)
    wavs, alignments, speakers = {}, {}, []
    for speaker in ("s1", "s2", "s3"):
        for i in range(2):
            phones = [0, *random.integers(1, 4, 20).tolist(), 0]
            lengths = random.integers(4, 9, len(phones))
            hertz = np.repeat([PITCH[p] for p in phones], lengths * 320)
            wav = 0.2 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)
            ends = np.cumsum(lengths) / 50
            name = f"{speaker}/{i}"
            wavs[name] = (wav + random.normal(size=len(wav)) * 1e-3).astype(np.float32)
            alignments[name] = [
                Interval(end - n / 50, end, "SIL" if p == 0 else f"p{p}")
                for end, n, p in zip(ends.tolist(), lengths.tolist(), phones, strict=True)
            ]
            speakers.append(speaker)
    return Speech(wavs, speakers, alignments)


def frames(wav: np.ndarray) -> np.ndarray:
    return np.pad(wav, (0, -len(wav) % 320)).reshape(-1, 320)


def ears(wavs: dict[str, np.ndarray]) -> dict[str, UnitFiles]:
    """Tokenizers made by hand: of zero crossings, of those renamed in soft speech, of the volume,
    of nothing."""

    def zero_crossings(wav: np.ndarray) -> np.ndarray:
        crossings = (np.diff(np.signbit(frames(wav)), axis=1) != 0).sum(axis=1)
        return np.searchsorted([6, 24, 54, 100], crossings)

    def volume(wav: np.ndarray) -> np.ndarray:
        return np.round(np.log2(np.square(frames(wav)).mean(axis=1) + 1e-9)).astype(int) + 40

    def nothing(wav: np.ndarray) -> np.ndarray:
        return np.zeros(len(frames(wav)), dtype=np.int64)

    def renamed(wav: np.ndarray) -> np.ndarray:
        return (zero_crossings(wav) + (power(wav) < 1e-3)) % 5

    hears = {"crossings": zero_crossings, "renamed": renamed, "volume": volume, "nothing": nothing}
    return {
        kind: UnitFiles({name: hear(wav) for name, wav in wavs.items()}, 50.0, None)
        for kind, hear in hears.items()
    }


@pytest.fixture(scope="module")
def found():
    return robustness(made_up(), [ears], ["level-20", "white-10", "speed+5"])


def test_what_changes_nothing_changes_no_unit(found) -> None:
    none = Measure(0.0, 0.0, 0.0)
    for scores in found.scores.values():
        assert scores["clean"].changed == scores["clean"].edit_distance == none
    crossings = found.scores["crossings"]
    assert crossings["level-20"].changed == none  # it does not hear the level
    assert crossings["level-20"].accuracy == crossings["clean"].accuracy
    assert crossings["clean"].accuracy.value > 0.95
    assert crossings["white-10"].changed.value > 0.1
    assert found.scores["volume"]["level-20"].changed.value > 0.9


def test_a_constant_never_changes_and_is_no_better_than_the_majority(found) -> None:
    for score in found.scores["nothing"].values():
        assert score.changed.value == score.edit_distance.value == 0
        assert score.accuracy.value == pytest.approx(found.majority, abs=0.03)
    assert found.majority < 0.5


def test_the_accuracy_is_that_of_what_was_learnt_on_clean_speech(found) -> None:
    renamed = found.scores["renamed"]  # a map learnt on soft speech would not mind
    assert renamed["clean"].accuracy.value > 0.95
    assert renamed["level-20"].accuracy.value < 0.2
    assert renamed["level-20"].changed.value == 1


def test_speeds_are_compared_on_the_mapped_frames(found) -> None:
    score = found.scores["crossings"]["speed+5"]
    assert score.changed.value < 0.2  # at the edges of phones; unmapped frames would be elsewhere
    assert score.edit_distance.value < score.changed.value + 0.2
    assert score.accuracy.value > 0.85


def test_intervals_hold_the_value(found) -> None:
    for scores in found.scores.values():
        for score in scores.values():
            for measure in (score.changed, score.edit_distance, score.accuracy):
                assert measure.low <= measure.value <= measure.high


def test_cepstral_mean_normalisation_does_not_hear_the_level() -> None:
    speech = Speech({str(i): wav for i, wav in enumerate([SPEECH, *OTHERS])})
    scores = robustness(speech, [ears], ["level-6"], baselines=["mfcc:16", "mfcc-cmn:16"]).scores
    assert scores["mfcc:16"]["level-6"].changed.value > 0.05
    assert scores["mfcc-cmn:16"]["level-6"].changed.value < 0.01
    with pytest.raises(ValueError, match="no baseline"):
        robustness(speech, [ears], [], baselines=["lpc"])
    with pytest.raises(ValueError, match="no baseline"):
        mfcc_tokenizer("lpc", speech.wavs, 4)


def test_a_tokenizer_must_keep_its_number_of_frames() -> None:
    lengths = iter((100, 50))

    def shrinks(wavs):
        n = next(lengths)
        return {"x": UnitFiles({name: np.zeros(n, dtype=int) for name in wavs}, 50.0, 4)}

    with pytest.raises(FileRefused, match="100 frames, and 50"):
        robustness(Speech({"a": SPEECH}), [shrinks], ["level+6"])
    with pytest.raises(ValueError, match="one name"):
        robustness(Speech({"a": SPEECH}), [ears, ears], [])


def test_the_probe_names_speakers_that_have_units_of_their_own_and_no_others() -> None:
    random = np.random.default_rng(0)
    speakers = [f"s{i % 4}" for i in range(40)]
    own = [random.integers(0, 8, 600) + 8 * int(s[1]) for s in speakers]
    alike = [random.integers(0, 32, 600) for _ in speakers]
    probe = speaker_probe(own, speakers)
    assert (probe.accuracy.value, probe.chance, probe.n_speakers) == (1.0, 0.25, 4)
    assert probe.n_pieces == 4 * 5 * 2  # two recordings of 12 s in each of five folds
    assert speaker_probe(alike, speakers).accuracy.value < 0.5
    assert speaker_probe(own[:4], speakers[:4]) is None  # one recording each


# --- The command ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
import numpy as np, soundfile
source, target = map(Path, sys.argv[1:3])
for path in source.glob("*.wav"):
    wav, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    loud = np.abs(np.pad(wav, (0, -len(wav) % 320)).reshape(-1, 320)).max(axis=1)
    np.save(target / f"{path.stem}.npy", (loud > 0.05).astype(np.int64)[None])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("robust")
    speech = made_up()
    for name, wav in speech.wavs.items():
        for folder in ("wavs", "phones"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / f"wavs/{name}.wav", wav, SAMPLE_RATE)
        rows = [f"{a:.3f} {b:.3f} {phone}\n" for a, b, phone in speech.alignments[name]]
        (root / f"phones/{name}.phn").write_text("".join(rows))
    (root / "prog.py").write_text(PROGRAM)
    return root


def test_any_program_can_be_measured(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    program = f"{sys.executable} {corpus / 'prog.py'} {{in}} {{out}}"
    common = ["robust", str(corpus / "wavs"), "--command", program, "--speakers", "parent"]
    common += ["--alignments", str(corpus / "phones"), "--conditions", "level-3,level-20"]
    plot = tmp_path / "plot.png"
    arguments = [*common, "--baseline", "mfcc:8", "--json", "--plot", str(plot)]
    result = CliRunner().invoke(units_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["scores"]) == ["command", "mfcc:8"]
    command = found["scores"]["command"]
    assert list(command) == ["clean", "level-3", "level-20"]
    assert (
        command["level-3"]["changed"]["value"]
        < 0.05
        < 0.5
        < command["level-20"]["changed"]["value"]
    )
    assert found["n_recordings"] == 6
    assert plot.read_bytes()[:4] == b"\x89PNG"
    table = CliRunner().invoke(units_app, [*common, "--limit", "3"], catch_exceptions=False).output
    for text in (
        "3 recordings",
        "No probe",
        "Share of frames",
        "Edit distance",
        "Accuracy",
        "level-20",
    ):
        assert text in table


def test_models_have_units_and_segments(corpus: Path, tmp_path: Path) -> None:
    from tiny import TINY, started_model

    from audiovq.units.robust import model_tokenizer

    model = started_model(TINY)
    wavs = load_speech(corpus / "wavs", limit=2, seconds=1).wavs
    assert {len(wav) for wav in wavs.values()} == {SAMPLE_RATE}
    plain = model_tokenizer(model)(wavs)
    model.card["segment_price"] = 1.0
    both = model_tokenizer(model)(wavs)
    assert list(plain) == ["test model"]
    assert list(both) == ["test model", "test model segments"]
    for name in wavs:
        assert (plain["test model"].units[name] == both["test model"].units[name]).all()
    for priced in (True, False):
        if not priced:
            del model.card["segment_price"]
        found = model_tokenizer(model, n_units=(8, 2))(wavs)
        for n in (8, 2):
            for name, units in found[f"test model {n} units"].units.items():
                assert (
                    units == model.coarse_units(n).numpy()[plain["test model"].units[name]]
                ).all()
    with pytest.raises(ValueError, match="n_units must be in"):
        model_tokenizer(model, n_units=(99,))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--conditions", "louder"], ValueError, "no condition"),
        (["--command", "prog {in}"], ValueError, "both folders"),
        (["--n-units", "8,many"], ValueError, "numbers of units, as 256,128"),
        (["--n-units", "8", "--level", "1"], ValueError, "level 0; leave it out"),
        (
            ["--n-units", "8", "--command", "prog {in} {out}"],
            ValueError,
            "units of a model",
        ),
        (["--alignments", "phones"], ValueError, "who speaks"),
        (["--command", "no-such-program {in} {out}"], FileRefused, "cannot be run"),
        (["--command", f"{sys.executable} -c 1/0 {{in}} {{out}}"], FileRefused, "ZeroDivision"),
        (["--command", f"{sys.executable} -c 0 {{in}} {{out}}"], FileRefused, "no tokens"),
    ],
)
def test_bad_arguments_say_what_is_allowed(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, error: type, says: str
) -> None:
    monkeypatch.chdir(corpus)
    base = ["robust", "wavs", "--conditions", "level-3"]
    with pytest.raises(error, match=says):
        CliRunner().invoke(units_app, [*base, *arguments], catch_exceptions=False)
    with pytest.raises(ValueError, match="both folders"):
        command_tokenizer("prog {out}")


def test_the_probe_looks_up_whose_units_they_are() -> None:
    names = [f"s{i % 3}/{i}" for i in range(9)]
    speech = Speech({n: np.zeros(192_000, np.float32) for n in names}, [n[:2] for n in names])

    def tell(wavs):
        units = {name: np.full(600, int(name[1])) for name in reversed(list(wavs))}
        return {"x": UnitFiles(units, 50.0, 3)}

    probe = robustness(speech, [tell], [], n_bootstrap=0).probes["x"]
    assert probe.accuracy == Measure(1.0, 1.0, 1.0)
