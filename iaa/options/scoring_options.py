"""The command line of predict.py, and the options of every command that uses trained weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from iaa.errors import InputError, PurposeError
from iaa.runtime import distributed
from iaa.runtime.command_line import Parser
from option import ANY_MODEL, CPUS, DATASETS, Option

ALL = "all"  # the deformable layers
ENDINGS = (".csv", ".jsonl", ".parquet")  # of a table of scores

# fmt: off
# The options of every command that uses trained weights; see `trained.load_trained`.
WEIGHTS = (
    Option("weights", str, None, "a run's folder or its best.pth, a released checkpoint, a .safetensors, or a folder that `export.py --to hub` wrote", metavar="FILE", required=True),
    Option("dataset", str, None, "the dataset that it was trained on, where the file does not say", choices=DATASETS),
    Option("model", str, None, "the network (default: as the file says, or by its tensors)", choices=ANY_MODEL),
    Option("score_min", float, None, "--dataset csv: lowest possible score, where the file does not say"),
    Option("score_max", float, None, "--dataset csv: highest possible score, where the file does not say"),
    Option("interest_points", str, None, "image: each image's own; running: a running mean; grid: plain DAT's cell centres; batch: the batch's mean, as released, so that scores depend on the batch (default: as trained, but image instead of batch)", choices=("image", "running", "grid", "batch")),
)

TABLE = {
    "": (
        Option("paths", str, [], "a photograph, a folder (with those below it), a glob in quotes, or shards: a tar, or 'photos-{000..999}.tar'", metavar="PATH", nargs="*", positional=True),
        Option("list", str, [], "a text file with a path in each line; -: standard input", metavar="FILE", nargs="append"),
    ),
    "weights": WEIGHTS,
    "calibration": (
        Option("calibrate_on", str, [], "first estimate running interest points from these photographs; training photographs are best", metavar="PATH", nargs="+"),
        Option("calibrate_points", int, 2000, "number of these photographs, drawn at random", low=1),
        Option("save_calibrated", Path, None, "save the calibrated weights in this file"),
    ),
    "what is written": (
        Option("out", str, None, "table of scores: .csv or .jsonl, written row by row; .parquet, written at the end; or a folder of Parquet parts, ending in / (default: terminal only)", metavar="FILE"),
        Option("append", bool, False, "go on with --out: skip photographs that have a row there"),
        Option("overwrite", bool, False, "replace --out, --report and --save_calibrated"),
        Option("reference", str, None, "a run's predictions.csv, or a table of scores: adds the share of its scores that is lower", metavar="FILE"),
        Option("explain", Path, None, "draw the attention on each photograph", metavar="FOLDER"),
        Option("layer", str, ALL, "one deformable layer, as stages.2.attns.1", metavar="NAME"),
        Option("mask", Path, None, "masks named as the photographs, white on the foreground (default: the centre half is the foreground)", metavar="FOLDER"),
        Option("report", Path, None, "write a page for the browser: gallery, votes, attention, distribution"),
        Option("report_images", int, 5000, "number of photographs on the page: the best, the worst and a sample", low=1),
        Option("compare", Path, None, "--report: show the scores of other weights, or of a table, beside"),
    ),
    "how it is done": (
        Option("upright", bool, False, "turn photographs as EXIF says (default: as stored, as in training)"),
        Option("decode", str, "pil", "image decoder; pil: the pixels of evaluation; fast: within one grey level of them", choices=("pil", "fast")),
        Option("batch_size", int, 16, "photographs per batch", low=1),
        Option("num_workers", int, min(CPUS, 8), "processes that read photographs (default: all cores, at most 8)"),
        Option("gpu_id", str, None, "GPU to use, or cpu (default: the first GPU, else the CPU)", metavar="ID"),
        Option("amp", str, "auto", "number format of matrix products; auto: bf16 on a GPU that has it", choices=("auto", "bf16", "off")),
    ),
}
# fmt: on
# An option needs one of these others.
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


@contextmanager
def purpose_errors() -> Iterator[None]:
    """Add to an error on what weights are for the options that state it."""
    try:
        yield
    except PurposeError as error:
        options = "--dataset, --model, --score_min and --score_max"
        raise InputError(f"{error} ({options} state what the file does not)") from None


def score_range(low: float | None, high: float | None) -> tuple[float, float] | None:
    """The scale of --score_min and --score_max; None where neither is given. Raises InputError for one without the other."""
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise InputError("--score_min and --score_max belong together; give both")
    if low >= high:
        raise InputError(f"--score_min {low:g} is not below --score_max {high:g}")
    return low, high


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other, and for files that cannot be read or written."""
    for name, owners in OWNERS.items():
        is_given = getattr(options, name) not in (False, None, ALL)
        if is_given and not any(getattr(options, owner) for owner in owners):
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
    """Raises InputError without photographs, and for lists that cannot be read."""
    if not paths and not lists:
        raise InputError("no photographs: give files, folders, globs, or --list FILE")
    for name in lists:
        if name != "-" and (os.path.isdir(name) or not os.path.exists(name)):
            problem = "is a folder" if os.path.isdir(name) else "no such file"
            raise InputError(f"--list {name}: {problem}; it should be a text with a path in each line")
    if lists.count("-") > 1:
        raise InputError("--list -: standard input can be read once; give it once")


def _check_parts(options: argparse.Namespace) -> None:
    """A folder of parts excludes some options; several processes need such a folder, and exclude others."""
    if is_folder(options.out):
        for name in ("report", "explain"):
            if getattr(options, name):
                raise InputError(
                    f"--{name}: photographs of a folder of parts cannot be shown; give a file as --out"
                )
    if distributed.world_size() == 1:
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
    """Raises InputError for output files that are inputs, too, that exist, or whose folder cannot be written to."""
    uses = {}
    for name in ("weights", "reference", "compare", "list", "paths", "calibrate_on"):
        value = getattr(options, name)
        for path in value if isinstance(value, list) else [value] * (value is not None):
            uses[os.path.realpath(path)] = "PATH" if name == "paths" else f"--{name}"
    for name in ("out", "report", "save_calibrated"):
        if (value := getattr(options, name)) is None:
            continue
        path, parts = Path(value), name == "out" and is_folder(value)
        if (real_path := os.path.realpath(path)) in uses:
            raise InputError(f"--{name} {path}: is given as {uses[real_path]}, too; give another file")
        uses[real_path] = f"--{name}"
        if parts and path.is_file():
            raise InputError(f"--{name} {value}: is a file; leave the / out, or give a folder")
        if name == "out" and not parts and path.suffix.lower() not in ENDINGS:
            raise InputError(f"--out {path}: its ending should be one of {', '.join(ENDINGS)}")
        if (path.is_dir() and not parts) or not path.absolute().parent.is_dir():
            problem = "is a folder" if path.is_dir() else "lies in a folder that is not there"
            raise InputError(f"--{name} {path}: {problem}; give a file")
        may_replace = name == "out" or options.overwrite or (name == "report" and options.append)
        if path.exists() and not may_replace:
            raise InputError(f"--{name} {path}: is there already; give another, or --overwrite")
        _check_permission(name, path if path.is_dir() else path.absolute().parent)


def _check_permission(name: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise InputError(f"--{name}: the folder {folder} cannot be written to; give another place")
