"""Losses and metrics, against values worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from iaa.runtime.files import atomic_write, to_json
from util import METRICS, compute_metrics, emd_loss, make_loss, match_scores, nima_loss, scores

PREDICTED = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
TRUE = torch.tensor([[0.0, 1.0], [0.5, 0.5]])


def test_released_emd_has_one_root_for_the_batch():
    # CDF differences: 1, 0 and 0, 0. Mean of squares 1/4, root 1/2.
    assert emd_loss(PREDICTED, TRUE).item() == pytest.approx(0.5)


def test_nima_emd_is_the_mean_over_images():
    # r = 2: roots of 1/2 and 0; r = 1: means 1/2 and 0.
    assert nima_loss(PREDICTED, TRUE, 2).item() == pytest.approx(math.sqrt(0.5) / 2)
    assert nima_loss(PREDICTED, TRUE, 1).item() == pytest.approx(0.25)


def test_nima_emd_has_a_finite_gradient_at_a_perfect_prediction():
    prediction = TRUE.clone().requires_grad_()
    nima_loss(prediction, TRUE, 2).backward()
    assert prediction.grad.isfinite().all()


def test_losses_by_name():
    assert make_loss("emd")(PREDICTED, TRUE).item() == pytest.approx(0.5)
    assert make_loss("nima_r1")(PREDICTED, TRUE).item() == pytest.approx(0.25)
    assert make_loss("nima_r2")(PREDICTED, TRUE).item() == pytest.approx(math.sqrt(0.5) / 2)
    assert make_loss("mse")(PREDICTED, TRUE).item() == pytest.approx(0.5)


def test_score_is_the_raw_sum_of_level_times_output():
    assert scores(np.array([[0.5, 0.0, 2.0]])).tolist() == [6.5]
    assert scores(np.array([[0.3], [0.7]])).tolist() == [0.3, 0.7]


def test_metrics_of_scores():
    predicted, true = np.array([[0.1], [0.4], [0.3], [0.9]]), np.array([[0.2], [0.3], [0.6], [0.8]])
    metrics = compute_metrics(match_scores(predicted, true, 0.5))
    assert set(metrics) == set(METRICS)
    assert metrics["srcc"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # ranks 1 3 2 4 against 1 2 3 4
    assert metrics["krcc"] == pytest.approx((5 - 1) / 6)
    assert metrics["plcc"] == pytest.approx(np.corrcoef(predicted[:, 0], true[:, 0])[0, 1])
    assert metrics["accuracy"] == 0.75
    assert metrics["mae"] == pytest.approx((0.1 + 0.1 + 0.3 + 0.1) / 4)
    assert metrics["rmse"] == pytest.approx(math.sqrt((0.01 + 0.01 + 0.09 + 0.01) / 4))
    assert math.isnan(metrics["emd_r2"])


def test_metrics_of_distributions():
    metrics = compute_metrics(match_scores(PREDICTED.numpy(), TRUE.numpy(), 1.5))
    assert metrics["emd_r1"] == pytest.approx(0.25)
    assert metrics["emd_r2"] == pytest.approx(math.sqrt(0.5) / 2)


def test_a_score_at_the_threshold_is_low():
    predicted, true = np.array([[0.5], [0.5], [0.4]]), np.array([[0.5], [0.6], [0.6]])
    assert compute_metrics(match_scores(predicted, true, 0.5))["accuracy"] == pytest.approx(1 / 3)


def test_constant_predictions_warn_and_are_nan():
    with pytest.warns(UserWarning, match="all 3 predicted scores are equal") as warned:
        metrics = compute_metrics(match_scores(np.ones((3, 1)), np.array([[0.1], [0.2], [0.3]]), 0.5))
    assert len(warned) == 1
    assert all(math.isnan(metrics[name]) for name in ("srcc", "plcc", "krcc"))
    assert metrics["mae"] == pytest.approx(0.8)


def test_json_is_strict():
    text = to_json({"a": math.nan, "b": [math.inf, 1.0], "c": {"d": None}})
    assert json.loads(text) == {"a": None, "b": [None, 1.0], "c": {"d": None}}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("before")

    def write_half():
        with atomic_write(target) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
