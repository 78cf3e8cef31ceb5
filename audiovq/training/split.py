"""Which recordings of a corpus validate."""

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from audiovq.training.recordings import speaker_of

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

VALIDATION_SHARE = 0.02
"""Share of the hours that validates where nothing else is said."""
LONGEST_VALIDATION = 1.5
"""A validation split may be larger than what was asked for by this factor."""


def split_validation(
    cuts: "list[MonoCut]", share: float
) -> "tuple[list[MonoCut], list[MonoCut], str]":
    """Keep about `share` of the duration for validation: (train, validation, how in words).

    Where speakers are known, whole speakers are kept, so that validation hears new voices; where
    that would take much more than the share, or speakers are unknown, recordings are. The order of
    choice is a hash of the names: the same files give the same split, and new files do not move
    old ones about.
    """
    check_share(share)
    total = sum(cut.duration for cut in cuts)
    if share == 0 or len(cuts) < 2:
        return list(cuts), [], "none"
    groups: dict[str, list[MonoCut]] = defaultdict(list)
    for cut in cuts:
        speaker = speaker_of(cut)
        if speaker is not None:
            groups[speaker].append(cut)
    held, how = _choose(groups, total, share), "by speaker"
    if not held or len(groups) < 2:
        held = _choose({cut.id: [cut] for cut in cuts}, total, share)
        how = "by recording, because speakers are unknown"
        if groups:
            how = "by recording, because there are too few speakers to keep one apart"
    if not held:  # every recording is longer than the share
        held, how = [min(cuts, key=lambda cut: cut.duration)], "the shortest recording"
    names = {cut.id for cut in held}
    return [cut for cut in cuts if cut.id not in names], held, how


def check_share(share: float) -> None:
    """Raise `ValueError` for a share that is none."""
    if not 0 <= share < 1:
        raise ValueError(f"The validation share must be at least 0 and below 1, not {share}.")


def _choose(groups: "dict[str, list[MonoCut]]", total: float, share: float) -> "list[MonoCut]":
    """Groups in the order of a hash of their names, until they hold the share of the duration."""
    chosen, duration = [], 0.0
    for name in sorted(groups, key=_order):
        more = sum(cut.duration for cut in groups[name])
        if duration + more <= LONGEST_VALIDATION * share * total:
            chosen += groups[name]
            duration += more
        if duration >= share * total:
            break
    return chosen


def shuffled(cuts: "list[MonoCut]") -> "list[MonoCut]":
    """Cuts in an order that does not depend on anything but their ids.

    Training validates with the first few of a manifest: so they are of different speakers.
    """
    return sorted(cuts, key=lambda cut: _order(cut.id))


def _order(name: str) -> bytes:
    """A key that shuffles names, always in the same way."""
    return hashlib.sha256(name.encode()).digest()
