"""Common Voice to training manifests, through lhotse."""

import tempfile
from pathlib import Path

from lhotse.recipes import prepare_commonvoice

from audiovq.files import FileRefused
from audiovq.training.prepare import Report, main, manifest_cuts, prepare


def commonvoice(corpus_dir: Path, out_dir: Path) -> Report:
    """Prepare all languages of Common Voice that are there.

    CORPUS_DIR is the folder cv-corpus-*/ with en/, de/ and so on in it, each with train.tsv,
    dev.tsv and clips/. The split is the corpus's own: train to train, dev to validate.
    """
    languages = sorted(path.parent.name for path in corpus_dir.glob("*/train.tsv"))
    if not languages:
        raise FileRefused(f"{corpus_dir} holds no folder of a language with a train.tsv in it.")
    with tempfile.TemporaryDirectory() as folder:  # lhotse wants one for manifests of its own
        splits = ("train", "dev")
        parts = prepare_commonvoice(corpus_dir, folder, languages, splits=splits, num_jobs=4)
        train = [cut for name in languages for cut in manifest_cuts(parts[name]["train"])]
        validation = [cut for name in languages for cut in manifest_cuts(parts[name]["dev"])]
    return prepare(train, out_dir, validation=validation)


if __name__ == "__main__":
    main(commonvoice)
