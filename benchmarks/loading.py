"""How many photographs one core reads in a second: as the release reads them, by PIL, by torchvision, from a cache.

    python -m benchmarks.loading --images FOLDER --repeats 7

All ways run in turn in one process, on one core; ratios to the released way are of the same round. A second table compares
the pixels of `--decode fast` with PIL's.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dataset import Transform, batches, make_loader
from iaa.errors import InputError
from iaa.photographs.cache import Cache
from iaa.photographs.decode import Resize, read_fast, read_pil
from iaa.photographs.labels import FORMATS, Labels
from iaa.runtime.command_line import Parser
from iaa.runtime.files import write_json
from iaa.runtime.program import run_command
from option import Option

BATCH = 16

# fmt: off
TABLE = (
    Option("images", Path, None, "folder of JPEGs (default: scikit-learn's two)", metavar="FOLDER"),
    Option("count", int, 160, "photographs that each way reads in a round", low=1),
    Option("repeats", int, 7, "rounds", low=1),
    Option("json", Path, None, "also write the rows to this file"),
)
# fmt: on


class Released(Dataset):
    """The released way: each photograph becomes a normalised float32 tensor by PIL and torchvision's transforms."""

    def __init__(self, labels: Labels, folder: Path, dataset: str):
        self.labels, self.folder = labels, folder
        side, resample = (224, "BICUBIC") if dataset == "ava" else (256, "BILINEAR")
        steps = [transforms.Resize((side, side), transforms.InterpolationMode[resample])]
        steps += [transforms.RandomHorizontalFlip()]
        steps += [transforms.RandomCrop(224)] if side > 224 else []
        steps += [transforms.ToTensor(), transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int):
        with Image.open(self.folder / self.labels.images[row]) as picture:
            return self.transform(picture.convert("RGB")), self.labels.targets[row]


def measure_speed(dataset: str, folder: Path, count: int, repeats: int) -> list[dict]:
    """A row for each way of reading: images/s of one core, and the ratio to the released way, round by round."""
    labels, transform = repeat_jpegs(folder, count), Transform(FORMATS[dataset], 224, train=True)
    with tempfile.TemporaryDirectory() as cache_folder:
        cache = Cache(cache_folder, transform.resize, "fast")
        cache.fill(np.unique(labels.images), folder)

        def reader(**settings) -> Callable[[], Iterator]:
            loader = make_loader(labels, folder, transform, BATCH, 0, **settings)
            return lambda: batches(loader)

        ways = {
            "release": lambda: iter(DataLoader(Released(labels, folder, dataset), BATCH)),
            "pil": reader(decoder="pil"),
            "fast": reader(decoder="fast"),
            "cache": reader(decoder="fast", cache=cache),
        }
        seconds = {way: [] for way in ways}
        for number in range(repeats + 1):
            for way, read in ways.items():
                start = time.perf_counter()
                for _ in read():
                    pass
                if number:  # the first round warms up
                    seconds[way].append(time.perf_counter() - start)
    rows = []
    for way, times in seconds.items():
        ratios = [released / duration for released, duration in zip(seconds["release"], times, strict=True)]
        row = {"dataset": dataset, "way": way, "images_per_second": count / statistics.median(times)}
        row |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        rows.append(row)
    return rows


def repeat_jpegs(folder: Path, count: int) -> Labels:
    """Labels of `count` photographs: the folder's JPEGs again and again."""
    names = [path.name for path in list_jpegs(folder)]
    images = np.array(list(itertools.islice(itertools.cycle(names), count)))
    return Labels("benchmark", images, np.zeros((count, 1), np.float32), np.zeros(count))


def list_jpegs(folder: Path) -> list[Path]:
    """The JPEGs in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))


def compare_pixels(folder: Path) -> list[dict]:
    """A row for each released resize: differences of the fast decoder's pixels from PIL's, in grey levels."""
    rows, paths = [], list_jpegs(folder)
    for resize in (Resize(224, "bicubic"), Resize(256, "bilinear"), Resize(224, "bilinear")):
        differences = [read_fast(path, resize).astype(int) - read_pil(path, resize) for path in paths]
        difference = np.abs(np.concatenate([array.ravel() for array in differences]))
        row = {"resize": f"{resize.method} {resize.side}", "pictures": len(paths)}
        row |= {"within_one": float((difference <= 1).mean()), "equal": float((difference == 0).mean())}
        rows.append(row | {"mean": float(difference.mean()), "largest": int(difference.max())})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables. Returns the exit status."""
    parser = Parser(
        {"": TABLE},
        prog="python -m benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options = parser.parse_args(argv)

    def work() -> None:
        folder = options.images or Path(sklearn.datasets.__file__).parent / "images"
        if not folder.is_dir() or not list_jpegs(folder):
            raise InputError(f"--images {folder}: no folder with JPEGs")
        torch.set_num_threads(1)
        speeds = []
        for dataset in ("ava", "tad66k"):
            speeds += measure_speed(dataset, folder, options.count, options.repeats)
        pixels = compare_pixels(folder)
        print_tables(speeds, pixels)
        if options.json:
            write_json(options.json, {"speed": speeds, "pixels": pixels})

    return run_command("benchmarks.loading", work)


def print_tables(speeds: list[dict], pixels: list[dict]) -> None:
    """The rows of `measure_speed` and of `compare_pixels` in Markdown."""
    print("| pixels | way | images/s of one core | times the release (lowest to highest) |")
    print("|---" * 4 + "|")
    line = "| {dataset} | {way} | {images_per_second:.0f} | {ratio:.2f} ({lowest:.2f} to {highest:.2f}) |"
    for row in speeds:
        print(line.format(**row))
    print("\n| resize | pictures | within one grey level | equal | mean difference | largest |")
    print("|---" * 6 + "|")
    line = "| {resize} | {pictures} | {within_one:.4%} | {equal:.2%} | {mean:.4f} | {largest} |"
    for row in pixels:
        print(line.format(**row))


if __name__ == "__main__":
    sys.exit(main())
