"""VCTK to training manifests, through lhotse."""

from pathlib import Path

from lhotse.recipes import prepare_vctk

from audiovq.training.prepare import Report, main, manifest_cuts, prepare


def vctk(corpus_dir: Path, out_dir: Path) -> Report:
    """Prepare VCTK, version 0.92 (its first microphone) or 0.80.

    CORPUS_DIR is the folder with speaker-info.txt, txt/ and wav48_silence_trimmed/ (0.92) or
    wav48/ (0.80) in it. The corpus has no split of its own: validation gets 2 % of the hours, of
    speakers that are not in training.
    """
    is_092 = (corpus_dir / "wav48_silence_trimmed").is_dir()
    manifests = prepare_vctk(corpus_dir, use_edinburgh_vctk_url=is_092, mic_id="mic1")
    return prepare(manifest_cuts(manifests), out_dir)


if __name__ == "__main__":
    main(vctk)
