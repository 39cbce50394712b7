"""Losses and metrics, against values worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from iaa.errors import InputError
from iaa.loss_terms import NAMES, OF_BATCHES, parse_loss
from iaa.runtime.files import atomic_write, to_json
from util import LOSSES, METRICS, compute_metrics, emd_loss, make_loss, match_scores, nima_loss, scores

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


def test_every_loss_that_has_a_name_can_be_made():
    assert tuple(LOSSES) == NAMES


@pytest.mark.parametrize("levels", [1, 10])
def test_plcc_loss_is_one_minus_the_correlation_of_the_scores(levels):
    prediction, target = torch.rand(2, 7, levels)
    plcc = np.corrcoef(scores(prediction.numpy()), scores(target.numpy()))[0, 1]
    assert make_loss("plcc")(prediction, target).item() == pytest.approx(1 - plcc, abs=1e-5)
    assert make_loss("plcc")(target * 3 - 1, target).item() == pytest.approx(0, abs=1e-5)


def test_rank_loss_is_a_hinge_on_the_differences_of_pairs():
    target = torch.tensor([[0.1], [0.3], [0.3]])
    # Pairs: 0.2 apart, predicted 0.05 apart; 0.2 apart the wrong way round by 0.1; a tie, which has no order.
    prediction = torch.tensor([[0.4], [0.45], [0.3]])
    assert make_loss("rank")(prediction, target).item() == pytest.approx((0.15 + 0.3 + 0) / 3)
    assert make_loss("rank")(target * 2 + 5, target).item() == 0
    votes, true_votes = torch.eye(3)[[0, 1, 2]], torch.eye(3)[[0, 2, 1]]
    assert make_loss("rank")(votes, true_votes).item() == pytest.approx((1 + 0 + 2) / 3)


@pytest.mark.parametrize("text", [*OF_BATCHES, "mse+0.5*plcc+2*rank"])
@pytest.mark.parametrize("levels", [1, 5])
def test_gradients_of_losses_over_the_batch(text, levels):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 6, levels, dtype=torch.float64, generator=generator)
    torch.autograd.gradcheck(make_loss(text), (prediction.requires_grad_(), target))


@pytest.mark.parametrize("text", OF_BATCHES)
@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("constant", ["prediction", "target"])
def test_a_batch_of_equal_scores_has_a_small_finite_gradient(text, images, constant):
    values = {"prediction": torch.rand(images, 10), "target": torch.rand(images, 10)}
    values[constant] = values[constant][:1].repeat(images, 1) + torch.rand(images, 1) * 1e-7
    values["prediction"].requires_grad_()
    make_loss(text)(**values).backward()
    assert values["prediction"].grad.isfinite().all()
    assert values["prediction"].grad.abs().max() < 1e4


def test_a_sum_weighs_its_losses():
    prediction, target = torch.rand(2, 5, 10)
    found = make_loss("emd+0.5*plcc+2*rank")(prediction, target)
    terms = [make_loss(name)(prediction, target) for name in ("emd", "plcc", "rank")]
    assert found.item() == pytest.approx(terms[0] + 0.5 * terms[1] + 2 * terms[2])
    assert make_loss("emd") is emd_loss


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("l1", "choose from emd, nima_r1, nima_r2, mse, plcc, rank, auto, or a sum as mse+0.5*plcc"),
        ("mse+0.5*plc", "did you mean plcc?"),
        ("mse+auto", "choose from"),
        ("mse+", "choose from"),
        ("mse+0*plcc", "the weight of plcc must be a number greater than 0, not 0"),
        ("mse+-1*plcc", "must be a number greater than 0, not -1"),
        ("mse+inf*plcc", "must be a number greater than 0, not inf"),
        ("half*mse", "must be a number greater than 0, not half"),
        ("mse+mse", "mse is in it twice; give its weight, as 2*mse"),
    ],
)
def test_a_loss_that_cannot_be_read_is_told(text, problem):
    with pytest.raises(InputError) as error:
        parse_loss(text)
    assert problem in str(error.value)


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
