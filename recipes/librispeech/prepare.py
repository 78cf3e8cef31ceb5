"""LibriSpeech to training manifests, through lhotse."""

from pathlib import Path

from lhotse.recipes import prepare_librispeech

from audiovq.training.prepare import VALIDATION_SHARE, Report, main, manifest_cuts, prepare


def librispeech(corpus_dir: Path, out_dir: Path) -> Report:
    """Prepare the parts of LibriSpeech or Mini LibriSpeech that are there.

    CORPUS_DIR is the folder LibriSpeech/ with train-clean-100/ and others in it. All train parts
    are trained on; dev-clean (or dev-clean-2) is for validation, and test parts are left alone.
    """
    parts = prepare_librispeech(corpus_dir, num_jobs=4)
    cuts = {name: manifest_cuts(part) for name, part in sorted(parts.items())}
    train = [cut for name in cuts if name.startswith("train") for cut in cuts[name]]
    validation = [cut for name in cuts if name.startswith("dev-clean") for cut in cuts[name]]
    return prepare(train, out_dir, validation=validation or VALIDATION_SHARE)


if __name__ == "__main__":
    main(librispeech)
