"""Steps whose losses are not finite."""

from types import SimpleNamespace

import pytest
import torch

from audiovq.training.bad_steps import MAX_BAD_STEPS, BadSteps, blame

GOOD, BAD = torch.tensor(1.0), torch.tensor([1.0, torch.inf])


@pytest.fixture
def alarms() -> list[str]:
    return []


@pytest.fixture
def bad_steps(alarms, tmp_path) -> BadSteps:
    log = SimpleNamespace(alarm=alarms.append, window=SimpleNamespace(skipped=0))
    return BadSteps(SimpleNamespace(world_size=1), log, tmp_path)


def test_the_alarm_names_what_is_bad_and_where(bad_steps, alarms):
    bad_steps.note(7, ["a", "b"], {"mel": BAD, "labels": GOOD})
    assert alarms == ["step 7 is skipped: mel is not finite; its recordings are a, b."]
    assert bad_steps.log.window.skipped == 1


def test_only_bad_steps_in_a_row_end_a_run(bad_steps):
    for step in range(3 * MAX_BAD_STEPS):
        if step % (MAX_BAD_STEPS - 1) == 0:
            bad_steps.in_a_row = 0  # a good step
        bad_steps.note(step, ["a"], {"mel": BAD})
    bad_steps.in_a_row = MAX_BAD_STEPS - 1
    with pytest.raises(FloatingPointError, match=f"in {MAX_BAD_STEPS} steps in a row"):
        bad_steps.note(99, ["a"], {"mel": BAD})


def test_only_ranks_with_a_bad_loss_are_blamed():
    assert blame([([], ["a", "b"]), (["mel"], ["c"])]) == (["mel"], ["c"])
    assert blame([(["mel"], ["a"]), (["mel", "labels"], ["b"])]) == (["mel", "labels"], ["a", "b"])
    assert blame([([], ["a"]), ([], ["b"])]) == ([], ["a", "b"])  # the sum alone is bad
