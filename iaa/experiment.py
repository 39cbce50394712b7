"""One run of main_nni.py, from its options to its result: data and network made, trained, and evaluated."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import option
from dataset import Splits, read_splits
from iaa.errors import InputError, Interrupted, PurposeError
from iaa.evaluation import published
from iaa.evaluation.leakage import KnownPhotos
from iaa.networks.purpose import agree, complete_purpose, find_purpose, format_of, recognise
from iaa.photographs import demo
from iaa.photographs.labels import LabelFormat
from iaa.photographs.splits import recognise_split, recorded_scale
from iaa.reports.test_report import EvaluationSetup, TestReport, make_test_report
from iaa.runtime import distributed
from iaa.runtime.signals import StopSignal
from iaa.searching import nni_trial
from iaa.training import build, checkpoint, engine, run_folder
from iaa.training.features import Head
from iaa.training.steps import Precision
from models import Purpose, Weights, load_weights, read_weights, released_style
from models.backbone import count_outputs
from models.weights import pick_evaluation_settings
from util import make_loss

log = logging.getLogger("eat")

TRIALS_WAIT = 600  # seconds: a search may start a trial again before its old process counts as dead


def run(user_options: dict) -> dict:
    """Train or evaluate by the user's options. Returns the last line of output.

    Raises InputError, TrainingError, Interrupted.
    """
    start = time.perf_counter()
    try:
        with distributed.process_group("; --resume on all machines goes on"):
            options, weights = gather_options(user_options)
            result = work(options, weights, build.pick_device(options.gpu_id))
    except BaseException as error:
        if nni_trial.in_search():
            run_folder.write_outcome(nni_trial.pick_folder(user_options.get("experiment_dir_name")), error)
        raise
    if distributed.rank():
        # torch's threads may abort the process while Python ends, and torchrun counts that as a failure.
        atexit.register(os._exit, 0)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def work(options: argparse.Namespace, weights: Weights | None, device: torch.device) -> dict:
    """Make data, network and folder; train, and evaluate. Returns the result."""
    label_format, splits = read_data(options)
    labels = Purpose(options.model, options.dataset, label_format.scale, label_format.threshold)
    trains, mirrors = not options.eval, options.tta == "flip"
    tested_weights = None if trains else weights
    purpose, trained_format, is_stated = pick_purpose(
        labels, label_format, tested_weights, options.trained_on
    )
    network_format = trained_format or label_format
    graph, test_graph = build.pick_cuda_graphs(
        options.cuda_graph, device, trains, options.accumulate, options.grad_checkpoint
    )
    model = trained_part = build.make_model(options, weights, purpose, network_format.outputs, device)
    if trains:
        build.note_photographs(model, splits)
    if options.freeze_backbone:
        trained_part = Head(model)
    folder = open_folder(options, splits, weights)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    notes = build.network_notes(
        model.purpose.settings, weights, trains, options.accumulate, options.eval_batch_size
    )
    evaluation_notes = build.evaluation_notes(options.ema_decay if trains else None, mirrors)
    for note in notes + evaluation_notes:
        log.info("%s", note)
    with (
        StopSignal() as stop,
        run_folder.recorded(folder, options) as state,
        distributed.connection_errors(),
        engine.compile_errors(),
    ):
        if options.compile:
            model.compile()
        exact = not trains or options.released_protocol or options.freeze_backbone
        precision, test_precision = build.pick_precisions(options.amp, exact, device)
        if trains:
            trainer = build.make_trainer(options, trained_part, precision, graph, folder / "checkpoints")
            state.progress = trainer.progress
        if options.freeze_backbone:
            if not options.resume:
                trainer.save()  # so that --resume goes on with the features, too
            parent = Path(options.cache) if options.cache else folder.parent / "features"
            loaders = build.make_feature_loaders(
                options, splits, trained_part, network_format, precision, parent, stop
            )
        else:
            loaders = build.make_loaders(options, splits, model, network_format, stop)
        history, selection = [], {}
        if trains:
            protocol = options.dataset if options.released_protocol else None
            selecting = options.select_by, options.search_metric, protocol
            train(trainer, loaders, label_format, test_graph, mirrors, folder, stop, *selecting)
            load_best = partial(load_weights, model, folder / "checkpoints" / checkpoint.BEST)
            distributed.on_rank_zero(load_best)
            distributed.broadcast(model.state_dict().values())
            history = trainer.progress.history
            selected_on = "test.csv" if options.released_protocol else "validation"
            selection = {"best_epoch": trainer.progress.best_epoch, "selected_on": selected_on}
        criterion = make_loss(options.loss)
        how = {"trained": trained_format, "cuda_graph": test_graph, "mirrors": mirrors}
        evaluation = engine.evaluate(
            trained_part, loaders["test"], criterion, label_format, test_precision, "test", stop, **how
        )
        setup = describe_setup(options, test_precision, splits.skipped_test_rows, evaluation_notes)
        split = recognise_split(options.dataset, options.path_to_save_csv, evaluation.names)
        report = make_test_report(setup, split, label_format, model, evaluation, trained_format, is_stated)
        if options.save_released_style:
            checkpoint.save(folder / "checkpoints" / "released_style.pth", released_style(model))
        result = write_report(report, folder, history) | selection
        if options.eval and options.report_images:
            page = folder / "report.html"
            result["files"]["page"] = str(page)
            if distributed.rank() == 0:
                images = Path(options.path_to_images)
                report.write_page(page, images, options.report_images, options.num_workers, stop)
        state.result = result
    return result


def open_folder(options: argparse.Namespace, splits: Splits, weights: Weights | None) -> Path:
    """The run's folder, ready; from here on `options.experiment_dir_name` names it. weights: must not be overwritten."""
    notes = {
        "parameters": nni_trial.get_parameters(vars(options)),
        "labels": run_folder.digest_labels(splits),
    }
    patience = TRIALS_WAIT if nni_trial.in_search() else 0
    folder = run_folder.open_folder(options, notes, keep=weights and weights.path, patience=patience)
    options.experiment_dir_name = str(folder)
    return folder


def describe_setup(
    options: argparse.Namespace, precision: Precision, skipped: int, notes: list[str]
) -> EvaluationSetup:
    """How the options test a network. skipped: photographs of test.csv that are missing. notes: for the report."""
    return EvaluationSetup(
        options.dataset,
        options.model,
        options.path_to_model_weight,
        options.interest_points,
        options.refinement,
        options.eval_batch_size,
        build.pick_decoders(options.decode, options.released_protocol)[1],
        precision,
        skipped,
        options.tta == "flip",
        notes,
    )


def gather_options(user_options: dict) -> tuple[argparse.Namespace, Weights | None]:
    """All options, and the weights to start from. The tuner's options replace the user's, and these a resumed run's.

    The network's settings are those that the weights were trained with, unless the user chooses others.
    """
    user_options = run_folder.resume_options(nni_trial.add_parameters(user_options))
    if user_options.get("dataset") == "csv":
        user_options = recorded_scale(user_options.get("path_to_save_csv", "")) | user_options
    options, weights, settings = option.complete(user_options), None, {}
    if options.path_to_model_weight and (options.freeze_backbone or not options.resume):
        weights = read_weights(options.path_to_model_weight)
        KnownPhotos.from_texts(weights.photographs, weights.path)  # raises if damaged, before the test
    keeps_network = options.eval or options.freeze_backbone
    if weights and keeps_network and "model" not in user_options:
        options.model = find_purpose(weights).model or recognise(weights)
    if weights:
        settings = pick_evaluation_settings(weights) if keeps_network else weights.purpose.settings
    if weights and options.freeze_backbone:
        settings = pick_frozen_settings(settings, options.interest_points, weights.path)
    option.complete_network(options, user_options, settings)
    return options, weights


def pick_frozen_settings(settings: Mapping[str, str], chosen: str | None, path: Path) -> dict[str, str]:
    """The settings of a frozen network: its own, but `image` instead of `batch`. chosen: `--interest_points`. Raises InputError."""
    points = settings.get("interest_points", "batch")
    if points == "grid" and chosen not in (None, "grid"):
        problem = "has no interest points, and frozen ones would stay random: leave --interest_points out"
        raise InputError(f"{path}: {problem}")
    if points == "batch" and chosen is None:
        reason = "the features of a picture may not depend on others"
        log.info("%s was trained with --interest_points batch; now image: %s", path, reason)
    return {**settings, "interest_points": "image" if points == "batch" else points}


def pick_purpose(
    labels: Purpose, label_format: LabelFormat, weights: Weights | None, trained_on: str | None
) -> tuple[Purpose, LabelFormat | None, bool]:
    """The purpose of the run's network, its label format (None: the labels' own), and whether its dataset is stated.

    labels, label_format: the purpose and the format of a network that is trained on these labels. weights: the evaluated
    weights; None in training. trained_on: their dataset, if the user states it.
    Raises InputError if the weights cannot be evaluated on these labels.
    """
    outputs = count_outputs(weights, labels.model) if weights else None
    if outputs is None:
        return labels, None, True
    recorded = find_purpose(weights)
    try:
        dataset = agree(weights.path, "dataset", trained_on, recorded.dataset)
        stated = Purpose(labels.model, dataset).or_else(recorded)
        purpose = complete_purpose(stated, outputs, weights.path, labels)
    except PurposeError as error:
        raise InputError(f"{error}; --trained_on says which dataset the weights are of") from None
    trained_format = format_of(purpose.dataset, outputs, purpose.scale, purpose.threshold)
    expected = labels.dataset, label_format.outputs, labels.scale
    if (purpose.dataset, outputs, purpose.scale) == expected:
        return labels, None, bool(dataset)
    return purpose, trained_format, bool(dataset)


def read_data(options: argparse.Namespace) -> tuple[LabelFormat, Splits]:
    """The label format, and the labels of the splits whose pictures are there; builds the demo if it is missing."""
    build_demo = partial(demo.build, options.path_to_save_csv, options.path_to_images)
    if options.dataset == "demo" and distributed.on_rank_zero(build_demo):
        log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    scale = options.score_min, options.score_max
    label_format = build.pick_format(
        options.dataset, Path(options.path_to_save_csv), not options.eval, scale, options.threshold
    )
    option.complete_loss(options, votes=bool(label_format.vote_columns))
    settings = {name: getattr(options, name) for name in ("skip_missing", "val_share", "seed", "limit")}
    settings |= {"train": not options.eval, "select_on_test": options.released_protocol}
    splits = read_splits(options.path_to_save_csv, options.path_to_images, label_format, **settings)
    for note in splits.notes:
        log.info("%s", note)
    return label_format, splits


def train(
    trainer: engine.Trainer,
    loaders: dict[str, DataLoader],
    label_format: LabelFormat,
    cuda_graph: bool,
    mirrors: bool,
    folder: Path,
    stop: StopSignal,
    select_by: str,
    search_metric: str,
    protocol: str | None,
) -> None:
    """Train, and select on the validation set.

    cuda_graph, mirrors: of validation, see `evaluate`. protocol: the dataset whose released protocol is followed.
    """
    model, precision, progress = trainer.stepper.evaluated, trainer.stepper.precision, trainer.progress
    writes, evaluated = distributed.rank() == 0, (loaders["val"], trainer.criterion, label_format, precision)
    num_epoch = trainer.stepper.schedule.num_epoch
    with run_folder.open_tensorboard(folder, progress) as writer:
        while progress.epoch < num_epoch:
            trainer.train_epoch(loaders["train"], stop)
            trainer.save()  # a signal ends the validation; several processes only notice it afterwards
            start = time.perf_counter()
            settings = {"cuda_graph": cuda_graph, "mirrors": mirrors}
            validation = engine.evaluate(model, *evaluated, "validate", stop, **settings)
            progress.seconds += time.perf_counter() - start
            trainer.end_epoch(validation, select_by)
            if writes:
                row = progress.history[-1]
                run_folder.write_epoch(folder, writer, progress, num_epoch)
                if protocol and published.keeps(protocol, progress.history):
                    path = trainer.checkpoints / published.checkpoint_name(protocol, row)
                    checkpoint.save(path, released_style(model))
                nni_trial.report_epoch(row, search_metric)
            if signal := distributed.all_reduce_max(stop.received)[0]:
                raise Interrupted(signal)
    if writes:
        reported = progress.history[-1 if protocol else progress.best_epoch - 1]
        nni_trial.report_end(reported, search_metric)


def write_report(report: TestReport, folder: Path, history: list[dict[str, float]]) -> dict:
    """Write and print the report on test.csv. history: rows of metrics.csv; none under --eval. Returns the result."""
    if distributed.rank() == 0:
        report.write_predictions(folder / "predictions.csv")
        report.write_plots(folder / "report.png", history)
    log.info("%s:\n%s", report.title, "\n".join(report.test_metrics.lines()))
    result = report.result(folder) | report.evaluation.points
    files = {"metrics": "metrics.csv", "tensorboard": "tensorboard"} if history else {}
    result["files"] |= {name: str(folder / file) for name, file in files.items()}
    return result
