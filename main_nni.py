"""EAT's entry point: train and evaluate on one dataset, alone or as a trial of `nnictl`. Try `--help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import torch

import demo
import engine
import option
import record
import search
from dataset import Splits, Transform, make_loader, read_splits
from labels import FORMATS, Format, csv_format
from models import RefinementSchedule, Weights, WeightsError, load_weights, read_weights, released_style
from network import calibrate, make_model, network_notes
from option import InputError
from util import make_loss, to_json, write_json

log = logging.getLogger("eat")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 if training failed, 2 for a bad request, 130 if interrupted."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S"
    )
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)
    try:
        print(to_json(run(option.parse(argv))), flush=True)
    except (InputError, WeightsError) as error:
        return _fail(error, 2)
    except engine.TrainingError as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its permissions", 2
        )
    except KeyboardInterrupt:
        return _fail("interrupted; a run with a named folder goes on with --resume", 130)
    return 0


def _fail(reason: object, status: int) -> int:
    print(f"main_nni.py: {' '.join(str(reason).split())}", file=sys.stderr)
    return status


def run(given: dict) -> dict:
    """Train or evaluate as the options `given` ask. Returns the last line of output. Raises InputError."""
    start = time.perf_counter()
    options, weights = gather_options(given)
    device = pick_device(options.gpu_id)
    if options.dataset == "demo" and demo.build(options.path_to_save_csv, options.path_to_images):
        log.info("demo data built in %s; its scores are not aesthetics", options.path_to_save_csv)
    form = pick_format(options)
    options.loss = {"auto": "emd" if form.vote_columns else "mse"}.get(options.loss, options.loss)
    if options.loss != "mse" and not form.vote_columns:
        raise InputError(
            f"--loss {options.loss} needs vote distributions; {options.dataset} has scores: use mse"
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
    model = make_model(options, weights, form.outputs)
    model.to(device)

    if options.experiment_dir_name is None:
        name = f"{options.dataset}-{'eval' if options.eval else options.model}"
        options.experiment_dir_name = str(record.new_folder(Path("runs"), name))
    folder = Path(options.experiment_dir_name)
    if not options.resume:
        record.prepare_folder(folder, options.overwrite, keep=weights and weights.path)
    log.info("%s on %s, %s, in %s", options.model, options.dataset, device, folder)
    for note in network_notes(options, weights):
        log.info("%s", note)
    work = evaluate_only if options.eval else train_and_test
    try:
        if not options.resume:
            write_json(folder / "options.json", vars(options))
            if options.calibrate_points:
                calibrate(options, splits.train, model, device, folder)
        result = work(options, form, splits, model, device, folder)
    except BaseException:
        record.restore_previous(folder)
        raise
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def gather_options(given: dict) -> tuple[argparse.Namespace, Weights | None]:
    """The command line's options, the tuner's over them, and a resumed run's under them, completed; and the weights.

    What is not given of the network's settings is as the weights say.
    """
    given = dict(given)
    given |= search.next_options()
    if search.in_experiment():
        given["experiment_dir_name"] = str(search.trial_folder(given.get("experiment_dir_name")))
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
    option.complete_network(options, given, weights.settings if weights else {})
    return options, weights


def pick_device(gpu_id: str | None) -> torch.device:
    """The GPU of `--gpu_id`, `cpu`, or by default the first GPU, else the CPU. Raises InputError."""
    count = torch.cuda.device_count()
    if gpu_id is None:
        return torch.device("cuda:0" if count else "cpu")
    if gpu_id == "cpu":
        return torch.device("cpu")
    if not gpu_id.isdecimal() or int(gpu_id) >= count:
        found = f"GPUs 0 to {count - 1} are here" if count else "no GPU is here; use --gpu_id cpu"
        raise InputError(f"--gpu_id {gpu_id}: no such GPU; {found}")
    return torch.device(f"cuda:{gpu_id}")


def pick_format(options: argparse.Namespace) -> Format:
    """How the dataset's CSVs are written."""
    if options.dataset != "csv":
        return FORMATS[options.dataset]
    folder, scale = Path(options.path_to_save_csv), (options.score_min, options.score_max)
    names = ["test.csv"] if options.eval and not options.calibrate_points else ["train.csv", "test.csv"]
    names += ["val.csv"] * (not options.eval and (folder / "val.csv").is_file())
    form, *others = (csv_format(folder / name, scale, options.threshold) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if other != form:
            raise InputError(f"{folder / name}: its label columns differ from those of {names[0]}")
    return form


def loaders(options: argparse.Namespace, splits: Splits, size: int, device: torch.device) -> dict:
    """A loader for each split that is there, by its name."""
    result = {}
    for split in ("train", "val", "test"):
        train = split == "train"
        if (labels := getattr(splits, split)) is not None and not (train and options.eval):
            result[split] = make_loader(
                labels,
                options.path_to_images,
                Transform(options.dataset, size, train),
                options.batch_size if train else options.eval_batch_size,
                options.num_workers,
                options.seed,
                pin_memory=device.type == "cuda",
            )
    return result


def train_and_test(options, form: Format, splits: Splits, model, device, folder: Path) -> dict:
    """Train, select on the validation set, and report the selected checkpoint's metrics on test.csv."""
    data = loaders(options, splits, model.img_size, device)
    optimizer = engine.make_optimizer(model, options.optimizer, options.weight_decay)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    progress = engine.Progress()
    if options.resume:
        progress = engine.restore(checkpoints / "last.pt", model, optimizer)
        record.write_metrics(folder / "metrics.csv", progress.history)
        log.info("resumed after epoch %d of %d", progress.epoch, options.num_epoch)
    curves = record.Curves(folder, progress.epoch)

    def on_epoch(progress: engine.Progress) -> None:
        row = progress.history[-1]
        record.write_metrics(folder / "metrics.csv", progress.history)
        record.drop_previous(folder)
        curves.add(row)
        search.report_epoch(row)
        log.info(
            "epoch %d/%d: train loss %.4f, val loss %.4f, SRCC %.4f, PLCC %.4f, accuracy %.4f (%.1f s)%s",
            row["epoch"], options.num_epoch, row["train_loss"], row["val_loss"], row["val_srcc"], row["val_plcc"],
            row["val_accuracy"], row["seconds"], ", best so far" if progress.best_epoch == row["epoch"] else "",
        )  # fmt: skip

    refinement = None
    if options.refinement == "scheduled":
        refinement = RefinementSchedule(
            options.explore_share, options.explore_same, options.explore_other, options.handover
        )
    criterion = make_loss(options.loss)
    engine.fit(
        model,
        data["train"],
        data["val"],
        criterion,
        optimizer,
        engine.Schedule(
            options.init_lr,
            options.num_epoch,
            options.schedule,
            options.decay_every,
            options.decay_factor,
            options.warmup_epochs,
        ),
        form.threshold,
        device,
        checkpoints,
        progress,
        options.select_by,
        options.clip_grad,
        options.accumulate,
        refinement,
        on_epoch,
    )
    curves.close()
    search.report_end(progress.history[progress.best_epoch - 1])
    load_weights(model, checkpoints / "best.pth")
    evaluation = engine.evaluate(model, data["test"], criterion, form.threshold, device, "test")
    result = write_results(options, folder, model, evaluation, progress.history)
    result["files"] |= {"metrics": str(folder / "metrics.csv"), "tensorboard": str(folder / "tensorboard")}
    selected_on = "test.csv" if options.released_protocol else "validation"
    return result | {"best_epoch": progress.best_epoch, "selected_on": selected_on}


def evaluate_only(options, form: Format, splits: Splits, model, device, folder: Path) -> dict:
    """Evaluate the given weights on test.csv."""
    data = loaders(options, splits, model.img_size, device)
    evaluation = engine.evaluate(model, data["test"], make_loss(options.loss), form.threshold, device, "test")
    return write_results(options, folder, model, evaluation, [])


def write_results(options, folder: Path, model, evaluation: engine.Evaluation, history: list) -> dict:
    """Write predictions.csv, report.png and what weights are asked for, log the metrics beside the published ones, and sum up."""
    record.write_predictions(folder / "predictions.csv", evaluation)
    title = f"{options.model} on {options.dataset}, test.csv ({len(evaluation.names)} images)"
    record.draw_report(folder / "report.png", title, evaluation, history)
    record.drop_previous(folder)
    log.info("%s:\n%s", title, record.comparison(options.dataset, evaluation.metrics))
    files = {name: str(folder / f"{name}.{end}") for name, end in (("predictions", "csv"), ("report", "png"))}
    files["options"] = str(folder / "options.json")
    if options.save_released_style:
        (folder / "checkpoints").mkdir(exist_ok=True)
        engine.save(folder / "checkpoints" / "released_style.pth", released_style(model))
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
        "folder": os.path.abspath(folder),
        "files": files,
    }


if __name__ == "__main__":
    sys.exit(main())
