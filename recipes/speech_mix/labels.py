"""Phone labels of English recordings with transcripts, by forced alignment with pocketsphinx.

    python recipes/speech_mix/labels.py OUT_DIR MANIFEST... [--asr moonshine]

Needs the package pocketsphinx, whose wheel holds its English model. OUT_DIR gets
`<recording id>.npy`, int8 [frames] at 50 frames a second, and phones.txt: line i names label i.
With --asr a recording without a text gets the one that this recogniser hears. A word that the
dictionary lacks is aligned as the one spelt most like it, and its frames have no label, -1.
Recordings without a text or not in English are left out, and those with words like no other.
"""

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from audiovq.files import FileRefused, atomic_output
from audiovq.quality.metrics import transcribe
from audiovq.training.data import NO_LABEL, read_crop, read_manifest

SAMPLE_RATE = 16_000
HOP = 320
PHONES = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH SIL"
).split()
"""ARPAbet without stress; silence and noises are SIL."""


def main(
    out: Path,
    manifests: Annotated[list[Path], typer.Argument()],
    asr: Annotated[
        str | None, typer.Option(help="Who hears what has no text: moonshine or a command.")
    ] = None,
) -> None:
    """Write phone labels of all English recordings with texts that the manifests list."""
    try:
        for path in manifests:
            read_manifest(path)  # refuses ids that are no names for files, too
    except FileRefused as error:
        sys.exit(str(error))
    from lhotse import CutSet
    from pocketsphinx import Decoder, get_model_path

    dictionary = Path(get_model_path()) / "en-us" / "cmudict-en-us.dict"
    known = {line.split()[0] for line in dictionary.read_text().splitlines() if line.strip()}
    # Without bestpath and with beams this wide nearly every utterance is aligned.
    decoder = Decoder(
        lm=None, loglevel="FATAL", bestpath=False, beam=1e-200, wbeam=1e-200, pbeam=1e-200
    )
    with atomic_output(out / "phones.txt", overwrite=True) as temporary:
        temporary.write_text("\n".join(PHONES) + "\n")
    written = seen = 0
    for cut in (cut for path in manifests for cut in CutSet.from_jsonl_lazy(path)):
        seen += 1
        path = out / f"{cut.id}.npy"
        supervision = cut.supervisions[0]
        if supervision.language not in ("en", "English") or not (supervision.text or asr):
            continue
        if not path.is_file():
            source = cut.recording.sources[0].source
            n_samples = round(cut.duration * SAMPLE_RATE)
            try:
                wav = read_crop(source, round(cut.start * SAMPLE_RATE), n_samples, SAMPLE_RATE)
                words = spoken(supervision.text or transcribe(wav, str(asr)), known)
                sounded = [word if word in known else like(word, known) for word in words]
                if not words or not all(sounded):
                    continue
                labels = align(decoder, wav, sounded, [word in known for word in words])
            except (FileRefused, RuntimeError) as error:
                print(f"{cut.id} is left out: {error}", file=sys.stderr)
                continue
            except (ImportError, ValueError) as error:
                sys.exit(str(error))
            with atomic_output(path) as temporary:
                np.save(temporary, labels)
        written += 1
    print(f"Wrote {written} of {seen} recordings to {out}; name it as data.labels_folder.")


def spoken(text: str, known: set[str]) -> list[str]:
    """The words of a text as the dictionary has them, where it does."""
    words = re.findall(r"[a-z']+", text.lower().replace("-", " "))
    words = [word if word in known else word.strip("'") for word in words]
    return [word for word in words if word]


def like(word: str, known: set[str]) -> str:
    """The word of the dictionary that is spelt most like this one; none is an empty one."""
    near = [x for x in known if x[0] == word[0] and abs(len(x) - len(word)) < 3]
    return "".join(difflib.get_close_matches(word, near, n=1, cutoff=0.7))


def align(decoder, wav: np.ndarray, words: list[str], sure: list[bool]) -> np.ndarray:
    """Label of each frame of a recording [N]: that of its middle. int8 [ceil(N / HOP)].

    sure: of each word, whether its phones are known; -1 stands for those that are not.
    """
    pcm = (np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.set_align_text(" ".join(words))
    decode(decoder, pcm)
    if decoder.hyp() is None:
        raise RuntimeError("its words do not fit its sound")
    decoder.set_alignment()  # now phones within those words
    decode(decoder, pcm)
    known, segments = iter(sure), []
    for word in decoder.get_alignment():
        named = word.name[0] in "<[" or next(known)  # silence and noise stand between the words
        segments += [(phone.name if named else "", phone.start, phone.duration) for phone in word]
    return frame_labels(segments, -(-len(wav) // HOP))


def decode(decoder, pcm: bytes) -> None:
    """One pass of the decoder over 16-bit samples."""
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def frame_labels(segments: list[tuple[str, int, int]], n_frames: int) -> np.ndarray:
    """Labels of frames of 20 ms from (phone, start, duration) in steps of 10 ms; "" is unknown."""
    steps = np.full(2 * n_frames, PHONES.index("SIL"), np.int8)
    for name, start, duration in segments:
        phone = re.sub(r"\d", "", name)
        label = PHONES.index(phone if phone in PHONES else "SIL") if name else NO_LABEL
        steps[start : start + duration] = label
    return steps[1::2].copy()


if __name__ == "__main__":
    typer.run(main)
