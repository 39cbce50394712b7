"""The result of a test on test.csv, and the files that it leaves in the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from iaa.evaluation.leakage import KnownPhotos
from iaa.evaluation.published import released_accuracy
from iaa.evaluation.test_metrics import TestMetrics, compute_test_metrics
from iaa.photographs.labels import LabelFormat
from iaa.photographs.splits import Split
from iaa.reports import charts
from iaa.reports.html_page import DEMO, Page, Photo, write_page
from iaa.runtime.files import atomic_write
from iaa.runtime.signals import StopSignal
from iaa.training.engine import Evaluation
from iaa.training.steps import Precision
from option import RELEASED_PROTOCOLS

RELEASED_BATCH = 16  # of the released evaluation
# The curves of report.png: for each panel, by its title, the columns of metrics.csv with their labels.
CURVES = {
    "loss": {"train_loss": "training", "val_loss": "validation"},
    "validation metrics": {"val_srcc": "SRCC", "val_plcc": "PLCC", "val_accuracy": "accuracy"},
}


@dataclass(frozen=True)
class EvaluationSetup:
    """How a network is tested. interest_points, refinement: None for a network without them."""

    dataset: str
    model: str
    weights: str | None  # file of the weights that the run started from
    interest_points: str | None
    refinement: str | None
    batch_size: int
    decoder: str
    precision: Precision
    skipped: int  # photographs of test.csv that are missing
    mirrors: bool = False  # see `graph_forward`
    notes: Sequence[str] = ()  # sentences for the report


@dataclass(frozen=True)
class TestReport:
    """A network's evaluation on test.csv, with its figures.

    label_format: the format of the labels. about: for the run's result, the split, the dataset that the weights were
    trained on, and the thresholds of high scores.
    """

    setup: EvaluationSetup
    label_format: LabelFormat
    evaluation: Evaluation
    test_metrics: TestMetrics
    about: Mapping

    @property
    def title(self) -> str:
        number = len(self.evaluation.names)
        return f"{self.setup.model} on {self.setup.dataset}, test.csv ({number} images)"

    def result(self, folder: Path) -> dict:
        """The run's result, for its last line and run.json. folder: the run's, with its files written."""
        names = {"predictions": "predictions.csv", "report": "report.png", "options": "options.json"}
        files = {name: str(folder / file) for name, file in names.items()}
        files |= {path.stem: str(path) for path in (folder / "checkpoints").glob("*.pt*")}
        named = ("dataset", "model", "interest_points", "refinement")
        return {
            **{name: getattr(self.setup, name) for name in named},
            "split": "test",
            "images": len(self.evaluation.names),
            "loss": self.evaluation.loss,
            **self.evaluation.metrics,
            **self.test_metrics.result,
            **self.about,
            "folder": os.path.abspath(folder),
            "files": files,
        }

    def write_predictions(self, path: Path) -> None:
        """predictions.csv: image, true and predicted score; of votes, also outputs and targets for each level."""
        evaluation, pairs = self.evaluation, self.evaluation.pairs
        table = {
            "image": evaluation.names,
            "true_score": pairs.true,
            "predicted_score": pairs.predicted.astype(np.float32),
        }
        for name, values in (("output", evaluation.outputs), ("target", evaluation.targets)):
            if values.shape[1] > 1:
                table |= {f"{name}{level}": column for level, column in enumerate(values.T, 1)}
        with atomic_write(path) as file:
            pd.DataFrame(table).to_csv(file, index=False)

    def write_plots(self, path: Path, history: Sequence[Mapping[str, float]] = ()) -> None:
        """report.png: predicted against true scores; with `history`, rows of metrics.csv, also the curves of training."""
        panels = 1 + len(CURVES) if history else 1
        figure = Figure(figsize=(5.2 * panels, 4.8), layout="constrained")
        scatter, *axes = figure.subplots(1, panels, squeeze=False)[0]
        true, predicted = self.evaluation.pairs.true, self.evaluation.pairs.predicted
        scatter.scatter(true, predicted, s=10, alpha=min(1.0, max(0.1, 200 / len(true))), linewidths=0)
        limits = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        scatter.plot(limits, limits, color="0.5", linewidth=1, linestyle="--", label="predicted = true")
        shown = [row[:3] for row in self.test_metrics.table if row[0] in ("SRCC", "PLCC", "accuracy")]
        scatter.set_title("\n".join("{} {} ({})".format(*row) for row in shown), fontsize="medium")
        scatter.set(xlabel="true score", ylabel="predicted score")
        scatter.legend(frameon=False)
        table = pd.DataFrame(history)
        for axis, (title, curves) in zip(axes, CURVES.items(), strict=False):
            for column, label in curves.items():
                axis.plot(table["epoch"], table[column], marker="o", markersize=3, label=label)
            axis.set(title=title, xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
        figure.suptitle(self.title)
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format="png", dpi=110)

    def write_page(self, path: Path, images: Path, limit: int, num_workers: int, stop: StopSignal) -> None:
        """report.html: predicted against true, and at most `limit` photographs with their scores and votes.

        images: the folder of the photographs. Scores are on the dataset's own scale, vote distributions beside the true ones.
        Raises Interrupted.
        """
        setup, evaluation = self.setup, self.evaluation
        predicted, true = evaluation.pairs.predicted, evaluation.pairs.true
        low, high = self.label_format.scale
        has_votes = bool(self.label_format.vote_columns)
        if not has_votes:
            predicted, true = low + predicted * (high - low), low + true * (high - low)
        votes_match = has_votes and evaluation.outputs.shape == evaluation.targets.shape
        photos = [
            Photo(
                evaluation.names[row],
                images / evaluation.names[row],
                predicted[row],
                other=true[row],
                votes=evaluation.outputs[row] if votes_match else (),
                other_votes=evaluation.targets[row] if votes_match else (),
            )
            for row in choose_rows(predicted - true, limit)
        ]
        facts = {
            "Weights": setup.weights,
            "Network": setup.model,
            "Dataset": f"{setup.dataset}, scores {low:g} to {high:g}",
            "Trained on": self.about["trained_on"] or "not known",
            "Split": self.about["labels_split"],
            "Interest points": setup.interest_points or "none",
            "Offset refinement": setup.refinement or "none",
            "Batch": f"{setup.batch_size} images",
            "Written": time.strftime("%Y-%m-%d %H:%M"),
        }
        names = ("predicted score", "true score")
        page = Page(
            self.title,
            facts,
            self.label_format.scale,
            notes=[DEMO] if setup.dataset == "demo" else [],
            names=names,
            figures=self.test_metrics.table,
            remarks=self.test_metrics.remarks,
            charts=[
                charts.distribution(dict(zip(names, (predicted, true), strict=True))),
                charts.scatter(predicted, true, names),
            ],
        )
        if len(photos) < len(true):
            shown = f"{len(photos)} of {len(true)} photographs are shown"
            page.notes.append(
                f"{shown}: half of them have the largest errors, the others are a random sample."
            )
        write_page(path, page, photos, num_workers=num_workers, stop=stop)


def choose_rows(errors: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The rows of the photographs on a page of at most `limit`, in order: half of them have the largest errors.

    errors: (N,), predicted minus true. The other half is a random sample of the other rows.
    """
    if len(errors) <= limit:
        return np.arange(len(errors))
    ranked, half = np.argsort(-np.abs(errors), kind="stable"), limit // 2
    sample = np.random.default_rng(seed).choice(np.sort(ranked[half:]), limit - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], sample]))


def make_test_report(
    setup: EvaluationSetup,
    split: Split,
    label_format: LabelFormat,
    model: nn.Module,
    evaluation: Evaluation,
    trained_format: LabelFormat | None,
    is_stated: bool,
) -> TestReport:
    """The figures of an evaluation, with their notes. split: of test.csv. label_format: of the labels.

    trained_format: the label format that the network was trained for; None if it is that of the labels. is_stated: whether
    somebody states the dataset that the network was trained on.
    """
    is_other_dataset, trained_on = trained_format is not None, model.purpose.dataset
    about = {
        "labels_split": split.name,
        "trained_on": trained_on if is_stated else None,
        "thresholds": label_format.thresholds(trained_format),
    }
    notes = [f"split: {split.name} ({split.note})", *setup.notes]
    if is_other_dataset:
        datasets = f"trained on {trained_on}, tested on {setup.dataset}"
        notes.insert(0, f"{datasets}: scores mapped from scale to scale")
    elif label_format.vote_columns:
        released = released_accuracy(evaluation.outputs, evaluation.targets, label_format.threshold)
        about["accuracy_released"], accuracy = released, evaluation.metrics["accuracy"]
        notes.append(f"accuracy by the release's float32 sums: {released:.4f}, ours {accuracy:.4f}")
    if not is_stated:
        notes.append(f"nobody says what the weights were trained on; taken as {trained_on} (--trained_on)")
    test_metrics = compute_test_metrics(
        evaluation.pairs,
        evaluation.metrics,
        evaluation.names,
        setup.dataset,
        KnownPhotos.from_texts(model.photographs, setup.weights or "the network"),
        split=split.name,
        scale=label_format.protocol_scale,
        same_dataset=not is_other_dataset,
        notes=notes,
        departures=[] if is_other_dataset else list_departures(setup, split.departure),
    )
    return TestReport(setup, label_format, evaluation, test_metrics, about)


def list_departures(setup: EvaluationSetup, split: str) -> list[str]:
    """A line for each difference from the published protocol of the dataset; none for a dataset without one.

    split: `iaa.photographs.splits.Split.departure`; empty if there is none.
    """
    if setup.dataset not in RELEASED_PROTOCOLS:
        return []
    points, batch = setup.interest_points, setup.batch_size
    other_batch = points == "batch" and batch != RELEASED_BATCH
    departures = {
        f"batches of {batch}, not of {RELEASED_BATCH}: a score depends on its batch": other_batch,
        f"interest points of {points}, not means over each batch": points not in (None, "batch"),
        f"offset refinement {setup.refinement}, not the released rule": setup.refinement
        not in (None, "released"),
        f"{setup.model}, not eat_base": setup.model != "eat_base",
        f"photographs decoded by {setup.decoder}, not by PIL": setup.decoder != "pil",
        "outputs are means over mirror images (--tta flip)": setup.mirrors,
        "matrix products in half precision": setup.precision.dtype is not None,
        f"{setup.skipped} photographs of test.csv are missing and were skipped": setup.skipped,
        split: split,
    }
    return [f"not the published protocol: {what}" for what, holds in departures.items() if holds]
