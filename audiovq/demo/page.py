"""The page: what stands where, and what happens on a click."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from audiovq.audio import save_audio
from audiovq.codes import write_avq, write_npy
from audiovq.demo.picture import TimeAxis, draw
from audiovq.demo.work import Heard, Limits, decode, given_codes, listen, unit_alone
from audiovq.model import AudioVQ
from audiovq.segment import run_lengths

Codec = Callable[[np.ndarray], tuple[np.ndarray, float]]
"""Another codec: sound float32 [N] at 16 kHz to what it makes of it [N], and its kbit/s."""
Others = Mapping[str, Codec]
"""Other codecs by name."""

CSS = """
#picture .image-frame, #picture .image-container, #picture button { overflow-x: auto; }
#picture { overflow-x: auto; }
#picture .image-frame { justify-content: flex-start !important; }
#picture img { max-width: none !important; width: auto !important; height: auto !important; }
"""
"""The picture of a long recording is wider than the window, and is scrolled from its start on: of a
centred one, what lies left of the window is out of reach."""
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""The visitor's own fonts: nothing is fetched."""
AT_ONCE = 2
"""Answers that are computed at once; the others wait in a queue."""
QUEUE = "codec"
"""The name of the one queue that all answers wait in; gradio has one for each by default."""
WAITING = 64
"""Requests that may wait."""
KEEP = 3600
"""Seconds for which a visitor's files and recording are kept."""


def build(model: AudioVQ, limits: Limits, others: Others) -> gr.Blocks:
    """The page for a model. Each visitor has a state of their own; nothing is shared."""
    answers = Answers(model, limits)
    with gr.Blocks(title="audiovq", analytics_enabled=False, delete_cache=(KEEP, KEEP)) as page:
        gr.Markdown(
            f"# audiovq\n{model.name}: speech to tokens and back. All is computed on the machine "
            "that serves this page; nothing is sent on."
        )
        with gr.Tab("Sound"):
            _sound_tab(answers, others)
        with gr.Tab("Tokens"):
            _tokens_tab(answers)
    return page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)


class Answers:
    """What the page answers to its visitors: a sentence, where something cannot be done."""

    def __init__(self, model: AudioVQ, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    def hear(self, path: str | None, n_q: int) -> tuple[Any, ...]:
        """Encode a recording: a sentence, the recording, its sound and picture at `n_q` levels,
        the picture's axis, token files, no unit, and whether there is anything to show."""
        nothing = (None, None, None, None, None, None, "", gr.Column(visible=False))
        if path is None:
            return "", *nothing
        try:
            found = listen(self.model, path, self.limits)
        except (ValueError, OSError) as error:
            return _sentence(error, path), *nothing
        n_frames, n_runs = found.indices.shape[1], len(run_lengths(found.indices[0]))
        text = (
            f"{len(found.wav) / self.model.config.sample_rate:.2f} s, {n_frames} frames, {n_runs} "
            "units when repeats are merged."
        )
        files = self._token_files(found, Path(path).stem)
        shown = gr.Column(visible=True)
        return text, found, *self.change(found, n_q), files, None, "", shown

    def change(self, found: Heard | None, n_q: int) -> tuple[Any, ...]:
        """A recording's sound and picture at another number of levels, with its axis."""
        if found is None:
            return None, None, None
        config = self.model.config
        decoded = decode(self.model, found.indices, int(n_q), len(found.wav))
        picture = own_folder() / "picture.png"
        axis = draw(
            picture, found.wav, decoded, found.indices[0], config.sample_rate, config.frame_rate
        )
        return self._sound_file(decoded, f"levels-{int(n_q)}"), str(picture), axis

    def click(
        self, found: Heard | None, axis: TimeAxis | None, event: gr.SelectData
    ) -> tuple[Any, str]:
        """What the unit under the pointer sounds like alone, and a sentence about it."""
        if found is None or axis is None:
            return None, ""
        units = found.indices[0]
        frame = axis.frame_at(event.index[0])
        if not 0 <= frame < len(units):
            return None, "There is no unit at this place."
        number = int(units[frame])
        n_same = int((units == number).sum())
        at = frame / self.model.config.frame_rate
        text = f"Unit {number}, at {at:.2f} s. It has {n_same} of the {len(units)} frames."
        return self._sound_file(unit_alone(self.model, number), f"unit-{number}"), text

    def compare(self, codec: Codec, name: str, found: Heard | None) -> tuple[Any, str]:
        """A recording through another codec."""
        if found is None:
            return None, "Record or upload something first."
        try:
            wav, kbits = codec(found.wav)
        except (ValueError, OSError) as error:
            return None, _sentence(error)
        return self._sound_file(wav, name), f"{name}: {kbits:.1f} kbit/s with its container."

    def play(self, text: str, path: str | None) -> tuple[Any, str]:
        """Tokens as sound: a file's, or units as text where there is none."""
        try:
            indices = given_codes(self.model, text, path, self.limits)
        except (ValueError, OSError) as error:
            return None, _sentence(error, path)
        n_q, n_frames = indices.shape
        sound = self._sound_file(decode(self.model, indices, n_q), "decoded")
        return sound, f"Levels: {n_q}. Frames: {n_frames}."

    def _sound_file(self, wav: np.ndarray, name: str) -> str:
        path = own_folder() / f"{name}.wav"
        save_audio(path, wav, self.model.config.sample_rate)
        return str(path)

    def _token_files(self, heard: Heard, name: str) -> list[str]:
        folder = own_folder()
        header = self.model.header(len(heard.indices), len(heard.wav))
        write_npy(folder / f"{name}.npy", heard.indices, level_strides=header.level_strides)
        write_avq(folder / f"{name}.avq", heard.indices, header)
        return [str(folder / f"{name}{suffix}") for suffix in (".npy", ".avq")]


def own_folder() -> Path:
    """A new folder for an answer's files, where gradio serves them from and deletes them.

    Left to gradio, files stand in folders named by what is in them and are written anew for each
    visitor: who has the recording of another is now and then sent a file that is half written.
    """
    return Path(tempfile.mkdtemp(dir=get_upload_folder()))


def _sound_tab(answers: Answers, others: Others) -> None:
    """A recording from all sides."""
    config = answers.model.config
    heard = gr.State(None, time_to_live=KEEP)
    axis = gr.State(None, time_to_live=KEEP)
    source = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        buttons=[],  # no button that shares a recording
        label=f"Speech, at most {answers.limits.seconds:g} s",
        elem_id="source",
    )
    said = gr.Markdown(elem_id="said")
    with gr.Column(visible=False) as results:
        levels = gr.Slider(
            1,
            config.n_codebooks,
            value=config.n_codebooks,
            step=1,
            label="Levels",
            info=f"{config.bitrate(config.n_codebooks) / 1000:g} kbit/s in all; the first alone "
            "are the units",
            elem_id="levels",
        )
        decoded = _sound("Decoded", "decoded")
        gr.Markdown(
            "The original, what was decoded, and the units under them: click on one to hear it."
        )
        picture = gr.Image(
            label="Original, decoded, units",
            show_label=False,
            interactive=False,
            buttons=["download"],
            elem_id="picture",
        )
        about_unit = gr.Markdown(elem_id="about-unit")
        unit = _sound("The unit alone", "unit", autoplay=True)
        files = gr.Files(label="Tokens to keep", interactive=False, height=150, elem_id="files")
        for name, codec in others.items():
            _other_codec(answers, name, codec, source, heard)
    shown = [decoded, picture, axis]
    source.change(
        answers.hear,
        [source, levels],
        [said, heard, *shown, files, unit, about_unit, results],
        concurrency_id=QUEUE,
    )
    levels.release(answers.change, [heard, levels], shown, concurrency_id=QUEUE)
    picture.select(answers.click, [heard, axis], [unit, about_unit], concurrency_id=QUEUE)


def _other_codec(
    answers: Answers, name: str, codec: Codec, source: gr.Audio, heard: gr.State
) -> None:
    """A button to hear the recording through another codec."""
    button = gr.Button(f"Compare with {name}", elem_id="compare")
    said = gr.Markdown(elem_id="compared-said")
    sound = _sound(name, "compared")
    button.click(partial(answers.compare, codec, name), heard, [sound, said], concurrency_id=QUEUE)
    # What was heard was of another recording.
    source.change(lambda: (None, ""), None, [sound, said], queue=False)


def _tokens_tab(answers: Answers) -> None:
    with gr.Row():
        text = gr.Textbox(
            label="Units: numbers between blanks, a frame each, or unit:frames",
            placeholder="375 375 12:4 901",
            lines=6,
            elem_id="units-text",
        )
        file = gr.File(label="or a token file (.npy, .avq)", type="filepath", elem_id="token-file")
    button = gr.Button("Decode", variant="primary", elem_id="decode")
    said = gr.Markdown(elem_id="tokens-said")
    sound = _sound("Decoded", "tokens-sound")
    button.click(answers.play, [text, file], [sound, said], concurrency_id=QUEUE)


def _sound(label: str, name: str, *, autoplay: bool = False) -> gr.Audio:
    """Something to listen to."""
    return gr.Audio(
        label=label, interactive=False, buttons=["download"], autoplay=autoplay, elem_id=name
    )


def _sentence(error: Exception, path: str | None = None) -> str:
    """What went wrong, with the name that the visitor knows instead of the path on the server."""
    said = str(error)
    return f"**{said.replace(path, Path(path).name) if path else said}**"
