"""Originals, the decoded files that belong to them, and what is said in them."""

from pathlib import Path

from audiovq.audio import audio_suffixes
from audiovq.files import FileRefused, files_below, read_text


def read_texts(path: str | Path) -> dict[str, str]:
    """Text by name from a file of lines, each a name, a space or a tab, and the text.

    LibriSpeech's `.trans.txt` files are of that form. Of a folder all `.trans.txt` files below it
    are read.

    Raises `FileRefused` when there is nothing to read.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [file for file in files_below(path) if file.name.endswith(".trans.txt")]
    texts = {}
    for file in files:
        for line in filter(str.strip, read_text(file).splitlines()):
            name, *text = line.split(maxsplit=1)
            if text:
                texts[name] = text[0]
    if not texts:
        raise FileRefused(
            f"{path} holds no texts; give a file of lines that are a name, a space and the text."
        )
    return texts


def match_texts(
    root: Path, files: list[Path], texts: dict[str, str], notes: list[str]
) -> dict[Path, str]:
    """The text of each original, by its path below the folder or by its own name if one has it."""
    by_stem: dict[str, list[str]] = {}
    for name, text in texts.items():
        by_stem.setdefault(Path(name).stem, []).append(text)
    found = {}
    for path in files:
        below = path.relative_to(root)
        named = texts.get(below.as_posix()) or texts.get(below.with_suffix("").as_posix())
        others = by_stem.get(path.stem, [])
        if named or len(others) == 1:
            found[path] = named or others[0]
    if not found:
        raise FileRefused(
            f"the texts name no original, such as {files[0].relative_to(root).with_suffix('')}; "
            "begin each line with a file's name."
        )
    if len(found) < len(files):
        notes.append(f"{len(files) - len(found)} of {len(files)} originals have no text.")
    return found


def list_audio(path: Path, limit: int | None = None) -> tuple[Path, list[Path]]:
    """The folder that the names are below, and the audio files in order.

    limit: take so many, spread evenly over the folder.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}.")
    if not path.exists():
        raise FileRefused(f"{path} does not exist; check the name.")
    if path.is_file():
        return path.parent, [path]
    suffixes = audio_suffixes()
    files = [file for file in files_below(path) if file.suffix.lower() in suffixes]
    if not files:
        raise FileRefused(f"{path} holds no audio; give a folder of WAV, FLAC, OGG, ... files.")
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    return path, files


def match_decoded(
    root: Path, files: list[Path], decoded: Path, notes: list[str]
) -> dict[Path, Path]:
    """The decoded file of each original that has one."""
    below, candidates = list_audio(decoded)
    if decoded.is_file():
        if len(files) > 1:
            raise FileRefused(f"{decoded} is one file and the originals are {len(files)}.")
        return {files[0]: decoded}
    by_name = {p.relative_to(below).with_suffix(""): p for p in candidates}
    matches = {
        path: by_name[name]
        for path in files
        if (name := path.relative_to(root).with_suffix("")) in by_name
    }
    if not matches:
        raise FileRefused(
            f"{decoded} holds no file named like an original, such as "
            f"{files[0].relative_to(root).with_suffix('')}; keep the tree and the names."
        )
    if len(matches) < len(files):
        notes.append(f"{len(files) - len(matches)} of {len(files)} originals have no decoded file.")
    return matches
