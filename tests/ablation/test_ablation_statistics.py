"""Intervals, events of an unstable training, and verdicts, on runs made by hand."""

import numpy as np
import pytest
from made_runs import made_run

from ar_omni_jax.ablation import intervals, spikes, summary, verdicts
from ar_omni_jax.ablation.results import Run
from ar_omni_jax.ablation.variants import VARIANTS


def test_a_score_is_the_ratio_of_sums_and_stays_possible():
    runs = [made_run(0, [1, 0, 0.5, 0.5], (1, 3), (4, 6)), made_run(1, [1, 1, 1, 0], (0, 1), (4, 6))]
    caption, asr = intervals.score(runs, "caption"), intervals.score(runs, "asr")
    assert caption["seeds"] == [50.0, 75.0] and caption["mean"] == 62.5
    assert asr["seeds"] == [40.0, 10.0] and asr["mean"] == 25.0
    # Two values say nearly nothing of their spread: Student's factor is 12.7.
    assert (caption["low"], caption["high"]) == (0, 100) and asr["low"] == 0 and asr["high"] > 100


def test_three_seeds_have_students_interval_and_one_that_of_its_documents():
    runs = [made_run(seed, [value] * 50) for seed, value in enumerate((0.5, 0.6, 0.7))]
    found = intervals.score(runs, "caption")  # the documents are all alike: the seeds alone vary
    assert found["high"] - found["mean"] == pytest.approx(4.303 * 10 / np.sqrt(3), rel=1e-3)
    answers = np.random.default_rng(3).random(400)
    alone = intervals.score([made_run(0, answers)], "caption")
    assert alone["high"] - alone["mean"] == pytest.approx(196 * answers.std() / 20, rel=0.06)
    assert not intervals.decided(intervals.score(runs[1:2], "caption", [made_run(1, [0.1] * 50)]))


def test_intervals_of_few_seeds_cover_the_truth_as_often_as_they_say():
    """Seeds, documents and single answers vary; drawing three seeds again and again covers three times in four."""
    rng, covered, trials = np.random.default_rng(4), 0, 300
    for _ in range(trials):
        seeds, documents = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.3, (1, 40))
        answers = 0.5 + seeds + documents + rng.normal(0, 0.1, (3, 40))
        ones = {"caption": np.ones(40)}
        found = intervals.score([Run(i, {"caption": row}, ones, [], []) for i, row in enumerate(answers)], "caption")
        covered += found["low"] <= 50 <= found["high"]
    assert covered / trials >= 0.93


def test_differences_pair_seeds_and_documents():
    rng = np.random.default_rng(2)
    base = [made_run(i, rng.random(30)) for i in range(3)]
    better = [made_run(run.seed, run.top["caption"] + 0.1) for run in base]
    found = intervals.score(better, "caption", base)
    assert found["low"] == pytest.approx(10) == found["mean"] and found["high"] == pytest.approx(10)
    assert intervals.decided(found)
    with pytest.raises(ValueError, match="same seeds"):
        intervals.score(better[:2], "caption", base[1:])


def test_differences_are_of_the_seeds_that_both_have():
    table = summary.summarize(
        {
            "full": [made_run(0, [1, 1], held_out=[0.5]), made_run(1, [0, 0], held_out=[0.7, 1.5])],
            "plain": [made_run(1, [1, 1])],
        }
    )
    assert table["plain"]["differences"]["caption"]["seeds"] == [100.0]
    assert table["full"]["differences"] == {} and table["plain"]["losses"]["text"] == []
    assert table["full"]["losses"]["text"] == [0.5, 1.5]


def test_held_out_losses_differ_by_pairs_of_seeds():
    full = [made_run(seed, held_out=(3.0, value)) for seed, value in enumerate((1.0, 2.0, 3.0))]
    plain = [made_run(seed, held_out=(3.0, value)) for seed, value in enumerate((1.49, 2.5, 3.51))]
    found = summary.summarize({"full": full, "plain": plain[:2] + [made_run(7, held_out=(9.0,))]})
    text = found["plain"]["loss_differences"]["text"]
    assert text["seeds"] == pytest.approx([0.49, 0.5]) and not found["full"]["loss_differences"]
    text = summary.summarize({"full": full, "plain": plain})["plain"]["loss_differences"]["text"]
    assert text["mean"] == pytest.approx(0.5) and intervals.decided(text)  # though seeds differ by 1 among themselves
    assert set(found["plain"]["loss_differences"]) == {"text"}  # nothing else was measured


def test_spikes_are_counted_against_the_median_before_them():
    quiet, loud = [1.0] * 60, [9.0] * 5 + [1.0] * 55
    loud[40], loud[50] = 3.5, 2.9
    calm = spikes.events(made_run(0, norms=quiet))
    assert calm == {"spikes": 0, "jumps": 0, "largest": 1.0, "skipped": 0, "records": 35, "rebound": None}
    found = spikes.events(made_run(0, norms=loud))
    assert found["spikes"] == 1 and found["largest"] == 3.5


def test_jumps_stand_out_from_the_losses_own_spread():
    losses = list(np.random.default_rng(5).normal(2.0, 0.2, 80))
    assert spikes.events(made_run(0, losses=losses))["jumps"] == 0
    losses[60] = 4.0
    assert spikes.events(made_run(0, losses=losses))["jumps"] == 1
    losses[60:] = [x + 2.0 for x in losses[60:]]  # a new level is one jump, however long it takes to get used to
    losses[60] = 4.0
    assert spikes.events(made_run(0, losses=losses))["jumps"] == 1
    level = [2.0] * 80
    level[60] = 2.1  # less than six hundredths above a plateau
    assert spikes.events(made_run(0, losses=level))["jumps"] == 0


def test_a_loss_that_ends_above_its_lowest_or_without_a_number_is_told():
    runs = [made_run(0, held_out=[3.0, 2.0, 2.5]), made_run(1, held_out=[3.0, None]), made_run(2, held_out=[3.0, 2.0])]
    assert [spikes.events(run)["rebound"] for run in runs] == [pytest.approx(25), None, 0]
    runs[2].train.append({"step": 1, "kind": "train", "skipped": 1.0})
    assert spikes.stability(runs)["rebound"] == pytest.approx(25) and spikes.stability(runs)["skipped"] == 1


def difference(mean, low, high, seeds=3):
    return {"differences": {"tts": {"mean": mean, "low": low, "high": high, "seeds": [mean] * seeds}}}


def test_verdicts_agree_disagree_or_do_not_decide():
    table = {
        "full": {"paper": VARIANTS["full"].paper, "differences": {}},
        "no_swin": {"paper": VARIANTS["no_swin"].paper} | difference(5, 1, 9),  # worse TTS: higher error
        "plain": {"paper": VARIANTS["plain"].paper} | difference(-5, -9, -1),
        "no_perceptual": {"paper": VARIANTS["no_perceptual"].paper} | difference(5, -1, 9),
        "no_reweighting": {"paper": None} | difference(5, 1, 9),
    }
    says = {v["variant"]: (v["paper"], v["here"], v["says"]) for v in verdicts.verdicts(table)}
    assert says == {
        "no_swin": ("worse", "worse", "agrees"),
        "plain": ("worse", "better", "disagrees"),
        "no_perceptual": ("worse", "worse", "not decided"),
    }
    assert verdicts.missing(table) == []
    table["no_swin"] |= difference(5, 1, 9, seeds=1)
    table["plain"]["differences"] = {}
    assert [v["says"] for v in verdicts.verdicts(table)] == ["not decided", "not decided"]
    assert verdicts.missing(table) == ["plain"]


@pytest.mark.parametrize(
    ("full", "plain", "says"),
    [
        ((0, 0, 0), (2, 0, 0), "agrees"),
        ((0, 0, 0), (0, 2, 1), "not decided"),
        ((1, 0, 0), (0, 3, 3), "disagrees"),
        ((0, 0, 0), (0, 0, 0), "not decided"),
        ((1, 0, 1), (5, 5, 5), "not decided"),
    ],
)
def test_the_jump_of_figure_3_is_looked_for_in_both(full, plain, says):
    names = ("jumps", "spikes", "skipped")
    table = {"full": full, "plain": plain}
    table = {name: {"stability": dict(zip(names, counts, strict=True))} for name, counts in table.items()}
    for row, records in zip(table.values(), (9, 0), strict=True):
        row["stability"]["records"] = records
    assert verdicts.jump_verdict(table)["says"] == says and not verdicts.jump_verdict(table)["judged"]
    table["plain"]["stability"]["records"] = 9
    assert verdicts.jump_verdict(table)["judged"]
    assert verdicts.jump_verdict({"full": table["full"]}) is None
