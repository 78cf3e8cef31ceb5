"""Evaluation: means and intervals, matching, sizes, what is left out, plots and pages."""

import json
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch

from audiovq import Codes, FileRefused, Header, ModelConfig
from audiovq.codes import pack_avq
from audiovq.quality import metrics, peers
from audiovq.quality.evaluate import evaluate
from audiovq.quality.files import match_texts, read_texts
from audiovq.quality.report import page_folder, plot_rate_quality, write_page
from audiovq.quality.results import ORIGINAL, TABLE, Evaluation, Row, bootstrap_mean

RATE = 16000


class FakeModel:
    """Gives back what it was given, with noise that halves with every level."""

    config = ModelConfig()
    name = "fake"
    fingerprint = "0123456789abcdef"

    def check_n_q(self, n_q: int) -> int:
        if not 1 <= n_q <= 8:
            raise ValueError(f"n_q must be in 1..8, not {n_q}.")
        return n_q

    def encode(self, wav: torch.Tensor, n_q: int) -> Codes:
        self.wav = wav
        n_frames = -(-wav.shape[-1] // 320)
        return Codes(torch.zeros(1, n_q, n_frames, dtype=torch.int64), (wav.shape[-1],))

    def decode(self, codes: Codes) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.wav.shape, generator=generator)
        return self.wav + 0.1 * noise / 2 ** codes.indices.shape[1]

    def header(self, n_q: int, n_samples: int) -> Header:
        return Header(self.name, self.fingerprint, RATE, 320, 1024, n_q, n_samples)


def sound(n: int = 8000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, n).astype(np.float32)


@pytest.fixture
def originals(tmp_path) -> Path:
    """Three clips in a tree, and a file that is no audio by its name."""
    folder = tmp_path / "originals"
    (folder / "speaker").mkdir(parents=True)
    soundfile.write(folder / "a.wav", sound(8000, 1), RATE)
    soundfile.write(folder / "b.flac", sound(12000, 2), RATE)
    soundfile.write(folder / "speaker" / "c.wav", sound(16001, 3), RATE)
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture
def no_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def values(found: Evaluation, system: str, name: str) -> list[float | None]:
    return [row.values[name] for row in found.rows if row.system == system]


def test_the_interval_covers_the_mean_and_is_the_same_in_every_call():
    numbers = np.random.default_rng(0).normal(3, 1, 400)
    result = bootstrap_mean(numbers)
    assert result.mean == pytest.approx(numbers.mean())
    # 1.96 standard errors of 400 draws with a deviation of 1.
    assert (result.high - result.low) / 2 == pytest.approx(0.098, rel=0.15)
    assert bootstrap_mean(numbers) == result


def test_the_interval_of_equal_values_is_a_point_and_of_one_value_is_none():
    assert bootstrap_mean(np.full(5, 2.0)).low == 2 == bootstrap_mean(np.full(5, 2.0)).high
    assert bootstrap_mean(np.array([2.0])).low is None


def test_weights_make_the_word_error_rate_one_of_all_words():
    rows = [
        Row("a", "x", 1, {"wer": 100.0}, n_words=1),
        Row("b", "x", 1, {"wer": 10.0}, n_words=99),
    ]
    (summary,) = Evaluation(["wer"], ["x"], rows).summary()
    assert summary.metrics["wer"].mean == pytest.approx((100 + 990) / 100)


def test_totals_are_ratios_of_sums():
    rows = [Row("a", "x", 1, {}, 1000, 0.1, 0.5), Row("b", "x", 3, {}, 1000, 0.1, 0.5)]
    (summary,) = Evaluation([], ["x"], rows).summary()
    assert summary.bitrate == 2000 * 8 / 4
    assert summary.encode_speed == pytest.approx(20)
    assert summary.decode_speed == 4


def test_a_copy_of_the_folder_is_perfect(originals):
    found = evaluate(originals, originals, metrics=["lsd", "si_sdr"])
    assert found.systems == ["originals"]  # nothing here is measured without a reference
    assert [row.file for row in found.rows] == ["a.wav", "b.flac", "speaker/c.wav"]
    assert values(found, "originals", "lsd") == [0, 0, 0]
    assert found.notes == []
    assert found.summary()[0].bitrate is None


def test_decoded_files_are_matched_by_their_name_below_the_folder(originals, tmp_path):
    decoded = tmp_path / "decoded"
    (decoded / "speaker").mkdir(parents=True)
    wav, _ = soundfile.read(originals / "speaker" / "c.wav", dtype="float32")
    soundfile.write(decoded / "speaker" / "c.flac", wav[:-3], RATE)  # another suffix, 3 samples
    soundfile.write(decoded / "c.wav", sound(100), RATE)
    found = evaluate(originals, decoded, metrics=["lsd"])
    assert [row.file for row in found.rows] == ["speaker/c.wav"]
    assert values(found, "decoded", "lsd") == [pytest.approx(0, abs=0.1)]
    assert found.notes == ["2 of 3 originals have no decoded file."]


def test_a_decoded_file_of_another_length_is_measured_and_noted(originals, tmp_path):
    soundfile.write(tmp_path / "short.wav", sound(4000, 1), RATE)
    found = evaluate(originals / "a.wav", tmp_path / "short.wav", metrics=["lsd"])
    assert found.notes == [f"{tmp_path / 'short.wav'} is 0.25 s shorter than it was."]
    assert values(found, "short.wav", "lsd")[0] > 0.1


def test_a_model_is_run_at_each_number_of_levels(originals):
    model = FakeModel()
    found = evaluate(originals, model=model, n_q=[1, 8], metrics=["si_sdr"])
    assert found.systems == ["fake n_q=1", "fake n_q=8"]
    low, high = (summary.metrics["si_sdr"].mean for summary in found.summary())
    assert high - low == pytest.approx(20 * np.log10(2**7), abs=0.5)
    assert found.model["fingerprint"] == model.fingerprint
    row = next(row for row in found.rows if row.system == "fake n_q=8" and row.file == "b.flac")
    file = pack_avq(np.zeros((8, 38), np.uint16), model.header(8, 12000))
    assert row.n_bytes == len(file)
    assert row.encode_seconds > 0
    assert row.decode_seconds > 0


def test_what_is_named_twice_is_measured_once(originals, tmp_path):
    found = evaluate(originals, model=FakeModel(), n_q=[1, 1], metrics=["mel"], limit=1)
    assert len(found.rows) == 1
    shutil.copytree(originals, tmp_path / "original")
    found = evaluate(originals, decoded=tmp_path / "original", metrics=["mel"])
    assert {row.system for row in found.rows} == {"original (decoded)"}
    assert found.summary()[0].metrics["mel"].mean == pytest.approx(0)


def test_several_processes_find_the_same_as_one(originals):
    arguments = {"model": FakeModel(), "n_q": [2], "metrics": ["si_sdr"]}
    one, two = evaluate(originals, **arguments), evaluate(originals, jobs=2, **arguments)
    assert [(row.file, row.values) for row in one.rows] == [
        (row.file, row.values) for row in two.rows
    ]


def test_a_limit_spreads_over_the_folder(tmp_path):
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", sound(100), RATE)
    found = evaluate(tmp_path, tmp_path, metrics=["lsd"], limit=4)
    assert [row.file for row in found.rows] == ["0.wav", "2.wav", "5.wav", "7.wav"]


def test_progress_counts_every_file(originals):
    seen = []
    evaluate(originals, originals, metrics=["lsd"], progress=lambda *n: seen.append(n))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_is_not_installed_is_noted_and_the_rest_goes_on(originals, monkeypatch, no_tools):
    monkeypatch.setattr(metrics, "_installed", lambda package: package not in ("pesq", "pystoi"))
    found = evaluate(
        originals, originals, peers=["opus:6"], metrics=["pesq", "stoi", "lsd"], limit=1
    )
    assert found.metrics == ["lsd"]
    assert found.systems == ["originals"]
    assert found.notes == [
        "PESQ needs pesq: pip install '.[eval]'.",
        "STOI needs pystoi: pip install '.[eval]'.",
        "opus:6 needs opusenc and opusdec on the PATH (on Debian: apt-get install opus-tools).",
    ]


def test_no_measure_left_is_refused(originals, monkeypatch):
    monkeypatch.setattr(metrics, "_installed", lambda package: False)
    with pytest.raises(FileRefused, match=r"No measure can be taken. PESQ needs pesq: pip install"):
        evaluate(originals, originals, metrics=["pesq"])


def test_a_peer_is_measured_with_its_size_and_speed(originals, tmp_path, monkeypatch):
    def run_peer(peer, wav):
        return peers.PeerResult(wav * 0.5, 600, 0.25, 0.125)

    monkeypatch.setattr("audiovq.quality.evaluate.missing_programs", lambda peer: None)
    monkeypatch.setattr("audiovq.quality.clips.run_peer", run_peer)
    found = evaluate(originals / "a.wav", peers=["opus:9"], metrics=["lsd"])
    (summary,) = found.summary()
    assert (summary.system, summary.family) == ("opus:9", "opus")
    assert (summary.bitrate, summary.encode_speed, summary.decode_speed) == (9600, 2, 4)
    assert summary.metrics["lsd"].mean == pytest.approx(6.02, abs=0.01)


def test_files_that_cannot_be_read_are_left_out_and_counted(originals):
    (originals / "bad.wav").write_bytes(b"not audio")
    found = evaluate(originals, originals, metrics=["lsd"])
    assert len(found.rows) == 3
    assert found.notes[0].startswith("1 of 4 files were left out: ")
    assert "bad.wav is not audio" in found.notes[0]
    with pytest.raises(FileRefused, match=r"bad\.wav is not audio"):
        evaluate(originals / "bad.wav", originals / "a.wav", metrics=["lsd"])


def test_an_undefined_value_is_none_and_noted(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), RATE)
    soundfile.write(tmp_path / "sound.wav", sound(), RATE)
    found = evaluate(tmp_path, tmp_path, metrics=["si_sdr"])
    assert values(found, tmp_path.name, "si_sdr")[0] is None
    assert found.summary()[0].metrics["si_sdr"].n == 1
    assert found.notes == [
        "SI-SDR has no value for 1 decoded clips (too short, or an original without speech or "
        "without harmonics)."
    ]


def test_the_original_has_the_measures_without_a_reference(originals, monkeypatch):
    loud = metrics.Metric(
        lambda r, d: float(np.abs(d).max()), "loud", "", "higher", needs_reference=False
    )
    monkeypatch.setitem(metrics.METRICS, "loud", loud)
    monkeypatch.setitem(TABLE, "loud", loud)
    monkeypatch.setattr("audiovq.quality.evaluate.missing_packages", lambda name: None)
    found = evaluate(originals / "a.wav", originals / "b.flac", metrics=["loud", "lsd"])
    assert found.systems == [ORIGINAL, "b.flac"]
    assert set(found.rows[0].values) == {"loud"}
    assert set(found.rows[1].values) == {"loud", "lsd"}


def hears(monkeypatch: pytest.MonkeyPatch, transcribe) -> None:
    """Put a function (wav, asr) -> text in the place of every recogniser."""
    for user in ("evaluate", "clips"):
        monkeypatch.setattr(f"audiovq.quality.{user}.transcribe", transcribe)


def test_the_word_error_rate_counts_against_what_is_heard_in_the_original(
    originals, tmp_path, monkeypatch
):
    heard = {len(sound(8000)): "one two three four", 0: ""}

    def transcribe(wav, asr):
        return "one too three" if wav.max() < 0.2 else heard.get(len(wav), "one two three four")

    hears(monkeypatch, transcribe)
    quiet, _ = soundfile.read(originals / "a.wav")
    soundfile.write(tmp_path / "quiet.wav", quiet * 0.5, RATE)
    found = evaluate(originals / "a.wav", tmp_path / "quiet.wav", metrics=["wer"], asr="x {}")
    assert found.rows[0].values == {"wer": 50.0}
    assert found.rows[0].n_words == 4


def test_with_texts_word_errors_count_against_them_in_the_original_too(
    originals, tmp_path, monkeypatch
):
    hears(monkeypatch, lambda wav, asr: "one too three")
    texts = tmp_path / "texts.tsv"
    texts.write_text("some/where/a.flac\tONE TWO\n\nspeaker/c.wav one too three\nelse x\nb\n")
    found = evaluate(originals, originals, metrics=["wer"], asr="x {}", texts=texts)
    assert found.systems == [ORIGINAL, "originals"]
    assert [(row.file, row.values) for row in found.rows if row.system == ORIGINAL] == [
        ("a.wav", {"wer": 100.0}),
        ("b.flac", {}),
        ("speaker/c.wav", {"wer": 0.0}),
    ]
    assert found.summary()[1].metrics["wer"].mean == pytest.approx(40)
    assert found.notes == ["1 of 3 originals have no text."]


def test_texts_are_read_as_librispeech_has_them(tmp_path):
    (tmp_path / "84" / "121123").mkdir(parents=True)
    (tmp_path / "84" / "121123" / "84-121123.trans.txt").write_text("84-121123-0000 GO\n")
    assert read_texts(tmp_path) == {"84-121123-0000": "GO"}


def test_hidden_files_are_not_measured(originals):
    soundfile.write(originals / "._a.wav", sound(), RATE)
    (originals / "speaker" / "._b.wav").write_bytes(b"notes of another program")
    found = evaluate(originals, originals, metrics=["si_sdr"])
    assert not any("._" in row.file for row in found.rows)


def test_texts_that_cannot_be_used_are_one_sentence(originals, tmp_path, monkeypatch):
    hears(monkeypatch, lambda wav, asr: "")
    texts = tmp_path / "texts"
    for content, message in (
        (b"\xff\xfe", "not UTF-8 text"),
        (b"a\n", "no texts"),
        (b"x y", "such as a;"),
    ):
        texts.write_bytes(content)
        with pytest.raises(FileRefused, match=message):
            evaluate(originals, originals, metrics=["wer"], asr="x {}", texts=texts)
    with pytest.raises(FileRefused, match="absent does not exist"):
        read_texts(tmp_path / "absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to compare"),
        ({"peers": ["opus:6"], "texts": "t"}, "give asr, a recogniser"),
        ({"peers": ["mp3:8"]}, "peer 'mp3:8' is not known"),
        ({"peers": ["opus:6"], "metrics": ["peaq"]}, "metric 'peaq' is not known; choose from"),
        ({"peers": ["opus:6"], "metrics": ["wer"]}, "wer needs a recogniser"),
        ({"peers": ["opus:6"], "limit": 0}, "limit must be at least 1"),
        ({"peers": ["opus:6"], "jobs": 0}, "jobs must be at least 1"),
        ({"model": FakeModel(), "n_q": [9]}, "n_q must be in 1..8, not 9"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, originals):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(originals, **arguments)


def test_files_that_do_not_fit_are_refused(originals, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileRefused, match="does not exist"):
        evaluate(tmp_path / "absent", originals)
    with pytest.raises(FileRefused, match="holds no audio"):
        evaluate(tmp_path / "empty", originals)
    with pytest.raises(FileRefused, match="one file and the originals are 3"):
        evaluate(originals, originals / "a.wav")
    soundfile.write(tmp_path / "empty" / "other.wav", sound(100), RATE)
    with pytest.raises(FileRefused, match="no file named like an original, such as a;"):
        evaluate(originals, tmp_path / "empty")


def test_the_dictionary_is_json_and_holds_every_file(originals):
    found = evaluate(originals, originals, model=FakeModel(), n_q=[4], metrics=["lsd"])
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [system["system"] for system in again["systems"]] == ["originals", "fake n_q=4"]
    assert len(again["files"]) == 6
    assert again["metrics"]["lsd"] == {"label": "LSD", "unit": "dB", "better": "lower"}


def test_the_plot_is_a_picture_and_is_not_overwritten(originals, tmp_path):
    pytest.importorskip("matplotlib")
    found = evaluate(originals, originals, model=FakeModel(), n_q=[1, 8], metrics=["lsd", "si_sdr"])
    path = tmp_path / "plot.png"
    plot_rate_quality(found, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileRefused, match="add --force"):
        plot_rate_quality(found, path)
    with pytest.raises(FileRefused, match="not a picture"):
        plot_rate_quality(found, tmp_path / "plot.txt")
    assert not (tmp_path / "plot.txt").exists()


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_it_links_to(originals, tmp_path):
    pytest.importorskip("matplotlib")
    soundfile.write(originals / "100% <odd> & 'name'.wav", sound(900), RATE)
    folder = tmp_path / "page"
    with page_folder(folder) as temporary:
        found = evaluate(
            originals,
            model=FakeModel(),
            n_q=[1, 8],
            metrics=["lsd"],
            audio_dir=temporary / "audio",
        )
        write_page(found, temporary)
        assert not folder.exists()
    page = Links()
    page.feed((folder / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    targets = [folder / unquote(link) for link in page.links]
    assert len(targets) == 1 + 4 * 2 * 2  # the plot; a sound and a picture of 4 clips, 2 systems
    assert all(target.is_file() for target in targets)
    assert not any(link.startswith(("/", "http")) for link in page.links)
    written = {p for p in folder.rglob("*") if p.is_file()} - {folder / "index.html"}
    assert written == set(targets)
    assert "100% &lt;odd&gt; &amp; &#39;name&#39;.wav" in (folder / "index.html").read_text()
    decoded, rate = soundfile.read(folder / "audio" / "002-a" / "fake-n_q=8.flac")
    assert (len(decoded), rate) == (8000, RATE)


def test_the_page_s_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "page"
    with pytest.raises(ZeroDivisionError), page_folder(folder) as temporary:
        (temporary / "audio").mkdir(exist_ok=1 / 0)
    assert list(tmp_path.iterdir()) == []
    with page_folder(folder) as temporary:
        (temporary / "index.html").write_text("something else")
    assert stat.S_IMODE(folder.stat().st_mode) & stat.S_IRUSR
    for overwrite in (False, True):  # not a listening page: never removed
        with (
            pytest.raises(FileRefused, match=r"not empty|something else"),
            page_folder(folder, overwrite=overwrite),
        ):
            pytest.fail("a folder of the user's was opened")
    assert (folder / "index.html").read_text() == "something else"


def test_a_page_is_not_replaced_with_what_it_is_made_of(tmp_path):
    page = tmp_path / "page"
    with page_folder(page) as temporary:
        (temporary / "index.html").write_text('<meta name="generator" content="audiovq evaluate">')
        (temporary / "a.wav").write_bytes(b"mine")
    for source in (page, page / "a.wav", tmp_path / "page" / ".." / "page" / "a.wav"):
        with (
            pytest.raises(FileRefused, match="which is replaced; name another folder"),
            page_folder(page, sources=[source], overwrite=True),
        ):
            pytest.fail("the recording would be gone")
    with page_folder(page, sources=[tmp_path], overwrite=True) as temporary:
        (temporary / "index.html").write_text("new")
    assert [path.name for path in page.iterdir()] == ["index.html"]


def test_a_page_needs_the_audio(originals, tmp_path):
    found = evaluate(originals, originals, metrics=["lsd"])
    with pytest.raises(ValueError, match="evaluate with audio_dir"):
        write_page(found, tmp_path)


def test_a_text_is_not_given_to_another_speaker(tmp_path):
    files = [tmp_path / speaker / "u.1.wav" for speaker in ("s1", "s2")]
    notes: list[str] = []
    assert match_texts(tmp_path, files, {"s1/u.1": "one"}, notes) == {files[0]: "one"}
    assert notes == ["1 of 2 originals have no text."]
    both = {"s1/u.1": "one", "s2/u.1.wav": "two"}
    assert match_texts(tmp_path, files, both, []) == dict(zip(files, ("one", "two")))
    assert match_texts(tmp_path, files[:1], {"u.1": "one"}, []) == {files[0]: "one"}
    with pytest.raises(FileRefused, match="name no original"):
        match_texts(tmp_path, files, {"u.1": "one"}, [])


def test_no_peer_left_is_refused(originals, no_tools):
    with pytest.raises(FileRefused, match=r"nothing left to compare\. opus:6 needs opusenc"):
        evaluate(originals, peers=["opus:6"], metrics=["lsd"])


def test_two_decoded_files_of_one_name_are_refused(originals, tmp_path):
    (tmp_path / "decoded").mkdir()
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / "decoded" / name, sound(8000, 1), RATE)
    with pytest.raises(FileRefused, match="one name without suffix"):
        evaluate(originals, tmp_path / "decoded", metrics=["lsd"])
