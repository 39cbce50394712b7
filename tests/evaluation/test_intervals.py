"""Intervals and tests of metrics: against metrics computed one by one, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from iaa.evaluation import bootstrap
from util import METRICS, ScorePairs, compute_metrics, match_scores


def some_pairs(images, seed=0, ties=False):
    """Ten-level votes and a prediction of them."""
    rng = np.random.default_rng(seed)
    votes = rng.dirichlet(np.full(10, 3.0), images)
    outputs = votes + rng.normal(0, 0.03, votes.shape)
    if ties:  # many equal scores
        votes, outputs = (np.eye(10)[np.argmax(side, 1)] for side in (votes, outputs))
    return match_scores(outputs, votes, 5.0)


@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_has_the_metrics_of_its_images(ties):
    pairs = some_pairs(40, ties=ties)
    values = bootstrap.resample(pairs, 8)
    counts = next(bootstrap._draws(40, 8, 0))
    for number in range(8):
        rows = np.repeat(np.arange(40), counts[:, number].astype(int))
        assert len(rows) == 40
        expected = compute_metrics(pairs.subset(rows))
        for name in set(METRICS) - {"krcc"}:
            assert values[name][number] == pytest.approx(expected[name], abs=1e-10), name
    assert np.isnan(values["krcc"]).all()  # too slow to resample


def test_what_is_not_defined_is_nan():
    single = match_scores(np.array([[0.1], [0.4], [0.3]]), np.array([[0.2], [0.3], [0.6]]), 0.5)
    intervals = bootstrap.intervals(single)
    assert all(math.isnan(limit) for limit in intervals["emd_r1"])
    constant = ScorePairs(np.ones(5), np.arange(5.0), np.ones(5), np.zeros(5), np.zeros(5))
    intervals = bootstrap.intervals(constant)
    assert all(math.isnan(limit) for name in ("srcc", "plcc", "krcc") for limit in intervals[name])
    assert intervals["accuracy"] == (1, 1)


STATISTICS = {
    "srcc": lambda p, t: stats.spearmanr(p, t).statistic,
    "plcc": lambda p, t: stats.pearsonr(p, t).statistic,
    "accuracy": lambda p, t: np.mean((p > 5) == (t > 5)),
    "mae": lambda p, t: np.mean(np.abs(p - t)),
    "rmse": lambda p, t: np.sqrt(np.mean((p - t) ** 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATISTICS)
def test_the_interval_is_scipys(name):
    pairs = some_pairs(60, seed=3)
    low, high = bootstrap.intervals(pairs, 4000)[name]
    theirs = stats.bootstrap(
        (pairs.predicted, pairs.true), STATISTICS[name], paired=True, vectorized=False, n_resamples=2000,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    near = 1.01 / 60 if name == "accuracy" else 0.08 * width  # one image, or the noise of two bootstraps
    assert low == pytest.approx(theirs.confidence_interval.low, abs=near)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=near)


@pytest.mark.slow
def test_intervals_of_95_percent_hold_the_true_value_in_95_percent_of_sets():
    """400 sets of 300 images from a normal distribution of correlation 0.7, whose metrics are known exactly."""
    correlation, spread = 0.7, math.sqrt(2 - 2 * 0.7)
    true_values = {
        "plcc": correlation,
        "srcc": 6 / math.pi * math.asin(correlation / 2),
        "accuracy": 0.5 + math.asin(correlation) / math.pi,
        "mae": spread * math.sqrt(2 / math.pi),
        "rmse": spread,
        "emd_r1": 0.25,
        "emd_r2": 0.5 / math.sqrt(2),
    }
    covered = dict.fromkeys(true_values, 0)
    for number in range(400):
        rng = np.random.default_rng(number)
        p, t = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 300).T
        share = rng.uniform(
            size=300
        )  # of the votes that are one level off: EMDs of share / 2 and share / sqrt(2)
        pairs = ScorePairs(p, t, ((p > 0) == (t > 0)).astype(float), share / 2, share / math.sqrt(2))
        intervals = bootstrap.intervals(pairs, 250, seed=number)
        for name, true_value in true_values.items():
            low, high = intervals[name]
            covered[name] += low <= true_value <= high
    shares = {name: count / 400 for name, count in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_a_p_value_is_the_level_at_which_the_interval_just_holds_zero():
    values = np.arange(-10, 90, dtype=float)  # 11 of 100 at 0 or below
    assert bootstrap.p_value(values) == pytest.approx(2 * 12 / 101)
    assert bootstrap.p_value(-values) == bootstrap.p_value(values)
    assert bootstrap.p_value(np.ones(999)) == pytest.approx(0.002)
    assert bootstrap.p_value(np.zeros(10)) == 1
    assert math.isnan(bootstrap.p_value(np.array([np.nan])))


def test_holm_corrects_step_by_step():
    assert bootstrap.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert bootstrap.holm([0.5, math.nan, 0.9])[::2] == pytest.approx([1, 1])
    assert bootstrap.holm([]) == []
