"""Measures of units against hand-computed cases, invariances, and the published definitions."""

import math

import numpy as np
import pytest

from audiovq.segment import run_lengths
from audiovq.units.alignments import SILENCE, Interval
from audiovq.units.boundaries import (
    away_from_silence,
    boundary_scores,
    change_times,
    fill_silence,
    match_boundaries,
    phone_changes,
)
from audiovq.units.information import (
    adjusted_pnmi,
    chance_information,
    cluster_purity,
    contingency,
    entropy,
    frame_labels,
    held_out_hits,
    mutual_information,
    phone_given_unit,
    phone_purity,
    phone_set,
    pnmi,
    speaker_folds,
    unit_given_phone,
    zerospeech_bitrate,
)
from audiovq.units.measures import best_shift, evaluate

RATE = 50.0


def utterances(n: int, n_frames: int = 120, n_phones: int = 8, seed: int = 0):
    """Random phone labels in runs of 2 to 7 frames, and the alignments that say them."""
    random = np.random.default_rng(seed)
    names = ["SIL", *(f"p{i}" for i in range(1, n_phones))]
    labels, alignments = [], []
    for _ in range(n):
        frames: list[int] = []
        alignment: list[Interval] = []
        while len(frames) < n_frames:
            phone = int(random.integers(n_phones))
            if frames and phone == frames[-1]:
                continue
            run = min(int(random.integers(2, 8)), n_frames - len(frames))
            start = len(frames) / RATE
            alignment.append(Interval(start, start + run / RATE, names[phone]))
            frames += [phone] * run
        labels.append(np.array(frames))
        alignments.append(alignment)
    return labels, alignments


# --- Frames ---------------------------------------------------------------------------------------


def test_a_frame_has_the_phone_at_its_centre() -> None:
    alignment = [Interval(0.02, 0.05, "a"), Interval(0.05, 0.10, "b")]
    phones = phone_set([alignment])
    assert phones == ["SIL", "a", "b"]
    # Centres at 10, 30, 50, 70, 90, 110 ms; 50 ms is the first instant of b.
    assert frame_labels(alignment, 6, 50.0, phones).tolist() == [0, 1, 2, 2, 2, 0]
    # Codes that lag by two frames: the first two stand for what was before the sound.
    assert frame_labels(alignment, 6, 50.0, phones, shift=2).tolist() == [-1, -1, 0, 1, 2, 2]
    assert frame_labels(alignment, 3, 50.0, phones, shift=-1).tolist() == [1, 2, 2]


def test_contingency_counts_frames_and_leaves_out_unknown_ones() -> None:
    table = contingency(np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, -1]), 3, 2)
    assert table.tolist() == [[1, 1, 0], [0, 1, 1]]


# --- Information ----------------------------------------------------------------------------------


def test_information_of_a_table_worked_by_hand() -> None:
    # p(phone) = 1/2, 1/2; p(unit) = 1/4, 1/2, 1/4.
    table = np.array([[1, 1, 0], [0, 1, 1]])
    assert entropy(table.sum(axis=1)) == pytest.approx(1.0)
    assert entropy(table.sum(axis=0)) == pytest.approx(1.5)
    assert entropy(table) == pytest.approx(2.0)
    assert mutual_information(table) == pytest.approx(0.5)
    assert pnmi(table) == pytest.approx(0.5)
    assert phone_given_unit(table) == pytest.approx(0.5)
    assert unit_given_phone(table) == pytest.approx(1.0)
    assert phone_purity(table) == pytest.approx(3 / 4)
    assert cluster_purity(table) == pytest.approx(2 / 4)


def test_pnmi_is_the_sum_of_the_paper() -> None:
    table = np.random.default_rng(0).integers(0, 9, (5, 7))
    share = table / table.sum()
    by_phone, by_unit = share.sum(axis=1), share.sum(axis=0)
    information = sum(
        share[i, j] * math.log(share[i, j] / (by_phone[i] * by_unit[j]))
        for i in range(5)
        for j in range(7)
        if share[i, j] > 0
    )
    phone_entropy = -sum(p * math.log(p) for p in by_phone)
    assert pnmi(table) == pytest.approx(information / phone_entropy)
    # Purity: the expected share of the likeliest phone in a unit's frames.
    purity = sum(by_unit[j] * (share[:, j] / by_unit[j]).max() for j in range(7))
    assert phone_purity(table) == pytest.approx(purity)
    purity = sum(by_phone[i] * (share[i] / by_phone[i]).max() for i in range(5))
    assert cluster_purity(table) == pytest.approx(purity)


def test_perfect_units_have_pnmi_one_and_one_unit_has_zero() -> None:
    table = np.diag([3, 5, 7])
    assert pnmi(table) == pytest.approx(1.0)
    assert adjusted_pnmi(table, 0.3) == pytest.approx(1.0)
    assert adjusted_pnmi(np.diag([9, 1]), 0.1) == pytest.approx(1.0)  # half a bit in all
    assert phone_given_unit(table) == pytest.approx(0.0)
    assert pnmi(table.sum(axis=1, keepdims=True)) == 0.0
    assert pnmi(np.zeros((3, 3))) == 0.0


def test_names_of_units_do_not_matter() -> None:
    table = np.random.default_rng(1).integers(0, 20, (6, 9))
    permuted = table[:, np.random.default_rng(2).permutation(9)]
    for measure in (pnmi, phone_purity, cluster_purity, phone_given_unit, unit_given_phone):
        assert measure(permuted) == pytest.approx(measure(table))


def test_splitting_a_unit_in_two_adds_nothing_when_the_split_says_nothing() -> None:
    table = np.array([[8, 2], [4, 6]])
    split = np.array([[4, 4, 2], [2, 2, 6]])
    assert pnmi(split) == pytest.approx(pnmi(table))
    assert unit_given_phone(split) > unit_given_phone(table)


def test_correction_takes_random_units_to_zero_and_leaves_perfect_ones_at_one() -> None:
    random = np.random.default_rng(0)
    phones = np.repeat(random.integers(0, 20, 400), 5)  # 2000 frames in runs of 5
    table = {}
    for name, units in {
        "frames": random.integers(0, 100, 2000),
        "runs": np.repeat(random.integers(0, 100, 400), 5),
        "perfect": phones,
    }.items():
        table[name] = contingency(units, phones, 100, 20)
        chance = chance_information(units, phones, 100, 20)
        corrected = adjusted_pnmi(table[name], chance)
        if name == "perfect":
            assert corrected == pytest.approx(1.0)
        else:
            assert pnmi(table[name]) > 0.15  # what chance alone seems to tell
            assert abs(corrected) < 0.03


def test_corrected_pnmi_hardly_depends_on_the_number_of_frames() -> None:
    random = np.random.default_rng(0)
    runs = random.integers(0, 20, 8000)
    noisy = np.where(random.random(8000) < 0.5, random.integers(0, 20, 8000), runs)
    phones = np.repeat(runs, 4)
    units = np.repeat(noisy * 8 + random.integers(0, 8, 8000), 4)  # K = 160
    plain, corrected = [], []
    for n in (4000, 32_000):
        table = contingency(units[:n], phones[:n], 160, 20)
        plain.append(pnmi(table))
        chance = chance_information(units[:n], phones[:n], 160, 20)
        corrected.append(adjusted_pnmi(table, chance))
    assert plain[0] - plain[1] > 0.12
    assert abs(corrected[0] - corrected[1]) < 0.03


# --- Held-out accuracy ----------------------------------------------------------------------------


def test_folds_keep_speakers_whole_and_even() -> None:
    speakers = ["a", "b", "a", "c", "d", "b"]
    folds = speaker_folds(speakers, [10, 5, 10, 14, 6, 5], 2)
    assert folds[0] == folds[2]
    assert folds[1] == folds[5]
    assert sorted(np.bincount(folds, weights=[10, 5, 10, 14, 6, 5])) == [24, 26]
    assert set(speaker_folds(["a", "b"], [1, 1], 5)) == {0, 1}


def test_held_out_accuracy_worked_by_hand() -> None:
    # Speaker 0 calls phone 1 unit 0; speaker 1 does the same once of three times.
    units = [np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])]
    phones = [np.array([1, 1, 1, 0]), np.array([1, 0, 0, 1])]
    hits, prior = held_out_hits(units, phones, np.array([0, 1]), 3, 2)
    # For utterance 0 the other says 0 -> phone 0, 2 -> 1, and 1 is unseen: 2 : 2 frames, phone 0.
    assert (hits[0], prior[0]) == (1, 1)
    # For utterance 1: 0 -> phone 1, 1 -> phone 0, 2 unseen -> phone 1, the majority.
    assert (hits[1], prior[1]) == (2, 2)


def test_a_map_is_made_from_all_utterances_of_the_other_folds() -> None:
    units = [np.array([0]), np.array([1, 1]), np.array([0, 1])]
    phones = [np.array([2]), np.array([1, 1]), np.array([2, 1])]
    hits, _ = held_out_hits(units, phones, np.array([0, 0, 1]), 2, 3)
    assert hits[2] == 2  # one frame from each of the others


def test_units_that_only_a_speaker_uses_do_not_help_held_out() -> None:
    labels, alignments = utterances(6)
    speakers = list("aabbcc")
    private = [x + 8 * "abc".index(s) for x, s in zip(labels, speakers, strict=True)]
    result = evaluate(private, alignments, speakers=speakers, n_bootstrap=0).with_silence
    assert result["pnmi"].value == pytest.approx(1.0)
    assert result["held_out_accuracy"].value == result["held_out_prior"].value < 0.3
    shared = evaluate(labels, alignments, speakers=speakers, n_bootstrap=0).with_silence
    assert shared["held_out_accuracy"].value == 1.0


# --- Boundaries -----------------------------------------------------------------------------------


def test_change_times_are_where_a_new_unit_starts() -> None:
    assert change_times(np.array([3, 3, 5, 5, 5, 3]), 50.0).tolist() == [0.04, 0.10]
    assert change_times(np.array([3, 4, 5, 5]), 50.0, shift=1).tolist() == [0.02]
    assert change_times(np.array([7]), 50.0).tolist() == []


def test_gaps_are_filled_with_silence() -> None:
    alignment = [Interval(0.1, 0.2, "a"), Interval(0.3, 0.4, "SIL"), Interval(0.4, 0.5, "b")]
    filled = fill_silence(alignment, 0.52, shortest=0.02)
    assert [(i.start, i.end, i.phone) for i in filled] == [
        (0.0, 0.1, "SIL"),
        (0.1, 0.2, "a"),
        (0.2, 0.4, "SIL"),
        (0.4, 0.5, "b"),
    ]
    assert phone_changes(filled).tolist() == [0.1, 0.2, 0.4]
    assert fill_silence(alignment, 0.6)[-1] == Interval(0.5, 0.6, "SIL")


def test_a_boundary_is_matched_once_and_within_the_tolerance() -> None:
    assert match_boundaries([0.10, 0.12], [0.11]) == 1
    assert match_boundaries([0.08, 0.12], [0.10, 0.14]) == 2  # only pairing in order gets both
    assert match_boundaries([0.12], [0.10]) == 1  # exactly 20 ms
    assert match_boundaries([0.13], [0.10]) == 0
    assert match_boundaries([], [0.10]) == 0


def test_a_boundary_in_speech_is_further_from_silence_than_the_margin() -> None:
    alignment = [
        Interval(0.0, 0.1, SILENCE),
        Interval(0.1, 0.2, "AA"),
        Interval(0.2, 0.3, "S"),  # one stretch with the phone before it
        Interval(0.3, 0.4, SILENCE),
        Interval(0.5, 0.6, "T"),  # a gap is no speech
    ]
    inside = [0.13, 0.2, 0.27, 0.53, 0.57]
    outside = [-0.1, 0.05, 0.1, 0.12, 0.28, 0.3, 0.35, 0.45, 0.52, 0.58, 0.7]
    assert away_from_silence(sorted(inside + outside), alignment, 0.02) == inside
    assert away_from_silence([0.11, 0.29], alignment, 0.0) == [0.11, 0.29]
    assert away_from_silence(inside, alignment[:1], 0.0) == []


def test_r_value_of_the_paper() -> None:
    perfect = boundary_scores(10, 10, 10)
    assert perfect == {
        "boundary_precision": 1.0,
        "boundary_recall": 1.0,
        "boundary_f1": 1.0,
        "over_segmentation": 0.0,
        "r_value": 1.0,
    }
    # Hit rate 0.8 with twice as many boundaries as true: worked by hand.
    scores = boundary_scores(8, 20, 10)
    assert scores["over_segmentation"] == pytest.approx(1.0)
    assert scores["over_segmentation"] == pytest.approx(0.8 / scores["boundary_precision"] - 1)
    r1 = math.sqrt(0.2**2 + 1.0**2)
    r2 = (-1.0 + 0.8 - 1) / math.sqrt(2)
    assert scores["r_value"] == pytest.approx(1 - (abs(r1) + abs(r2)) / 2)
    # Nothing to count: zeros, as for every other measure.
    for n_found in (0, 5):
        assert boundary_scores(0, n_found, 0) == dict.fromkeys(perfect, 0.0)


def test_more_boundaries_raise_recall_but_not_the_r_value() -> None:
    labels, alignments = utterances(4)
    flicker = [2 * x + np.arange(len(x)) % 2 for x in labels]
    exact = evaluate(labels, alignments, n_bootstrap=0).with_silence
    noisy = evaluate(flicker, alignments, n_bootstrap=0).with_silence
    assert exact["boundary_f1"].value == exact["r_value"].value == 1.0
    assert noisy["boundary_recall"].value == 1.0
    assert noisy["over_segmentation"].value > 1
    assert noisy["r_value"].value < 0.2


def test_without_silence_only_boundaries_between_phones_count() -> None:
    alignment = [
        Interval(0.0, 0.2, "SIL"),
        Interval(0.2, 0.4, "a"),
        Interval(0.4, 0.6, "b"),
        Interval(0.6, 0.8, "SIL"),
    ]
    # Changes at 0.1 (in silence), 0.2 and 0.62 (at its edges), 0.4 (found), 0.5 (one too many).
    units = np.array([0] * 5 + [1] * 5 + [2] * 10 + [3] * 5 + [4] * 6 + [5] * 9)
    result = evaluate([units], [alignment], n_bootstrap=0)
    assert result.without_silence["boundary_recall"].value == 1.0
    assert result.without_silence["boundary_precision"].value == 0.5
    assert result.with_silence["boundary_recall"].value == 1.0
    assert result.with_silence["boundary_precision"].value == pytest.approx(3 / 5)


# --- Rate -----------------------------------------------------------------------------------------


def test_rate_and_bitrate_of_the_zerospeech_definition() -> None:
    # Eight symbols, four kinds, even: 2 bits each, in two seconds.
    sequences = [np.array([0, 1, 2, 3]), np.array([3, 2, 1, 0])]
    assert zerospeech_bitrate(sequences, 2.0) == pytest.approx(8 / 2 * 2)
    assert zerospeech_bitrate([], 2.0) == 0.0


def test_evaluate_counts_rates_as_the_functions_do() -> None:
    labels, alignments = utterances(5)
    result = evaluate(labels, alignments, n_bootstrap=0).with_silence
    seconds = sum(map(len, labels)) / RATE
    merged = [np.array([s.unit for s in run_lengths(x)]) for x in labels]
    assert result["units_per_second"].value == pytest.approx(sum(map(len, merged)) / seconds)
    assert result["bitrate"].value == pytest.approx(zerospeech_bitrate(labels, seconds))
    assert result["bitrate_merged"].value == pytest.approx(zerospeech_bitrate(merged, seconds))


# --- All of it ------------------------------------------------------------------------------------


def test_perfect_random_and_renamed_units() -> None:
    labels, alignments = utterances(30)
    speakers = [f"s{i % 5}" for i in range(30)]
    perfect = evaluate(labels, alignments, speakers=speakers)
    assert perfect.shift == 0
    assert perfect.n_phones == perfect.n_units == perfect.n_units_used == 8
    for scores in (perfect.with_silence, perfect.without_silence):
        for name in ("pnmi", "pnmi_adjusted", "phone_purity", "held_out_accuracy", "boundary_f1"):
            assert scores[name].value == pytest.approx(1.0)
            assert scores[name].low == pytest.approx(1.0)
        assert scores["phone_given_unit"].value == pytest.approx(0.0)

    random = np.random.default_rng(0)
    noise = [random.integers(0, 64, len(x)) for x in labels]
    chance = evaluate(noise, alignments, speakers=speakers).with_silence
    assert chance["pnmi"].value > 0.02
    assert abs(chance["pnmi_adjusted"].value) < 0.01
    assert chance["held_out_accuracy"].value < chance["held_out_prior"].value + 0.03

    names = random.permutation(64)
    renamed = evaluate([names[x] for x in noise], alignments, speakers=speakers).with_silence
    for name in chance:
        # Of two phones equally frequent in a unit the same one is chosen: nothing depends on names.
        assert renamed[name].value == pytest.approx(chance[name].value), name


def test_the_interval_shrinks_with_more_utterances_and_holds_the_value() -> None:
    def width(n: int) -> float:
        labels, alignments = utterances(n)
        random = np.random.default_rng(n)
        noisy = [np.where(random.random(len(x)) < 0.4, 0, x) for x in labels]
        measure = evaluate(noisy, alignments).with_silence["pnmi"]
        assert measure.low < measure.value < measure.high
        return measure.high - measure.low

    assert width(160) < 0.7 * width(10)


def test_the_same_seed_gives_the_same_intervals() -> None:
    labels, alignments = utterances(5)
    noisy = [x // 2 for x in labels]
    assert evaluate(noisy, alignments).as_dict() == evaluate(noisy, alignments).as_dict()


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_the_shift_of_the_codes_is_found(lag: int, rate: float) -> None:
    labels, alignments = utterances(8)
    late = [np.roll(x, lag) for x in labels]
    alignments = [
        [Interval(s * RATE / rate, e * RATE / rate, p) for s, e, p in a] for a in alignments
    ]
    assert best_shift(late, alignments, frame_rate=rate) == lag
    result = evaluate(late, alignments, shift="auto", frame_rate=rate)
    assert result.shift == lag
    assert result.with_silence["boundary_recall"].value > 0.95


def test_without_silence_its_frames_are_left_out() -> None:
    alignment = [Interval(0.0, 0.6, SILENCE), Interval(0.6, 0.8, "a"), Interval(0.8, 1.0, "b")]
    # One unit for all of speech, and as many as there are frames for silence.
    units = np.array([*range(30), *[30] * 20])
    result = evaluate([units], [alignment], n_bootstrap=0)
    assert result.without_silence["pnmi"].value == pytest.approx(0.0)
    assert result.without_silence["phone_entropy"].value == pytest.approx(1.0)  # two, even
    assert result.without_silence["units_per_second"].value == pytest.approx(1 / 0.4)
    assert result.with_silence["pnmi"].value > 0.5
    assert result.with_silence["pnmi"].low == result.with_silence["pnmi"].value


def test_maps_are_tried_on_as_many_folds_as_asked() -> None:
    """Of two folds one has both speakers of a phone, which the map of the other then lacks."""
    common = [Interval(0.0, 0.5, "a"), Interval(0.5, 1.0, "b")]
    rare = [Interval(0.0, 0.5, "a"), Interval(0.5, 1.0, "c")]
    alignments = [rare, common, rare, common]
    units = [np.array([0] * 25 + [2 if a is rare else 1] * 25) for a in alignments]

    def accuracy(n_folds: int) -> float:
        result = evaluate(units, alignments, speakers=list("stuv"), n_folds=n_folds, n_bootstrap=0)
        return result.with_silence["held_out_accuracy"].value

    assert accuracy(4) == 1.0
    assert accuracy(2) < 0.8


def test_without_speakers_there_is_no_held_out_accuracy() -> None:
    labels, alignments = utterances(3)
    assert "held_out_accuracy" not in evaluate(labels, alignments, n_bootstrap=0).with_silence
    one = evaluate(labels, alignments, speakers=["a"] * 3, n_bootstrap=0)
    assert "held_out_accuracy" not in one.with_silence
    assert one.n_speakers == 1


def test_what_does_not_fit_is_refused() -> None:
    labels, alignments = utterances(3)
    with pytest.raises(ValueError, match="at least one utterance"):
        evaluate([], [])
    with pytest.raises(ValueError, match="one entry per utterance"):
        evaluate(labels, alignments[:2])
    with pytest.raises(ValueError, match="whole numbers"):
        evaluate([x / 2 for x in labels], alignments)
    with pytest.raises(ValueError, match="unit 7 is out of range; n_units is 3"):
        evaluate(labels, alignments, n_units=3)
    with pytest.raises(ValueError, match="check the frame rate"):
        evaluate(labels, alignments, frame_rate=75.0)
    with pytest.raises(ValueError, match="alignment is empty"):
        evaluate(labels, [*alignments[:2], []])


@pytest.mark.parametrize("frame_rate", [0.0, -50.0, float("nan"), float("inf")])
def test_a_frame_rate_that_is_none_is_refused(frame_rate: float) -> None:
    labels, alignments = utterances(2)
    with pytest.raises(ValueError, match="frames a second"):
        evaluate(labels, alignments, frame_rate=frame_rate)


def test_what_leaves_nothing_to_measure_is_refused() -> None:
    labels, alignments = utterances(2)
    with pytest.raises(ValueError, match=r"no frame .* shift of 500"):
        evaluate(labels, alignments, shift=500)
    with pytest.raises(ValueError, match="n_folds"):
        evaluate(labels, alignments, speakers=["a", "b"], n_folds=1)
