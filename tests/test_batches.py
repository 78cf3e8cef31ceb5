"""Batches of a run."""

import pytest
import torch

from audiovq.files import FileRefused
from audiovq.training.batches import _collate, end_readers, next_batch


def test_items_become_one_batch_and_keep_what_is_no_tensor():
    items = [
        {"wav": torch.full((1, 4), float(n)), "id": f"clip-{n}", "skipped": [f"why {n}"] * n}
        for n in range(3)
    ]
    batch = _collate(items)
    assert batch["wav"].shape == (3, 1, 4)
    assert batch["wav"][:, 0, 0].tolist() == [0, 1, 2]
    assert batch["id"] == ["clip-0", "clip-1", "clip-2"]
    assert batch["skipped"] == ["why 1", "why 2", "why 2"]


@pytest.mark.parametrize("where", ["", "Caught it in worker 0.\nTraceback\nx.y.FileRefused: "])
def test_what_a_reader_refuses_is_one_sentence(where):
    def batches():
        yield {"wav": 1}
        raise FileRefused(f"{where}a.wav is gone.")

    found = batches()
    assert next_batch(found) == {"wav": 1}
    with pytest.raises(FileRefused, match=r"^a\.wav is gone\.$"):
        next_batch(found)


def test_readers_are_ended_where_there_are_any():
    class Batches:
        ended = 0

        def _shutdown_workers(self) -> None:
            self.ended += 1

    batches = Batches()
    end_readers(batches)
    assert batches.ended == 1
    end_readers(iter([]))
