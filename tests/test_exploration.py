"""Counting codes, choosing stretches, mapping, tokens beside others; ways between sounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY, started_model

from audiovq.exploration.against import set_against
from audiovq.exploration.corpus import (
    Recording,
    chosen_runs,
    encode_recordings,
    evenly,
    find_runs,
    holds_tokens,
    read_recordings,
)
from audiovq.exploration.facts import code_facts, nearest_codes, places_of
from audiovq.exploration.interpolate import align, interpolate, path_frames
from audiovq.exploration.sounds import ALONE_FRAMES, alone, neutral_codes
from audiovq.files import FileRefused
from audiovq.flatten import compact

pytest.importorskip("sklearn")


@pytest.fixture
def recordings(rng) -> dict[str, Recording]:
    lengths = (50, 1, 33, 7)
    codes = [np.repeat(rng.integers(0, 20, (2, n)), 2, axis=1)[:, :n] for n in lengths]
    return {f"r{i}": Recording(c.astype("u2"), c.shape[1] * 320) for i, c in enumerate(codes)}


@pytest.mark.parametrize("strides", [(), (2, 4, 1, 2), (1, 2, 2, 2)])
def test_models_of_several_rates_are_interpolated(strides):
    model = started_model(replace(TINY, level_strides=strides))
    a, b = (torch.randn(1, 1, n) * 0.1 for n in (9 * 320, 5_001))
    for n_q in (None, 1):
        steps = interpolate(model, a, b, [0, 0.3, 1], n_q=n_q)
        for step in steps:
            compact(step.codes.indices[0].numpy(), step.codes.level_strides)  # or it refuses
            assert torch.isfinite(model.decode(step.codes)).all()


def test_runs_are_the_codes_of_the_recordings_and_nothing_else(recordings):
    for level in (0, 1):
        runs = find_runs(recordings, level)
        joined = np.concatenate([r.indices[level] for r in recordings.values()])
        assert (np.repeat(runs.code, runs.duration) == joined).all()
        for number, recording in enumerate(recordings.values()):
            own = runs.recording == number
            assert runs.duration[own].sum() == recording.indices.shape[1]
            assert (np.diff(runs.code[own]) != 0).all()  # a run is as long as it can be
    with pytest.raises(ValueError, match=r"level must be in 0..1"):
        find_runs(recordings, 2)


def test_chosen_runs_are_of_their_code_without_repeats_and_as_many_as_asked(recordings):
    runs = find_runs(recordings, 0)
    kept = np.array([True, True, False, True])
    for lines in (1, 3, 1000):
        chosen = chosen_runs(runs, kept, 32, lines)
        for code, some in enumerate(chosen):
            there = np.flatnonzero((runs.code == code) & kept[runs.recording])
            assert len(set(some.tolist())) == len(some) == min(lines, len(there))
            assert set(some.tolist()) <= set(there.tolist())


def test_recordings_are_kept_evenly():
    assert evenly(5, 9).all()
    assert evenly(9, 3).tolist() == [True, *[False] * 3, True, *[False] * 3, True]
    assert evenly(450, 77).sum() == 77


def test_counts_and_shares_add_up(recordings, rng):
    runs = find_runs(recordings, 0)
    n_frames = int(runs.duration.sum())
    labels = rng.integers(-1, 3, n_frames)
    facts = code_facts(runs, rng.normal(size=(32, 4)), ["SIL", "a", "b"], labels)
    codes = np.repeat(runs.code, runs.duration)
    assert sum(fact.n_frames for fact in facts) == n_frames
    assert sum(fact.n_runs for fact in facts) == len(runs)
    assert sum(fact.share for fact in facts) == pytest.approx(1)
    for fact in facts:
        own = labels[codes == fact.code]
        known = own[own >= 0]
        assert fact.n_frames == len(own)
        assert fact.mean_frames * fact.n_runs == pytest.approx(len(own))
        assert sum(share for _, share in fact.phones) == pytest.approx(1 if len(known) else 0)
        shares = [share for _, share in fact.phones]
        assert shares == sorted(shares, reverse=True)
        for phone, share in fact.phones:
            assert share == pytest.approx((known == ["SIL", "a", "b"].index(phone)).mean())


def test_nearest_codes_are_those_that_a_search_through_all_finds(rng):
    vectors = rng.normal(size=(30, 5)).astype("f4")
    order, distances = nearest_codes(vectors, 7)
    for code in range(30):
        away = np.linalg.norm(vectors - vectors[code], axis=1)
        away[code] = np.inf
        assert np.sort(away)[:7] == pytest.approx(distances[code], abs=1e-5)
        assert away[order[code]] == pytest.approx(distances[code], abs=1e-5)
    assert nearest_codes(vectors[:2], 7)[0].tolist() == [[1], [0]]


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (5, 4), (40, 6)])
def test_the_map_has_a_place_for_every_code_and_is_the_same_again(rng, shape):
    vectors = rng.normal(size=shape).astype("f4")
    places = places_of(vectors)
    assert places.shape == (shape[0], 2)
    assert ((places >= 0) & (places <= 1)).all()
    assert (places == places_of(vectors)).all()


def test_groups_of_vectors_stay_groups_on_the_map(rng):
    centres = np.repeat(np.eye(3) * 20, 15, axis=0)
    places = places_of((centres + rng.normal(size=centres.shape)).astype("f4"))
    group = np.repeat(range(3), 15)
    away = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(45)
    assert (group[away.argmin(axis=1)] == group).all()


def test_tokens_beside_themselves_agree_wholly_and_beside_chance_hardly(recordings, rng):
    own = {name: r.indices[0].astype(np.int64) for name, r in recordings.items()}
    same = set_against(recordings, 0, 20, 50.0, "same", own, 50.0)
    assert (same.table == np.diag(np.diag(same.table))).all()
    assert same.known() == pytest.approx((1, 1))
    assert same.others_of(int(own["r0"][0]))[0] == (int(own["r0"][0]), 1.0)
    mixed = {"r0": rng.permutation(own["r0"]), "else": own["r1"]}
    other = set_against(recordings, 0, 20, 50.0, "mixed", mixed, 50.0)
    assert other.n_recordings == 1
    assert other.table.sum() == len(own["r0"])
    assert max(other.known()) < 0.9
    with pytest.raises(FileRefused, match="none of the recordings"):
        set_against(recordings, 0, 20, 50.0, "no", {"x": own["r0"]}, 50.0)
    with pytest.raises(FileRefused, match="table"):
        set_against(recordings, 0, 20, 50.0, "no", {"r0": own["r0"] * 0 + (1 << 24)}, 50.0)


def test_tokens_of_half_the_rate_stand_beside_two_frames(recordings):
    half = {name: r.indices[0][::2].astype(np.int64) for name, r in recordings.items()}
    found = set_against(recordings, 0, 20, 50.0, "half", half, 25.0)
    assert found.known() == pytest.approx((1, 1))  # each code stands twice in these recordings


def test_folders_of_tokens_and_of_sound_give_the_same(tiny_model, tmp_path):
    from tiny import EXAMPLES

    from audiovq.transcode import encode_file

    audio = {path.stem: path for path in EXAMPLES[1:3]}
    encoded = encode_recordings(audio, tiny_model)
    for name, path in audio.items():
        encode_file(tiny_model, path, tmp_path / "a" / f"{name}.avq", token_format="avq")
    assert holds_tokens(tmp_path)
    read = read_recordings(tmp_path / "a", tiny_model)
    assert list(read) == list(encoded)
    for name, recording in read.items():
        assert (recording.indices == encoded[name].indices).all()
        assert recording.n_samples == encoded[name].n_samples


def test_token_folders_that_do_not_fit_are_refused(tiny_model, tmp_path):
    with pytest.raises(FileRefused, match="holds no tokens"):
        read_recordings(tmp_path, tiny_model)
    np.save(tmp_path / "a.npy", np.full((2, 3), 32, "u2"))
    with pytest.raises(FileRefused, match=r"a\.npy does not fit"):
        read_recordings(tmp_path, tiny_model)
    np.save(tmp_path / "a.npy", np.zeros((2, 3), "u2"))
    np.save(tmp_path / "b.npy", np.zeros((3, 3), "u2"))
    with pytest.raises(FileRefused, match="2 and 3 levels"):
        read_recordings(tmp_path, tiny_model)


@pytest.mark.parametrize("level", [0, 2])
def test_a_code_alone_is_that_code_among_silence_decoded(tiny_model, level):
    sounds = list(alone(tiny_model, level))
    assert len(sounds) == TINY.codebook_size
    before, during, _ = ALONE_FRAMES
    codes = neutral_codes(tiny_model, level + 1)[None, :, None].repeat(1, 1, sum(ALONE_FRAMES))
    for code in (0, 5, 31):
        codes[0, level, before : before + during] = code
        plain = tiny_model.decode(codes).flatten()
        assert torch.allclose(torch.from_numpy(sounds[code]), plain, atol=1e-4)


def test_the_codes_of_silence_do_not_change_with_time(tiny_model):
    indices = tiny_model.encode(torch.zeros(1, 1, 32_000)).indices[0]
    assert torch.equal(neutral_codes(tiny_model, 4), indices[:, -50])


# --- Between two recordings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(speech: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return speech[:, :, :20_001], speech[:, :, 16_000:30_000]


@pytest.mark.parametrize("n_q", [None, 2])
def test_the_ends_are_the_plain_codes_and_their_sound(tiny_model, two, n_q):
    steps = interpolate(tiny_model, *two, [0, 0.5, 1], n_q=n_q)
    for step, wav in zip((steps[0], steps[-1]), two):
        codes = tiny_model.encode(wav, n_q=n_q)
        assert torch.equal(step.codes.indices, codes.indices)
        assert step.codes.lengths == codes.lengths == (wav.shape[2],)
        assert torch.equal(step.wav, tiny_model.decode(codes))
    assert steps[0].units_of[0] == steps[-1].units_of[1] == 1
    assert len(steps[0].wav[0, 0]) >= len(steps[1].wav[0, 0]) >= len(steps[2].wav[0, 0])


def test_steps_near_the_ends_come_near_the_plain_codes(tiny_model, two):
    steps = interpolate(tiny_model, *two, [1e-6, 0.25, 0.75, 1 - 1e-6])
    for step, wav, side in zip((steps[0], steps[-1]), two, (0, 1)):
        plain = tiny_model.encode(wav).indices
        assert step.codes.indices.shape == plain.shape
        assert (step.codes.indices == plain).float().mean() > 0.97
        assert step.units_of[side] > 0.97
    assert steps[1].units_of[0] > steps[2].units_of[0]
    assert steps[1].units_of[1] < steps[2].units_of[1]


def test_a_recording_to_itself_stays_itself(tiny_model, two):
    step = interpolate(tiny_model, two[0], two[0], [0.3])[0]
    plain = tiny_model.encode(two[0])
    assert (step.codes.indices == plain.indices).float().mean() > 0.97
    assert step.codes.lengths == plain.lengths


def test_a_path_goes_from_both_beginnings_to_both_ends_and_never_back(rng):
    a, b = rng.normal(size=(17, 4)), rng.normal(size=(9, 4))
    path = align(a, b)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [16, 8]
    assert np.isin(np.diff(path, axis=0), (0, 1)).all()
    for share, n_frames in ((0, 17), (0.5, 13), (1, 9)):
        rows = path_frames(path, share)
        assert len(rows) == n_frames
        assert (np.diff(rows, axis=0) >= 0).all()
    assert path_frames(path, 0)[:, 0].tolist() == list(range(17))
    assert path_frames(path, 1)[:, 1].tolist() == list(range(9))


def test_slow_speech_is_aligned_with_quick(rng):
    a = np.cumsum(rng.normal(size=(20, 3)), axis=0)
    path = align(a, np.repeat(a, 2, axis=0))
    assert (path[:, 0] == path[:, 1] // 2).all()


def test_what_cannot_be_mixed_is_refused(tiny_model, two, monkeypatch):
    with pytest.raises(ValueError, match=r"shares must be in 0..1"):
        interpolate(tiny_model, *two, [1.5])
    monkeypatch.setattr("audiovq.exploration.interpolate.LONGEST", 40)
    with pytest.raises(ValueError, match="up to 40"):
        interpolate(tiny_model, *two, [0.5])
