"""The result of a test on test.csv, and the files that it leaves in the run's folder."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from dataset import Splits
from iaa.evaluation.leakage import KnownPhotos
from iaa.evaluation.test_metrics import TestMetrics, compute_test_metrics, released_accuracy
from iaa.photographs.labels import LabelFormat
from iaa.photographs.splits import recognise_split
from iaa.reports.html_page import DEMO, Page, Photo, write_page
from iaa.runtime.files import atomic_write
from iaa.runtime.signals import StopSignal
from iaa.training.build import pick_decoders
from iaa.training.engine import Evaluation
from iaa.training.steps import Precision
from option import RELEASED_PROTOCOLS

log = logging.getLogger("eat")

RELEASED_BATCH = 16  # of the released evaluation
# The curves of report.png: for each panel, by its title, the columns of metrics.csv with their labels.
CURVES = {
    "loss": {"train_loss": "training", "val_loss": "validation"},
    "validation metrics": {"val_srcc": "SRCC", "val_plcc": "PLCC", "val_accuracy": "accuracy"},
}


@dataclass(frozen=True)
class TestReport:
    """A network's evaluation on test.csv, with its figures.

    options: those of the run. label_format: the format of the labels. about: for the run's result, the split, the dataset
    that the weights were trained on, and the thresholds of high scores.
    """

    options: argparse.Namespace
    label_format: LabelFormat
    evaluation: Evaluation
    test_metrics: TestMetrics
    about: Mapping

    @property
    def title(self) -> str:
        options = self.options
        return f"{options.model} on {options.dataset}, test.csv ({len(self.evaluation.names)} images)"

    def log_figures(self) -> None:
        log.info("%s:\n%s", self.title, "\n".join(self.test_metrics.lines()))

    def result(self, folder: Path) -> dict:
        """The run's result, for its last line and run.json. folder: the run's, with its files written."""
        names = {"predictions": "predictions.csv", "report": "report.png", "options": "options.json"}
        files = {name: str(folder / file) for name, file in names.items()}
        files |= {path.stem: str(path) for path in (folder / "checkpoints").glob("*.pt*")}
        named = ("dataset", "model", "interest_points", "refinement")
        return {
            **{name: getattr(self.options, name) for name in named},
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

    def write_page(self, path: Path, stop: StopSignal) -> None:
        """report.html: predicted against true, and `--report_images` photographs with their scores and votes.

        Scores are on the dataset's own scale, vote distributions beside the true ones. Raises Interrupted.
        """
        options, evaluation, folder = self.options, self.evaluation, Path(self.options.path_to_images)
        predicted, true = evaluation.pairs.predicted, evaluation.pairs.true
        low, high = self.label_format.scale
        has_votes = bool(self.label_format.vote_columns)
        if not has_votes:
            predicted, true = low + predicted * (high - low), low + true * (high - low)
        votes_match = has_votes and evaluation.outputs.shape == evaluation.targets.shape
        photos = [
            Photo(
                evaluation.names[row],
                folder / evaluation.names[row],
                predicted[row],
                true=true[row],
                votes=evaluation.outputs[row] if votes_match else (),
                other_votes=evaluation.targets[row] if votes_match else (),
            )
            for row in choose(predicted - true, options.report_images)
        ]
        facts = {
            "Weights": options.path_to_model_weight,
            "Network": options.model,
            "Dataset": f"{options.dataset}, scores {low:g} to {high:g}",
            "Trained on": self.about["trained_on"] or "not known",
            "Split": self.about["labels_split"],
            "Interest points": options.interest_points,
            "Offset refinement": options.refinement,
            "Batch": f"{options.eval_batch_size} images",
            "Written": time.strftime("%Y-%m-%d %H:%M"),
        }
        page = Page(
            self.title,
            facts,
            self.label_format.scale,
            notes=[DEMO] if options.dataset == "demo" else [],
            figures=self.test_metrics.table,
            remarks=self.test_metrics.remarks,
            all_scores=predicted,
            all_true=true,
        )
        write_page(path, page, photos, num_workers=options.num_workers, stop=stop)


def choose(errors: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The rows, in order, of the photographs that a page of at most `limit` shows.

    errors: (N,), predicted minus true. Half of the page shows the largest errors, the rest a sample of the others.
    """
    if len(errors) <= limit:
        return np.arange(len(errors))
    ranked, half = np.argsort(-np.abs(errors), kind="stable"), limit // 2
    sample = np.random.default_rng(seed).choice(np.sort(ranked[half:]), limit - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], sample]))


def make_test_report(
    options: argparse.Namespace,
    splits: Splits,
    label_format: LabelFormat,
    model: nn.Module,
    evaluation: Evaluation,
    precision: Precision,
    trained_format: LabelFormat | None,
    is_stated: bool,
) -> TestReport:
    """The figures of an evaluation, with their notes. label_format: of the labels.

    trained_format: the label format that the network was trained for; None if it is that of the labels. is_stated: whether
    somebody states the dataset that the network was trained on.
    """
    is_other_dataset, trained_on = trained_format is not None, model.purpose.dataset
    names = [str(name) for name in evaluation.names]
    split = recognise_split(options.dataset, options.path_to_save_csv, names)
    about = {
        "labels_split": split.name,
        "trained_on": trained_on if is_stated else None,
        "thresholds": label_format.thresholds(trained_format),
    }
    notes = [f"split: {split.name} ({split.note})"]
    if is_other_dataset:
        datasets = f"trained on {trained_on}, tested on {options.dataset}"
        notes.insert(0, f"{datasets}: scores mapped from scale to scale")
    elif label_format.vote_columns:
        released = released_accuracy(evaluation.outputs, evaluation.targets, label_format.threshold)
        about["accuracy_released"], accuracy = released, evaluation.metrics["accuracy"]
        notes.append(f"accuracy by the release's float32 sums: {released:.4f}, ours {accuracy:.4f}")
    if not is_stated:
        notes.append(f"nobody says what the weights were trained on; taken as {trained_on} (--trained_on)")
    departures = list_departures(options, precision, splits.skipped_test_rows, split.departure)
    test_metrics = compute_test_metrics(
        evaluation.pairs,
        names,
        options.dataset,
        metrics=evaluation.metrics,
        memory=KnownPhotos.from_texts(model.photographs, options.path_to_model_weight or "the network"),
        # Two datasets called `csv` may have nothing in common.
        same_dataset=not is_other_dataset and options.dataset != "csv",
        notes=notes,
        departures=[] if is_other_dataset else departures,
    )
    return TestReport(options, label_format, evaluation, test_metrics, about)


def list_departures(options: argparse.Namespace, precision: Precision, skipped: int, split: str) -> list[str]:
    """A line for each difference from the published protocol of `--dataset`; none for a dataset without one.

    skipped: number of missing photographs of test.csv. split: `iaa.photographs.splits.Split.departure`; empty if there is none.
    """
    if options.dataset not in RELEASED_PROTOCOLS:
        return []
    points, refinement = options.interest_points, options.refinement
    batch, decoder = options.eval_batch_size, pick_decoders(options.decode, options.released_protocol)[1]
    other_batch = points == "batch" and batch != RELEASED_BATCH
    departures = {
        f"batches of {batch}, not of {RELEASED_BATCH}: a score depends on its batch": other_batch,
        f"interest points of {points}, not means over each batch": points not in (None, "batch"),
        f"offset refinement {refinement}, not the released rule": refinement not in (None, "released"),
        f"{options.model}, not eat_base": options.model != "eat_base",
        f"photographs decoded by {decoder}, not by PIL": decoder != "pil",
        "matrix products in half precision": precision.dtype is not None,
        f"{skipped} photographs of test.csv are missing and were skipped": skipped,
        split: split,
    }
    return [f"not the published protocol: {what}" for what, holds in departures.items() if holds]
