"""The pages: all codes are there, all links lead somewhere, and nothing leads out."""

import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from tiny import EXAMPLES, TINY
from typer.testing import CliRunner

from audiovq import AudioVQ, read_tokens
from audiovq.audio import load_audio
from audiovq.transcode import encode_file
from audiovq_cli import app

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ODD = '100% <b>odd & "it\'s"?#1'
"""A name that breaks pages which do not quote."""
PHONES = ("SIL", "a<i>", "b")


class Reader(HTMLParser):
    """What a page links to, the tags that stay open, and the data of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        found = [values[name] for name in ("href", "src", "data-src") if values.get(name)]
        self.links += [link for link in found if link is not None]
        if tag not in ("img", "meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == [], path
    return reader


def check_links(folder: Path) -> set[Path]:
    """Every link of every page leads to a file of the folder; the files that are linked."""
    linked = set()
    for path in folder.rglob("*.html"):
        page = read_page(path)
        assert any(t == "meta" and v.get("name") == "generator" for t, v in page.tags)
        for link in page.links:
            assert not re.match(r"[a-z]+:|/", link), f"{path}: {link}"
            target = (path.parent / unquote(link)).resolve()
            assert target.is_file(), f"{path}: {link}"
            assert folder.resolve() in target.parents, f"{path}: {link}"
            linked.add(target)
    for path in [*folder.rglob("*.css"), *folder.rglob("*.js"), *folder.rglob("*.html")]:
        assert not re.search(r"https?:|url\(|@import|//[a-z]", path.read_text()), path
    return linked


@pytest.fixture(scope="module")
def corpus(tiny_model: AudioVQ, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, one of a hostile name, their alignments, and their tokens."""
    root = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for number, name in enumerate(("s1/a", "s1/b", f"s2/{ODD}")):
        wav, rate = soundfile.read(EXAMPLES[1], dtype="float32")
        (root / "wavs" / name).parent.mkdir(parents=True, exist_ok=True)
        wav = wav[number * 8_000 : number * 8_000 + 16_000 + number * 777]
        soundfile.write(root / "wavs" / f"{name}.wav", wav, rate)
        (root / "phones" / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{t / 10} {(t + 1) / 10} {random.choice(PHONES)}\n" for t in range(10)]
        (root / "phones" / f"{name}.phn").write_text("".join(rows))
        encode_file(
            tiny_model,
            root / "wavs" / f"{name}.wav",
            root / "tokens" / f"{name}.avq",
            token_format="avq",
        )
    return root


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def page(corpus: Path, tiny_folder: Path) -> Path:
    """The pages about the tokens of the corpus, with everything there is."""
    folder = corpus / "page"
    options = ("--audio", corpus / "wavs", "--alignments", corpus / "phones", "--lines", 3)
    against = ("--against", corpus / "tokens", "--against-level", 1)
    run("explore", corpus / "tokens", *options, *against, "--model", tiny_folder, "-o", folder)
    return folder


def units(corpus: Path) -> np.ndarray:
    files = sorted((corpus / "tokens").rglob("*.avq"))
    return np.concatenate([read_tokens(path).indices[0] for path in files])


def test_all_links_and_sounds_are_there_and_nothing_else(page):
    linked = check_links(page)
    written = {path.resolve() for path in page.rglob("*") if path.is_file()}
    assert written - linked <= {(page / "index.html").resolve()}


def test_every_code_is_there_with_its_frames(corpus, page):
    counts = np.bincount(units(corpus), minlength=TINY.codebook_size)
    index = read_page(page / "index.html")
    rows = [int(str(v["data-code"])) for tag, v in index.tags if tag == "tr" and "data-code" in v]
    dots = [int(str(v["data-code"])) for tag, v in index.tags if tag == "a" and "data-code" in v]
    assert sorted(rows) == sorted(dots) == list(range(TINY.codebook_size))
    text = (page / "index.html").read_text()
    said = re.findall(r"<title>code (\d+): (\d+) frames", text)
    assert {int(code): int(n) for code, n in said} == dict(enumerate(counts.tolist()))
    assert f"{counts.sum()} frames at 50 a second" in text
    assert f"{(counts > 0).sum()} of 32 codes are used" in text
    for code, n in enumerate(counts.tolist()):
        of_code = (page / "codes" / f"{code}.html").read_text()
        assert f"<b>{n}</b>frames" in of_code if n else "No frame" in of_code


def test_concordances_are_of_the_code_and_say_what_they_leave_out(corpus, page):
    for code in np.unique(units(corpus)).tolist():
        text = (page / "codes" / f"{code}.html").read_text()
        shown, there = re.search(r"(\d+) of (\d+) stretches", text).groups()
        assert int(shown) == min(3, int(there)) == text.count("▶ original")
        for start, end in re.findall(r'data-start="([\d.]+)" data-end="([\d.]+)"', text):
            assert 0 <= float(start) < float(end) < 2


def test_names_and_phones_are_quoted(page):
    texts = [path.read_text() for path in page.rglob("*.html")]
    assert any("100% &lt;b&gt;odd &amp; &#34;it&#39;s&#34;?#1" in text for text in texts)
    assert any("a&lt;i&gt;" in text for text in texts)
    assert not any("<b>odd" in text or "a<i>" in text for text in texts)


def test_sounds_last_as_long_as_the_recordings(corpus, page):
    wavs = sorted((corpus / "wavs").rglob("*.wav"))
    for number, path in enumerate(wavs):
        n_samples = len(load_audio(path, 16_000))
        for kind in ("original", "decoded"):
            info = soundfile.info(page / "sound" / kind / f"{number}.flac")
            assert (info.frames, info.samplerate) == (n_samples, 16_000)


def test_a_folder_of_sound_gives_the_same_counts(corpus, page, tiny_folder, tmp_path):
    out = tmp_path / "page"
    run("explore", corpus / "wavs", "--model", tiny_folder, "-o", out, "--recordings", 1)
    check_links(out)
    text = (out / "index.html").read_text()
    said = r"<title>code (\d+): (\d+) frames"
    assert re.findall(said, text) == re.findall(said, (page / "index.html").read_text())
    assert "the 1 recordings (of 3) whose sound is kept here" in " ".join(text.split())
    assert "No alignments were given" in text
    assert len(list((out / "sound" / "original").iterdir())) == 1


def test_tokens_alone_have_no_originals(corpus, tiny_folder, tmp_path):
    out = tmp_path / "page"
    run("explore", corpus / "tokens", "--model", tiny_folder, "-o", out, "--level", 2)
    check_links(out)
    assert not (out / "sound" / "original").exists()
    assert "The original recordings were not given" in (out / "index.html").read_text()
    assert "codes of level 2" in (out / "index.html").read_text()


def test_what_cannot_be_explored_is_said_in_a_sentence(corpus, page, tiny_folder, tmp_path):
    model = ("--model", tiny_folder, "-o", tmp_path / "out")
    tokens = corpus / "tokens"
    (tmp_path / "empty").mkdir()
    wrong = [
        (1, "is no folder", tmp_path / "none"),
        (1, "holds no audio", tmp_path / "empty"),
        (2, "test model has levels 0 to 3", tokens, "--level", 4),
        (2, "--shift is a number", tokens, "--alignments", corpus / "phones", "--shift", "x"),
        (2, "--shift goes with --alignments", tokens, "--shift", 1),
        (2, "--audio goes with tokens", corpus / "wavs", "--audio", corpus / "wavs"),
        (1, "has no recording for", tokens, "--audio", corpus / "wavs" / "s2"),
        (1, "no alignments", tokens, "--alignments", tmp_path / "empty"),
        (1, "holds no tokens", tokens, "--against", tmp_path / "empty"),
    ]
    for code, said, *arguments in wrong:
        output = run("explore", *arguments, *model, code=code)
        assert said in " ".join(output.split()), output
        assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
    said = run("explore", tokens, "--model", tiny_folder, "-o", page, code=1)
    assert "is not empty" in said


def test_another_models_tokens_are_refused(corpus, tmp_path):
    out = tmp_path / "out"
    assert "was made by model" in run("explore", corpus / "tokens", "-o", out, code=1)


@pytest.fixture(scope="module")
def steps(corpus: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps between two recordings, one of a hostile name."""
    out = tmp_path_factory.mktemp("steps") / "out"
    names = (corpus / "wavs" / "s1" / "a.wav", corpus / "wavs" / "s2" / f"{ODD}.wav")
    run("interpolate", *names, "--steps", 4, "--model", tiny_folder, "-o", out)
    return out


def test_steps_are_there_with_sound_and_tokens(corpus, steps, tiny_folder):
    linked = check_links(steps)
    written = {path.resolve() for path in steps.iterdir()}
    assert written - linked == {(steps / "index.html").resolve()}
    assert "&lt;b&gt;odd" in (steps / "index.html").read_text()
    for step, name in ((0, "s1/a"), (3, f"s2/{ODD}")):
        own = read_tokens(steps / f"{step:02}.avq")
        plain = read_tokens(corpus / "tokens" / f"{name}.avq")
        assert (own.indices == plain.indices).all()
        assert own.header == plain.header
    out = steps.parent / "decoded.wav"
    run("decode", steps / "01.avq", "--model", tiny_folder, "-o", out)
    decoded, rate = soundfile.read(out)
    written_sound, _ = soundfile.read(steps / "01.flac")
    assert (decoded == written_sound).all()
    assert rate == 16_000


def test_what_cannot_be_interpolated_is_said_in_a_sentence(corpus, tiny_folder, tmp_path):
    a = corpus / "wavs" / "s1" / "a.wav"
    (tmp_path / "text.wav").write_text("no sound")
    model = ("--model", tiny_folder, "-o", tmp_path / "out")
    assert "is not audio" in run("interpolate", a, tmp_path / "text.wav", *model, code=1)
    assert "does not exist" in run("interpolate", a, tmp_path / "none.wav", *model, code=1)
    assert "n_q must be in 1..4" in run("interpolate", a, a, "--n-q", 9, *model, code=2)
    run("interpolate", a, a, "--steps", 1, *model, code=2)
    assert not (tmp_path / "out").exists()


def test_the_blocks_of_the_documentation_run(tiny_model, tiny_folder, tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "how_to" / "explore_codes.md"
    text = page.read_text()
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S))
    lines = blocks.replace("\\\n", " ").splitlines()
    monkeypatch.chdir(tmp_path)
    Path("examples").mkdir()
    for path in EXAMPLES:
        if f"examples/{path.name}" in text:  # the others would take their time
            (Path("examples") / path.name).symlink_to(path)
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "audiovq"
        run(*arguments, "--model", tiny_folder)
    for folder in ("page", "page-1", "page-both", "steps"):
        check_links(tmp_path / folder)
    monkeypatch.setattr("audiovq.AudioVQ.from_pretrained", lambda: tiny_model)
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    scope: dict[str, object] = {}
    exec(compile(block, str(page), "exec"), scope)
    assert scope["wav"].shape == (1, 1, 150 * TINY.hop_length)


def test_pages_work_in_a_browser_from_disk(page, steps):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        tab = browser.new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("requestfailed", lambda request: said.append(request.url))
        tab.goto((page / "index.html").as_uri())
        code = tab.locator("tbody tr").first.get_attribute("data-code")
        tab.fill("#search", f"{code}")
        assert tab.locator("tbody tr:visible").count() == 1
        tab.fill("#search", "")
        tab.locator("tbody tr:visible a").first.click()
        assert tab.locator("h1").inner_text().startswith(f"Code {code}")
        for button in tab.locator("button[data-src]").all()[:3]:
            button.click()
            tab.wait_for_function("player.currentTime > 0 && !player.error", timeout=20_000)
        for name in ("against.html", f"codes/{code}.html"):
            tab.goto((page / name).as_uri())
        tab.goto((steps / "index.html").as_uri())
        tab.wait_for_function(
            "[...document.querySelectorAll('audio')].every(a => a.readyState > 0)", timeout=20_000
        )
        browser.close()
    assert said == []
