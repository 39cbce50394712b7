"""What a run needs, made as its options ask: device, precision, data, network, training."""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from commands import distributed
from commands.signals import Watch
from dataset import Splits, Transform, make_loader
from evaluation.seen import UNKNOWN, Seen
from models import EAT, RefinementSchedule, Weights, create_model, load_weights, uncalibrated
from option import InputError
from photographs.cache import open_filled
from photographs.labels import FORMATS, Format, Labels, csv_format
from training import checkpoint, engine
from training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer
from util import make_loss

log = logging.getLogger("eat")


def pick_device(gpu_id: str | None) -> torch.device:
    """The GPU of `--gpu_id`, `cpu`, or by default the first GPU, else the CPU. Raises InputError.

    Of several processes on a machine each takes the GPU of its number.
    """
    count = torch.cuda.device_count()
    if gpu_id == "cpu":
        return torch.device("cpu")
    if distributed.world() > 1:
        if gpu_id is not None:
            raise InputError(f"--gpu_id {gpu_id}: torchrun gives each process a GPU of its own; leave it out")
        if 0 < count <= distributed.local_rank():
            raise InputError(
                f"{count} GPUs are here, fewer than processes; lower torchrun's --nproc_per_node"
            )
        gpu_id = str(distributed.local_rank()) if count else None
    if gpu_id is None:
        device = torch.device("cuda:0" if count else "cpu")
    elif not gpu_id.isdecimal() or int(gpu_id) >= count:
        found = f"GPUs 0 to {count - 1} are here" if count else "no GPU is here; use --gpu_id cpu"
        raise InputError(f"--gpu_id {gpu_id}: no such GPU; {found}")
    else:
        device = torch.device(f"cuda:{gpu_id}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_precisions(options: argparse.Namespace, device: torch.device) -> tuple[Precision, Precision]:
    """The precision of training and validation, and that of test.csv, by `--amp`; and TF32 by `--tf32`."""
    allow_tf32(options.tf32)
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
    if options.amp in named:
        return (Precision(device, named[options.amp]),) * 2
    dtype = None
    trains_freely = not (options.eval or options.released_protocol)
    if device.type == "cuda" and trains_freely and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = torch.bfloat16
        log.info("training in bf16 where it is safe (--amp off: float32); test.csv is scored in float32")
    return Precision(device, dtype), Precision(device)


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


def pick_decoders(options: argparse.Namespace, device: torch.device) -> tuple[str, str]:
    """The decoder of training, and that of evaluation, by `--decode`. Raises InputError."""
    if options.decode == "gpu" and device.type != "cuda":
        raise InputError(f"--decode gpu: the run is on {device}; use --decode fast")
    if options.decode != "auto":
        return options.decode, options.decode
    return "pil" if options.released_protocol else "fast", "pil"


def loaders(
    options: argparse.Namespace, splits: Splits, size: int, device: torch.device, watch: Watch, like: str
) -> dict:
    """A loader for each split that is there, by its name. The processes share their batches.

    like: the dataset whose transforms the network knows. In the released protocol a single one evaluates. Fills the cache, if there is one. Raises Interrupted.
    """
    result = {}
    decoder, eval_decoder = pick_decoders(options, device)
    for split in ("train", "val", "test"):
        train = split == "train"
        if (labels := getattr(splits, split)) is not None and not (train and options.eval):
            alone = options.released_protocol and not train
            transform = Transform(like, size, train)
            used = decoder if train else eval_decoder
            cache = None
            if options.cache is not None:
                images, workers = options.path_to_images, options.num_workers
                cache = open_filled(
                    options.cache, transform.resize, used, labels.images, images, workers, watch
                )
            result[split] = make_loader(
                labels,
                options.path_to_images,
                transform,
                options.batch_size if train else options.eval_batch_size,
                options.num_workers,
                options.seed,
                pin_memory=device.type == "cuda",
                rank=0 if alone else distributed.rank(),
                world=1 if alone else distributed.world(),
                decoder=used,
                cache=cache,
                persistent=split != "test",
            )
    return result


def make_model(
    options: argparse.Namespace,
    weights: Weights | None,
    form: Format,
    dataset: str,
    device: torch.device,
) -> EAT:
    """The network of `options` with `weights`, or fresh, for the scores of `dataset`, as `form` has them.

    Seeds the random numbers of the run. Raises InputError where the network could not be evaluated.
    """
    torch.manual_seed(options.seed)
    model = _filled(options, weights, form, dataset).to(device)
    if distributed.rank():  # rank 0 goes on as a single process would
        torch.manual_seed(options.seed + distributed.rank())
    return model


def _filled(options: argparse.Namespace, weights: Weights | None, form: Format, dataset: str) -> EAT:
    overrides = {} if options.drop_path_rate is None else {"drop_path_rate": options.drop_path_rate}
    model = create_model(
        options.model,
        form.outputs,
        interest_points=options.interest_points,
        refinement=options.refinement,
        sync_interest_points=options.sync_interest_points,
        exploit=options.eval_refinement == "exploitation",
        **overrides,
    )
    model.set_grad_checkpointing(options.grad_checkpoint)
    model.purpose = {"model": options.model, "dataset": dataset, "score_range": list(form.scale)}
    if weights is not None:
        model.photographs = dict(weights.photographs)
    if weights is None:
        if options.model != "eat_nano" and not options.resume:
            log.warning(
                "warning: %s starts from random weights; --path_to_model_weight takes ImageNet's",
                options.model,
            )
        return model
    fresh = load_weights(model, weights)
    if plain := [
        name for name in fresh if name.startswith("cls_head.") or name.endswith("ref_point14.weight")
    ]:
        if options.eval:
            raise InputError(f"{weights.path}: plain DAT, without EAT's head: train it before --eval")
        log.info("plain DAT's weights: %s start fresh", ", ".join(plain))
    elif not weights.photographs:  # a trained EAT, as released
        model.photographs = dict(UNKNOWN)
    if options.eval and uncalibrated(model) and not options.calibrate_points:
        raise InputError(
            f"{weights.path}: has no running interest points; --calibrate_points N estimates them from N training "
            "images, --interest_points batch evaluates as released"
        )
    no_factors = any(name.endswith("refinement.factors") for name in fresh)
    if options.eval and no_factors and options.eval_refinement == "checkpoint":
        raise InputError(
            f"{weights.path}: remembers no factors of a refinement schedule; --eval_refinement exploitation "
            "evaluates without any, --refinement released by the released rule"
        )
    return model


def network_notes(options: argparse.Namespace, weights: Weights | None) -> list[str]:
    """What a user should know of the interest points and the refinement of this run, line by line."""
    notes = [f"interest points: {options.interest_points}; offset refinement: {options.refinement}"]
    for name, value in (weights.settings if weights else {}).items():
        if getattr(options, name) != value:
            notes.append(
                f"warning: {weights.path} was trained with --{name} {value}, not {getattr(options, name)}"
            )
    if options.interest_points == "batch" and options.eval:
        notes.append(
            f"a score depends on the other images of its batch of {options.eval_batch_size}, as in the release"
        )
    processes = distributed.world()
    images, mean_of = options.batch_size, "batch"
    if options.sync_interest_points:
        images, mean_of = images * processes, "batch of all processes"
        if processes == 1:
            notes.append("--sync_interest_points changes nothing: there is one process")
    step = options.batch_size * options.accumulate * processes
    if options.interest_points != "image" and not options.eval and images != step:
        notes.append(
            f"interest points are means over the {images} images of a {mean_of}, not over the {step} images of a step"
        )
    return notes


def remember(model: EAT, splits: Splits) -> None:
    """Note in the network which photographs it is going to be trained on and selected by; its files keep it."""
    seen = Seen.from_texts(model.photographs, "the weights")
    model.photographs = (seen | Seen.of(splits.train.images, splits.val.images)).as_texts()


def calibrate(
    options, train: Labels, model, device: torch.device, folder: Path, watch: Watch, like: str
) -> None:
    """Estimate the running interest points from `--calibrate_points` images of train.csv, and save the network."""
    count = min(options.calibrate_points, len(train))
    if count < options.calibrate_points:
        log.warning("warning: train.csv has %d images, fewer than --calibrate_points", count)
    rows = np.random.default_rng(options.seed).permutation(len(train))[:count]
    loader = make_loader(
        train.subset(rows),
        options.path_to_images,
        Transform(like, model.img_size, train=False),
        options.batch_size,
        options.num_workers,
        pin_memory=device.type == "cuda",
    )
    engine.calibrate(model, loader, device, watch)
    path = folder / "checkpoints" / "calibrated.pth"
    if distributed.rank() == 0:
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, model.state_dict())
    log.info("running interest points estimated from %d training images, saved in %s", count, path)


def make_training(
    options: argparse.Namespace,
    model: EAT,
    precision: Precision,
    checkpoints: Path,
) -> engine.Training:
    """The training that the options ask for, at its start. checkpoints: the folder of last.pt, which is made ready."""
    if distributed.rank() == 0:
        checkpoints.mkdir(exist_ok=True)
        checkpoint.remove_strays(checkpoints)
    if options.compile:
        model.compile()
    network, unsynced = model, nullcontext
    if distributed.world() > 1:
        device_ids = [precision.device.index] if precision.device.type == "cuda" else None
        network = torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)
        unsynced = network.no_sync
    refinement = None
    if options.refinement == "scheduled":
        refinement = RefinementSchedule(
            options.explore_share, options.explore_same, options.explore_other, options.handover
        )
    schedule = Schedule(
        options.init_lr,
        options.num_epoch,
        options.schedule,
        options.decay_every,
        options.decay_factor,
        options.warmup_epochs,
    )
    stepper = Stepper(
        model,
        make_optimizer(model, options.optimizer, options.weight_decay),
        schedule,
        precision,
        options.accumulate,
        options.clip_grad,
        refinement,
        unsynced,
    )
    return engine.Training(
        network,
        stepper,
        make_loss(options.loss),
        checkpoints,
        checkpoint.Progress(),
        options.save_minutes,
        options.max_bad_steps,
    )


def resume(training: engine.Training) -> None:
    """Put a training where its last.pt says that it stands. Raises InputError."""
    stepper = training.stepper
    training.progress = checkpoint.restore(
        training.checkpoints, stepper.model, stepper.optimizer, stepper.scaler
    )
    log.info("resumed after %d epochs and %d batches", training.progress.epoch, training.progress.step)
