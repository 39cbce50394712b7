"""The command line of predict.py, and the options of every command that uses trained weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from iaa.errors import InputError
from iaa.runtime import distributed
from iaa.runtime.command_line import Parser
from option import ANY_MODEL, CPUS, DATASETS, Option

ALL = "all"  # the deformable layers
PARQUET = "Parquet is made of a CSV by pandas.read_csv(...).to_parquet(...), or by Ray (docs/scale.md)"

# fmt: off
# The options of every command that uses trained weights; see `load_network`.
WEIGHTS = (
    Option("weights", str, None, "a run's folder or its best.pth, a released checkpoint, a .safetensors, a folder that `export.py --to hub` wrote, hf-hub:OWNER/NAME (also @REVISION), or a network of the folder weights/, as biq2021", metavar="FILE"),
    Option("dataset", str, None, "dataset that the weights were trained on, if they do not say", choices=DATASETS),
    Option("model", str, None, "network (default: as the weights say, or as their tensors are recognised)", choices=ANY_MODEL),
    Option("score_min", float, None, "--dataset csv: lowest possible score, where the file does not say"),
    Option("score_max", float, None, "--dataset csv: highest possible score, where the file does not say"),
    Option("interest_points", str, None, "image: each image's own; grid: plain DAT's cell centres; batch: the batch's mean, as released, so that scores depend on the batch (default: as trained, but image instead of batch)", choices=("image", "grid", "batch")),
)

TABLE = {
    "": (
        Option("paths", str, [], "a photograph, a folder (with those below it), a glob in quotes, or shards: a tar, or 'photos-{000..999}.tar'", metavar="PATH", nargs="*", positional=True),
        Option("list", str, [], "a text file with a path in each line; -: standard input", metavar="FILE", nargs="append"),
        Option("pairs", str, "jpeg", "a RAW file and its JPEG in a folder have one row, the JPEG's, or both have one", choices=("jpeg", "both")),
    ),
    "weights": WEIGHTS,
    "what is written": (
        Option("out", str, None, "table of scores: .csv or .jsonl, written after each batch (default: terminal only)", metavar="FILE"),
        Option("append", bool, False, "continue --out: skip photographs that have a row already"),
        Option("overwrite", bool, False, "replace --out and --report"),
        Option("reference", str, None, "a run's predictions.csv, or a table of scores: adds the column `below`, the share of its scores that are lower", metavar="FILE"),
        Option("explain", Path, None, "draw the attention on each photograph", metavar="FOLDER"),
        Option("layer", str, ALL, "one deformable layer, such as stages.2.attns.1", metavar="NAME"),
        Option("report", Path, None, "write a page for the browser: gallery, votes, attention, distribution"),
        Option("report_images", int, 5000, "number of photographs on the page: the best, the worst and a sample", low=1),
    ),
    "stars for photo programs": (
        Option("xmp", bool, False, "write stars and scores into XMP sidecars beside the photographs, which stay as they are; a person's stars stay, too"),
        Option("xmp_name", str, None, "sidecar of photo.jpg; file: photo.jpg.xmp, which immich, digiKam and darktable read; stem: photo.xmp, as of Lightroom (default: file)", choices=("file", "stem")),
        Option("stars", float, None, "lowest scores of 2, 3, 4 and 5 stars (default: by rank, 10, 20, 40, 20 and 10 %% of the photographs)", nargs=4),
        Option("reject", float, None, "reject (-1) the photographs below: a share such as 0.05; with --stars a score"),
        Option("xmp_overwrite", bool, False, "replace a person's stars, too"),
    ),
    "how it is done": (
        Option("upright", bool, False, "turn photographs as EXIF says (default: as stored, as in training)"),
        Option("srgb", bool, False, "convert photographs to sRGB by their colour profiles (default: without, as in training)"),
        Option("decode", str, "pil", "image decoder; pil: the pixels of evaluation; fast: within one grey level of them", choices=("pil", "fast")),
        Option("max_pixels", int, None, "largest photographs that are decoded (default: 1,000,000,000 pixels for JPEGs, which are reduced above 178,956,970; 300,000,000 for others)", low=1),
        Option("batch_size", int, 16, "photographs per batch", low=1),
        Option("num_workers", int, min(CPUS, 8), "processes that read photographs (default: all cores, at most 8)"),
        Option("max_bytes", int, 2**28, "largest photograph in a shard; a larger one is a row with an error", low=1),
        Option("gpu_id", str, None, "GPU to use, or cpu (default: the first GPU, else the CPU)", metavar="ID"),
        Option("tta", str, "off", "flip: the mean of the outputs for a photograph and its mirror image, in twice the time", choices=("off", "flip")),
        Option("amp", str, "off", "number format of matrix products; off: float32, as --eval; bf16: faster on a GPU, moves scores by some hundredths", choices=("off", "bf16")),
    ),
}
# fmt: on
NO_WEIGHTS = (
    "no --weights: biq2021 comes along (perceived quality, not beauty); for beauty give the authors' checkpoints "
    "(README.md), or your own ratings to main_nni.py --freeze_backbone (docs/training.md)"
)
# An option needs one of these others.
OWNERS = {
    "append": ["out"],
    "overwrite": ["out", "report"],
    "layer": ["explain", "report"],
    **dict.fromkeys(("xmp_name", "stars", "reject", "xmp_overwrite"), ("xmp",)),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 where they are wrong."""
    usage = "predict.py PATH [PATH ...] --weights FILE [OPTION ...]"
    about = "Score photographs with trained weights, and say why."
    return Parser(TABLE, prog="predict.py", usage=usage, description=about).parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other, and for output files that cannot be written. Makes their folders."""
    for name, owners in OWNERS.items():
        is_given = getattr(options, name) not in (False, None, ALL)
        if is_given and not any(getattr(options, owner) for owner in owners):
            raise InputError(f"--{name} belongs to --{' or --'.join(owners)}; give that, too")
    stars, reject, count = options.stars, options.reject, distributed.world_size()
    is_share = stars or reject is None or 0 < reject < 1
    has_url = any("://" in path for path in options.paths)
    is_table = options.out is None or options.out.lower().endswith((".csv", ".jsonl"))
    split = "without torchrun, give each a part of the files or shards and an --out of its own"
    for is_wrong, problem in (
        (count > 1, f"{count} processes do not share a call (WORLD_SIZE); {split}"),
        (options.weights is None, NO_WEIGHTS),
        (not options.paths + options.list, "no photographs: give files, folders, globs, or --list FILE"),
        (options.append and options.overwrite, "--append and --overwrite exclude each other"),
        (options.explain and options.explain.is_file(), f"--explain {options.explain}: is no folder"),
        (not is_table, f"--out {options.out}: its ending should be .csv or .jsonl; {PARQUET}"),
        (stars and sorted(set(stars)) != stars, "--stars: give four scores, each higher than the one before"),
        (not is_share, f"--reject {reject}: without --stars it is a share, such as 0.05"),
        (options.xmp and has_url, "--xmp: sidecars lie beside files; give files instead of addresses"),
    ):
        if is_wrong:
            raise InputError(problem)
    inputs = (options.weights, options.reference, *options.list, *options.paths)
    used = {os.path.realpath(path) for path in inputs if path is not None}
    may_exist = {"out": True, "report": options.overwrite or options.append}
    outputs = {name: Path(getattr(options, name)) for name in may_exist if getattr(options, name)}
    for name, path in outputs.items():
        if problem := find_fault(path, used, may_exist[name]):
            raise InputError(f"--{name} {path}: {problem}")
        used.add(os.path.realpath(path))
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)


def find_fault(path: Path, used: Collection[str], may_exist: bool) -> str:
    """Why an output cannot be written; empty if it can. used: the real paths of inputs and of other outputs."""
    folder = path.absolute().parent
    if os.path.realpath(path) in used:
        return "is an input or another output, too; give another file"
    if path.is_dir():
        return "is a folder; give a file"
    if path.exists() and not may_exist:
        return "exists; give another, or --overwrite"
    if folder.is_dir() and not os.access(folder, os.W_OK):
        return f"the folder {folder} is write-protected"
    return ""
