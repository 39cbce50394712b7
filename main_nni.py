"""EAT's entry point: train and evaluate on one dataset, alone or as a trial of `nnictl`. Try `--help`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import option
from commands import distributed
from commands.errors import guarded
from commands.files import to_json
from commands.parser import parse_options
from commands.signals import Watch
from dataset import Splits, read_splits
from evaluation import released
from evaluation.seen import Seen
from inference import trained
from inference.tested import Tested, judge
from inference.trained import Origin, pick_origin
from models import EAT, Weights, load_weights, read_weights, released_style
from option import InputError
from photographs import demo
from photographs.labels import Format
from searching import trial
from training import build, checkpoint, engine, record
from util import make_loss

log = logging.getLogger("eat")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 if training failed, 2 for a bad request, 128 and more if interrupted."""

    def work() -> None:
        result = run(parse_options(argv))
        if distributed.rank() == 0:
            print(to_json(result), flush=True)

    if (status := trial.supervised()) is not None:
        return status
    return guarded("main_nni.py", work)


def run(given: dict) -> dict:
    """Train or evaluate as the options `given` ask. Returns the last line of output. Raises InputError."""
    start = time.perf_counter()
    try:
        options, weights = gather_options(given)
        device = build.pick_device(options.gpu_id)
        with trial.tied_to_manager(), distributed.processes(device):
            result = work(options, weights, device)
    except BaseException as error:
        if trial.in_search() and distributed.rank() == 0:
            record.note_end(trial.folder(given.get("experiment_dir_name")), error)
        raise
    return result | {"seconds": round(time.perf_counter() - start, 1)}


@dataclass
class Job:
    """What training and evaluation work on. origin: the dataset whose photographs and scores the network knows."""

    options: argparse.Namespace
    form: Format
    splits: Splits
    model: EAT
    device: torch.device
    origin: Origin
    folder: Path
    watch: Watch


def work(options: argparse.Namespace, weights: Weights | None, device: torch.device) -> dict:
    """Options to data, network and folder; then train or evaluate. Returns the result."""
    form, splits = read_data(options)
    origin = pick_origin(options, weights, form)
    model = build.make_model(options, weights, origin.form or form, origin.dataset, device)
    if not options.eval:
        build.remember(model, splits)
    name = f"{options.dataset}-{'eval' if options.eval else options.model}"
    place, keep = options.experiment_dir_name, weights and weights.path
    folder = record.open_folder(place, name, resume=options.resume, overwrite=options.overwrite, keep=keep)
    options.experiment_dir_name = str(folder)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    for note in build.network_notes(options, weights):
        log.info("%s", note)
    with (
        record.RunFolder(folder, resumes=options.resume, trains=not options.eval) as own,
        Watch() as watch,
    ):
        own.begin(trial.chosen(), vars(options))
        job = Job(options, form, splits, model, device, origin, folder, watch)
        if options.calibrate_points and not options.resume:
            build.calibrate(options, splits.train, model, device, folder, watch, origin.dataset)
        result = evaluate_only(job) if options.eval else train_and_test(job)
        own.end(result)
    return result


def gather_options(given: dict) -> tuple[argparse.Namespace, Weights | None]:
    """The command line's options, the tuner's over them, and a resumed run's under them, completed; and the weights.

    What is not given of the network's settings is as the weights say.
    """
    if given.get("options"):
        given = option.from_file(given["options"], given)
    given = trial.options(given)
    if given.get("resume") and given.get("experiment_dir_name"):
        path = Path(given["experiment_dir_name"]) / "options.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no run to resume ({error})") from None
        if not isinstance(saved, dict):
            raise InputError(f"{path}: no run to resume (it does not hold options)")
        given = option.resumed(given, saved, str(path))
    options = option.complete(given)
    weights = None
    if options.path_to_model_weight and not options.resume:
        weights = read_weights(options.path_to_model_weight)
        Seen.from_texts(weights.photographs, weights.path)  # damaged: told now, not after the test
    if options.eval and weights and "model" not in given:
        options.model = trained.origin(weights).get("model", options.model)
    option.complete_network(options, given, weights.settings if weights else {})
    return options, weights


def read_data(options: argparse.Namespace) -> tuple[Format, Splits]:
    """The labels of the splits, found in the folder of pictures; the demo's are made where they are not there."""
    if options.dataset == "demo":
        built = distributed.rank() == 0 and demo.build(options.path_to_save_csv, options.path_to_images)
        if distributed.share(built):
            log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    form = build.pick_format(options)
    option.complete_loss(options, votes=bool(form.vote_columns))
    splits = read_splits(
        options.path_to_save_csv,
        options.path_to_images,
        form,
        train=not options.eval,
        calibrate=bool(options.calibrate_points),
        select_on_test=options.released_protocol,
        skip_missing=options.skip_missing,
        val_share=options.val_share,
        seed=options.seed,
        limit=options.limit,
    )
    for note in splits.notes:
        log.info("%s", note)
    return form, splits


def train_and_test(job: Job) -> dict:
    """Train, select on the validation set, and report the selected checkpoint's metrics on test.csv."""
    options, model, checkpoints = job.options, job.model, job.folder / "checkpoints"
    data = build.loaders(options, job.splits, model.img_size, job.device, job.watch, job.origin.dataset)
    precision, test_precision = build.pick_precisions(options, job.device)
    training = build.make_training(options, model, precision, checkpoints)
    if options.resume:
        build.resume(training)
    with record.Epochs(job.folder, training.progress) as epochs:

        def on_epoch(progress: checkpoint.Progress) -> None:
            if distributed.rank() == 0:
                epochs.add(progress, options.num_epoch)
                if options.released_protocol and released.keeps(options.dataset, progress.history):
                    name = released.checkpoint_name(options.dataset, progress.history[-1])
                    checkpoint.save(checkpoints / name, released_style(model))
                trial.report_epoch(progress.history[-1], options.search_metric)

        engine.fit(
            training, data["train"], data["val"], job.form, precision, job.watch, options.select_by, on_epoch
        )
    progress = training.progress
    if distributed.rank() == 0:
        reported = progress.history[-1 if options.released_protocol else progress.best_epoch - 1]
        trial.report_end(reported, options.search_metric)
    load_weights(model, checkpoints / "best.pth")
    evaluation = engine.evaluate(
        model, data["test"], training.criterion, job.form, test_precision, "test", job.watch
    )
    tested = judge(options, job.splits, job.form, model, evaluation, test_precision, job.origin)
    result = leave(job, tested, progress.history)
    result["files"] |= {"metrics": str(epochs.table), "tensorboard": str(epochs.curves)}
    selected_on = "test.csv" if options.released_protocol else "validation"
    return result | {"best_epoch": progress.best_epoch, "selected_on": selected_on}


def evaluate_only(job: Job) -> dict:
    """Evaluate the given weights on test.csv."""
    options, model = job.options, job.model
    data = build.loaders(options, job.splits, model.img_size, job.device, job.watch, job.origin.dataset)
    _, precision = build.pick_precisions(options, job.device)
    if options.compile:
        model.compile()
    evaluation = engine.evaluate(
        model, data["test"], make_loss(options.loss), job.form, precision, "test", job.watch, job.origin.form
    )
    tested = judge(options, job.splits, job.form, model, evaluation, precision, job.origin)
    result = leave(job, tested)
    if options.report_images:
        page = job.folder / "report.html"
        if distributed.rank() == 0:
            tested.write_page(page, job.watch)
        result["files"]["page"] = str(page)
    return result


def leave(job: Job, tested: Tested, history: list[dict[str, float]] | None = None) -> dict:
    """Write the test's files and the weights that are asked for, tell its figures, and sum up."""
    if distributed.rank() == 0:
        tested.write_predictions(job.folder / "predictions.csv")
        tested.draw(job.folder / "report.png", history or ())
        record.drop_previous(job.folder)
        if job.options.save_released_style:
            path = job.folder / "checkpoints" / "released_style.pth"
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, released_style(job.model))
    tested.tell()
    return tested.result(job.folder)


if __name__ == "__main__":
    sys.exit(main())
