"""`audiovq units`: evaluate, report and text, on speech and tokens made up here."""

import itertools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from audiovq import AudioVQ, ModelConfig
from audiovq.audio import save_audio
from audiovq.codes import Header, write_avq, write_npy
from audiovq.files import FileRefused
from audiovq.segment import from_text, read_segments, run_lengths, write_segments
from audiovq_cli import app
from audiovq_cli.units import units

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

PITCH = {"SIL": 0.0, "a": 300.0, "b": 900.0, "c": 1800.0}
PHONES = list(PITCH)
PNG = b"\x89PNG"
MY_ENCODER = """
import sys
from pathlib import Path
import numpy as np, soundfile
for path in Path(sys.argv[1]).rglob("*.wav"):
    n_frames = -(-soundfile.info(path).frames // 640)
    target = Path(sys.argv[2]) / path.relative_to(sys.argv[1]).with_suffix(".npy")
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target, np.zeros((1, n_frames), np.uint16))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers with three utterances each: a tone for each phone, labels, perfect tokens."""
    root = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for speaker in ("s1", "s2"):
        for i in range(3):
            name = f"{speaker}/{speaker}-{i}"
            labels = [0, *random.integers(1, 4, size=8).tolist(), 0]
            lengths = random.integers(3, 9, size=10)
            frames = np.repeat(labels, lengths)
            tone = np.repeat([PITCH[PHONES[f]] for f in frames], 320)
            phase = 2 * np.pi * np.cumsum(tone) / 16_000
            noise = random.normal(size=len(tone)) * 1e-3
            save_audio(
                root / f"wavs/{name}.wav", (0.2 * np.sin(phase) + noise).astype("f4"), 16_000
            )
            ends = np.cumsum(lengths) / 50
            starts = ends - lengths / 50
            rows = zip(starts, ends, labels, strict=True)
            text = "".join(f"{a:.3f} {b:.3f} {PHONES[k]}\n" for a, b, k in rows)
            (root / f"phones/{speaker}").mkdir(parents=True, exist_ok=True)
            (root / f"phones/{name}.phn").write_text(text)
            codes = np.stack([frames * 2, random.integers(0, 8, len(frames))])
            write_npy(root / f"tokens/{name}.npy", codes)
            header = Header("m", "f", 16_000, 320, 8, 2, len(tone))
            write_avq(root / f"avq/{name}.avq", codes, header)
            write_segments(root / f"segments/{name}.tsv", run_lengths(codes[0]))
    return root


def run(*arguments: object) -> str:
    """Standard output of the command; its errors are raised."""
    result = CliRunner().invoke(units, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def systems(corpus: Path, tokens: str, *arguments: object) -> dict:
    output = run(
        "evaluate", corpus / tokens, "--alignments", corpus / "phones", "--json", *arguments
    )
    return json.loads(output)["systems"]


@pytest.mark.parametrize("tokens", ["tokens", "avq", "segments"])
def test_perfect_tokens_of_every_format_score_one(corpus: Path, tokens: str) -> None:
    found = systems(corpus, tokens, "--speakers", "parent", "--shift", "0")[tokens]
    for measure in ("pnmi", "phone_purity", "held_out_accuracy"):
        assert found["with_silence"][measure]["value"] == pytest.approx(1.0)
        assert found["without_silence"][measure]["value"] == pytest.approx(1.0)
    # Recall is less: a phone after itself has a boundary that no unit shows.
    assert found["with_silence"]["boundary_precision"]["value"] == 1.0
    assert (found["n_utterances"], found["n_speakers"], found["n_phones"]) == (6, 2, 4)
    assert found["n_units"] == (8 if tokens == "avq" else 7)
    assert found["shift"] == 0


def test_baselines_stand_in_the_same_table(corpus: Path) -> None:
    arguments = ("--baseline", "mfcc", "--baseline", "permuted", "--baseline")
    arguments = (*arguments, f"again={corpus / 'segments'}", "--audio", corpus / "wavs")
    found = systems(corpus, "tokens", "--speakers", "before:-", *arguments)
    assert list(found) == ["tokens", "mfcc", "permuted", "again"]
    pnmi = {name: system["with_silence"]["pnmi"]["value"] for name, system in found.items()}
    assert pnmi["tokens"] == pnmi["again"] > pnmi["mfcc"] > 0.5 > pnmi["permuted"]
    table = run(
        "evaluate", corpus / "tokens", "--alignments", corpus / "phones", "--baseline", "permuted"
    )
    for text in ("Speech alone", "With silence", "PNMI, corrected", "permuted", "6 utterances"):
        assert text in table
    assert "other speakers" not in table  # none were named


def test_other_levels_and_the_lag(corpus: Path) -> None:
    other = systems(corpus, "tokens", "--level", "1")["tokens"]
    assert abs(other["with_silence"]["pnmi_adjusted"]["value"]) < 0.15
    late = systems(corpus, "tokens", "--shift", "2")["tokens"]
    assert late["shift"] == 2
    assert late["with_silence"]["pnmi"]["value"] < 0.95


def test_pictures_and_discophon(corpus: Path, tmp_path: Path) -> None:
    heat, picture, export = (tmp_path / n for n in ("h.png", "p.png", "units-eng-test.jsonl"))
    common = ("evaluate", corpus / "tokens", "--alignments", corpus / "phones", "--shift", "0")
    outputs = ("--heatmap", heat, "--picture", picture, "--audio", corpus / "wavs")
    run(*common, *outputs, "--discophon", export, "--utterance", "s2/s2-1")
    assert heat.read_bytes()[:4] == picture.read_bytes()[:4] == PNG
    lines = [json.loads(line) for line in export.read_text().splitlines()]
    assert [line["file"] for line in lines[:2]] == ["s1/s1-0", "s1/s1-1"]
    assert lines[0]["units"] == np.load(corpus / "tokens/s1/s1-0.npy")[0].tolist()
    header, *rows = (tmp_path / "units-eng-test.alignment.txt").read_text().splitlines()
    assert header == "#file onset offset #phone"
    first = [row.split() for row in rows if row.startswith("s1/s1-0 ")]
    assert first[0][1] == "0.00"
    assert all(a[2] == b[1] for a, b in itertools.pairwise(first))  # no gaps
    assert float(first[-1][2]) == pytest.approx(len(lines[0]["units"]) / 50)
    with pytest.raises(FileRefused, match="--force"):
        run(*common, "--heatmap", heat)


def test_text_is_a_line_an_utterance(corpus: Path, tmp_path: Path) -> None:
    lines = run("text", corpus / "tokens", "--names").splitlines()
    want = np.load(corpus / "tokens/s1/s1-0.npy")[0].tolist()
    assert lines[0] == "s1/s1-0|" + " ".join(map(str, want))
    assert len(lines) == 6
    output = tmp_path / "units.txt"
    run("text", corpus / "tokens", "--dedup", "-o", output)
    merged = output.read_text().splitlines()[0].split()
    assert merged == [str(s.unit) for s in run_lengths(np.array(want))]


@pytest.mark.parametrize("tokens", ["tokens", "avq"])
def test_merged_tokens_are_segments(corpus: Path, tmp_path: Path, tokens: str) -> None:
    run("merge", corpus / tokens, "-r", "-o", tmp_path / "out")
    for path in (corpus / "segments").rglob("*.tsv"):
        made = tmp_path / "out" / path.relative_to(corpus / "segments")
        assert made.read_bytes() == path.read_bytes()
    one = corpus / tokens / f"s1/s1-0.{'npy' if tokens == 'tokens' else 'avq'}"
    run("merge", one, "-o", tmp_path / "one.tsv", "--level", "1")
    merged = run_lengths(np.load(corpus / "tokens/s1/s1-0.npy")[1])
    assert read_segments(tmp_path / "one.tsv") == merged
    with pytest.raises(AssertionError, match="--force"):  # the exit code is not 0
        run("merge", one, "-o", tmp_path / "one.tsv")
    result = CliRunner().invoke(units, ["merge", str(one), "-o", str(tmp_path / "one.npy")])
    assert result.exit_code == 2


def test_text_can_say_how_long_units_last(corpus: Path) -> None:
    for tokens in ("tokens", "segments"):
        line = run("text", corpus / tokens, "--durations").splitlines()[0]
        assert (from_text(line) == np.load(corpus / "tokens/s1/s1-0.npy")[0]).all()
        assert line.split() == [
            f"{s.unit}:{s.duration}" for s in read_segments(corpus / "segments/s1/s1-0.tsv")
        ]


def test_files_left_out_are_counted(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "phones/s1", tmp_path / "phones/s1")
    common = ["evaluate", str(corpus / "tokens"), "--alignments", str(tmp_path / "phones")]
    result = CliRunner().invoke(units, [*common, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["unmatched"] == ["s2/s2-0", "s2/s2-1", "s2/s2-2"]
    assert "3 of 6 files are left out, s2/s2-0 among them" in result.stderr


def test_a_picture_shows_the_sound_of_its_own_utterance(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "wavs/s1", tmp_path / "wavs/s1")
    (tmp_path / "wavs/s3").mkdir()
    shutil.copy(corpus / "wavs/s2/s2-1.wav", tmp_path / "wavs/s3/s2-1.wav")  # another speaker's
    common = ["evaluate", corpus / "tokens", "--alignments", corpus / "phones"]
    outputs = ["--picture", tmp_path / "p.png", "--audio", tmp_path / "wavs"]
    with pytest.raises(FileRefused, match="no recording for s2/s2-1"):
        run(*common, *outputs, "--utterance", "s2/s2-1")
    run(*common, *outputs, "--utterance", "s1/s1-1")


def test_segments_at_a_rate(corpus: Path, tmp_path: Path, tiny_folder: Path) -> None:
    source = str(corpus / "wavs/s1/s1-0.wav")
    common = ["encode", source, "--model", str(tiny_folder), "--rate", "10"]
    result = CliRunner().invoke(app, [*common, "--segment", "-o", str(tmp_path / "a.tsv")])
    assert result.exit_code == 0, result.output
    assert re.search(r"a second: --price [\d.]+$", result.stderr, re.MULTILINE)
    price = result.stderr.rsplit("--price ", 1)[1].split()[0]
    again = [*common[:-2], "--segment", "--price", price, "-o", str(tmp_path / "b.tsv")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
    for wrong in ([], ["--segment", "--price", "1"]):
        assert CliRunner().invoke(app, [*common, *wrong]).exit_code == 2
    piped = ["encode", "-", "-o", str(tmp_path / "c.tsv"), "--segment", "--rate", "10"]
    assert CliRunner().invoke(app, piped).exit_code == 2


def test_shards_have_one_price(corpus: Path, tmp_path: Path, tiny_folder: Path) -> None:
    common = ["encode", str(corpus / "wavs"), "-r", "--model", str(tiny_folder), "--segment"]
    said = [
        CliRunner().invoke(
            app, [*common, "--rate", "10", "--shard", f"{i}/2", "-o", str(tmp_path / str(i))]
        )
        for i in (1, 2)
    ]
    prices = {re.search(r"--price ([\d.]+)", result.stderr)[1] for result in said}
    assert len(prices) == 1


def test_report_says_what_is_wrong_before_it_encodes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiovq_cli.units.encode_units", lambda *_, **__: pytest.fail("encodes"))
    common = ["report", "default", "--audio", str(corpus / "wavs"), "--alignments"]
    common += [str(corpus / "phones"), "-o", str(tmp_path / "r.html")]
    for wrong in (["--shift", "late"], ["--abx"], ["--baseline", "lpc"], ["--baseline", "=x"]):
        result = CliRunner().invoke(units, [*common, *wrong])
        assert result.exit_code == 2, result.output


def test_report_is_one_page(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        channels=(8, 8, 8),
        decoder_channels=8,
        decoder_blocks=1,
        encoder_blocks=(1, 1, 1),
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    model = AudioVQ(config, {"name": "tiny <model>"})
    model.quantizer.start(torch.randn(1, 400, 8))
    model.save_pretrained(tmp_path / "model")
    page = tmp_path / "report.html"
    arguments = ("report", tmp_path / "model", "--audio", corpus / "wavs", "-o", page)
    arguments = (*arguments, "--alignments", corpus / "phones", "--speakers", "parent")
    run(*arguments, "--baseline", "mfcc", "--segment", "10", "--pictures", "1")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "tiny &lt;model&gt;" in text
    assert "tiny <model>" not in text
    assert "accuracy, other speakers" in text
    assert text.count("data:image/png;base64,") == 4  # three heat maps, one utterance
    assert "http" not in text  # it stands alone


def test_the_page_in_docs_runs(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs/how_to/measure_units.md").read_text()
    monkeypatch.chdir(corpus)
    shell = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = shell.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    mine = [c[2:] for c in commands if c[:2] == ["audiovq", "units"] and c[2] != "report"]
    assert [c[0] for c in mine] == ["evaluate", "text", "merge", "robust", "robust", "robust"]
    for command in mine[:3]:
        run(*command)
    assert Path("heatmap.png").read_bytes()[:4] == PNG
    encoder = Path("my_encoder.py")  # a tokenizer of 25 frames a second, in place of the reader's
    encoder.write_text(MY_ENCODER)
    small = ("--limit", "6", "--seconds", "1", "--conditions", "level-6")
    for command in mine[3:]:
        run(*(c.replace("my-encoder", f"{sys.executable} {encoder}") for c in command), *small)
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code
    scope: dict = {}
    exec(code[1].replace("25.0", "50.0"), scope)  # the corpus has 50 units a second
    assert scope["result"].without_silence["pnmi"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--speakers", "by ear"), "says no speakers"),
        (("--baseline", "guess"), "no baseline"),
        (("--baseline", "mfcc"), "needs the recordings"),
        (("--abx",), "who speaks"),
        (("--frame-rate", "100"), "check the frame rate"),
    ],
)
def test_bad_arguments_say_what_is_allowed(corpus: Path, arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        systems(corpus, "tokens", *arguments)


@pytest.mark.parametrize(
    "arguments", [("--picture", "x.png"), ("--shift", "late"), ("--utterance", "nobody")]
)
def test_bad_options_exit_with_two(corpus: Path, arguments: tuple) -> None:
    common = ["evaluate", str(corpus / "tokens"), "--alignments", str(corpus / "phones")]
    result = CliRunner().invoke(units, [*common, *arguments])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit | typer.BadParameter)


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "tokens", "--alignments", "phones", "--heatmap", "x.jpg"),
        ("evaluate", "tokens", "--alignments", "phones", "--picture", "x.svg", "--audio", "wavs"),
        ("robust", "wavs", "--plot", "x.pdf"),
    ],
)
def test_pictures_are_named_so(monkeypatch, corpus: Path, arguments: tuple) -> None:
    monkeypatch.chdir(corpus)
    result = CliRunner().invoke(units, list(arguments))
    assert result.exit_code == 2
    assert "pictures are PNG" in str(result.exception) + result.output


def test_files_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="no tokens"):
        systems(corpus, "phones")
    with pytest.raises(FileRefused, match="does not exist"):
        systems(corpus, "nowhere")
    with pytest.raises(FileRefused, match="no level 5"):
        systems(corpus, "tokens", "--level", "5")
    with pytest.raises(FileRefused, match="segments of units, level 0; there is no level 1"):
        systems(corpus, "segments", "--level", "1")
    write_npy(tmp_path / "tokens/other.npy", np.zeros((1, 5), dtype=int))
    with pytest.raises(FileRefused, match="none of the 1 token files"):
        systems(corpus, str(tmp_path / "tokens"))
    write_npy(tmp_path / "tokens/s1-0.npy", np.zeros((1, 5), dtype=int))
    write_avq(
        tmp_path / "tokens/s1-0.avq",
        np.zeros((1, 5), dtype=int),
        Header("m", "f", 16_000, 320, 8, 1, 1600),
    )
    with pytest.raises(FileRefused, match="two formats"):
        systems(corpus, str(tmp_path / "tokens"))
