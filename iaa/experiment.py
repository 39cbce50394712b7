"""One run of main_nni.py, from its options to its result: data and network made, trained, and evaluated."""

from __future__ import annotations

import argparse
import atexit
import logging
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
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
        atexit.register(distributed.end_at_once)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def work(options: argparse.Namespace, weights: Weights | None, device: torch.device) -> dict:
    """Make data, network and folder; train, and evaluate. Returns the result."""
    label_format, splits = read_data(options)
    purpose, trained_format, is_stated = pick_purpose(options, weights, label_format)
    network_format = trained_format or label_format
    graph, test_graph = build.pick_cuda_graphs(options, device)
    model = build.make_model(options, weights, purpose, network_format.outputs, device)
    if not options.eval:
        build.note_photographs(model, splits)
    notes = {"parameters": nni_trial.get_parameters(vars(options))}
    notes["labels"] = run_folder.digest_labels(splits)
    patience = TRIALS_WAIT if nni_trial.in_search() else 0
    folder = run_folder.open_folder(options, notes, keep=weights and weights.path, patience=patience)
    options.experiment_dir_name = str(folder)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    for note in build.network_notes(options, weights) + build.evaluation_notes(options):
        log.info("%s", note)
    with (
        StopSignal() as stop,
        run_folder.recorded(folder, options) as state,
        distributed.connection_errors(),
        engine.compile_errors(),
    ):
        if options.compile:
            model.compile()
        exact = options.eval or options.released_protocol
        precision, test_precision = build.pick_precisions(options.amp, exact, device)
        loaders = build.make_loaders(options, splits, model, network_format, stop)
        history, selection = [], {}
        if not options.eval:
            trainer = build.make_trainer(options, model, precision, graph, folder / "checkpoints")
            state.progress = trainer.progress
            train(options, trainer, loaders, label_format, test_graph, folder, stop)
            history = trainer.progress.history
            selected_on = "test.csv" if options.released_protocol else "validation"
            selection = {"best_epoch": trainer.progress.best_epoch, "selected_on": selected_on}
        criterion = make_loss(options.loss)
        scoring = test_precision, "test", stop, trained_format, test_graph
        evaluation = engine.evaluate(model, loaders["test"], criterion, label_format, *scoring)
        setup = EvaluationSetup(
            options.dataset,
            options.model,
            options.path_to_model_weight,
            options.interest_points,
            options.refinement,
            options.eval_batch_size,
            build.pick_decoders(options.decode, options.released_protocol)[1],
            test_precision,
            splits.skipped_test_rows,
            build.evaluation_notes(options),
        )
        split = recognise_split(options.dataset, options.path_to_save_csv, evaluation.names)
        report = make_test_report(setup, split, label_format, model, evaluation, trained_format, is_stated)
        state.result = write_report(options, report, folder, model, history, stop) | selection
    return state.result


def gather_options(user_options: dict) -> tuple[argparse.Namespace, Weights | None]:
    """All options, and the weights to start from: the tuner's options over the user's over a resumed run's.

    Settings of the network that nobody chooses are those that the weights were trained with.
    """
    user_options = run_folder.resume_options(nni_trial.add_parameters(user_options))
    if user_options.get("dataset") == "csv":
        user_options = recorded_scale(user_options.get("path_to_save_csv", "")) | user_options
    options, weights, settings = option.complete(user_options), None, {}
    if options.path_to_model_weight and not options.resume:
        weights = read_weights(options.path_to_model_weight)
        KnownPhotos.from_texts(weights.photographs, weights.path)  # raises if damaged, before the test
    if options.eval and "model" not in user_options:
        options.model = find_purpose(weights).model or recognise(weights)
    if weights:
        settings = pick_evaluation_settings(weights) if options.eval else weights.purpose.settings
    option.complete_network(options, user_options, settings)
    return options, weights


def pick_purpose(
    options: argparse.Namespace, weights: Weights | None, label_format: LabelFormat
) -> tuple[Purpose, LabelFormat | None, bool]:
    """What the network of the run is for; its label format, None if it is that of the labels; whether the dataset is stated.

    label_format: of the labels, which a network in training is for. Raises InputError if the weights cannot be evaluated
    on them.
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
    expected = labels.dataset, label_format.outputs, labels.scale
    if (purpose.dataset, outputs, purpose.scale) == expected:
        return labels, None, bool(dataset)
    return purpose, trained_format, bool(dataset)


def read_data(options: argparse.Namespace) -> tuple[LabelFormat, Splits]:
    """The label format, and the labels of the splits whose pictures are there; builds the demo if it is missing."""
    build_demo = partial(demo.build, options.path_to_save_csv, options.path_to_images)
    if options.dataset == "demo" and distributed.on_rank_zero(build_demo):
        log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    label_format = build.pick_format(options)
    option.complete_loss(options, votes=bool(label_format.vote_columns))
    settings = {name: getattr(options, name) for name in ("skip_missing", "val_share", "seed", "limit")}
    settings |= {"train": not options.eval, "select_on_test": options.released_protocol}
    splits = read_splits(options.path_to_save_csv, options.path_to_images, label_format, **settings)
    for note in splits.notes:
        log.info("%s", note)
    return label_format, splits


def train(
    options: argparse.Namespace,
    trainer: engine.Trainer,
    loaders: dict[str, DataLoader],
    label_format: LabelFormat,
    cuda_graph: bool,
    folder: Path,
    stop: StopSignal,
) -> None:
    """Train, select on the validation set, and put the selected checkpoint into the network.

    cuda_graph: validate by one.
    """
    model, precision, progress = trainer.stepper.evaluated, trainer.stepper.precision, trainer.progress
    writes, evaluated = distributed.rank() == 0, (loaders["val"], trainer.criterion, label_format, precision)
    with run_folder.open_tensorboard(folder, progress) as writer:
        while progress.epoch < options.num_epoch:
            trainer.train_epoch(loaders["train"], stop)
            trainer.save()  # a signal ends the validation; several processes only notice it afterwards
            start = time.perf_counter()
            validation = engine.evaluate(model, *evaluated, "validate", stop, cuda_graph=cuda_graph)
            progress.seconds += time.perf_counter() - start
            trainer.end_epoch(validation, options.select_by)
            if writes:
                row = progress.history[-1]
                run_folder.write_epoch(folder, writer, progress, options.num_epoch)
                if options.released_protocol and published.keeps(options.dataset, progress.history):
                    path = trainer.checkpoints / published.checkpoint_name(options.dataset, row)
                    checkpoint.save(path, released_style(model))
                nni_trial.report_epoch(row, options.search_metric)
            if signal := distributed.all_reduce_max(stop.received)[0]:
                raise Interrupted(signal)
    if writes:
        reported = progress.history[-1 if options.released_protocol else progress.best_epoch - 1]
        nni_trial.report_end(reported, options.search_metric)
    model = trainer.stepper.model
    distributed.on_rank_zero(partial(load_weights, model, trainer.checkpoints / checkpoint.BEST))
    distributed.broadcast(model.state_dict().values())


def write_report(
    options: argparse.Namespace,
    report: TestReport,
    folder: Path,
    model: nn.Module,
    history: list[dict[str, float]],
    stop: StopSignal,
) -> dict:
    """Write and print the report on test.csv. history: rows of metrics.csv; empty under --eval. Returns the result."""
    writes = distributed.rank() == 0
    if writes:
        report.write_predictions(folder / "predictions.csv")
        report.write_plots(folder / "report.png", history)
        if options.save_released_style:
            checkpoint.save(folder / "checkpoints" / "released_style.pth", released_style(model))
    log.info("%s:\n%s", report.title, "\n".join(report.test_metrics.lines()))
    result = report.result(folder) | report.evaluation.points
    files = {"metrics": "metrics.csv", "tensorboard": "tensorboard"} if history else {}
    if options.eval and options.report_images:
        files = {"page": "report.html"}
        if writes:
            images, limit = Path(options.path_to_images), options.report_images
            report.write_page(folder / "report.html", images, limit, options.num_workers, stop)
    result["files"] |= {name: str(folder / file) for name, file in files.items()}
    return result
