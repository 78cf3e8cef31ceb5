"""The page of the demo: what it computes, and the page itself in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from tiny import EXAMPLES
from typer.testing import CliRunner

from audiovq.audio import load_audio, save_audio
from audiovq.codes import pack_avq, read_tokens, write_npy
from audiovq.demo.picture import PER_SECOND, WIDEST, draw
from audiovq.demo.work import Heard, Limits, decode, given_codes, listen, unit_alone
from audiovq.files import FileRefused
from audiovq_cli import app

SHORT = Limits(seconds=4.0)
CLIP = EXAMPLES[1]  # 2.99 s
PATIENCE = 600_000
"""Milliseconds that the browser waits for an answer; this machine may have other work."""


# --- What it computes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard(tiny_model) -> Heard:
    return listen(tiny_model, CLIP, SHORT)


def test_a_recording_has_the_codes_that_the_model_gives_it(heard, tiny_model, speech):
    assert (heard.indices == tiny_model.encode(speech).indices[0].numpy()).all()
    assert heard.indices.dtype == np.uint16


def test_a_longer_recording_is_refused_before_it_is_read_to_its_end(tiny_model, tmp_path):
    save_audio(tmp_path / "long.wav", np.zeros(16_000 * 600, np.float32), 16_000)
    with pytest.raises(FileRefused, match="longer than 4 s"):
        listen(tiny_model, tmp_path / "long.wav", SHORT)


def test_what_is_no_sound_is_refused(tiny_model, tmp_path):
    (tmp_path / "text.wav").write_text("This is no sound.")
    with pytest.raises(FileRefused, match="not audio"):
        listen(tiny_model, tmp_path / "text.wav", SHORT)


@pytest.mark.parametrize("n_q", [1, 4])
def test_levels_decode_to_the_length_of_the_recording(heard, tiny_model, n_q):
    wav = decode(tiny_model, heard.indices, n_q, len(heard.wav))
    assert (wav.shape, wav.dtype) == (heard.wav.shape, np.float32)


def test_codes_are_taken_from_files_and_from_text(heard, tiny_model, tmp_path):
    write_npy(tmp_path / "a.npy", heard.indices)
    header = tiny_model.header(4, len(heard.wav))
    (tmp_path / "a.avq").write_bytes(pack_avq(heard.indices, header))
    for name in ("a.npy", "a.avq"):
        assert (given_codes(tiny_model, "1 2", tmp_path / name, SHORT) == heard.indices).all()
    assert given_codes(tiny_model, "3 3 7:2", None, SHORT).tolist() == [[3, 3, 7, 7]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "give a token file"),
        ("5 x", "no unit"),
        ("32", "out of range"),
        ("1:9999", "at most"),
        ("1 2:999999999", "at most"),
    ],
)
def test_other_text_is_refused(tiny_model, text, says):
    with pytest.raises(ValueError, match=says):
        given_codes(tiny_model, text, None, SHORT)


def test_a_file_of_another_model_is_refused(heard, tiny_model, tmp_path):
    header = replace(tiny_model.header(4, len(heard.wav)), fingerprint="another", model="theirs")
    (tmp_path / "a.avq").write_bytes(pack_avq(heard.indices, header))
    with pytest.raises(FileRefused, match="made by model theirs"):
        given_codes(tiny_model, "", tmp_path / "a.avq", SHORT)


def test_a_unit_alone_is_not_silence(tiny_model):
    sounds = [unit_alone(tiny_model, unit) for unit in (1, 2)]
    assert not (sounds[0] == sounds[1]).all()


@pytest.mark.parametrize("seconds", [0.02, 3.0, 60.0])
def test_a_click_finds_the_frame_that_was_drawn_there(seconds, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    n_frames = round(seconds * 50)
    units = np.arange(n_frames) // 3
    wav = np.sin(np.arange(n_frames * 320) / 9).astype(np.float32)
    axis = draw(tmp_path / "picture.png", wav, wav, units, 16_000, 50.0)
    pixels = image.imread(tmp_path / "picture.png")
    assert pixels.shape[1] <= min(PER_SECOND * seconds, WIDEST) + 61
    for frame in {0, n_frames // 2, n_frames - 1}:
        assert axis.frame_at(axis.column_of(frame)) == frame
    assert axis.frame_at(0) < 0
    assert axis.frame_at(pixels.shape[1] - 1) >= n_frames


# --- The page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tiny_folder, tmp_path_factory) -> Iterator[str]:
    """A server of the page with a small model."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "audiovq_cli", "demo", "--model", str(tiny_folder)]
    log, sent = tmp_path_factory.mktemp("demo") / "log.txt", tmp_path_factory.mktemp("sent")
    with log.open("w") as said:
        server = subprocess.Popen(
            [*call, "--port", str(port)],
            stdout=said,
            stderr=said,
            env=os.environ | {"TMPDIR": str(sent)},
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            code = server.wait(PATIENCE / 1000)
    assert code == 0
    assert log.read_text().count("\n") == 1, log.read_text()  # where the page is, and no more
    assert not [path for path in sent.rglob("*") if path.is_file()]  # what visitors sent is gone


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(PATIENCE // 500):
        assert server.poll() is None, log.read_text()
        try:
            urlopen(address, timeout=PATIENCE / 1000).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, that of the system."""
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        yield found
        found.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens the page as a new visitor; nothing may go wrong or elsewhere."""
    opened = []

    def call():
        context = browser.new_context(viewport={"width": 1280, "height": 1600})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.extend(elsewhere(request.url)))
        page.goto(address)
        page.wait_for_selector("#source")
        opened.append((context, wrong))
        return page

    yield call
    for context, wrong in opened:
        context.close()
        assert not wrong


def elsewhere(url: str) -> list[str]:
    parts = urlsplit(url)
    local = parts.scheme in ("data", "blob") or parts.hostname == "127.0.0.1"
    return [] if local else [url]


def says(page, where: str, text: str) -> None:
    """Wait until a part of the page says this; while it is computed, it says for how long."""
    page.wait_for_function(
        "([where, text]) => document.querySelector(where).innerText.includes(text)",
        arg=[where, text],
    )


def upload(page, path: Path, text: str) -> None:
    """Upload a recording, of which the page is to say this."""
    if page.locator("#source input[type=file]").count() == 0:  # there is one already
        page.locator("#source").get_by_label("Clear").first.click()
    page.set_input_files("#source input[type=file]", str(path))
    says(page, "#said", text)


def keep(page, name: str) -> None:
    """A screenshot, where AUDIOVQ_SCREENSHOTS names a folder to look at them."""
    if folder := os.environ.get("AUDIOVQ_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_visitor_hears_sees_and_keeps(visit, heard, tmp_path):
    page = visit()
    keep(page, "empty")
    upload(page, CLIP, "2.99 s, 150 frames")
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth > 0")
    page.wait_for_selector("#files a")
    names = page.inner_text("#files")
    assert ".npy" in names
    assert ".avq" in names
    keep(page, "heard")
    picture = page.locator("#picture img")
    box = picture.bounding_box()
    assert box["width"] > 700  # a second is 250 pixels wide
    picture.click(position={"x": 48 + 5 * 20.5, "y": box["height"] - 60})
    says(page, "#about-unit", f"Unit {heard.indices[0, 20]}, at 0.40 s")
    keep(page, "unit")
    with page.expect_download() as download:
        page.locator("#files a").first.click()
    kept = tmp_path / download.value.suggested_filename
    download.value.save_as(kept)
    assert (np.load(kept) == heard.indices).all()
    page.get_by_role("tab", name="Tokens").click()  # and back to sound
    page.set_input_files("#token-file input[type=file]", str(kept))
    says(page, "#token-file", kept.suffix)
    page.click("#decode")
    says(page, "#tokens-said", "Levels: 4. Frames: 150.")
    keep(page, "back")


def test_a_wide_picture_is_scrolled_from_its_start(visit, tmp_path):
    clip = load_audio(CLIP, 16_000)
    save_audio(tmp_path / "wide.wav", np.tile(clip, 4), 16_000)
    page = visit()
    upload(page, tmp_path / "wide.wav", "11.9")
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth > 2500")
    picture = page.locator("#picture img").bounding_box()
    assert picture["width"] > 2500
    assert picture["x"] >= page.locator("#picture").bounding_box()["x"]
    keep(page, "wide")


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "text.wav is not audio"), (600, "long.wav is longer than 60 s")]
)
def test_a_bad_file_is_a_sentence_in_the_page(visit, tmp_path, seconds, text):
    path = tmp_path / ("text.wav" if seconds is None else "long.wav")
    if seconds is None:
        path.write_text("This is no sound.")
    else:
        save_audio(path, np.zeros(16_000 * seconds, np.float32), 16_000)
    page = visit()
    upload(page, path, text)
    keep(page, path.stem)
    upload(page, CLIP, "2.99 s")  # and the page goes on


def test_units_as_text_are_decoded(visit):
    page = visit()
    page.get_by_role("tab", name="Tokens").click()
    page.fill("#units-text textarea", "3 3 7:20")
    page.click("#decode")
    says(page, "#tokens-said", "Frames: 22")
    keep(page, "tokens")


def test_two_browsers_have_a_state_each(visit):
    first, second = visit(), visit()
    upload(first, CLIP, "2.99 s")
    upload(second, EXAMPLES[4], "3.29 s")
    assert "2.99 s" in first.inner_text("#said")


def visitor(address: str, **options: object):
    """What a program hears of the recording, as a visitor of its own: the page's answer."""
    client = pytest.importorskip("gradio_client")
    patient = {"timeout": PATIENCE / 1000}  # it gives up after 5 s by itself
    mine = client.Client(address, verbose=False, httpx_kwargs=patient, **options)
    return mine.predict(client.handle_file(str(CLIP)), 4, api_name="/hear")


def test_ten_visitors_at_once_are_all_served(address, heard):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: visitor(address), range(10)))
    for said, decoded, _, (npy, avq), *_ in answers:
        assert "2.99 s, 150 frames" in said
        assert len(load_audio(decoded, 16_000)) == len(heard.wav)
        assert (np.load(npy) == heard.indices).all()
        assert (read_tokens(avq).indices == heard.indices).all()


def test_visitors_of_the_same_recording_share_no_file(address):
    def paths() -> set[str]:
        _, decoded, picture, files, *_ = visitor(address, download_files=False)
        return {file["path"] for file in (decoded, picture, *files)}

    first, second = paths(), paths()
    assert len(first | second) == 8


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid", "a..b"])
def test_where_nothing_can_be_served_is_a_sentence(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["demo", "--host", host, "--port", port])
    assert done.exit_code == 1
    assert f"cannot be served at {host}:{port} (" in done.output
    assert "give another --port" in done.output
    assert done.output.count("\n") == 1


def test_the_page_names_no_other_server_to_load_from(address):
    with urlopen(address) as answer:
        text, policy = answer.read().decode(), answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    for tag in ("<script", "<link", "<img", "<iframe"):
        for part in text.split(tag)[1:]:
            assert "http" not in part.partition(">")[0], part[:200]
