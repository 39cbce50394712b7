"""Losses and metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import scipy
import torch
from torch import Tensor

from iaa.loss_terms import parse_loss

METRICS = ("srcc", "plcc", "krcc", "accuracy", "mae", "rmse", "emd_r1", "emd_r2")


def cdf_difference(prediction: Tensor, target: Tensor) -> Tensor:
    """The difference of the cumulative distributions of two vote distributions. All of them are (B, levels)."""
    return prediction.cumsum(-1) - target.cumsum(-1)


def emd_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """EMD as released: one root for the whole batch, so it depends on the batch. (B, levels) each. Returns a scalar."""
    return cdf_difference(prediction, target).square().mean().sqrt()


def image_emd(prediction: Tensor, target: Tensor, r: int) -> Tensor:
    """Each image's EMD, (B,): (mean over levels of |CDF difference|^r)^(1/r). (B, levels) each; r is 1 or 2.

    With r = 2 the root's gradient is finite at a perfect prediction. Source: NIMA, Talebi and Milanfar, 2018.
    """
    difference = cdf_difference(prediction, target)
    if r == 1:
        return difference.abs().mean(-1)
    return difference.square().mean(-1).clamp_min(torch.finfo(difference.dtype).tiny).sqrt()


def nima_loss(prediction: Tensor, target: Tensor, r: int) -> Tensor:
    """The mean of the images' EMDs, a scalar."""
    return image_emd(prediction, target, r).mean()


def scores(outputs: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Scores (N,) of raw outputs, without a softmax, as released.

    outputs: (N, levels), scored by the sum of level times output; or (N, 1), the scores themselves.
    """
    levels = outputs.shape[1]
    if levels == 1:
        return outputs[:, 0]
    if isinstance(outputs, Tensor):
        return outputs @ torch.arange(1, levels + 1, device=outputs.device, dtype=outputs.dtype)
    return outputs @ np.arange(1, levels + 1, dtype=outputs.dtype)


def plcc_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - PLCC of the batch's scores, 0 to 2, a scalar. (B, outputs) each.

    Deviations below 1e-3 count as 1e-3: where all scores are equal, PLCC is 0 instead of nan.
    """
    p, t = (values - values.mean() for values in (scores(prediction), scores(target)))
    least = 1e-3 * len(p) ** 0.5
    return 1 - (p * t).sum() / (p.norm().clamp_min(least) * t.norm().clamp_min(least))


def rank_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """A hinge on the order of every two images by their scores, a scalar. (B, outputs) each.

    It is 0 if the predicted scores of a pair differ in the right direction by the difference of the true scores or more.
    The mean is over all pairs.
    """
    found, wanted = (values[:, None] - values for values in (scores(prediction), scores(target)))
    return (wanted.abs() - wanted.sign() * found).relu().sum() / max(len(found) * (len(found) - 1), 1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "emd": emd_loss,
    "nima_r1": partial(nima_loss, r=1),
    "nima_r2": partial(nima_loss, r=2),
    "mse": torch.nn.functional.mse_loss,
    "plcc": plcc_loss,
    "rank": rank_loss,
}


def make_loss(text: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function of `--loss`: (prediction, target), (B, outputs) each, to a scalar."""
    terms = [(weight, LOSSES[name]) for name, weight in parse_loss(text).items()]
    if [weight for weight, _ in terms] == [1]:
        return terms[0][1]
    return lambda prediction, target: sum(weight * loss(prediction, target) for weight, loss in terms)


@dataclass(frozen=True)
class ScorePairs:
    """Predicted and true scores of each image, on one scale: all that the metrics need. (N,) float64 each.

    agree: 1 if both scores are on the same side of the threshold, else 0; a score at the threshold is low.
    emd_r1, emd_r2: the images' EMDs; nan for single scores.
    """

    predicted: np.ndarray
    true: np.ndarray
    agree: np.ndarray
    emd_r1: np.ndarray
    emd_r2: np.ndarray

    def __len__(self) -> int:
        return len(self.true)

    def subset(self, rows: np.ndarray) -> ScorePairs:
        return ScorePairs(*(getattr(self, field.name)[rows] for field in fields(self)))


def match_scores(
    outputs: np.ndarray, targets: np.ndarray, threshold: float, mos: np.ndarray | None = None
) -> ScorePairs:
    """Match the scores of raw outputs and targets, (N, levels) or (N, 1) each.

    threshold: scores above it are high. mos: (N,), the true scores, if they are known more exactly than from
    `targets`: a mean of exactly 5 is low, and must not become 5.0000002.
    """
    outputs, targets = outputs.astype(np.float64), targets.astype(np.float64)
    predicted, true = scores(outputs), scores(targets) if mos is None else mos
    emds = [np.full(len(true), np.nan)] * 2 if outputs.shape[1] == 1 else image_emds(outputs, targets)
    agree = ((predicted > threshold) == (true > threshold)).astype(np.float64)
    return ScorePairs(predicted, true, agree, *emds)


def image_emds(outputs: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """Each image's EMDs with r = 1 and with r = 2, (N,) each. outputs, targets: (N, levels) float64."""
    return [image_emd(torch.from_numpy(outputs), torch.from_numpy(targets), r).numpy() for r in (1, 2)]


def compute_metrics(pairs: ScorePairs) -> dict[str, float]:
    """Compute all of METRICS. Correlations of constant scores are nan, with a warning; EMDs of single scores are nan."""
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error  # slow to import

    p, t = pairs.predicted, pairs.true
    constant = [name for name, side in (("predicted", p), ("true", t)) if np.ptp(side) == 0]
    if constant:
        warnings.warn(f"all {len(t)} {constant[0]} scores are equal: correlations are nan", stacklevel=2)
    stats = scipy.stats
    correlations = {"srcc": stats.spearmanr, "plcc": stats.pearsonr, "krcc": stats.kendalltau}
    metrics = {name: math.nan if constant else f(p, t).statistic for name, f in correlations.items()}
    metrics |= {"mae": mean_absolute_error(t, p), "rmse": root_mean_squared_error(t, p)}
    metrics |= {"accuracy": pairs.agree.mean(), "emd_r1": pairs.emd_r1.mean(), "emd_r2": pairs.emd_r2.mean()}
    return {name: float(value) for name, value in metrics.items()}
