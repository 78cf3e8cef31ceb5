"""Figures of a language model: what it knows of units, how it sounds, how fast it is.

    python benchmarks/language_model.py units runs/lm data/lm heldout_tokens/
    python benchmarks/language_model.py speed runs/lm
    python benchmarks/language_model.py continue runs/lm heldout/ --limit 100
    python benchmarks/language_model.py acoustic runs/lm heldout/ --limit 100
    python benchmarks/language_model.py say default benchmarks/sentences.txt --voice speech.wav
    python benchmarks/language_model.py page default examples/ --out docs/continuations

`units` compares perplexities with n-grams of the same training data, and scores each utterance
against itself in a wrong order. `continue` generates 3 s after prompts of 3 s, of each recording
all that 3 s more follow, and sets them beside the 3 s that were really said. `acoustic` writes the
sound of true units after a true prompt of 3 s. `say` has a recogniser read what was said. `page`
writes a page to listen to: each recording, its first 3 s as tokens, and what is generated after
them.
"""

import argparse
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import machine
import numpy as np
import torch
from ngrams import KneserNey
from torch import Tensor

from audiovq.audio import audio_suffixes, load_audio, save_audio
from audiovq.codes import read_tokens
from audiovq.files import files_below, page_folder
from audiovq.lm import LanguageModel, Sampling, TokenDataset, Vocabulary
from audiovq.lm.acoustic import AcousticWriter
from audiovq.pictures import render
from audiovq.quality.metrics import (
    distillmos,
    speaker_similarity,
    stoi,
    transcribe,
    word_errors,
)

PROMPT_SECONDS = 3.0
BLOCK = 5
"""Units of the blocks that are shuffled."""


def units(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """Perplexity beside n-grams, and utterances beside themselves in a wrong order."""
    vocabulary = lm.vocabulary
    train = [_merged(vocabulary, item.units) for item in TokenDataset(arguments.data)]
    paths = [path for path in files_below(arguments.tokens) if path.suffix == ".avq"]
    heard = [read_tokens(path).levels[0].astype(np.int64) for path in paths[: arguments.limit]]
    held_out = [_merged(vocabulary, row) for row in heard]
    n_train, n_held_out = (sum(map(len, part)) for part in (train, held_out))
    print(f"{n_train} merged units to learn from, {n_held_out} in {len(held_out)} held out\n")
    rows = []
    for name, order in (("unigram", 1), ("bigram", 2), ("trigram", 3)):
        model = KneserNey(train, order, vocabulary.codebook_size)
        rows.append([f"{name}, Kneser-Ney", f"{model.perplexity(held_out):.1f}"])
    scores = [lm.score_units(row) for row in heard]
    logs, n_units = sum(score.units for score in scores), sum(score.n_units for score in scores)
    rows.append(["language model", f"{np.exp(-logs / n_units):.1f}"])
    print(machine.table(["model", "perplexity of a merged unit"], rows))
    pairs = []
    for name, change in WRONG_ORDERS.items():
        rng = np.random.default_rng(0)
        n_right = 0
        for row, score in zip(heard, scores):
            tokens = change(vocabulary.of_units(row), rng)
            n_right += lm.score_units(vocabulary.to_units(tokens)).per_unit < score.per_unit
        pairs.append([name, f"{n_right / len(heard):.1%}"])
    print("\n" + machine.table(["in a wrong order", "less likely than the real one"], pairs))


def _halves_swapped(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(tokens, len(tokens) // 2)


def _blocks_shuffled(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blocks = np.array_split(tokens, range(BLOCK, len(tokens), BLOCK))
    return np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])


def _backwards(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return tokens[::-1]


WRONG_ORDERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "halves swapped": _halves_swapped,
    f"blocks of {BLOCK} shuffled": _blocks_shuffled,
    "backwards": _backwards,
}


def speed(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """Seconds of sound a second of processor time, over the length of what is generated."""
    rows = []
    for seconds in arguments.seconds:
        heard: list[float] = []
        start, wall = time.process_time(), time.perf_counter()
        lm.sample(seconds, Sampling(), lambda wav, heard=heard: heard.append(time.process_time()))
        spent, elapsed = time.process_time() - start, time.perf_counter() - wall
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        speeds = f"{seconds / spent:.2f}", f"{seconds / elapsed:.2f}"
        first = f"{1000 * (heard[0] - start):.0f} ms"
        rows.append([f"{seconds:g} s", *speeds, first, f"{memory:.0f} MiB"])
    header = ["length", "s of sound per CPU s", "per s", "CPU time to the first sound", "peak"]
    print(machine.table(header, rows))


def continuations(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """What is generated after 3 s beside what was said there; as many prompts as --limit."""
    rows: dict[str, list[list[float]]] = {"real speech": [], "its codes": [], "generated": []}
    other = None
    for name, wav in _prompts(lm, arguments.recordings, arguments.limit):
        n = len(wav) // 2
        prompt, real = wav[:n], wav[n : 2 * n]
        codes = lm.codec.encode(torch.from_numpy(wav[None, None, : 2 * n]))
        resynthesised = lm.codec.decode(codes)[0, 0].numpy()[n:]
        speech = lm.continue_speech(prompt[None, None], PROMPT_SECONDS, Sampling())
        generated = speech.wav[0, 0].numpy()[-n:]
        if arguments.out:
            path = arguments.out / f"{name}.wav"
            save_audio(path, speech.wav[0, 0].numpy(), lm.codec.config.sample_rate, overwrite=True)
        each = lm.vocabulary.frames_per_unit
        known = codes.levels[0][0].numpy(), speech.codes[0, 0, ::each].numpy()
        for kind, clip, of in zip(rows, (real, resynthesised, generated), (0, 0, 1)):
            tail = known[of][len(known[of]) // 2 :]
            score = lm.score_units(tail)
            voices = [
                speaker_similarity(voice, clip) for voice in (prompt, other) if voice is not None
            ]
            rate = score.n_units / score.seconds
            rows[kind].append([distillmos(clip), -score.units / score.n_units, rate, *voices])
        other = prompt
    table = []
    for kind, values in rows.items():
        mos, logs, rate, own, strange = np.mean(values[1:], axis=0)  # the first has no other voice
        voices = f"{own:.3f}", f"{strange:.3f}"
        table.append([kind, *voices, f"{mos:.2f}", f"{np.exp(logs):.1f}", f"{rate:.1f}"])
    header = ["", "like the prompt's voice", "like the one before", "DistillMOS", "perplexity"]
    print(machine.table([*header, "units a second"], table))


def acoustic(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """The sound of true units after a true prompt, beside that of the true codes."""
    model, sampling = lm.acoustic, Sampling()
    assert model is not None

    def write(codes: Tensor, units: Tensor) -> Tensor:
        writer = AcousticWriter(
            model, codes, temperature=sampling.acoustic_temperature, seed=sampling.seed
        )
        return torch.cat([codes, writer.add(units.tolist()), writer.end()], dim=1)

    print_sound(lm, arguments, "acoustic stage", write)


def print_sound(
    lm: LanguageModel,
    arguments: argparse.Namespace,
    name: str,
    write: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Print a table of how recordings sound whose codes are true, units alone, or written.

    write: from a prompt's codes [n_q, t] and the units [T - t] after them to codes [n_q, T].
    """
    rows: dict[str, list[list[float]]] = {"true codes": [], "units alone": [], name: []}
    errors = dict.fromkeys(rows, 0)
    n_words, spent, seconds = 0, 0.0, 0.0
    for _, wav in _recordings(lm, arguments.recordings, arguments.limit, 2 * PROMPT_SECONDS):
        group = lm.vocabulary.group_frames
        n_prompt = round(PROMPT_SECONDS * lm.vocabulary.frame_rate / group) * group
        n = n_prompt * lm.codec.config.hop_length
        codes = lm.codec.encode(torch.from_numpy(wav[None, None]), lm.n_q).indices
        start = time.process_time()
        written = write(codes[0, :, :n_prompt], codes[0, 0, n_prompt:])[None, : arguments.n_q]
        spent += time.process_time() - start
        seconds += (len(wav) - n) / lm.codec.config.sample_rate
        said = transcribe(wav[n:], arguments.asr) if arguments.asr else ""
        for kind, these in zip(rows, (codes, codes[:, :1], written)):
            clip = lm.codec.decode(these)[0, 0].numpy()[n : len(wav)]
            same = min(n, len(clip))  # of the voice, pieces of one length are compared
            voice = speaker_similarity(wav[:same], clip[:same])
            rows[kind].append([stoi(wav[n:], clip), distillmos(clip), voice])
            if arguments.asr:
                wrong, words = word_errors(said, transcribe(clip, arguments.asr))
                errors[kind] += wrong
        n_words += words if arguments.asr else 0
    table = []
    for kind, values in rows.items():
        means = np.nanmean(values, axis=0)
        row = [kind, f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:.3f}"]
        table.append([*row, f"{errors[kind] / n_words:.1%}" if n_words else ""])
    print(machine.table(["", "STOI", "DistillMOS", "speaker", "words not as heard before"], table))
    print(f"written: {seconds / spent:.2f} s of sound a second of processor time")


def say(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """Word errors of sentences that were said."""
    voice = None
    if arguments.voice:
        voice = load_audio(arguments.voice, lm.codec.config.sample_rate)[None, None]
    wrong = words = 0
    sentences = Path(arguments.sentences).read_text(encoding="utf-8").splitlines()
    for sentence in sentences[: arguments.limit]:
        speech = lm.say(sentence, voice)
        errors, length = word_errors(
            sentence, transcribe(speech.wav[0, 0].numpy(), arguments.asr or "moonshine")
        )
        wrong, words = wrong + errors, words + length
    print(f"{len(sentences[: arguments.limit])} sentences, {wrong / words:.1%} word errors")


def page(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """A page to listen to: recordings, and what is generated after their first 3 s."""
    template = Path(__file__).with_name("continuations.html")
    rate, generator = lm.codec.config.sample_rate, Path(__file__).name
    clips: dict[str, dict[str, str]] = {}
    with page_folder(arguments.out, generator, overwrite=True) as folder:
        least = PROMPT_SECONDS - 0.1  # one of the examples is so long
        for name, wav in _recordings(lm, arguments.recordings, arguments.limit, least):
            n = round(PROMPT_SECONDS * rate)
            sounds = {"the recording": wav[: 2 * n]}
            for seed in range(2):
                speech = lm.continue_speech(wav[None, None, :n], PROMPT_SECONDS, Sampling(seed))
                sounds[f"its first {PROMPT_SECONDS:g} s, continued, seed {seed}"] = speech.wav[0, 0]
            clips[name] = {}
            for index, (label, sound) in enumerate(sounds.items()):
                file = f"{name}-{index}.flac"
                save_audio(folder / file, np.asarray(sound), rate)
                clips[name][label] = quote(file)
        text = render(
            template,
            generator=generator,
            clips=dict(sorted(clips.items())),
            prompt=PROMPT_SECONDS,
            seconds=PROMPT_SECONDS,
        )
        (folder / "index.html").write_text(text, encoding="utf-8")
    print(f"wrote {arguments.out}/index.html")


def _merged(vocabulary: Vocabulary, units: np.ndarray) -> list[int]:
    """Units as the language model sees them, without their durations."""
    symbols, _ = vocabulary.split(vocabulary.of_units(units))
    return (symbols - vocabulary.first_unit).tolist()


def _recordings(
    lm: LanguageModel, folder: Path, limit: int | None, least_seconds: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and samples [N] of recordings that are long enough, spread over the folder."""
    rate = lm.codec.config.sample_rate
    paths = [path for path in files_below(folder) if path.suffix.lower() in audio_suffixes()]
    order = np.random.default_rng(0).permutation(len(paths))
    found = ((paths[i].stem, load_audio(paths[i], rate)) for i in order)
    long = (item for item in found if len(item[1]) >= least_seconds * rate)
    return itertools.islice(long, limit)


def _prompts(
    lm: LanguageModel, folder: Path, limit: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and samples of prompts with as much after them, first one of each recording."""
    n = round(PROMPT_SECONDS * lm.codec.config.sample_rate)
    whole = list(_recordings(lm, folder, None, 2 * PROMPT_SECONDS))
    most = max((len(wav) // n for _, wav in whole), default=0)
    cut = (
        (f"{name}-{turn}", wav[turn * n : (turn + 2) * n])
        for turn in range(most - 1)
        for name, wav in whole
        if len(wav) >= (turn + 2) * n
    )
    return itertools.islice(cut, limit)


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    for function, *names in (
        (units, "data", "tokens"),
        (speed,),
        (continuations, "recordings"),
        (acoustic, "recordings"),
        (say, "sentences"),
        (page, "recordings"),
    ):
        verb = verbs.add_parser(
            "continue" if function is continuations else function.__name__, help=function.__doc__
        )
        verb.set_defaults(function=function)
        verb.add_argument("lm", type=Path, help='folder of the language model, or "default"')
        for name in names:
            verb.add_argument(name, type=Path)
        verb.add_argument("--model", default="default", help="the tokenizer")
        verb.add_argument("--limit", type=int, help="so many recordings or sentences")
        verb.add_argument("--seconds", type=float, nargs="+", default=[5.0, 10.0, 30.0])
        verb.add_argument("--asr", help="moonshine, pocketsphinx or a command")
        verb.add_argument(
            "--n-q", type=int, help="levels to hear of what is written; all if not said"
        )
        verb.add_argument("--voice", help="speech whose voice to take")
        verb.add_argument("--out", type=Path, help="folder for what is generated")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.describe())
    arguments.function(LanguageModel.from_pretrained(arguments.lm, arguments.model), arguments)


if __name__ == "__main__":
    machine.run_benchmark(main)
