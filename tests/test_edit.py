"""Editing codes: what an edit does not touch stays, and all of it decodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from audiovq import AudioVQ, Codes, Header, Tokens, edit, read_tokens, write_npy

HOP = TINY.hop_length


def some_codes(n_frames: int, seed: int = 0, n_samples: int | None = None) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(TINY.codebook_size, (1, 4, n_frames), generator=generator)
    return Codes(indices, (n_samples or n_frames * HOP,))


@pytest.fixture(scope="module")
def codes(tiny_model: AudioVQ, speech: torch.Tensor) -> Codes:
    return tiny_model.encode(speech)


def test_replacing_touches_the_frames_of_the_unit_and_no_others(codes):
    before = codes.indices.clone()
    old = int(codes.indices[0, 0, 40])
    edited = edit.replace(codes, old, 3, TINY)
    there = before[0, 0] == old
    assert (edited.indices[0, 0][there] == 3).all()
    assert torch.equal(edited.indices[0, 0][~there], before[0, 0][~there])
    assert torch.equal(edited.indices[:, 1:], before[:, 1:])
    assert torch.equal(codes.indices, before)
    assert edited.lengths == codes.lengths


def test_replacing_at_another_level_in_a_stretch(codes):
    old = int(codes.indices[0, 2, 40])
    edited = edit.replace(codes, old, (old + 1) % 32, TINY, level=2, frames=slice(40, 41))
    changed = (edited.indices != codes.indices).nonzero().tolist()
    assert changed == [[0, 2, 40]]


def test_the_sound_before_an_edit_stays_to_the_bit(tiny_model, codes):
    at = 100
    old = int(codes.indices[0, 0, at])
    edited = edit.replace(codes, old, (old + 5) % 32, TINY, frames=slice(at, None))
    assert edited.indices[0, 0, at] != old
    plain, other = tiny_model.decode(codes), tiny_model.decode(edited)
    same = (at - TINY.overlap_frames) * HOP
    assert torch.equal(plain[:, :, :same], other[:, :, :same])
    assert not torch.equal(plain, other)


def test_replacing_there_and_back_is_the_identity_where_the_new_unit_was_not():
    codes = some_codes(20)
    free = next(u for u in range(32) if u not in codes.indices[0, 0].tolist())
    old = int(codes.indices[0, 0, 7])
    back = edit.replace(edit.replace(codes, old, free, TINY), free, old, TINY)
    assert torch.equal(back.indices, codes.indices)


@given(st.integers(1, 30), st.data())
@settings(max_examples=25, deadline=None)
def test_cut_and_splice_is_the_identity(n_frames, data):
    n_samples = data.draw(st.integers((n_frames - 1) * HOP + 1, n_frames * HOP))
    at = data.draw(st.integers(0, n_frames))
    codes = some_codes(n_frames, n_samples=n_samples)
    parts = [
        edit.take(codes, range(*span), TINY)
        for span in ((0, at), (at, n_frames))
        if len(range(*span))
    ]
    joined = edit.splice(parts, TINY)
    assert torch.equal(joined.indices, codes.indices)
    assert joined.lengths == codes.lengths


def test_taking_frames_keeps_order_and_length(tiny_model):
    codes = some_codes(10, n_samples=9 * HOP + 5)
    twice = edit.take(codes, np.repeat(range(10), 2), TINY)
    assert torch.equal(twice.indices[:, :, ::2], codes.indices)
    assert torch.equal(twice.indices[:, :, 1::2], codes.indices)
    assert twice.lengths == (19 * HOP + 5,)
    assert edit.take(codes, [9, 0], TINY).lengths == (2 * HOP,)
    assert tiny_model.decode(twice).shape == (1, 1, 19 * HOP + 5)


def test_parts_that_end_within_a_frame_keep_it_whole(tiny_model):
    a, b = some_codes(3, n_samples=2 * HOP + 1), some_codes(2, 1, n_samples=HOP + 7)
    joined = edit.splice([a, b], TINY)
    assert torch.equal(joined.indices, torch.cat([a.indices, b.indices], dim=2))
    assert joined.lengths == (4 * HOP + 7,)
    assert tiny_model.decode(joined).shape[2] == 4 * HOP + 7


def test_swapping_twice_is_the_identity_and_keeps_all_units():
    a, b = some_codes(50), some_codes(50, 1)
    b.indices[:, 0, ::3] = a.indices[:, 0, ::3]
    shared = a.indices[0, 0] == b.indices[0, 0]
    for only_shared in (True, False):
        c, d = edit.swap_acoustics(a, b, only_shared=only_shared)
        assert torch.equal(c.indices[:, 0], a.indices[:, 0])
        assert torch.equal(d.indices[:, 0], b.indices[:, 0])
        swapped = shared if only_shared else torch.ones_like(shared)
        assert torch.equal(c.indices[0, 1:, swapped], b.indices[0, 1:, swapped])
        assert torch.equal(d.indices[0, 1:, swapped], a.indices[0, 1:, swapped])
        assert torch.equal(c.indices[0, :, ~swapped], a.indices[0, :, ~swapped])
        again = edit.swap_acoustics(c, d, only_shared=only_shared)
        assert [x.indices.tolist() for x in again] == [x.indices.tolist() for x in (a, b)]


def test_codes_come_back_from_files(tmp_path, codes):
    write_npy(tmp_path / "a.npy", codes.indices[0].numpy())
    read = edit.from_tokens(read_tokens(tmp_path / "a.npy"), TINY)
    assert torch.equal(read.indices, codes.indices)
    assert read.lengths == (codes.indices.shape[2] * HOP,)
    header = Header("m", "f", 16_000, HOP, 32, 4, codes.lengths[0])
    read = edit.from_tokens(Tokens(codes.indices[0].numpy().astype("u2"), header), TINY)
    assert read.lengths == codes.lengths


def test_what_cannot_be_edited_is_said_in_a_sentence():
    codes = some_codes(5)
    batch = Codes(codes.indices.repeat(2, 1, 1), (5 * HOP,) * 2)
    units = Codes(codes.indices[:, :1], codes.lengths)
    wrong = [
        (lambda: edit.replace(codes, 0, 32, TINY), "code 32 is out of range"),
        (lambda: edit.replace(codes, 0, 1, TINY, level=4), r"level must be in 0..3"),
        (lambda: edit.take(codes, [5], TINY), r"there are 0..4"),
        (lambda: edit.take(codes, [-1], TINY), r"there are 0..4"),
        (lambda: edit.take(codes, [], TINY), "whole numbers"),
        (lambda: edit.take(codes, [0.5], TINY), "whole numbers"),
        (lambda: edit.take(batch, [0], TINY), "batch of 2"),
        (lambda: edit.splice([], TINY), "nothing to splice"),
        (lambda: edit.splice([codes, units], TINY), r"\[1, 4\] levels"),
        (lambda: edit.swap_acoustics(codes, some_codes(6)), "one shape"),
        (lambda: edit.swap_acoustics(units, units), "nothing to swap"),
        (lambda: edit.from_tokens(Tokens(np.full((1, 2), 32, "u2")), TINY), "out of range"),
        (lambda: edit.from_tokens(Tokens(np.zeros((5, 2), "u2")), TINY), "n_q must be"),
    ]
    for call, said in wrong:
        with pytest.raises(ValueError, match=said):
            call()
