"""Every option: its type, default per dataset, help and checks. No torch in here."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from iaa.errors import InputError
from iaa.loss_terms import OF_VOTES, compares_images, parse_loss
from iaa.option_row import Option
from iaa.suggestions import suggest

MODELS = ["eat_nano", "eat_tiny", "eat_small", "eat_base", "eat_base_384"]
ANY_MODEL = [*MODELS, "timm/NAME"]  # NAME: any that timm has
RELEASED_PROTOCOLS = ("ava", "tad66k")
CPUS = os.cpu_count() or 1

# The released recipes (AVA, TAD66K), ours for the other sets after TAD66K's, and the demo's own.
# fmt: off
_TAD66K = {
    "model": "eat_base", "loss": "mse", "optimizer": "adam", "init_lr": 1e-5, "schedule": "constant", "weight_decay": 0.0,
    "warmup_epochs": 0.0, "clip_grad": None, "num_epoch": 25, "batch_size": 16, "num_workers": min(CPUS, 8),
}
_DEMO = {
    "model": "eat_nano", "loss": "emd", "optimizer": "adamw", "init_lr": 5e-4, "schedule": "cosine", "weight_decay": 0.05,
    "warmup_epochs": 1.0, "clip_grad": 1.0, "num_epoch": 8, "num_workers": 0,
}
# fmt: on
RECIPES: dict[str, dict[str, Any]] = {
    "demo": _TAD66K | _DEMO,
    "ava": _TAD66K | {"loss": "emd", "init_lr": 1e-6, "schedule": "step", "num_epoch": 20},
    **dict.fromkeys(("tad66k", "flickr_aes", "aadb", "para"), _TAD66K),
    "csv": _TAD66K | {"loss": "auto"},
}
DATASETS = tuple(RECIPES)


_tunable = partial(Option, tunable=True)


# fmt: off
GROUPS: dict[str, tuple[Option, ...]] = {
    "data": (
        Option("dataset", str, "demo", "which labels to read", choices=DATASETS),
        Option("path_to_images", str, None, "folder of the images; demo: where to build it (data/demo/images)", metavar="FOLDER", resumable=True),
        Option("path_to_save_csv", str, None, "folder of train.csv, val.csv and test.csv; demo: data/demo", metavar="FOLDER", resumable=True),
        Option("val_share", float, 0.1, "share of train.csv held out where there is no val.csv", low=0.01, high=0.5),
        Option("skip_missing", bool, False, "leave out the rows whose images are not in the folder"),
        Option("decode", str, "auto", "image decoder; auto: fast (torchvision) in training, pil (as released) in evaluation and with --released_protocol", choices=("auto", "pil", "fast")),
        Option("cache", str, None, "keep the decoded pictures in this folder, and train from them", metavar="FOLDER", resumable=True),
        Option("limit", int, None, "use the first N rows of each CSV only, for a quick try", low=2),
        Option("score_min", float, 0.0, "--dataset csv: lowest possible score (default: that of `prepare_data.py csv`, else 0)"),
        Option("score_max", float, 1.0, "--dataset csv: highest possible score (default: that of `prepare_data.py csv`, else 1)"),
        Option("threshold", float, None, "--dataset csv: scores above it count as high (default: middle of scale)"),
    ),
    "run": (
        Option("experiment_dir_name", str, None, "folder of this run (default: a new one under runs/)", metavar="FOLDER", resumable=True),
        Option("path_to_model_weight", str, None, "weights to start from, or to evaluate with --eval: a file or a folder, hf-hub:OWNER/NAME (also @REVISION), or a network of the folder weights/, as biq2021", metavar="FILE"),
        Option("options", str, None, "JSON file of options, as `search.py best` writes it; options of the command line override it", metavar="FILE"),
        Option("search_metric", str, "accuracy", "what a search maximises: accuracy as released, srcc, plcc, or the negative emd per image", choices=("accuracy", "srcc", "plcc", "emd")),
        Option("eval", bool, False, "evaluate --path_to_model_weight on test.csv, without training"),
        Option("trained_on", str, None, "--eval: dataset that the weights were trained on, if they do not say (default: AVA for ten outputs, else --dataset)", choices=DATASETS),
        Option("report_images", int, 1000, "--eval: number of photographs in report.html, the worst errors and a sample; 0: no report.html", low=0),
        Option("resume", bool, False, "continue the run in --experiment_dir_name from its last.pt, with its options", resumable=True),
        Option("overwrite", bool, False, "replace the run in --experiment_dir_name", resumable=True),
        Option("save_released_style", bool, False, "also write checkpoints/released_style.pth, with the released tensors only"),
        Option("released_protocol", bool, False, "as the release: select the checkpoint on test.csv, save and report checkpoints by its rules"),
        Option("save_minutes", float, 15.0, "write last.pt every X minutes within an epoch; it is always written at the end of an epoch", low=0, resumable=True),
        Option("gpu_id", str, None, "GPU to use, or cpu (default: the first GPU, else the CPU)", metavar="ID", resumable=True),
        Option("num_workers", int, None, "processes that read images; 0: the training process reads them (default: all cores, at most 8; demo: 0)", low=0, resumable=True),
        Option("seed", int, 0, "seed of weights, order and augmentation", low=0, high=2**32 - 1),
    ),
    "model": (
        _tunable("model", str, None, "network of EAT or of timm; with --eval the default is what the weights say or are recognised as", choices=ANY_MODEL),
        Option("pretrained", bool, False, "--model timm/NAME: start from the weights that timm fetches"),
        Option("freeze_backbone", bool, False, "compute the features of every picture once, keep them in --cache or beside the run's folder, and train the head alone"),
        _tunable("drop_path_rate", float, None, "drop path of the last block (default: the model's)", low=0, high=0.9),
        _tunable("interest_points", str, None, "batch: mean over the batch, as released; image: each image's own; grid: plain DAT's cell centres (default: as the weights were trained, else batch)", choices=("batch", "image", "grid")),
        _tunable("refinement", str, None, "released: the released rule; off: offsets stay as they are; scheduled: exploration, then as off (default: as the weights were trained, else released)", choices=("released", "off", "scheduled")),
        _tunable("explore_share", float, 0.5, "--refinement scheduled: share of training after which offsets stay as they are", low=0, high=1),
        _tunable("explore_same", float, 0.25, "--refinement scheduled: first factor of offsets in their interest point's quadrant", low=0),
        _tunable("explore_other", float, 1.0, "--refinement scheduled: first factor of the other offsets", low=0),
        _tunable("handover", str, "linear", "--refinement scheduled: linear: factors move to 1 from the start; step: they jump to 1 at explore_share", choices=("linear", "step")),
        Option("eval_refinement", str, "checkpoint", "--refinement scheduled: checkpoint: evaluate with the checkpoint's factors; exploitation: without factors", choices=("checkpoint", "exploitation")),
    ),
    "speed": (
        Option("amp", str, "auto", "number format of matrix products; auto: bf16 in training on a GPU that has it, off for --eval, test.csv and --released_protocol", choices=("auto", "bf16", "fp16", "off")),
        Option("tf32", bool, False, "float32 matrix products on a GPU may use TF32"),
        Option("deterministic", bool, False, "training on a GPU gives the same weights each time; attention takes longer"),
        Option("cuda_graph", str, "auto", "on a GPU: forward, loss and backward of a step as one CUDA graph, and forward in evaluation; auto: but not steps of several processes, with --accumulate or --grad_checkpoint; on: refuse to train so; off: no graph", choices=("auto", "on", "off"), resumable=True),
        Option("compile", bool, False, "compile the network with torch.compile, each kind of block once"),
        Option("grad_checkpoint", bool, False, "recompute activations in the backward pass: less memory, about 1.3 times as long", resumable=True),
    ),
    "training": (
        _tunable("num_epoch", int, None, "epochs", low=1),
        _tunable("batch_size", int, None, "images per batch and process", low=1),
        _tunable("accumulate", int, 1, "batches per step; their gradients are averaged", low=1),
        _tunable("eval_batch_size", int, None, "images per batch in evaluation (default: batch_size)", low=1),
        _tunable("init_lr", float, None, "learning rate", positive=True),
        _tunable("loss", str, None, "emd: as released, one root per batch; nima_r1, nima_r2: NIMA's EMD per image; mse: for scores; plcc: 1 - PLCC of the batch; rank: hinge on the differences within the batch; a sum of these, as mse+0.5*plcc; auto: emd for votes, mse for scores", metavar="LOSS", parse=parse_loss),
        _tunable("optimizer", str, None, "the optimiser", choices=("adam", "adamw")),
        _tunable("weight_decay", float, None, "weight decay", low=0),
        _tunable("layer_decay", float, None, "factor of the learning rate from each layer to the one before it, such as 0.75; the head has the full rate (default: one rate for all)", positive=True, high=1),
        _tunable("schedule", str, None, "learning rate over epochs", choices=("constant", "step", "cosine")),
        _tunable("decay_every", int, 5, "--schedule step: epochs between two drops", low=1),
        _tunable("decay_factor", float, 0.1, "--schedule step: factor of a drop", positive=True, high=1),
        _tunable("warmup_epochs", float, None, "epochs of linear warm-up", low=0),
        Option("max_bad_steps", int, 10, "skip steps whose loss or gradient is not finite; end the run after more than N", low=0, resumable=True),
        _tunable("clip_grad", float, None, "clip the gradient's norm to this", positive=True),
        _tunable("ema_decay", float, None, "validate, select and test the moving average of the weights, of which a step keeps this share, such as 0.999 (default: the weights themselves)", positive=True, high=0.99999),
        Option("tta", str, "off", "flip: in validation, test and --eval the mean of the outputs for a photograph and its mirror image, in twice the time", choices=("off", "flip")),
        Option("select_by", str, "srcc", "metric on the selection set that picks best.pth", choices=("srcc", "plcc", "accuracy", "loss")),
    ),
}
# fmt: on

OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}

# The default recipe of a head alone, whatever the dataset.
_HEAD = {"optimizer": "adamw", "init_lr": 1e-3, "schedule": "cosine", "num_epoch": 20, "weight_decay": 0.05}
# Options that have a meaning only beside some values of another: (the other's name, these values, the options).
_REFINEMENT = ("explore_share", "explore_same", "explore_other", "handover", "eval_refinement")
_EATS_OWN = ("interest_points", "refinement", *_REFINEMENT, "save_released_style")
_WHOLE_NETWORK = (
    *_REFINEMENT,
    "drop_path_rate",
    "layer_decay",
    "grad_checkpoint",
    "compile",
    "released_protocol",
)
_OWNERS = (
    ("eval", (True,), ("report_images", "trained_on")),
    ("dataset", ("csv",), ("score_min", "score_max", "threshold")),
    ("schedule", ("step",), ("decay_every", "decay_factor")),
    ("model", MODELS, _EATS_OWN),
    ("refinement", ("scheduled",), _REFINEMENT),
    ("freeze_backbone", (False,), _WHOLE_NETWORK),
)
# With these values an epoch depends on the total number of epochs.
_END_WITH_TRAINING = {"schedule": "cosine", "refinement": "scheduled"}
# Of runs and weights of an older version.
_NO_RUNNING = "interest_points running is no longer known; choose --interest_points image or batch"


def read_json(path: str | os.PathLike, problem: str) -> dict[str, Any]:
    """The JSON object of a file. problem: what to say of a file that has none. Raises InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("it must be a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {problem} ({error})") from None
    return content


def _check_all(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {n: OPTIONS[n].check(v, source) for n, v in content.items() if n in OPTIONS and v is not None}


def read_options(path: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a JSON file with the command line's over them, checked. Raises InputError."""
    content = read_json(path, "cannot be read as options")
    for name in content:
        if name not in OPTIONS or name == "options":
            hint = suggest(name, OPTIONS) or ";"
            raise InputError(f"{path}: unknown option {name!r}{hint} --help lists them")
    return _check_all(content, path) | dict(chosen)


def check_tuned(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The tuner's parameters, checked. Raises InputError for unknown names and invalid values."""
    tunable = [name for name, option in OPTIONS.items() if option.tunable]
    for name in parameters:
        if name not in tunable:
            unknown = f"tuner: unknown parameter {name!r}{suggest(name, tunable) or ';'}"
            raise InputError(f"{unknown} the search may set {', '.join(tunable)}")
    return {name: OPTIONS[name].check(value, "tuner") for name, value in parameters.items()}


def merge_resumed(chosen: Mapping[str, Any], path: os.PathLike) -> dict[str, Any]:
    """A resumed run's options: those of `path`, under the command line's that may change. Raises InputError for others."""
    content = read_json(path, "no run to resume")
    if content.get("decode") == "gpu":  # of an older version
        content["decode"] = "fast"
    if content.get("interest_points") == "running":
        raise InputError(f"{path}: {_NO_RUNNING} in a new run that starts from its best.pth")
    saved = _check_all(content, str(path))
    saved.pop("overwrite", None)  # it was for that run's start
    for name, value in chosen.items():
        before = saved.get(name)
        if OPTIONS[name].resumable or before == value:
            continue
        reason = "start a new run"
        if name == "num_epoch" and before and value > before:
            ends = [n for n, v in _END_WITH_TRAINING.items() if saved.get(n) == v]
            if not ends:
                continue
            reason = f"--{ends[0]} {saved[ends[0]]} depends on the end; {reason}"
        raise InputError(f"--resume: --{name} {value} differs from the run's {before}; {reason}")
    return saved | dict(chosen)


def _add_defaults(chosen: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {name: option.default for name, option in OPTIONS.items()}
    head = _HEAD if chosen.get("freeze_backbone") else {}
    return defaults | RECIPES[chosen.get("dataset", "demo")] | head | dict(chosen)


def complete(chosen: Mapping[str, Any]) -> argparse.Namespace:
    """All options: the `chosen` ones over the dataset's recipe over the table's defaults. Raises InputError for contradictions."""
    dataset = chosen.get("dataset", "demo")
    options = argparse.Namespace(**_add_defaults(chosen))
    options.eval_batch_size = options.eval_batch_size or options.batch_size
    weights, protocols = options.path_to_model_weight, " and ".join(RELEASED_PROTOCOLS)
    if dataset == "demo":
        options.path_to_save_csv = options.path_to_save_csv or os.path.join("data", "demo")
        options.path_to_images = options.path_to_images or os.path.join(options.path_to_save_csv, "images")
    warmup, scale = f"--warmup_epochs {options.warmup_epochs:g}", f"--score_max {options.score_max:g}"
    folders = [f"--{name}" for name in ("path_to_images", "path_to_save_csv") if not getattr(options, name)]
    needs = f"--dataset {dataset} needs {' and '.join(folders)}; prepare_data.py makes the CSVs"
    no_protocol = options.released_protocol and dataset not in RELEASED_PROTOCOLS
    is_alone = compares_images(options.loss) and min(options.batch_size, options.eval_batch_size) < 2
    pairs = f"--loss {options.loss} compares the images of a batch"
    freezes, several = options.freeze_backbone, os.environ.get("WORLD_SIZE", "1") != "1"
    lacks_start = freezes and not (weights or options.pretrained)
    is_batch = freezes and options.interest_points == "batch"
    is_scheduled = freezes and options.refinement == "scheduled" and not options.resume
    for contradicts, problem in (
        (folders, needs),
        (options.eval and not weights, "--eval needs --path_to_model_weight"),
        (options.resume and not options.experiment_dir_name, "--resume needs --experiment_dir_name"),
        (options.resume and options.overwrite, "--resume and --overwrite exclude each other"),
        (options.resume and options.eval, "--resume and --eval exclude each other"),
        (options.eval and options.released_protocol, "--eval and --released_protocol exclude each other"),
        (options.pretrained and weights, "--pretrained and --path_to_model_weight exclude each other"),
        (no_protocol, f"--released_protocol: {dataset} has none; {protocols} have"),
        (freezes and options.eval, "--freeze_backbone and --eval exclude each other"),
        (lacks_start, "--freeze_backbone needs --path_to_model_weight or --pretrained"),
        (is_batch, "--freeze_backbone needs features of single pictures: use --interest_points image"),
        (is_scheduled, "--freeze_backbone: no schedule applies to a frozen network; leave --refinement out"),
        (freezes and several, "--freeze_backbone trains in one process; start it without torchrun"),
        (options.warmup_epochs > options.num_epoch, f"{warmup} exceeds --num_epoch {options.num_epoch}"),
        (options.score_min >= options.score_max, f"--score_min {options.score_min:g} is not below {scale}"),
        (is_alone, f"{pairs}: --batch_size and --eval_batch_size must be at least 2"),
    ):
        if contradicts:
            raise InputError(problem)
    if dataset in ("tad66k", "flickr_aes", "aadb", "para"):
        complete_loss(options, votes=False)
    _refuse_meaningless(options, chosen)
    return options


def complete_loss(options: argparse.Namespace, votes: bool) -> None:
    """Fill in the loss, and check what needs vote distributions, once the labels are known. Raises InputError."""
    options.loss = {"auto": "emd" if votes else "mse"}.get(options.loss, options.loss)
    parts = {"loss": ("mse", parse_loss(options.loss)), "search_metric": ("srcc", [options.search_metric])}
    for name, (other, used) in parts.items():
        for wrong in OF_VOTES:
            if not votes and wrong in used:
                needs = f"--{name} {getattr(options, name)} needs vote distributions"
                raise InputError(f"{needs}; {options.dataset} has scores: use {other} instead of {wrong}")


def complete_network(options: argparse.Namespace, chosen: Mapping, settings: Mapping[str, str]) -> None:
    """Fill in the network's settings, those of the weights (`settings`) where none is chosen. Raises InputError.

    A network of timm has none: options of EAT's own are None.
    """
    if options.model in MODELS:
        options.interest_points = options.interest_points or settings.get("interest_points", "batch")
        if options.interest_points == "running":  # as the weights state
            raise InputError(f"{options.path_to_model_weight}: {_NO_RUNNING}")
        options.refinement = options.refinement or settings.get("refinement", "released")
    _refuse_meaningless(options, chosen)
    if options.model.startswith("timm/"):
        vars(options).update(dict.fromkeys(_EATS_OWN))
    elif options.pretrained:
        raise InputError(f"--pretrained belongs to --model timm/NAME, not {options.model}")


def _refuse_meaningless(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Raises InputError for a chosen option that has no meaning under these values of others."""
    for name, problem in find_meaningless(vars(options)).items():
        if name in chosen and chosen[name] != OPTIONS[name].default:
            raise InputError(problem)


def find_meaningless(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The options that have no meaning beside the chosen values of others, and why. A value None is not known yet."""
    options, problems = _add_defaults(chosen), {}
    for owner, values, names in _OWNERS:
        if (value := options[owner]) is None or value in values:
            continue
        needed = {"eval": "", "model": " eat_*"}.get(owner, f" {' or '.join(map(str, values))}")
        other = "" if owner == "eval" else f", not {value}"
        reason = f"belongs to --{owner}{needed}{other}"
        if owner == "freeze_backbone":
            reason = "and --freeze_backbone exclude each other: the head alone is trained"
        for name in names:
            problems.setdefault(name, f"--{name} {reason}")
    return problems
