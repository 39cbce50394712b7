"""The parts of a run, made from its options: device, precision, data, network, trainer."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

import models
from dataset import Splits, Transform, make_loader
from iaa.errors import InputError
from iaa.evaluation.leakage import UNKNOWN, KnownPhotos
from iaa.loss_terms import compares_images
from iaa.photographs.cache import Cache
from iaa.photographs.labels import FORMATS, LabelFormat, csv_format
from iaa.runtime import distributed
from iaa.runtime.signals import StopSignal
from iaa.training import checkpoint, engine
from iaa.training.features import Head, make_feature_loader, read_features
from iaa.training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer, set_deterministic
from models import Purpose, Weights, create_model, load_weights
from models.weights import FACTORS
from util import make_loss

log = logging.getLogger("eat")

EXPLORATION = attrgetter("explore_share", "explore_same", "explore_other", "handover")
MIRRORED = "the mean of each photograph's outputs and its mirror image's (--tta flip)"
SCHEDULE = attrgetter("init_lr", "num_epoch", "schedule", "decay_every", "decay_factor", "warmup_epochs")


def pick_device(gpu_id: str | None) -> torch.device:
    """The device of `--gpu_id`; by default the GPU with the number of this process, else the CPU. Raises InputError."""
    count = torch.cuda.device_count()
    if gpu_id == "cpu" or (gpu_id is None and not count):
        return torch.device("cpu")
    if gpu_id and distributed.world_size() > 1:
        raise InputError(f"--gpu_id {gpu_id}: torchrun gives each process a GPU of its own; leave it out")
    gpu_id = gpu_id or os.environ.get("LOCAL_RANK", "0")
    if not gpu_id.isdecimal() or int(gpu_id) >= count:
        available = f"GPUs 0 to {count - 1} are here" if count else "no GPU is here; use --gpu_id cpu"
        raise InputError(f"--gpu_id {gpu_id}: no such GPU; {available}")
    device = torch.device("cuda", int(gpu_id))
    torch.cuda.set_device(device)
    return device


def pick_precisions(amp: str, exact: bool, device: torch.device) -> tuple[Precision, Precision]:
    """The precision of training and validation, and that of test.csv, by `--amp`. exact: `auto` is float32 everywhere."""
    if amp != "auto":
        precision = Precision(device, {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp])
        return precision, precision
    if exact or device.type != "cuda" or not torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(device), Precision(device)
    log.info("training in bf16 where it is safe (--amp off: float32); test.csv is scored in float32")
    return Precision(device, torch.bfloat16), Precision(device)


def pick_cuda_graphs(
    choice: str, device: torch.device, trains: bool, accumulate: int, grad_checkpoint: bool
) -> tuple[bool, bool]:
    """Whether training steps, and whether evaluation, run as CUDA graphs. choice: `--cuda_graph`. Raises InputError."""
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return False, False
    obstacles = {
        f"the device is {device}": device.type != "cuda",
        "there are several processes": distributed.world_size() > 1,
        f"--accumulate is {accumulate}": accumulate > 1,
        "--grad_checkpoint is given": grad_checkpoint,
    }
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons and choice == "on":
        raise InputError(f"--cuda_graph on: {reasons[0]}; leave it out")
    if reasons and trains:
        log.info("training steps are no CUDA graphs: %s", reasons[0])
    return not reasons, True


def pick_format(
    dataset: str, folder: Path, trains: bool, scale: tuple[float, float], threshold: float | None
) -> LabelFormat:
    """The label format of the dataset. scale, threshold: of `csv`, whose files are in the folder.

    Raises InputError if these files have different columns.
    """
    if dataset != "csv":
        return FORMATS[dataset]
    names = ["test.csv", "train.csv"] if trains else ["test.csv"]
    if trains and (folder / "val.csv").is_file():
        names.append("val.csv")
    formats = [csv_format(folder / name, scale, threshold) for name in names]
    for name, label_format in zip(names, formats, strict=True):
        if label_format != formats[0]:
            raise InputError(f"{folder / name}: its label columns differ from those of test.csv")
    return formats[0]


def pick_decoders(decode: str, released_protocol: bool) -> tuple[str, str]:
    """The decoder of training, and that of evaluation, by `--decode`."""
    if decode != "auto":
        return decode, decode
    return "pil" if released_protocol else "fast", "pil"


def make_loaders(
    options: argparse.Namespace, splits: Splits, model: nn.Module, label_format: LabelFormat, stop: StopSignal
) -> dict[str, DataLoader]:
    """A loader for each split, by its name. Fills the cache, if there is one. Raises Interrupted.

    label_format: the one that the network is trained for, for its resize. Several processes share the batches; under
    --released_protocol they share only those of training.
    """
    loaders, images, workers = {}, options.path_to_images, options.num_workers
    for split in ("val", "test") if options.eval else ("train", "val", "test"):
        train, labels, cache = split == "train", getattr(splits, split), None
        if labels is None:
            continue
        transform = Transform(label_format, model.img_size, train)
        decoder = pick_decoders(options.decode, options.released_protocol)[not train]
        if options.cache is not None:
            cache = Cache(options.cache, transform.resize, decoder)
            cache.fill(labels.images, images, workers, stop)
        settings = {"decoder": decoder, "cache": cache, "persistent": split != "test"}
        settings["pin_memory"] = next(model.parameters()).is_cuda
        if train or not options.released_protocol:
            settings |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
        size = options.batch_size if train else options.eval_batch_size
        loaders[split] = make_loader(labels, images, transform, size, workers, options.seed, **settings)
        is_normed = any(isinstance(layer, _BatchNorm) for layer in model.modules())
        compares, sampler = compares_images(options.loss), loaders[split].batch_sampler
        if train and (is_normed or compares):
            sampler.join_single()
        if train and compares and sampler.num_images < 2:
            raise InputError(f"{labels.source}: 1 photograph per process; --loss {options.loss} needs two")
    return loaders


def make_feature_loaders(
    options: argparse.Namespace,
    splits: Splits,
    head: Head,
    label_format: LabelFormat,
    precision: Precision,
    parent: Path,
    stop: StopSignal,
) -> dict[str, DataLoader]:
    """As `make_loaders`, of features. parent: where they are kept, in a folder of their own. Raises Interrupted."""
    network, decoder, loaders = head.whole_network, pick_decoders(options.decode, False)[1], {}
    transform = Transform(label_format, network.img_size, train=False)
    settings = {"batch_size": options.eval_batch_size, "num_workers": options.num_workers, "decoder": decoder}
    settings["pin_memory"] = precision.device.type == "cuda"
    load = partial(make_loader, images=options.path_to_images, transform=transform, **settings)
    weights = head.backbone_digest, options.model, network.purpose.settings, precision.dtype
    pictures = transform.resize, network.statistics, decoder
    folder = parent / hashlib.sha256(repr((weights, pictures)).encode()).hexdigest()[:16]
    for split in ("train", "val", "test"):
        train, labels = split == "train", getattr(splits, split)
        features = read_features(head, labels, Path(options.path_to_images), folder, load, precision, stop)
        size = options.batch_size if train else options.eval_batch_size
        loaders[split] = make_feature_loader(labels, features, size, options.seed, train)
    if compares_images(options.loss):
        loaders["train"].batch_sampler.join_single()
    return loaders


def make_model(
    options: argparse.Namespace,
    weights: Weights | None,
    purpose: Purpose,
    outputs: int,
    device: torch.device,
) -> nn.Module:
    """The network of `options` with `weights`, or with random ones, for this purpose. Seeds the run.

    Raises InputError if --eval is asked of weights that lack something.
    """
    torch.manual_seed(options.seed)
    names = ("interest_points", "refinement", "drop_path_rate")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.eval_refinement == "exploitation":
        settings["exploit"] = True
    if options.pretrained and (options.freeze_backbone or not options.resume):
        settings["pretrained"] = True
    model = create_model(options.model, outputs, **settings)
    if options.grad_checkpoint:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):  # raised by networks of timm
            raise InputError(f"--grad_checkpoint: {options.model} has no such way; leave it out") from None
    if options.layer_decay is not None and not hasattr(model, "group_matcher"):
        raise InputError(f"--layer_decay: {options.model} does not say which layers it has; leave it out")
    model.purpose = replace(purpose, settings=model.purpose.settings)
    if weights is not None:
        _load(model, weights, not options.eval, needs_factors=options.eval_refinement == "checkpoint")
    elif options.model != "eat_nano" and not options.resume and not options.pretrained:
        remedy = "--path_to_model_weight takes ImageNet's"
        log.warning("warning: %s starts from random weights; %s", options.model, remedy)
    if distributed.rank():  # rank 0 draws the random numbers of a single process
        torch.manual_seed(options.seed + distributed.rank())
    allow_tf32(options.tf32)
    set_deterministic(options.deterministic, model, device)
    return model.to(device)


def _load(model: nn.Module, weights: Weights, trains: bool, needs_factors: bool) -> None:
    """Load the weights, and note their photographs. Raises InputError if they lack what evaluation needs."""
    fresh = load_weights(model, weights, fresh_head=trains)
    missing = [name for name in fresh if not name.endswith((FACTORS, "ref_point14.bias"))]
    # Weights that state nothing are of a scorer, as the released EAT, if they are complete or have interest points.
    was_scorer = not missing or any("ref_point14" in name for name in weights.state)
    model.photographs = dict(weights.photographs or (UNKNOWN if was_scorer else {}))
    problem, has_factors = None, not any(name.endswith(FACTORS) for name in fresh)
    if missing and trains:
        log.info("%s has none that fit: %s start fresh", weights.path, ", ".join(missing))
    elif missing and model.purpose.settings:
        problem = "plain DAT, without interest points: leave --interest_points out, or train it before --eval"
    elif missing:
        problem = f"has no {missing[0]} that fits: train it before --eval"
    elif needs_factors and not (trains or has_factors):
        problem = (
            "has no factors of a refinement schedule; --eval_refinement exploitation evaluates without any"
        )
    if problem:
        raise InputError(f"{weights.path}: {problem}")


def network_notes(
    settings: Mapping[str, str], weights: Weights | None, trains: bool, accumulate: int, eval_batch_size: int
) -> list[str]:
    """Lines for the log on a network's weights, interest points and refinement. settings: its own; none for timm's."""
    notes = [weights.purpose.note] if weights and weights.purpose.note else []
    if not settings:
        return notes
    notes += ["interest points: {interest_points}; offset refinement: {refinement}".format(**settings)]
    for name, value in (weights.purpose.settings if weights else {}).items():
        if settings[name] != value:
            notes.append(f"warning: {weights.path} was trained with --{name} {value}, not {settings[name]}")
    if settings["interest_points"] == "batch" and not trains:
        others = f"the other images of its batch of {eval_batch_size}"
        notes.append(f"a score depends on {others}, as in the release")
    elif settings["interest_points"] == "batch" and distributed.world_size() * accumulate > 1:
        notes.append("interest points are means over the images of a batch of a process, not of a step")
    return notes


def evaluation_notes(ema_decay: float | None, mirrors: bool) -> list[str]:
    """Lines for the log and the report if a moving average of the weights is evaluated, or mirror images are."""
    notes = []
    if ema_decay is not None:
        notes.append(f"evaluated: the moving average of the weights (--ema_decay {ema_decay:g})")
    return notes + [f"evaluated: {MIRRORED}"] * mirrors


def note_photographs(model: nn.Module, splits: Splits) -> None:
    """Note in the network, and so in its files, the photographs that it is trained on and selected by."""
    before = KnownPhotos.from_texts(model.photographs, "the weights")
    model.photographs = (before | KnownPhotos.of(splits.train.images, splits.val.images)).as_texts()


def make_trainer(
    options: argparse.Namespace, model: nn.Module, precision: Precision, cuda_graph: bool, checkpoints: Path
) -> engine.Trainer:
    """The trainer of a run, at its start or where --resume goes on. checkpoints: the folder of last.pt."""
    network, unsynced = model, nullcontext
    if distributed.world_size() > 1:
        network = torch.nn.parallel.DistributedDataParallel(model)
        unsynced = network.no_sync
    optimizer = make_optimizer(model, options.optimizer, options.weight_decay, options.layer_decay)
    exploring = options.refinement == "scheduled"
    refinement = models.RefinementSchedule(*EXPLORATION(options)) if exploring else None
    settings = options.accumulate, options.clip_grad, refinement, unsynced, options.ema_decay
    stepper = Stepper(model, optimizer, Schedule(*SCHEDULE(options)), precision, *settings)
    checkpoint.make_ready(checkpoints)
    progress = checkpoint.Progress()
    if options.resume:
        progress = checkpoint.restore(checkpoints, stepper)
        log.info("resumed after %d epochs and %d batches", progress.epoch, progress.step)
    limits = options.save_minutes, options.max_bad_steps
    return engine.Trainer(
        network, stepper, make_loss(options.loss), checkpoints, *limits, progress, cuda_graph
    )
