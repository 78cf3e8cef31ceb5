"""LibriTTS or LibriTTS-R to training manifests, through lhotse."""

from pathlib import Path

from lhotse.recipes import prepare_libritts
from lhotse.recipes.libritts import LIBRITTS

from audiovq.files import FileRefused
from audiovq.training.prepare import VALIDATION_SHARE, Report, main, manifest_cuts, prepare


def libritts(corpus_dir: Path, out_dir: Path) -> Report:
    """Prepare the parts of LibriTTS or LibriTTS-R that are there.

    CORPUS_DIR is the folder LibriTTS/ or LibriTTS_R/ with train-clean-100/ and others in it. All
    train parts are trained on; dev-clean is for validation, and test parts are left alone.
    """
    present = [name for name in LIBRITTS if (corpus_dir / name).is_dir()]
    train_parts = [name for name in present if name.startswith("train")]
    if not train_parts:
        raise FileRefused(f"{corpus_dir} holds none of the training parts of LibriTTS.")
    wanted = [*train_parts, *(name for name in present if name == "dev-clean")]
    parts = prepare_libritts(corpus_dir, dataset_parts=wanted)
    train = [cut for name in train_parts for cut in manifest_cuts(parts[name])]
    validation = manifest_cuts(parts["dev-clean"]) if "dev-clean" in parts else []
    return prepare(train, out_dir, validation=validation or VALIDATION_SHARE)


if __name__ == "__main__":
    main(libritts)
