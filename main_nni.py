"""EAT's entry point: train and evaluate on one dataset, alone or as a trial of `nnictl`. Try `--help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import checkpoint
import demo
import distributed
import engine
import option
import record
from build import (
    calibrate,
    loaders,
    make_model,
    make_training,
    network_notes,
    pick_decoders,
    pick_device,
    pick_format,
    pick_origin,
    pick_precisions,
    remember,
)
from command import guarded
from dataset import Splits, read_splits
from evaluation import published, released
from evaluation.figures import Figures, figures, released_accuracy
from evaluation.seen import Seen
from interrupt import Interrupted, Watch
from labels import Format
from models import Weights, load_weights, read_weights, released_style
from option import InputError
from preparation.splits import recognise
from searching import trial
from trained import origin
from util import make_loss, to_json, write_json

log = logging.getLogger("eat")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 if training failed, 2 for a bad request, 128 and more if interrupted."""

    def work() -> None:
        result = run(option.parse(argv))
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
        device = pick_device(options.gpu_id)
        with trial.tied_to_manager(), distributed.processes(device):
            result = prepare_and_work(options, weights, device)
    except BaseException as error:
        if trial.in_search() and distributed.rank() == 0:
            note_end(trial.folder(given.get("experiment_dir_name")), error)
        raise
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def note_end(folder: Path, error: BaseException) -> None:
    """Write why the run ended to its run.json."""
    stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
    with suppress(OSError):  # the disk may be what it failed for
        record.end(folder, "stopped" if stopped else "failed", str(error) or type(error).__name__)


def prepare_and_work(options: argparse.Namespace, weights: Weights | None, device: torch.device) -> dict:
    """Read the data, make the network and the run's folder, then train or evaluate."""
    first = distributed.rank() == 0
    if options.dataset == "demo":
        built = first and demo.build(options.path_to_save_csv, options.path_to_images)
        if distributed.share(built):
            log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    form = pick_format(options)
    options.loss = {"auto": "emd" if form.vote_columns else "mse"}.get(options.loss, options.loss)
    if options.loss != "mse" and not form.vote_columns:
        raise InputError(
            f"--loss {options.loss} needs vote distributions; {options.dataset} has scores: use mse"
        )
    if options.search_metric == "emd" and not form.vote_columns:
        raise InputError(
            f"--search_metric emd needs vote distributions; {options.dataset} has scores: use srcc"
        )
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
    torch.manual_seed(options.seed)
    other = pick_origin(options, weights, form)
    like, trained = other or (options.dataset, form)
    model = make_model(options, weights, trained, like)
    if not options.eval:
        remember(model, splits)
    model.to(device)
    if not first:  # rank 0 goes on as a single process would
        torch.manual_seed(options.seed + distributed.rank())

    if options.experiment_dir_name is None:
        name = f"{options.dataset}-{'eval' if options.eval else options.model}"
        options.experiment_dir_name = distributed.share(
            str(record.new_folder(Path("runs"), name)) if first else None
        )
    folder = Path(options.experiment_dir_name)
    if first and not options.resume:
        record.prepare_folder(folder, options.overwrite, keep=weights and weights.path)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    for note in network_notes(options, weights):
        log.info("%s", note)
    work = evaluate_only if options.eval else train_and_test
    try:
        with Watch() as watch:
            if first:
                record.begin(folder, trial.chosen())
            if not options.resume:
                if first:
                    write_json(folder / "options.json", vars(options))
                if options.calibrate_points:
                    calibrate(options, splits.train, model, device, folder, watch, like)
            result = work(options, form, splits, model, device, folder, watch, other)
            if first:
                record.end(folder, "done", result=result)
            return result
    except BaseException as error:
        can_resume = (folder / "checkpoints" / checkpoint.LAST).is_file() and not options.eval
        goes_on = isinstance(error, Interrupted) and can_resume
        if goes_on:
            error.folder = folder
        if first and not goes_on and not options.resume and record.restore_previous(folder):
            can_resume = False
        elif first and isinstance(error, InputError) and not any((folder / "checkpoints").glob("*")):
            record.remove_run(folder)  # nothing came of it: the same command may be given again
        elif first:
            note_end(folder, error)
        if isinstance(error, (InputError, engine.TrainingError)) and can_resume:
            hint = f"{error}; --resume --experiment_dir_name {folder} goes on from the last checkpoint"
            raise type(error)(hint) from error
        raise


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
    if options.eval and weights and "model" not in given:
        options.model = origin(weights).get("model", options.model)
    option.complete_network(options, given, weights.settings if weights else {})
    return options, weights


def train_and_test(
    options, form: Format, splits: Splits, model, device, folder: Path, watch: Watch, _other: None
) -> dict:
    """Train, select on the validation set, and report the selected checkpoint's metrics on test.csv."""
    data = loaders(options, splits, model.img_size, device, watch, options.dataset)
    first, checkpoints = distributed.rank() == 0, folder / "checkpoints"
    if first:
        checkpoints.mkdir(exist_ok=True)
        checkpoint.remove_strays(checkpoints)
    precision, test_precision = pick_precisions(options, device)
    training = make_training(options, model, precision, checkpoints)
    if options.resume:
        stepper = training.stepper
        training.progress = checkpoint.restore(checkpoints, model, stepper.optimizer, stepper.scaler)
        if first:
            record.write_metrics(folder / "metrics.csv", training.progress.history)
        log.info(
            "resumed after epoch %d of %d and %d of %d batches",
            training.progress.epoch, options.num_epoch, training.progress.step, len(data["train"]),
        )  # fmt: skip
    curves = record.Curves(folder, training.progress.epoch) if first else None

    def on_epoch(progress: checkpoint.Progress) -> None:
        if not first:
            return
        row = progress.history[-1]
        record.write_metrics(folder / "metrics.csv", progress.history)
        record.drop_previous(folder)
        if options.released_protocol and released.keeps(options.dataset, progress.history):
            name = released.checkpoint_name(options.dataset, row)
            checkpoint.save(checkpoints / name, released_style(model))
        curves.add(row)
        trial.report_epoch(row, options.search_metric)
        log.info(
            "epoch %d/%d: train loss %.4f, val loss %.4f, SRCC %.4f, PLCC %.4f, accuracy %.4f (%.1f s)%s",
            row["epoch"], options.num_epoch, row["train_loss"], row["val_loss"], row["val_srcc"], row["val_plcc"],
            row["val_accuracy"], row["seconds"], ", best so far" if progress.best_epoch == row["epoch"] else "",
        )  # fmt: skip

    engine.fit(training, data["train"], data["val"], form, precision, watch, options.select_by, on_epoch)
    progress = training.progress
    if first:
        curves.close()
        last = len(progress.history) if options.released_protocol else progress.best_epoch
        trial.report_end(progress.history[last - 1], options.search_metric)
    load_weights(model, checkpoints / "best.pth")
    evaluation = engine.evaluate(model, data["test"], training.criterion, form, test_precision, "test", watch)
    figures, about = judge(options, splits, form, model, evaluation, test_precision, None)
    result = write_results(options, folder, model, evaluation, figures, progress.history) | about
    result["files"] |= {"metrics": str(folder / "metrics.csv"), "tensorboard": str(folder / "tensorboard")}
    selected_on = "test.csv" if options.released_protocol else "validation"
    return result | {"best_epoch": progress.best_epoch, "selected_on": selected_on}


def evaluate_only(
    options, form: Format, splits: Splits, model, device, folder: Path, watch: Watch, other
) -> dict:
    """Evaluate the given weights on test.csv. other: see `build.pick_origin`."""
    like, trained = other or (options.dataset, None)
    data = loaders(options, splits, model.img_size, device, watch, like)
    _, precision = pick_precisions(options, device)
    if options.compile:
        model.compile()
    evaluation = engine.evaluate(
        model, data["test"], make_loss(options.loss), form, precision, "test", watch, trained
    )
    figures, about = judge(options, splits, form, model, evaluation, precision, other)
    result = write_results(options, folder, model, evaluation, figures, []) | about
    if options.report_images:
        page = folder / "report.html"
        if distributed.rank() == 0:
            facts = {"Trained on": about["trained_on"], "Split": about["labels_split"]}
            title = test_title(options, evaluation)
            record.write_page(page, title, options, form, evaluation, figures, facts, watch)
        result["files"]["page"] = str(page)
    return result


def judge(options, splits: Splits, form: Format, model, evaluation, precision, other) -> tuple[Figures, dict]:
    """What the test says, and what a run's result tells of its photographs. other: see `build.pick_origin`."""
    trained_on, trained = other or (options.dataset, None)
    names = [str(name) for name in evaluation.names]
    split = recognise(options.dataset, options.path_to_save_csv, names)
    about = {"labels_split": split.name, "trained_on": trained_on, "thresholds": form.thresholds(trained)}
    notes = [f"split: {split.name} ({split.note})"]
    if other:
        notes.insert(
            0, f"trained on {trained_on}, tested on {options.dataset}: scores mapped from scale to scale"
        )
    if trained is None and form.vote_columns:
        accuracy = released_accuracy(evaluation.outputs, evaluation.targets, form.threshold)
        about["accuracy_released"] = accuracy
        notes.append(
            f"accuracy by the release's float32 sums: {accuracy:.4f}, ours {evaluation.metrics['accuracy']:.4f}"
        )
    departures = published.departures(
        options.dataset if trained is None else "",
        model=options.model,
        interest_points=options.interest_points,
        refinement=options.refinement,
        batch_size=options.eval_batch_size,
        decoder=pick_decoders(options, precision.device)[1],
        half_precision=precision.dtype is not None,
        skipped=splits.skipped,
        split=split.departure,
    )
    memory = Seen.from_texts(model.photographs, options.path_to_model_weight or "the network")
    return figures(
        evaluation.pairs, names, options.dataset, metrics=evaluation.metrics, memory=memory,
        same_dataset=trained is None, notes=notes, departures=departures,
    ), about  # fmt: skip


def test_title(options, evaluation: engine.Evaluation) -> str:
    return f"{options.model} on {options.dataset}, test.csv ({len(evaluation.names)} images)"


def write_results(
    options, folder: Path, model, evaluation: engine.Evaluation, found: Figures, history
) -> dict:
    """Write predictions, report and what weights are asked for; log the metrics beside the published ones; sum up."""
    title = test_title(options, evaluation)
    if distributed.rank() == 0:
        record.write_predictions(folder / "predictions.csv", evaluation)
        record.draw_report(folder / "report.png", title, evaluation, found, history)
        record.drop_previous(folder)
        if options.save_released_style:
            (folder / "checkpoints").mkdir(exist_ok=True)
            checkpoint.save(folder / "checkpoints" / "released_style.pth", released_style(model))
    log.info("%s:\n%s", title, "\n".join(found.lines()))
    files = {name: str(folder / f"{name}.{end}") for name, end in (("predictions", "csv"), ("report", "png"))}
    files["options"] = str(folder / "options.json")
    for path in (folder / "checkpoints").glob("*.pt*"):
        files[path.stem] = str(path)
    return {
        "dataset": options.dataset,
        "model": options.model,
        "interest_points": options.interest_points,
        "refinement": options.refinement,
        "split": "test",
        "images": len(evaluation.names),
        "loss": evaluation.loss,
        **evaluation.metrics,
        **found.as_json(),
        "folder": os.path.abspath(folder),
        "files": files,
    }


if __name__ == "__main__":
    sys.exit(main())
