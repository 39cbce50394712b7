"""One run of main_nni.py, from its options to its result: data and network made, trained, and evaluated."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import option
from dataset import Splits, read_splits
from iaa.errors import InputError, PurposeError
from iaa.evaluation import released
from iaa.evaluation.leakage import KnownPhotos
from iaa.networks.purpose import agree, complete_purpose, find_purpose, format_of, recognise
from iaa.photographs import demo
from iaa.photographs.labels import LabelFormat
from iaa.reports.test_report import make_test_report
from iaa.runtime import distributed, process_group
from iaa.runtime.signals import StopSignal
from iaa.searching import nni_trial
from iaa.training import build, checkpoint, engine, run_folder
from iaa.training.steps import Precision
from models import Purpose, Weights, load_weights, read_weights, released_style
from models.backbone import count_outputs, find_weights_file
from models.weights import pick_evaluation_settings
from util import make_loss

log = logging.getLogger("eat")


def run(given: dict) -> dict:
    """Train or evaluate by the options `given`. Returns the last line of output.

    Raises InputError, TrainingError, Interrupted.
    """
    start = time.perf_counter()
    try:
        with process_group.process_group("--resume on all machines goes on"):
            options, weights = gather_options(given)
            result = work(options, weights, build.pick_device(options.gpu_id))
    except BaseException as error:
        if nni_trial.in_search():
            run_folder.write_outcome(nni_trial.pick_folder(given.get("experiment_dir_name")), error)
        raise
    return result | {"seconds": round(time.perf_counter() - start, 1)}


@dataclass
class Job:
    """The parts of a run. precisions: of training, and of test.csv.

    trained_format: the label format that the network was trained for; None if it is that of the labels. is_stated: whether
    the weights or the user state the dataset that the network was trained on.
    """

    options: argparse.Namespace
    label_format: LabelFormat
    splits: Splits
    model: nn.Module
    precisions: tuple[Precision, Precision]
    trained_format: LabelFormat | None
    is_stated: bool
    folder: Path
    stop: StopSignal


def work(options: argparse.Namespace, weights: Weights | None, device: torch.device) -> dict:
    """Make data, network and folder; train, and evaluate. Returns the result."""
    label_format, splits = read_data(options)
    purpose, trained_format, is_stated = pick_purpose(options, weights, label_format)
    network_format = trained_format or label_format
    model = build.make_model(options, weights, purpose, network_format.outputs, device)
    if not options.eval:
        build.note_photographs(model, splits)
    name = f"{options.dataset}-{'eval' if options.eval else options.model.replace('/', '-')}"
    start = options.experiment_dir_name, name, options.resume, options.overwrite
    folder = run_folder.open_folder(*start, keep=weights and weights.path)
    options.experiment_dir_name = str(folder)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    for note in build.network_notes(options, weights):
        log.info("%s", note)
    with (
        StopSignal() as stop,
        run_folder.recorded(folder, options, nni_trial.get_parameters_again()),
        process_group.connection_errors(),
    ):
        if options.calibrate_points and not options.resume:
            build.calibrate(options, splits.train, model, device, folder, stop, network_format)
        if options.compile:
            model.compile()
        precisions = build.pick_precisions(options, device)
        job = Job(options, label_format, splits, model, precisions, trained_format, is_stated, folder, stop)
        data = build.loaders(options, splits, model.img_size, device, stop, network_format)
        if options.eval:
            result = evaluate(job, data["test"])
        else:
            progress = train(job, data)
            result = evaluate(job, data["test"], progress.history)
            result["best_epoch"] = progress.best_epoch
            result["selected_on"] = "test.csv" if options.released_protocol else "validation"
        run_folder.write_outcome(folder, result)
    return result


def gather_options(given: dict) -> tuple[argparse.Namespace, Weights | None]:
    """All options, and the weights to start from: the tuner's options over the `given` ones over a resumed run's.

    Settings of the network that are not given are those that the weights were trained with.
    """
    given = run_folder.resume_options(nni_trial.add_parameters(given))
    options, weights, settings = option.complete(given), None, {}
    if options.path_to_model_weight and not options.resume:
        weights = read_weights(find_weights_file(options.path_to_model_weight))
        KnownPhotos.from_texts(
            weights.photographs, weights.path
        )  # raises if damaged: now, not after the test
    if options.eval and "model" not in given:
        options.model = find_purpose(weights).model or recognise(weights)
    if weights:
        settings = pick_evaluation_settings(weights) if options.eval else weights.purpose.settings
    option.complete_network(options, given, settings)
    return options, weights


def pick_purpose(
    options: argparse.Namespace, weights: Weights | None, label_format: LabelFormat
) -> tuple[Purpose, LabelFormat | None, bool]:
    """What the network of the run is for; `trained_format` and `is_stated` as in `Job`. label_format: of the labels.

    In training a network is for the labels. Raises PurposeError if the weights cannot be evaluated on them.
    """
    labels = Purpose(options.model, options.dataset, label_format.scale, label_format.threshold)
    outputs = count_outputs(weights, options.model) if weights and options.eval else None
    if outputs is None:
        return labels, None, True
    recorded = find_purpose(weights)
    try:
        dataset = agree(weights.path, "dataset", options.trained_on, recorded.dataset)
        stated = Purpose(options.model, dataset).or_else(recorded)
        purpose = complete_purpose(stated, outputs, weights.path, labels)
    except PurposeError as error:
        raise InputError(f"{error}; --trained_on says which dataset the weights are of") from None
    trained_format = format_of(purpose.dataset, outputs, purpose.scale, purpose.threshold)
    is_same = (purpose.dataset, outputs, purpose.scale) == (
        labels.dataset,
        label_format.outputs,
        labels.scale,
    )
    return (labels, None, bool(dataset)) if is_same else (purpose, trained_format, bool(dataset))


def read_data(options: argparse.Namespace) -> tuple[LabelFormat, Splits]:
    """The label format, and the labels of the splits whose pictures are there; builds the demo if it is missing."""
    build_demo = partial(demo.build, options.path_to_save_csv, options.path_to_images)
    if options.dataset == "demo" and distributed.on_rank_zero(build_demo):
        log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    label_format = build.pick_format(options)
    option.complete_loss(options, votes=bool(label_format.vote_columns))
    settings = {name: getattr(options, name) for name in ("skip_missing", "val_share", "seed", "limit")}
    settings |= {"train": not options.eval, "select_on_test": options.released_protocol}
    settings["calibrate"] = bool(options.calibrate_points)
    splits = read_splits(options.path_to_save_csv, options.path_to_images, label_format, **settings)
    for note in splits.notes:
        log.info("%s", note)
    return label_format, splits


def train(job: Job, data: dict[str, DataLoader]) -> checkpoint.Progress:
    """Train, select on the validation set, and put the selected checkpoint into the network."""
    options, model, precision = job.options, job.model, job.precisions[0]
    checkpoints, first = job.folder / "checkpoints", distributed.rank() == 0
    trainer = build.make_trainer(options, model, precision, checkpoints)
    progress = trainer.progress
    with run_folder.open_tensorboard(job.folder, progress) as writer:
        for _ in engine.fit(trainer, data, job.label_format, precision, job.stop, options.select_by):
            if first:
                run_folder.write_epoch(job.folder, writer, progress, options.num_epoch)
                if options.released_protocol and released.keeps(options.dataset, progress.history):
                    name = released.checkpoint_name(options.dataset, progress.history[-1])
                    checkpoint.save(checkpoints / name, released_style(model))
                nni_trial.report_epoch(progress.history[-1], options.search_metric)
    if first:
        reported = progress.history[-1 if options.released_protocol else progress.best_epoch - 1]
        nni_trial.report_end(reported, options.search_metric)
    distributed.on_rank_zero(partial(load_weights, model, checkpoints / "best.pth"))
    distributed.broadcast(model.state_dict().values())
    return progress


def evaluate(job: Job, loader: DataLoader, history: list[dict[str, float]] | None = None) -> dict:
    """Evaluate on test.csv, write and print the report. Returns the result."""
    options, model, label_format, folder = job.options, job.model, job.label_format, job.folder
    precision, criterion = job.precisions[1], make_loss(options.loss)
    evaluation = engine.evaluate(
        model, loader, criterion, label_format, precision, "test", job.stop, job.trained_format
    )
    tested = make_test_report(
        options, job.splits, label_format, model, evaluation, precision, job.trained_format, job.is_stated
    )
    first, page = distributed.rank() == 0, folder / "report.html"
    if first:
        tested.write_predictions(folder / "predictions.csv")
        tested.write_plots(folder / "report.png", history or ())
        if options.save_released_style:
            checkpoint.save(folder / "checkpoints" / "released_style.pth", released_style(model))
    tested.log_figures()
    result = tested.result(folder) | evaluation.points
    if history:
        result["files"] |= {
            "metrics": str(folder / "metrics.csv"),
            "tensorboard": str(folder / "tensorboard"),
        }
    elif options.report_images:
        if first:
            tested.write_page(page, job.stop)
        result["files"]["page"] = str(page)
    return result
