"""What a run leaves behind: its folder, tables, curves and report."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from engine import Evaluation
from evaluation.figures import Figures
from interrupt import Watch
from labels import Format
from option import InputError
from prediction.report import DEMO, Page, Photo, choose, write_report
from util import atomic_write, started, write_json

# Every file that a run writes, relative to its folder.
_FILES = (
    "options.json",
    "run.json",
    "metrics.csv",
    "predictions.csv",
    "report.png",
    "report.html",
    "checkpoints/best.pth",
    "checkpoints/best.pth.new",
    "checkpoints/previous_best.pth",
    "checkpoints/last.pt",
    "checkpoints/last.pt.new",
    "checkpoints/.*.tmp",
    "checkpoints/previous.pt",
    "checkpoints/bad_steps.json",
    "checkpoints/calibrated.pth",
    "checkpoints/released_style.pth",
    "checkpoints/*_AOT_vacc_*.pth",
    "tensorboard/events.out.tfevents*",
)
_PREVIOUS = ".previous_run"  # the run that a new one is about to replace
_MOVING = ".previous_run.moving"  # the same on its way: what is not in here is still, or again, in the folder


def begin(folder: Path, parameters: dict) -> None:
    """Write run.json, what becomes of the run. parameters: those that a search has chosen."""
    content = {"status": "running", "reason": None, "started": _now(), "ended": None}
    content |= {"pid": os.getpid(), "pid_started": started(os.getpid())}
    write_json(folder / "run.json", content | {"host": socket.gethostname(), "parameters": parameters})


def end(folder: Path, status: str, reason: str | None = None, result: dict | None = None) -> None:
    """Note in run.json how the run ended: `done`, `stopped` or `failed`, and why; or its result."""
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"started": _now(), "parameters": {}}
    content |= {"status": status, "reason": reason, "ended": _now(), "result": result}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def new_folder(parent: Path, name: str) -> Path:
    """Make a new folder in `parent`, named after `name` and the time."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def prepare_folder(folder: Path, overwrite: bool, keep: Path | None = None) -> None:
    """Make `folder` ready for a new run. keep: a file that must not be overwritten with it.

    Raises InputError where a run is there already, unless `overwrite`, which sets that run's files aside until
    `drop_previous` or `restore_previous`; other files in the folder are left alone.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: --experiment_dir_name is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another folder") from None
    if not _run_files(folder) and not (folder / _MOVING).exists():
        return
    if not overwrite:
        raise InputError(
            f"{folder}: holds a run; give --resume, --overwrite or another --experiment_dir_name"
        )
    if keep is not None and folder.resolve() in keep.resolve().parents:
        raise InputError(f"{keep}: lies in the run that --overwrite would replace; use another folder")
    if (folder / _PREVIOUS).exists():  # of a run that was killed before its first epoch
        remove_run(folder)
    else:
        _move_run(folder, folder / _MOVING)
        os.replace(folder / _MOVING, folder / _PREVIOUS)


def drop_previous(folder: Path) -> None:
    """The new run has results: remove the one that it replaces."""
    remove_run(folder / _PREVIOUS)


def restore_previous(folder: Path) -> bool:
    """The new run failed before it had results: put back the one that it would have replaced. False: there is none."""
    if not (folder / _PREVIOUS).exists():
        return False
    remove_run(folder)
    os.replace(folder / _PREVIOUS, folder / _MOVING)
    _move_run(folder / _MOVING, folder)
    return True


def _run_files(folder: Path) -> list[Path]:
    return [path for pattern in _FILES for path in folder.glob(pattern)]


def _move_run(source: Path, target: Path) -> None:
    for path in _run_files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    remove_run(source)


def remove_run(folder: Path) -> None:
    """Remove a run's files, and its folder if nothing else is in it."""
    for path in _run_files(folder):
        path.unlink()
    for name in ("checkpoints", "tensorboard", ""):
        with suppress(OSError):  # not there, or not empty: somebody else's files
            (folder / name).rmdir()


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """metrics.csv: a row per epoch."""
    with atomic_write(path) as file:
        pd.DataFrame(history).to_csv(file, index=False)


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """predictions.csv: image, true and predicted score; of votes, also the outputs and targets level by level."""
    pairs = evaluation.pairs
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


class Curves:
    """TensorBoard's files: losses, learning rate and metrics by epoch."""

    def __init__(self, folder: Path, from_epoch: int = 0):
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_epoch + 1)

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "seconds") and math.isfinite(value):
                self.writer.add_scalar(name.replace("val_", "val/", 1), value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def draw_report(
    path: Path, title: str, evaluation: Evaluation, figures: Figures, history: list[dict[str, float]]
) -> None:
    """report.png: predicted against true scores; with a history the curves of training too."""
    panels = 3 if history else 1
    figure = Figure(figsize=(5.2 * panels, 4.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    true, predicted = evaluation.pairs.true, evaluation.pairs.predicted
    axes[0].scatter(true, predicted, s=10, alpha=min(1.0, max(0.1, 200 / len(true))), linewidths=0)
    both = np.concatenate([true, predicted])
    limits = [both.min(), both.max()]
    axes[0].plot(limits, limits, color="0.5", linewidth=1, linestyle="--", label="predicted = true")
    rows = {row[0]: row for row in figures.rows()}
    shown = [f"{name} {rows[name][1]} ({rows[name][2]})" for name in ("SRCC", "PLCC", "accuracy")]
    axes[0].set_title("\n".join(shown), fontsize="medium")
    axes[0].set(
        xlabel="true score",
        ylabel="predicted score",
    )
    axes[0].legend(frameon=False)
    if history:
        table = pd.DataFrame(history)
        curves = [("train_loss", "training"), ("val_loss", "validation")]
        _draw_curves(axes[1], table, curves, "loss")
        curves = [("val_srcc", "SRCC"), ("val_plcc", "PLCC"), ("val_accuracy", "accuracy")]
        _draw_curves(axes[2], table, curves, "validation metrics")
    figure.suptitle(title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_curves(axis, table: pd.DataFrame, curves: list[tuple[str, str]], title: str) -> None:
    for column, label in curves:
        axis.plot(table["epoch"], table[column], marker="o", markersize=3, label=label)
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def write_page(
    path: Path,
    title: str,
    options,
    form: Format,
    evaluation: Evaluation,
    figures: Figures,
    facts: dict[str, str],
    watch: Watch,
) -> None:
    """report.html: predicted against true, and `--report_images` photographs with their scores and votes.

    options: those of the run. facts: more of what was used. Scores are on the dataset's own scale, vote distributions
    beside the true ones.
    """
    predicted, true = evaluation.pairs.predicted, evaluation.pairs.true
    low, high = form.scale
    if not form.vote_columns:
        predicted, true = low + predicted * (high - low), low + true * (high - low)
    folder = Path(options.path_to_images)
    votes = bool(form.vote_columns) and evaluation.outputs.shape == evaluation.targets.shape
    photos = [
        Photo(
            evaluation.names[row],
            folder / evaluation.names[row],
            predicted[row],
            votes=evaluation.outputs[row] if votes else (),
            true=true[row],
            other_votes=evaluation.targets[row] if votes else (),
        )
        for row in choose(predicted, options.report_images, predicted - true)
    ]
    facts = {
        "Weights": options.path_to_model_weight,
        "Network": options.model,
        "Dataset": f"{options.dataset}, scores {low:g} to {high:g}",
        **facts,
        "Interest points": options.interest_points,
        "Offset refinement": options.refinement,
        "Batch": f"{options.eval_batch_size} images",
        "Written": time.strftime("%Y-%m-%d %H:%M"),
    }
    page = Page(
        title,
        facts,
        form.scale,
        [DEMO] if options.dataset == "demo" else [],
        figures=figures.rows(),
        remarks=figures.remarks(),
        all_scores=predicted,
        all_true=true,
    )
    write_report(path, page, photos, num_workers=options.num_workers, watch=watch)
