"""LJ Speech to training manifests, through lhotse."""

from pathlib import Path

from lhotse.recipes import prepare_ljspeech

from audiovq.training.prepare import Report, main, manifest_cuts, prepare


def ljspeech(corpus_dir: Path, out_dir: Path) -> Report:
    """Prepare LJ Speech.

    CORPUS_DIR is the folder LJSpeech-1.1/ with metadata.csv and wavs/ in it. The corpus has one
    speaker and no split of its own: validation gets 2 % of the recordings.
    """
    return prepare(manifest_cuts(prepare_ljspeech(corpus_dir)), out_dir)


if __name__ == "__main__":
    main(ljspeech)
