"""Originals, the decoded files that belong to them, and what is said in them."""

from pathlib import Path, PurePosixPath

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
    """The text of each original, by its path below the folder, or by the end of it, such as its own
    name, where no other original ends so."""
    suffixes = audio_suffixes()

    def plain(name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        return path.with_suffix("") if path.suffix.lower() in suffixes else path

    def alike(one: PurePosixPath, other: PurePosixPath) -> bool:
        n = min(len(one.parts), len(other.parts))
        return one.parts[-n:] == other.parts[-n:]

    known: dict[str, dict[PurePosixPath, str]] = {}
    for name, text in texts.items():
        known.setdefault(plain(name).name, {})[plain(name)] = text
    places = {path: plain(path.relative_to(root).as_posix()) for path in files}
    rivals: dict[str, list[PurePosixPath]] = {}
    for place in places.values():
        rivals.setdefault(place.name, []).append(place)
    found = {}
    for path, place in places.items():
        here = known.get(place.name, {})
        fits = [place] if place in here else [name for name in here if alike(name, place)]
        alone = len(fits) == 1 and sum(alike(fits[0], other) for other in rivals[place.name]) == 1
        if place in here or alone:
            found[path] = here[fits[0]]
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
    by_name: dict[Path, Path] = {}
    for path in candidates:
        other = by_name.setdefault(path.relative_to(below).with_suffix(""), path)
        if other != path:
            raise FileRefused(
                f"{path} and {other.name} have one name without suffix; keep one of them."
            )
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
