"""The command line of predict.py, and the options of every command that uses trained weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands import distributed
from commands.parser import Parser
from inference.table import ENDINGS
from option import ANY_MODEL, CPUS, DATASETS, InputError, Option

if TYPE_CHECKING:
    from inference.trained import Trained

ALL = "all"  # the deformable layers

# fmt: off
# What every command that uses trained weights asks for; see `trained.load_trained`.
WEIGHTS = (
    Option("weights", str, None, "a run's folder or its best.pth, a released checkpoint, a .safetensors, or a folder that `export.py --to hub` wrote", metavar="FILE", required=True),
    Option("dataset", str, None, "what it was trained on, where the file does not say", choices=DATASETS),
    Option("model", str, None, "the network (default: as the file says, or by its tensors)", choices=ANY_MODEL),
    Option("score_min", float, None, "--dataset csv: lowest possible score, where the file does not say"),
    Option("score_max", float, None, "--dataset csv: highest possible score, where the file does not say"),
    Option("interest_points", str, None, "each image's own; a running mean; none but plain DAT's cell centres; or of the batch, as released: scores then depend on the batch (default: as trained, but each image's own instead of the batch's)", choices=("image", "running", "grid", "batch")),
)

TABLE = {
    "": (
        Option("paths", str, [], "a photograph, a folder (with those below it), a glob in quotes, or shards: a tar, or 'photos-{000..999}.tar'", metavar="PATH", nargs="*", positional=True),
        Option("list", str, [], "a text file with a path in each line; -: standard input", metavar="FILE", nargs="append"),
    ),
    "weights": WEIGHTS,
    "calibration": (
        Option("calibrate_on", str, [], "first estimate running interest points from these photographs, best those trained on", metavar="PATH", nargs="+"),
        Option("calibrate_points", int, 2000, "how many of them, drawn at random", low=1),
        Option("save_calibrated", Path, None, "keep the calibrated weights"),
    ),
    "what is written": (
        Option("out", str, None, "table of scores: .csv, .jsonl or .parquet; or a folder of Parquet parts, ending in / (default: on the terminal only)", metavar="FILE"),
        Option("append", bool, False, "go on with --out: photographs that have a row there are left out"),
        Option("overwrite", bool, False, "replace --out, --report and --save_calibrated"),
        Option("reference", str, None, "a run's predictions.csv, or a table of scores: say what share of it lies below", metavar="FILE"),
        Option("explain", Path, None, "draw for each photograph where the network looks", metavar="FOLDER"),
        Option("layer", str, ALL, "one deformable layer, as stages.2.attns.1", metavar="NAME"),
        Option("mask", Path, None, "pictures named as the photographs, white where the foreground is; without, it is the centre half", metavar="FOLDER"),
        Option("report", Path, None, "a page for the browser: gallery, votes, attention, distribution"),
        Option("report_images", int, 5000, "photographs on the page: the best, the worst and a sample", low=1),
        Option("compare", Path, None, "--report: other weights, or a table of scores, side by side"),
    ),
    "how it is done": (
        Option("upright", bool, False, "turn photographs as EXIF says; by default they are as stored, as in training"),
        Option("decode", str, "pil", "pil: evaluation's pixels; fast: within a grey level of them", choices=("pil", "fast")),
        Option("batch_size", int, 16, "photographs per batch", low=1),
        Option("num_workers", int, min(CPUS, 8), "processes that read photographs (default: all cores, at most 8)"),
        Option("gpu_id", str, None, "GPU to use, or cpu (default: the first GPU, else the CPU)", metavar="ID"),
        Option("amp", str, "auto", "number format of matrix products; auto: bf16 on a GPU that has it", choices=("auto", "bf16", "off")),
    ),
}
# fmt: on
# What an option belongs to: one of these must be given, too.
OWNERS = {
    "append": ["out"],
    "overwrite": ["out", "report", "save_calibrated"],
    "compare": ["report"],
    "save_calibrated": ["calibrate_on"],
    "mask": ["explain", "report"],
    "layer": ["explain", "report"],
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 where they are wrong."""
    usage = "predict.py PATH [PATH ...] --weights FILE [OPTION ...]"
    about = "Score photographs with trained weights, and say why."
    return Parser(TABLE, prog="predict.py", usage=usage, description=about).parse_args(argv)


def load(options: argparse.Namespace) -> Trained:
    """The network that the options of WEIGHTS ask for; see `load_trained`. Raises InputError."""
    from inference.trained import load_trained  # with torch and timm: seconds

    given = {name: getattr(options, name) for name in ("model", "dataset", "interest_points")}
    given["will_calibrate"] = bool(getattr(options, "calibrate_on", None))
    return load_trained(options.weights, score_range=score_range(options), **given)


def score_range(given: argparse.Namespace) -> tuple[float, float] | None:
    """--score_min and --score_max; None where neither is given. Raises InputError for one without the other."""
    low, high = given.score_min, given.score_max
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise InputError("--score_min and --score_max belong together; give both")
    if low >= high:
        raise InputError(f"--score_min {low:g} is not below --score_max {high:g}")
    return low, high


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other, and for what could not be written at the end."""
    for name, owners in OWNERS.items():
        given = getattr(options, name) not in (False, None, ALL)
        if given and not any(getattr(options, owner) for owner in owners):
            raise InputError(f"--{name} belongs to --{' or --'.join(owners)}; give that, too")
    if options.append and options.overwrite:
        raise InputError("--append and --overwrite exclude each other; leave one out")
    _check_sources(options.paths, options.list)
    _check_parts(options)
    _check_files(options)
    for name, kind in (("mask", "folder"), ("explain", "folder"), ("compare", "file")):
        path = getattr(options, name)
        if path and kind == "folder" and path.is_file():
            raise InputError(f"--{name} {path}: is a file, not a folder")
        if path and name != "explain" and not path.exists():
            raise InputError(f"--{name} {path}: no such {kind}")
    if options.explain:  # the first overlay makes it
        existing = next(
            path for path in (options.explain, *options.explain.absolute().parents) if path.exists()
        )
        _check_permission("explain", existing)


def is_folder(out: str | None) -> bool:
    """Whether --out is a folder of parts."""
    return out is not None and (out.endswith(os.sep) or os.path.isdir(out))


def _check_sources(paths: Sequence[str], lists: Sequence[str]) -> None:
    """There must be photographs to score, and lists that can be read."""
    if not paths and not lists:
        raise InputError("no photographs: give files, folders, globs, or --list FILE")
    for name in lists:
        if name != "-" and (os.path.isdir(name) or not os.path.exists(name)):
            problem = "is a folder" if os.path.isdir(name) else "no such file"
            raise InputError(f"--list {name}: {problem}; it should be a text with a path in each line")
    if lists.count("-") > 1:
        raise InputError("--list -: standard input can be read once; give it once")


def _check_parts(options: argparse.Namespace) -> None:
    """A folder of parts has no page; several processes need such a folder, and nothing that one of them has alone."""
    if is_folder(options.out):
        for name in ("report", "explain"):
            if getattr(options, name):
                raise InputError(
                    f"--{name}: photographs of a folder of parts cannot be shown; give a file as --out"
                )
    if distributed.world() == 1:
        return
    if not is_folder(options.out):
        raise InputError(
            "torchrun: several processes write parts; give a folder that ends in /, as --out scores.parquet/"
        )
    if options.calibrate_on:
        raise InputError("--calibrate_on: is for one process; first keep what it finds by --save_calibrated")
    if "-" in options.list:
        raise InputError("--list -: several processes cannot read one standard input; give a file")


def _check_files(options: argparse.Namespace) -> None:
    """What is written must be files, in folders that can be written to, and none of what is read."""
    taken = {}
    for name in ("weights", "reference", "compare", "list", "paths", "calibrate_on"):
        given = getattr(options, name)
        for path in given if isinstance(given, list) else [given] * (given is not None):
            taken[os.path.realpath(path)] = "PATH" if name == "paths" else f"--{name}"
    for name in ("out", "report", "save_calibrated"):
        if (given := getattr(options, name)) is None:
            continue
        path, parts = Path(given), name == "out" and is_folder(given)
        if (place := os.path.realpath(path)) in taken:
            raise InputError(f"--{name} {path}: is given as {taken[place]}, too; give another file")
        taken[place] = f"--{name}"
        if parts and path.is_file():
            raise InputError(f"--{name} {given}: is a file; leave the / out, or give a folder")
        if name == "out" and not parts and path.suffix.lower() not in ENDINGS:
            raise InputError(f"--out {path}: its ending should be one of {', '.join(ENDINGS)}")
        if (path.is_dir() and not parts) or not path.absolute().parent.is_dir():
            what = "is a folder" if path.is_dir() else "lies in a folder that is not there"
            raise InputError(f"--{name} {path}: {what}; give a file")
        replaced = name == "out" or options.overwrite or (name == "report" and options.append)
        if path.exists() and not replaced:
            raise InputError(f"--{name} {path}: is there already; give another, or --overwrite")
        _check_permission(name, path if path.is_dir() else path.absolute().parent)


def _check_permission(name: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise InputError(f"--{name}: the folder {folder} cannot be written to; give another place")
