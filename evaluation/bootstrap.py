"""How sure a figure is: bootstrap intervals over images, paired differences of two networks, and their tests.

Intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): images are
drawn with replacement, each metric is computed anew, and the interval holds the middle 95 % of its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy

from util import METRICS, Pairs

LEVEL = 0.95
RESAMPLES = 10_000
KRCC_RESAMPLES = 1_000  # of more than KRCC_ALL_UP_TO images: every pair of images counts in it
KRCC_ALL_UP_TO = 2_000
BLOCK = 512  # images whose pairs are looked at together
CHUNK = 2**20  # counts at once, so that they stay in the processor's cache


def resample(pairs: Pairs, resamples: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """The metrics of METRICS in each of `resamples` sets of images drawn with replacement, by name (resamples,).

    resamples: default RESAMPLES; for KRCC see `krcc_resamples`. Two sets of Pairs of the same length are drawn alike
    under one seed, so their values may be subtracted. nan where a metric is not defined.
    """
    resamples, images = resamples or RESAMPLES, len(pairs)
    columns, ties = _columns(pairs), [_ties(pairs.predicted), _ties(pairs.true)]
    draws = _draws(images, resamples, seed)
    parts = [_of_means(columns @ counts / images) | {"srcc": _srcc(ties, counts)} for counts in draws]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    draws = _draws(images, krcc_resamples(images, resamples), seed, KRCC_RESAMPLES)
    values["krcc"] = np.concatenate([_krcc(pairs, ties, counts) for counts in draws])
    return {name: values[name] for name in METRICS}


def krcc_resamples(images: int, resamples: int | None = None) -> int:
    """How many resamples KRCC's interval comes from."""
    resamples = resamples or RESAMPLES
    return resamples if images <= KRCC_ALL_UP_TO else min(resamples, KRCC_RESAMPLES)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values (R,); nan where no resample has a value."""
    known = values[np.isfinite(values)]
    return (
        tuple(np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())
        if len(known)
        else (np.nan, np.nan)
    )


def intervals(pairs: Pairs, resamples: int | None = None, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The interval of each of METRICS, by name."""
    return {name: interval(values) for name, values in resample(pairs, resamples, seed).items()}


def p_value(differences: np.ndarray) -> float:
    """Two-sided, that a difference is 0, from its resampled values (R,); nan without any.

    The level at which the percentile interval just holds 0; one is added to the count, as it is never exactly 0.
    """
    known = differences[np.isfinite(differences)]
    if not len(known):
        return np.nan
    less = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (less + 1) / (len(known) + 1)))


def williams(first: float, second: float, between: float, images: int) -> float:
    """Two-sided p-value of Williams' test that two PLCCs with the same true scores are equal.

    first, second: each prediction's PLCC with the true scores; between: that of the predictions with each other.
    Source: Williams, 1959, as recommended by Steiger, Psychological Bulletin 87, 1980, equation 7.
    """
    if images < 4 or not np.isfinite([first, second, between]).all():
        return np.nan
    if first == second or between >= 1:
        return 1.0
    determinant = 1 - first**2 - second**2 - between**2 + 2 * first * second * between
    mean = (first + second) / 2
    spread = 2 * (images - 1) / (images - 3) * determinant + mean**2 * (1 - between) ** 3
    t = (first - second) * np.sqrt((images - 1) * (1 + between) / spread)
    return float(2 * scipy.stats.t.sf(abs(t), images - 3))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in their order. nan stays, and counts for nothing. Source: Holm, 1979."""
    p = np.array(p_values, np.float64)
    order = np.argsort(p, kind="stable")  # nan last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return p.tolist()


def _draws(images: int, resamples: int, seed: int, chunk: int | None = None) -> Iterator[np.ndarray]:
    """How often each image is in each resample: (images, `chunk` resamples) at a time, float64.

    The first resamples are the same for every chunk.
    """
    rng, chunk = np.random.default_rng(seed), chunk or max(16, CHUNK // images)
    for start in range(0, resamples, chunk):
        width = min(chunk, resamples - start)
        drawn = rng.integers(0, images, (width, images), dtype=np.int32).astype(np.int64)
        places = drawn * width + np.arange(width)[:, None]
        yield np.bincount(places.ravel(), minlength=images * width).reshape(images, width).astype(np.float64)


def _columns(pairs: Pairs) -> np.ndarray:
    """(10, N): those whose means over images `_of_means` makes metrics of."""
    p, t = pairs.predicted - pairs.predicted.mean(), pairs.true - pairs.true.mean()
    error = pairs.predicted - pairs.true
    errors = (np.abs(error), error * error, pairs.emd_r1, pairs.emd_r2)
    return np.stack([p, t, p * p, t * t, p * t, pairs.agree, *errors])


def _of_means(means: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics, (R,) each, that follow from means (10, R) over images."""
    p, t, pp, tt, pt, agree, absolute, squared, emd_r1, emd_r2 = means
    plcc = _ratio(pt - p * t, np.sqrt(_positive(pp - p * p) * _positive(tt - t * t)))
    errors = {"mae": absolute, "rmse": np.sqrt(squared), "emd_r1": emd_r1, "emd_r2": emd_r2}
    return {"plcc": plcc, "accuracy": agree} | errors


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each value's group of equal ones (N,), the order of the values (N,), and where in it each group begins."""
    group = np.unique(values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return group, order, np.flatnonzero(np.diff(group[order], prepend=-1))


def _srcc(ties: Sequence[tuple], counts: np.ndarray) -> np.ndarray:
    """Of resamples (N, R) -> (R,): the correlation of mean ranks, which are cumulated counts; ties share theirs."""
    ranks, squares = [], []
    for group, order, starts in ties:
        size = np.add.reduceat(counts[order], starts)
        mean_rank = size.cumsum(0) - (size - 1) / 2 - (len(counts) + 1) / 2
        squares.append((size * mean_rank**2).sum(0))
        ranks.append(mean_rank[group])
    return _ratio(np.einsum("nr,nr,nr->r", counts, *ranks), np.sqrt(squares[0] * squares[1]))


def _krcc(pairs: Pairs, ties: Sequence[tuple], counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of resamples (N, R) -> (R,): concordant less discordant pairs, over those that are not tied."""
    images, small = len(counts), counts.astype(np.float32)  # sums of counts stay below 2^24: exact
    difference = np.zeros(counts.shape[1])
    for start in range(0, images, BLOCK):
        rows = slice(start, start + BLOCK)
        signs = (np.sign(side[rows, None] - side[None, start:]) for side in (pairs.predicted, pairs.true))
        sign = np.multiply(*signs).astype(np.float32)
        sign[:, : len(sign)] /= 2  # pairs within the block stand there twice
        difference += np.einsum("nr,nr->r", sign @ small[start:], counts[rows])
    sizes = [np.add.reduceat(counts[order], starts) for _, order, starts in ties]
    untied = [(images**2 - (size**2).sum(0)) / 2 for size in sizes]
    return _ratio(difference, np.sqrt(untied[0] * untied[1]))


def _positive(variance: np.ndarray) -> np.ndarray:
    """A variance that rounding made of equal values is none."""
    return np.where(variance > 1e-14 * np.abs(variance).max(initial=0), variance, 0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """nan where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
