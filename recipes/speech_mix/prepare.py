"""Open speech corpora in one folder with a table, to training manifests."""

import csv
from collections import defaultdict
from pathlib import Path

import soundfile

from audiovq.files import FileRefused
from audiovq.training.prepare import (
    Report,
    main,
    recording_cut,
    scan_recordings,
    shuffled,
    write_manifest,
)

COLUMNS = "path corpus speaker language duration_s split licence source text".split()


def speech_mix(corpus_dir: Path, out_dir: Path) -> Report:
    """Write train/CORPUS.jsonl.gz for the split "train", and heldout.jsonl.gz for "heldout".

    CORPUS_DIR holds manifest.tsv, a row a file, with the columns path (relative to it), corpus,
    speaker, language, duration_s, split, licence, source and text. A recording's id is its path
    without the suffix, which is also the name of its teacher features and labels.
    """
    cuts, unreadable, group = [], {}, {}
    for row in read_table(corpus_dir / "manifest.tsv"):
        if row["split"] not in ("train", "heldout"):
            continue
        path = corpus_dir / row["path"]
        try:
            info = soundfile.info(str(path))
        except (soundfile.LibsndfileError, OSError) as error:
            unreadable[str(path)] = f"libsndfile cannot open it: {error}"
            continue
        cut = recording_cut(
            Path(row["path"]).with_suffix("").as_posix(),
            path,
            info.samplerate,
            info.channels,
            info.frames,
            speaker=row["speaker"] or None,
            language=row["language"] or None,
            text=row["text"] or None,
        )
        cuts.append(cut)
        group[cut.id] = row["corpus"] if row["split"] == "train" else "heldout"
    usable, report = scan_recordings(cuts, unreadable)
    groups = defaultdict(list)
    for cut in usable:
        groups[group[cut.id]].append(cut)
    held = groups.pop("heldout", [])
    if not groups:
        raise FileRefused(f"{corpus_dir} holds no recording of the split train that can be read.")
    for name, members in groups.items():
        write_manifest(members, out_dir / "train" / f"{name}.jsonl.gz")
    if held:
        write_manifest(shuffled(held), out_dir / "heldout.jsonl.gz")
    report.validation_split = "the table's own"
    report.train_recordings = len(usable) - len(held)
    report.validation_recordings = len(held)
    report.validation_hours = sum(cut.duration for cut in held) / 3600
    report.train_hours = report.hours - report.validation_hours
    report.save(out_dir / "report.json")
    return report


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of manifest.tsv. Raises `FileRefused` when it lacks a column."""
    if not path.is_file():
        raise FileRefused(f"{path} does not exist; it lists the recordings, a row each.")
    with path.open(newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in COLUMNS if name not in (table.fieldnames or [])]
        if missing:
            raise FileRefused(f"{path} lacks the columns {', '.join(missing)}.")
        return list(table)


if __name__ == "__main__":
    main(speech_mix)
