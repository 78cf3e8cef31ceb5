"""Laws of the units' stage: one distribution, however it is asked for, and rules that hold."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from audiovq.lm.sizes import Sizes
from audiovq.lm.units import UnitModel, UnitRules, generate
from audiovq.lm.vocabulary import END, IGNORED, TEXT, UNITS, Vocabulary

SMALL = Vocabulary("test", "0" * 16, 16_000, 320, 32, 4, " abc", max_duration=4)


@pytest.fixture(scope="module")
def model() -> UnitModel:
    torch.manual_seed(0)
    stage = UnitModel(SMALL, Sizes(width=32, layers=2, heads=2, expansion=2, context=48)).eval()
    with torch.no_grad():
        for parameter in stage.parameters():  # away from what it begins with
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stage


def units(n_frames: int, seed: int = 0) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).integers(0, 32, n_frames), 2)[:n_frames]


@torch.no_grad()
def test_the_tokens_share_one_probability(model):
    tokens = torch.from_numpy(SMALL.sequence(units(20), "ab"))[None]
    assert model(tokens).logits.exp().sum(-1) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_the_log_likelihood_is_that_of_the_logits(model):
    tokens = torch.from_numpy(SMALL.sequence(units(20), "ab"))[None]
    targets = tokens[:, 1:].clone()
    of_symbols, of_durations = model.log_likelihood(tokens[:, :-1], targets)
    logits = model(tokens[:, :-1]).logits
    assert torch.allclose(
        of_symbols + of_durations, logits.gather(2, targets[..., None])[..., 0], atol=1e-4
    )
    targets[:, ::2] = IGNORED
    part, _ = model.log_likelihood(tokens[:, :-1], targets)
    assert torch.allclose(part[:, 1::2], of_symbols[:, 1::2])
    assert not part[:, ::2].any()


@torch.no_grad()
def test_what_comes_later_changes_nothing_before(model):
    tokens = torch.from_numpy(SMALL.sequence(units(20)))[None]
    other = tokens.clone()
    other[:, 6:] = tokens[:, 6:].flip(1)
    assert torch.allclose(model(tokens).logits[:, :6], model(other).logits[:, :6], atol=1e-5)


def test_specials_and_characters_have_no_duration(model):
    logits = model(torch.from_numpy(SMALL.sequence(units(4)))[None]).logits
    symbols, durations = SMALL.split(torch.arange(SMALL.n_tokens))
    never = (symbols < SMALL.first_unit) & (durations > 1)
    assert torch.isneginf(logits[..., never]).all()
    assert torch.isfinite(logits[..., ~never]).all()


@pytest.mark.parametrize("may_end", [True, False])
def test_rules_leave_units_that_may_follow(may_end):
    rules = UnitRules(SMALL, may_end=may_end)
    short, long = (int(SMALL.join(SMALL.first_unit + 3, d)) for d in (2, 4))
    begin = int(SMALL.special(UNITS)[0])
    scores = torch.zeros(3, SMALL.n_tokens)
    left = torch.isfinite(rules(torch.tensor([[short], [long], [begin]]), scores))
    symbols, _ = SMALL.split(torch.arange(SMALL.n_tokens))
    is_unit = symbols >= SMALL.first_unit
    assert (left[0] & is_unit).sum() == 31 * 4
    assert not left[0, symbols == SMALL.first_unit + 3].any()
    assert left[1, is_unit].all()
    assert left[:, int(SMALL.special(END)[0])].tolist() == [may_end, may_end, False]
    left[:, int(SMALL.special(END)[0])] = False
    assert not left[:, ~is_unit].any()
    assert torch.isfinite(scores).all()  # they are not changed


def drawn(model: UnitModel, prompt: np.ndarray, n_frames: int, **how: object) -> list[int]:
    tokens: list[int] = []
    torch.manual_seed(5)
    settings = {"may_end": False, "temperature": 1.0, "top_p": 1.0} | how
    generate(model, prompt, n_frames, on_token=tokens.append, **settings)  # type: ignore[arg-type]
    return tokens


def test_generation_lasts_as_long_as_it_is_told_past_the_context_too(model):
    for n_frames in (1, 30, 300):
        tokens = drawn(model, SMALL.special(UNITS), n_frames)
        length = len(SMALL.to_units(np.array(tokens)))
        assert n_frames <= length < n_frames + SMALL.max_duration
        assert (SMALL.of_units(SMALL.to_units(np.array(tokens))) == tokens).all()


def test_the_same_seed_draws_the_same(model):
    prompt = SMALL.sequence(units(10))[:-1]
    assert drawn(model, prompt, 60) == drawn(model, prompt, 60)
    assert drawn(model, prompt, 60, temperature=0.0) != drawn(model, prompt, 60)


@torch.no_grad()
def test_without_temperature_the_likeliest_is_drawn_one_by_one(model):
    prompt = SMALL.sequence(units(10))[:-1]
    tokens = drawn(model, prompt, 12, temperature=0.0)
    row, rules = prompt.tolist(), UnitRules(SMALL, may_end=False)
    for token in tokens:
        ids = torch.tensor([row])
        assert int(rules(ids, model(ids).logits[:, -1]).argmax()) == token
        row.append(token)


def test_an_end_ends(model):
    sure = UnitModel(SMALL, model.sizes).eval()
    with torch.no_grad():
        sure.lm_head.bias[END] = 50.0
    head = np.concatenate([SMALL.special(TEXT), SMALL.of_text("ab"), SMALL.special(UNITS)])
    tokens = drawn(sure, head, 100, may_end=True)
    assert len(tokens) == 2  # a unit, since nothing would be no speech
    assert tokens[-1] == SMALL.special(END)[0]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of twice"):
        Sizes(width=30, heads=4)
    with pytest.raises(ValueError, match="2\\^31"):
        Sizes(width=1 << 14, heads=4, layers=100)
    with pytest.raises(ValueError, match="dropout"):
        Sizes(dropout=1.0)
