"""Laws of the acoustic stage: a stream writes what the whole has, and nothing sees its future."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from audiovq.lm.acoustic import LOOKAHEAD, PROMPT_SHARE, AcousticModel, AcousticWriter
from audiovq.lm.sizes import Sizes
from audiovq.lm.vocabulary import Vocabulary

SMALL = Vocabulary("test", "0" * 16, 16_000, 320, 32, 4)
RATES = {"one rate": (), "several rates": (2, 4, 1, 2)}
SIZES = Sizes(width=32, layers=2, heads=2, expansion=2, context=40)


@pytest.fixture(scope="module", params=RATES.values(), ids=RATES)
def model(request) -> AcousticModel:
    torch.manual_seed(0)
    stage = AcousticModel(replace(SMALL, level_strides=request.param), SIZES, 8).eval()
    with torch.no_grad():
        stage.tables.mul_(3)  # so that codes differ in what they do
    return stage


def codes(n_frames: int, strides: tuple[int, ...] = ()) -> torch.Tensor:
    """Codes [1, 4, T] that stand for so many frames each."""
    found = torch.randint(32, (1, 4, n_frames), generator=torch.Generator().manual_seed(1))
    for level, stride in enumerate(strides):
        found[0, level] = found[0, level, ::stride].repeat_interleave(stride)[:n_frames]
    return found


@torch.no_grad()
def test_a_code_hangs_on_units_to_come_within_the_lookahead_and_on_no_code_to_come(model):
    whole = codes(20)
    before = model.log_likelihood(whole)
    assert before.shape == (1, 3, 20)
    other = whole.clone()
    other[:, 1:, 10:] = (other[:, 1:, 10:] + 1) % 32
    assert torch.allclose(model.log_likelihood(other)[..., :10], before[..., :10], atol=1e-5)
    other = whole.clone()
    other[:, 0, 10:] = (other[:, 0, 10:] + 1) % 32
    after = model.log_likelihood(other)
    n_same = 10 - LOOKAHEAD
    assert torch.allclose(after[..., :n_same], before[..., :n_same], atol=1e-5)
    assert not torch.allclose(after[..., n_same:10], before[..., n_same:10], atol=1e-4)


@torch.no_grad()
def test_a_level_sees_those_before_it_in_its_frame(model):
    whole = codes(8)
    before = model.log_likelihood(whole)
    other = whole.clone()
    other[:, 2, 7] = (other[:, 2, 7] + 1) % 32
    after = model.log_likelihood(other)
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-5)
    assert not torch.allclose(after[:, 2, 7], before[:, 2, 7], atol=1e-4)


@torch.no_grad()
def test_what_is_heard_before_may_be_other_codes_than_those_learnt(model):
    whole, heard = codes(12), codes(12)
    heard[:, 1:, 5] = (heard[:, 1:, 5] + 1) % 32
    before, after = model.log_likelihood(whole), model.log_likelihood(whole, heard)
    assert torch.allclose(after[..., :6], before[..., :6], atol=1e-5)  # its own frame is learnt
    assert not torch.allclose(after[..., 6], before[..., 6], atol=1e-4)


def write(model, prompt, units, cut, temperature=1.0, seed=0):
    writer = AcousticWriter(model, prompt, temperature=temperature, seed=seed)
    parts = [writer.add(units[i : i + cut]) for i in range(0, len(units), cut)]
    return torch.cat([*parts, writer.end()], dim=1)


@pytest.mark.parametrize("n_prompt", [0, 16, 60])
def test_units_that_come_one_by_one_give_the_codes_of_all_at_once(model, n_prompt):
    strides = model.vocabulary.level_strides
    prompt = codes(60, strides)[0, :, :n_prompt]
    units = codes(50, strides)[0, 0].tolist()  # the context is full before
    whole = write(model, prompt, units, 50)
    assert whole.shape == (4, 50)
    assert whole[0].tolist() == units
    assert torch.equal(write(model, prompt, units, 3), whole)
    for level, stride in enumerate(strides):
        assert torch.equal(whole[level], whole[level, ::stride].repeat_interleave(stride)[:50])
    assert not torch.equal(write(model, prompt, units[:5], 5, seed=1), whole[:, :5])


@torch.no_grad()
def test_what_is_written_is_what_is_learnt(model):
    """Without temperature each code is the likeliest after what stands before it."""
    strides = model.vocabulary.frames_per_code
    prompt = codes(8, strides)[0]
    units = codes(30, strides)[0, 0, :20].tolist()
    written = torch.cat([prompt, write(model, prompt, units, 4, temperature=0.0)], dim=1)[None]
    best = model.log_likelihood(written)
    for level in range(1, 4):
        for frame in (8, 16, 25):
            frame -= frame % strides[level]
            rows = written.repeat(32, 1, 1)
            rows[:, level, frame : frame + strides[level]] = torch.arange(32)[:, None]
            scores = model.log_likelihood(rows)[:, level - 1, frame]
            assert scores.max() == pytest.approx(float(best[0, level - 1, frame]), abs=1e-4)


@torch.no_grad()
def test_once_the_context_is_full_it_goes_on_after_the_prompt_and_the_last_frames(model):
    strides = model.vocabulary.level_strides
    room, prompt = SIZES.context, codes(32, strides)[0]
    units = codes(40, strides)[0, 0].tolist()
    written = torch.cat([prompt, write(model, prompt, units, 40, temperature=0.0)], dim=1)
    kept = int(PROMPT_SHARE * room)
    full = 32 + room - kept  # the first frame for which there is no room
    frames = [*range(32 - kept, 32), *range(full - room // 2, full + 1)]
    assert int(_after(model, written, frames).argmax()) == int(written[1, full])


def _after(model, written, frames):
    """Scores of the first acoustic level of the last of these frames, from the frames alone."""
    units = written[0]
    later = torch.stack([units[min(t + LOOKAHEAD, len(units) - 1)] for t in frames])
    before = torch.stack([written[1:, t - 1] for t in frames], dim=1)
    starts = torch.tensor([[i == 0 for i in range(len(frames))]])
    places = torch.tensor(frames)
    read = model.read(units[frames][None], later[None], before[None], starts, places)
    known = model.transformer(inputs_embeds=read, use_cache=False).last_hidden_state[0, -1]
    return model.levels[0](known, model.tables[1])


def test_it_begins_with_the_codebooks(model):
    stage = AcousticModel(SMALL, SIZES, 8)
    codebooks = 5 * torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(0)) + 3
    stage.start_from(codebooks)
    tables = stage.tables.detach()
    assert tables.mean(1).abs().max() < 1e-5
    assert torch.allclose(tables.pow(2).mean((1, 2)), torch.ones(4), atol=1e-4)
    distances, own = (
        torch.cdist(x[1], x[1], compute_mode="donot_use_mm_for_euclid_dist")
        for x in (codebooks, tables)
    )
    assert torch.allclose(distances / distances.max(), own / own.max(), atol=1e-5)


def test_units_alone_need_no_acoustic_stage():
    alone = Vocabulary("test", "0" * 16, 16_000, 320, 32, 1)
    with pytest.raises(ValueError, match="units alone"):
        AcousticModel(alone, SIZES, 8)
