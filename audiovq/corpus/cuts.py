"""lhotse CutSets."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audiovq.corpus.rows import Problem, Row, stamp
from audiovq.files import FileRefused

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, AssertionError)
"""What lhotse raises at manifests that are not what they should be."""


def cut_rows(path: Path, audio_root: str | Path | None) -> Callable[[], Iterator[Row | Problem]]:
    """The cuts of a manifest (`.jsonl`, `.jsonl.gz`), in its order.

    Cuts that are a part of one channel of an audio file are read as any other file is, so that
    their tokens are those of `audiovq encode`. lhotse loads and resamples whatever else a cut can
    be: mixed, padded, perturbed, of several channels, stored elsewhere.

    Raises `FileRefused` when it holds no cuts.
    """
    from lhotse import CutSet
    from lhotse.serialization import load_jsonl

    try:
        first = next(iter(load_jsonl(path)), None)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FileRefused(f"{path} cannot be read as JSON lines ({error}).") from error
    if not isinstance(first, dict) or "Cut" not in str(first.get("type")):
        raise FileRefused(f"{path} holds no lhotse cuts; make some with `lhotse cut simple`.")
    root = os.path.abspath(audio_root if audio_root is not None else os.curdir)

    def walk() -> Iterator[Row | Problem]:
        try:
            for cut in CutSet.from_jsonl_lazy(path):
                yield _row(cut, path, root)
        except (OSError, EOFError, zlib.error, *_MALFORMED) as error:
            yield Problem(str(path), f"it is damaged ({type(error).__name__}: {error})")

    return walk


def _row(cut: Any, manifest: Path, root: str) -> Row:
    told = [s for s in cut.supervisions if s.text]
    speakers = {s.speaker for s in cut.supervisions if s.speaker}
    known: dict[str, Any] = {
        "text": " ".join(s.text for s in told) or None,
        "speaker": speakers.pop() if len(speakers) == 1 else None,
    }
    recording: Any = getattr(cut, "recording", None)
    plain = (
        type(cut).__name__ == "MonoCut"
        and recording is not None
        and not recording.transforms
        and len(recording.sources) == 1
        and recording.sources[0].type == "file"
    )
    if not plain:
        as_json = json.dumps(cut.with_recording_path_prefix(root).to_dict(), sort_keys=True)
        return Row(cut.id, str(manifest), kind="cut", part=as_json, **known)
    path = os.path.normpath(os.path.join(root, recording.sources[0].source))
    # A whole file is read as one, so that no rounding of its length has a say.
    whole = cut.start == 0 and abs(cut.duration - recording.duration) < 1e-6
    return Row(
        cut.id,
        path,
        start=None if whole else cut.start,
        duration=None if whole else cut.duration,
        channel=cut.channel if len(recording.sources[0].channels) > 1 else None,
        stamp=stamp(path),
        **known,
    )
