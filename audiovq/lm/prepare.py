"""From a folder of token files to what the stages learn from; see `audiovq.lm.data`."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.lib import format as npy_format

from audiovq.codes import TOKEN_SUFFIXES, Header, read_tokens
from audiovq.files import (
    FileRefused,
    atomic_output,
    files_below,
    read_text,
    refuse_existing,
    refuse_unwritable,
)
from audiovq.lm.data import TRAIN, VALIDATION
from audiovq.lm.vocabulary import (
    MAX_DURATION,
    VOCABULARY_FILE,
    Vocabulary,
    characters_of,
    plain,
)

SPEAKER_RULES = ("parent", "prefix")


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    n_train: int
    """Utterances."""
    n_validation: int
    n_texts: int
    """Utterances whose text is known."""
    seconds: float
    """Of all of them."""
    units_per_second: float
    """Merged, as the model sees them."""


def prepare(
    tokens: str | Path,
    out: str | Path,
    *,
    texts: str | Path | None = None,
    validation: float = 0.05,
    speaker_from: str | None = None,
    max_duration: int = MAX_DURATION,
    overwrite: bool = False,
) -> Prepared:
    """Pack the `.avq` files of a folder and its subfolders for training.

    texts: a tab-separated table with a header that has `path` and `text`; a row belongs to the
        token file of the same name, suffixes and folders left aside.
    validation: share of the speakers, or else of the files, that is kept for validation, 0 to 1,
        chosen by a hash of their names.
    speaker_from: "parent", the file's folder, or "prefix", its name up to the first - or _.

    Files are read twice, one at a time. Raises `FileRefused` when there are none, when one cannot
    be read or says no tokenizer (`.npy`), and when they are of several; `ValueError` for the rest.
    """
    out = Path(out)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, not {validation}.")
    if speaker_from not in (None, *SPEAKER_RULES):
        raise ValueError(f"speaker_from must be parent or prefix, not {speaker_from!r}.")
    written = [f"{split}.{kind}" for split in (TRAIN, VALIDATION) for kind in ("npy", "jsonl")]
    for name in (VOCABULARY_FILE, *written):
        refuse_existing(out / name, overwrite=overwrite)
    paths = _token_files(Path(tokens))
    headers = {name: _header(path) for name, path in paths.items()}
    first = _common(headers)
    known = {} if texts is None else read_texts(texts)
    said = {name: known[key] for name in paths if (key := name.rsplit("/", 1)[-1]) in known}
    if texts is not None and not said:
        raise FileRefused(
            f"{texts} has no text for any of the files in {tokens}; names must agree."
        )
    vocabulary = Vocabulary(
        first.model,
        first.fingerprint,
        first.sample_rate,
        first.hop_length,
        first.codebook_size,
        first.n_q,
        characters_of(said.values()),
        max_duration,
        first.level_strides,
    )
    chosen = _for_validation(list(paths), validation, speaker_from)
    train = {name: path for name, path in paths.items() if name not in chosen}
    if not train:
        raise ValueError(
            f"validation {validation} leaves nothing to train on; give more files or speakers, or "
            "--validation 0."
        )
    held_out = {name: paths[name] for name in paths if name in chosen}
    n_units = 0
    with refuse_unwritable(out):
        (out / VOCABULARY_FILE).unlink(missing_ok=True)  # a folder without one is not finished
    for split, part in ((TRAIN, train), (VALIDATION, held_out)):
        n_frames = sum(headers[name].n_frames for name in part)
        n_units += _write_split(out, split, part, said, vocabulary, n_frames)
    with atomic_output(out / VOCABULARY_FILE, overwrite=True) as temporary:
        text = json.dumps(vocabulary.to_dict(), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    seconds = sum(header.n_frames for header in headers.values()) / vocabulary.frame_rate
    return Prepared(len(train), len(held_out), len(said), seconds, n_units / seconds)


def _write_split(
    out: Path,
    split: str,
    paths: Mapping[str, Path],
    said: Mapping[str, str],
    vocabulary: Vocabulary,
    n_frames: int,
) -> int:
    """Write the codes and the rows of these files; returns the number of merged units."""
    n_units = 0
    with (
        atomic_output(out / f"{split}.npy", overwrite=True) as codes_path,
        atomic_output(out / f"{split}.jsonl", overwrite=True) as rows_path,
        codes_path.open("wb") as codes,
        rows_path.open("w", encoding="utf-8") as rows,
    ):
        # Column by column, so that files are appended without knowing them all.
        shape = (vocabulary.n_q, n_frames)
        form = {"descr": "<u2", "fortran_order": True, "shape": shape}
        npy_format.write_array_header_1_0(codes, form)
        for name, path in paths.items():
            indices = read_tokens(path).indices
            codes.write(indices.astype("<u2").T.tobytes())
            n_units += len(vocabulary.of_units(indices[0, :: vocabulary.frames_per_unit]))
            row = {"name": name, "frames": indices.shape[1], "text": said.get(name)}
            # In ASCII, which has all names, also those that are no UTF-8 or hold ends of lines.
            rows.write(json.dumps(row) + "\n")
    return n_units


def read_texts(path: str | Path) -> dict[str, str]:
    """What is said in recordings, by their names without folders and suffixes, in `plain` form.

    path: a tab-separated table without quoting, with a header that has `path` and `text`. Rows
    without a text are passed over. Raises `FileRefused` for another file, and for two texts of one
    name.
    """
    # A quotation mark is one of the text: it may begin one and not end it.
    lines = io.StringIO(read_text(path), newline="")
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    found: dict[str, str] = {}
    try:
        if not {"path", "text"} <= set(table.fieldnames or ()):
            raise FileRefused(f"{path} is no table of texts; its first line has `path` and `text`.")
        for row in table:
            name, text = Path(row["path"] or "").stem, plain(row["text"] or "")
            if name and text and found.setdefault(name, text) != text:
                raise FileRefused(f"{path} has two texts for {name}; names must differ.")
    except csv.Error as error:
        raise FileRefused(f"{path} is damaged after line {table.line_num}: {error}.") from error
    return found


def _token_files(folder: Path) -> dict[str, Path]:
    """Token files by their paths below the folder, without a suffix."""
    if not folder.is_dir():
        raise FileRefused(f"{folder} is no folder; name one of token files.")
    files = [path for path in files_below(folder) if path.suffix.lower() in TOKEN_SUFFIXES]
    plain_ones = [path for path in files if path.suffix.lower() != ".avq"]
    if plain_ones:
        raise _says_no_tokenizer(plain_ones[0])
    if not files:
        raise FileRefused(f"{folder} holds no .avq files; audiovq encode --format avq writes them.")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _header(path: Path) -> Header:
    header = read_tokens(path).header
    if header is None:  # an array that is named .avq
        raise _says_no_tokenizer(path)
    return header


def _says_no_tokenizer(path: Path) -> FileRefused:
    return FileRefused(f"{path} does not say which tokenizer made it; encode with --format avq.")


def _common(headers: Mapping[str, Header]) -> Header:
    """What all token files share."""
    first = next(iter(headers.values()))
    for name, header in headers.items():
        for field in ("model", "fingerprint", "n_q"):
            one, other = getattr(first, field), getattr(header, field)
            if one != other:
                raise FileRefused(
                    f"{name} has {field} {other}, and the files before it {one}; keep tokens of "
                    "one tokenizer and of as many levels."
                )
    return first


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _for_validation(names: Sequence[str], share: float, speaker_from: str | None) -> set[str]:
    """The names that are kept: of whole speakers where these are known, so that voices are new."""

    def group(name: str) -> str:
        if speaker_from == "parent":
            return name.rpartition("/")[0]
        return re.split(r"[-_]", name.rpartition("/")[2])[0] if speaker_from else name

    hashed = {group(name): _hash(group(name)) for name in names}
    groups = sorted(hashed, key=hashed.__getitem__)
    n_kept = 0 if not share else max(1, round(share * len(groups)))
    kept = set(groups[:n_kept])
    return {name for name in names if group(name) in kept}
