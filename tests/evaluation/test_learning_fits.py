"""The law finds the points that it made, and its ranges cover them as often as they say."""

import numpy as np
import pytest

from ar_omni_jax.evaluation.learning_fits import LAWS, Share, fit_scores


def logistic(x):
    return 1 / (1 + np.exp(-x))


def power(x):
    return 1 - np.exp(-x)


def shares(tokens, level, slope, documents=64, noise=None, back=logistic):
    """Shares of a law at given tokens; with noise, as if so many documents had been judged right or wrong."""
    found = []
    for size in tokens:
        p = back(level + slope * np.log(size / max(tokens)))
        p = noise.binomial(documents, p) / documents if noise is not None else p
        found.append(Share(size, p, np.sqrt(p * (1 - p) / documents), documents))
    return found


@pytest.mark.parametrize("law,level,slope", [("logit", 1.0, 0.8), ("logit", -1.0, 0.5), ("power", 2.0, 0.7)])
def test_exact_points_give_their_law_back(law, level, slope):
    """With many documents, so that half a trial more on both sides is nothing."""
    back = {"logit": logistic, "power": power}[law]
    fit = fit_scores(shares([1e6, 3e6, 9e6], level, slope, documents=1_000_000, back=back), law)
    assert fit.level == pytest.approx(level, abs=1e-3) and fit.slope == pytest.approx(slope, abs=1e-3)
    target = back(level + 0.7)
    point, low, high = fit.reach(target, 100)
    assert point == pytest.approx(9e6 * np.exp(0.7 / slope), rel=1e-2) and low <= point <= high
    assert fit.share(np.array([3e6]))[0, 0] == pytest.approx(back(level - slope * np.log(3)), abs=1e-4)


def test_ranges_hold_the_truth_nearly_always():
    rng, inside, truth = np.random.default_rng(0), 0, 9e6 * np.exp(0.5 / 0.8)
    for n in range(60):
        fit = fit_scores(shares([1e6, 3e6, 9e6], 1.0, 0.8, noise=rng), seed=n)
        _, low, high = fit.reach(logistic(1.5), 1e9)
        inside += low <= truth <= high
    assert inside >= 54


def test_a_flat_curve_never_comes_and_a_far_goal_is_not_claimed():
    flat = fit_scores(shares([1e6, 9e6], 0.0, 0.0, documents=10_000))
    assert flat.reach(0.9, 100)[0] == np.inf and flat.reach(0.9, 100)[2] == np.inf
    slow = fit_scores(shares([1e6, 9e6], 0.0, 0.5, documents=1_000_000))
    assert slow.reach(logistic(4), 100)[0] == np.inf
    assert slow.reach(logistic(4), 1e5)[0] == pytest.approx(9e6 * np.exp(4 / 0.5), rel=0.05)


def test_points_off_the_line_widen_the_range():
    straight, bent = shares([1e6, 3e6, 9e6], 1.0, 0.8), shares([1e6, 3e6, 9e6], 1.0, 0.8)
    bent[1] = Share(3e6, 0.95, 0.02, 64)
    one, other = fit_scores(straight), fit_scores(bent)
    assert one.misfit < 0.5 < 1.5 < other.misfit and other.slopes.std() > 1.5 * one.slopes.std()


def test_two_runs_of_a_size_tell_the_spread_of_seeds():
    rows = [Share(1e6, p, 0.05, 64) for p in (0.3, 0.6)] + [Share(9e6, 0.8, 0.05, 64)]
    odds = [np.log(row.smoothed / (1 - row.smoothed)) for row in rows]
    fit = fit_scores(rows)
    assert fit.seed_spread == pytest.approx(abs(odds[0] - odds[1]) / np.sqrt(2)) and fit.misfit is None
    assert fit_scores([rows[0], rows[2]]).seed_spread is None


def test_nothing_wrong_and_nothing_right_are_finite():
    for law in LAWS:
        fit = fit_scores([Share(1e6, 0.0, 0.0, 64), Share(9e6, 1.0, 0.0, 64)], law)
        assert np.isfinite(fit.slopes).all() and fit.slope > 0


def test_one_size_has_no_law():
    with pytest.raises(ValueError, match="two sizes"):
        fit_scores([Share(1e6, 0.5, 0.1, 64)] * 2)
