"""Bootstrap intervals of metrics, p-values of differences, and their correction.

Intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): images are
drawn with replacement, each metric is computed again, and the interval holds the middle 95 % of its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from util import METRICS, ScorePairs

LEVEL = 0.95
RESAMPLES = 2_000
CHUNK = 2**20  # counts at a time; they fit in the processor's cache


def resample(pairs: ScorePairs, resamples: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Each of METRICS, (resamples,), in sets of images that are drawn with replacement.

    resamples: default RESAMPLES. The images that are drawn depend on the seed and the number of images only, so values
    of two networks may be subtracted. nan where a metric is undefined, and for KRCC, which is too slow to resample: it
    depends on every pair of images.
    """
    resamples, images = resamples or RESAMPLES, len(pairs)
    columns, ties = _columns(pairs), [_ties(pairs.predicted), _ties(pairs.true)]
    draws = _draws(images, resamples, seed)
    parts = [_metrics_of_means(columns @ counts / images) | {"srcc": _srcc(ties, counts)} for counts in draws]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values["krcc"] = np.full(resamples, np.nan)
    return {name: values[name] for name in METRICS}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values (R,), without nan. All nan give (nan, nan)."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    return tuple(np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())


def intervals(
    pairs: ScorePairs, resamples: int | None = None, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The interval of each of METRICS."""
    return {name: interval(values) for name, values in resample(pairs, resamples, seed).items()}


def p_value(differences: np.ndarray) -> float:
    """The two-sided p-value of a difference from its resampled values (R,), without nan. All nan give nan.

    It is the level at which the percentile interval just contains 0. One is added to the counts: p is never 0.
    """
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return np.nan
    less = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (less + 1) / (len(differences) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values, in their order. nan stays nan and is not counted. Source: Holm, 1979."""
    p = np.array(p_values, np.float64)
    order = np.argsort(p, kind="stable")  # nan last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return p.tolist()


def _draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample: blocks (images, resamples of the block), float64."""
    rng, chunk = np.random.default_rng(seed), max(16, CHUNK // images)
    for start in range(0, resamples, chunk):
        width = min(chunk, resamples - start)
        drawn = rng.integers(0, images, (width, images), dtype=np.int32).astype(np.int64)
        cells = drawn * width + np.arange(width)[:, None]
        yield np.bincount(cells.ravel(), minlength=images * width).reshape(images, width).astype(np.float64)


def _columns(pairs: ScorePairs) -> np.ndarray:
    """(10, N): values whose means over images `_metrics_of_means` turns into metrics."""
    p, t = pairs.predicted - pairs.predicted.mean(), pairs.true - pairs.true.mean()
    error = pairs.predicted - pairs.true
    errors = (np.abs(error), error * error, pairs.emd_r1, pairs.emd_r2)
    return np.stack([p, t, p * p, t * t, p * t, pairs.agree, *errors])


def _metrics_of_means(means: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics, (R,) each, from the means (10, R) of `_columns` over images."""
    p, t, pp, tt, pt, agree, absolute, squared, emd_r1, emd_r2 = means
    plcc = _ratio(pt - p * t, np.sqrt(_positive(pp - p * p) * _positive(tt - t * t)))
    errors = {"mae": absolute, "rmse": np.sqrt(squared), "emd_r1": emd_r1, "emd_r2": emd_r2}
    return {"plcc": plcc, "accuracy": agree} | errors


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of each value's tie group (N,), the order of the values (N,), and the starts of the groups in it."""
    group = np.unique(values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return group, order, np.flatnonzero(np.diff(group[order], prepend=-1))


def _srcc(ties: Sequence[tuple], counts: np.ndarray) -> np.ndarray:
    """SRCC (R,) of resamples with counts (N, R): the correlation of mean ranks. Ranks are cumulated counts."""
    ranks, squares = [], []
    for group, order, starts in ties:
        size = np.add.reduceat(counts[order], starts)
        mean_rank = size.cumsum(0) - (size - 1) / 2 - (len(counts) + 1) / 2
        squares.append((size * mean_rank**2).sum(0))
        ranks.append(mean_rank[group])
    return _ratio(np.einsum("nr,nr,nr->r", counts, *ranks), np.sqrt(squares[0] * squares[1]))


def _positive(variance: np.ndarray) -> np.ndarray:
    """Variances, with 0 for what rounding leaves of equal values."""
    return np.where(variance > 1e-14 * np.abs(variance).max(initial=0), variance, 0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotients, (R,); nan where the divisor is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
