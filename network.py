"""The network of a run: made as the options ask, with its weights, checked, calibrated."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch

import engine
from dataset import Transform, make_loader
from labels import Labels
from models import EAT, Weights, create_model, load_weights, uncalibrated
from option import InputError

log = logging.getLogger("eat")


def make_model(options: argparse.Namespace, weights: Weights | None, outputs: int) -> EAT:
    """The network of `options` with `weights`, or fresh. Raises InputError where it could not be evaluated."""
    overrides = {} if options.drop_path_rate is None else {"drop_path_rate": options.drop_path_rate}
    model = create_model(
        options.model,
        outputs,
        interest_points=options.interest_points,
        refinement=options.refinement,
        sync_interest_points=options.sync_interest_points,
        exploit=options.eval_refinement == "exploitation",
        **overrides,
    )
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
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    images, mean_of = options.batch_size, "batch"
    if options.sync_interest_points:
        images, mean_of = images * processes, "batch of all processes"
    step = options.batch_size * options.accumulate * processes
    if options.interest_points != "image" and not options.eval and images != step:
        notes.append(
            f"interest points are means over the {images} images of a {mean_of}, not over the {step} images of a step"
        )
    return notes


def calibrate(options, train: Labels, model, device: torch.device, folder: Path) -> None:
    """Estimate the running interest points from `--calibrate_points` images of train.csv, and save the network."""
    count = min(options.calibrate_points, len(train))
    if count < options.calibrate_points:
        log.warning("warning: train.csv has %d images, fewer than --calibrate_points", count)
    rows = np.random.default_rng(options.seed).permutation(len(train))[:count]
    loader = make_loader(
        train.subset(rows),
        options.path_to_images,
        Transform(options.dataset, model.img_size, train=False),
        options.batch_size,
        options.num_workers,
        pin_memory=device.type == "cuda",
    )
    engine.calibrate(model, loader, device)
    path = folder / "checkpoints" / "calibrated.pth"
    path.parent.mkdir(exist_ok=True)
    engine.save(path, model.state_dict())
    log.info("running interest points estimated from %d training images, saved in %s", count, path)
