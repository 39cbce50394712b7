"""How fast pictures are read, per core: as the release reads them, by PIL, by torchvision, from a cache.

    python -m benchmarks.loading --images FOLDER --repeats 7

All ways are run in turn in one process, on one core, and compared pair by pair with the released way. `--memory` shows
instead what 255,000 rows of labels take, and whether the processes that read pictures grow.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.datasets
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from commands.files import write_json
from photographs.decode import Resize, read_fast, read_pil
from photographs.labels import AVA, FORMATS, Labels

BATCH = 16
ROWS = 255_000

DATASETS = ("ava", "tad66k")


class Released(Dataset):
    """The plain way: PIL's pixels as a normalised float32 tensor, each in turn."""

    def __init__(self, labels: Labels, folder: Path, dataset: str):
        self.labels, self.folder = labels, folder
        like_ava = dataset == "ava"
        resample = "BICUBIC" if like_ava else "BILINEAR"
        side = 224 if like_ava else 256
        self.transform = transforms.Compose(
            [
                transforms.Resize((side, side), transforms.InterpolationMode[resample]),
                transforms.RandomHorizontalFlip(),
                *([] if like_ava else [transforms.RandomCrop(224)]),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int):
        with Image.open(self.folder / self.labels.images[row]) as picture:
            return self.transform(picture.convert("RGB")), self.labels.targets[row]


def speed(dataset: str, folder: Path, count: int, repeats: int) -> list[dict]:
    """A row per way of reading: images/s of one core, and the ratio to the released way, pair by pair."""
    from dataset import Transform, batches, make_loader  # here: they need lmdb, and `equality` does not
    from photographs.cache import open_filled

    labels, transform = repeated(folder, count), Transform(dataset, 224, train=True)
    with tempfile.TemporaryDirectory() as place:
        kept = open_filled(place, transform.resize, "fast", np.unique(labels.images), folder, 0)

        def loader(**given) -> Callable[[], Iterator]:
            made = make_loader(labels, folder, transform, BATCH, 0, **given)
            return lambda: batches(made)

        ways = {
            "release": lambda: iter(DataLoader(Released(labels, folder, dataset), BATCH)),
            "pil": loader(decoder="pil"),
            "fast": loader(decoder="fast"),
            "cache": loader(decoder="fast", cache=kept),
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
        ratios = [plain / own for plain, own in zip(seconds["release"], times, strict=True)]
        rows.append(
            {
                "dataset": dataset,
                "way": way,
                "images_per_second": count / statistics.median(times),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def rate(folder: Path, decoder: str, batch: int, workers: int, device: torch.device) -> float:
    """Images/s that `workers` processes bring to the device as the network's input, AVA's, once all of them are at work."""
    from dataset import Transform, batches, make_loader, to_input

    first = 3 * max(1, workers)  # batches that do not count: some are read while the processes start
    labels, pin = repeated(folder, 4 * first * batch), device.type == "cuda"
    loader = make_loader(
        labels, folder, Transform("ava", 224, True), batch, workers, pin_memory=pin, decoder=decoder
    )
    for number, read in enumerate(batches(loader), 1):
        to_input(read, device)[0, 0, 0, 0].item()  # waits for the device
        if number == first:
            start = time.perf_counter()
    return 3 * first * batch / (time.perf_counter() - start)


def repeated(folder: Path, count: int) -> Labels:
    """Labels of `count` pictures: the folder's JPEGs again and again."""
    images = np.array(list(itertools.islice(itertools.cycle(path.name for path in jpegs(folder)), count)))
    return Labels("benchmark", images, np.zeros((count, 1), np.float32), np.zeros(count))


def jpegs(folder: Path) -> list[Path]:
    """The JPEGs in a folder, by their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))


def equality(folder: Path) -> list[dict]:
    """How far the fast decoder's pixels are from PIL's, in grey levels."""
    rows = []
    for resize in (Resize(224, "bicubic"), Resize(256, "bilinear"), Resize(224, "bilinear")):
        differences = []
        for path in jpegs(folder):
            differences.append(np.abs(read_fast(path, resize).astype(int) - read_pil(path, resize)).ravel())
        difference = np.concatenate(differences)
        rows.append(
            {
                "resize": f"{resize.method} {resize.side}",
                "pictures": len(differences),
                "within_one": float((difference <= 1).mean()),
                "equal": float((difference == 0).mean()),
                "mean": float(difference.mean()),
                "largest": int(difference.max()),
            }
        )
    return rows


def memory(workers: int) -> list[str]:
    """What ROWS rows of AVA's labels take, and what each worker holds for itself over an epoch, in MiB."""
    from dataset import Transform, batches, make_loader, read_splits

    lines = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        Image.new("RGB", (16, 16), (90, 120, 60)).save(folder / "picture.jpg")
        rng = np.random.default_rng(0)
        table = pd.DataFrame(rng.integers(0, 90, (ROWS, 10)), columns=AVA.vote_columns)
        table.insert(0, AVA.image_column, np.arange(700_000, 700_000 + ROWS))
        for number in table[AVA.image_column]:
            (folder / f"{number}.jpg").symlink_to("picture.jpg")
        table.to_csv(folder / "test.csv", index=False)
        table.head(2).to_csv(folder / "train.csv", index=False)
        del table
        gc.collect()
        before = _resident("self")
        splits = read_splits(folder, folder, FORMATS["ava"], train=False)
        gc.collect()
        labels = splits.test
        size = sum(a.nbytes for a in (labels.images, labels.targets, labels.opinions)) / 2**20
        lines.append(
            f"{len(labels):,} rows: {size:.0f} MiB in arrays; resident {before:.0f} MiB before reading, "
            f"{_resident('self'):.0f} after"
        )
        loader = make_loader(labels, folder, Transform("ava", 32, True), 64, workers, decoder="fast")
        for number, _ in enumerate(batches(loader), 1):
            if number in (50, len(loader) // 2, len(loader) - 50):
                own = [_resident(child.pid, own=True) for child in multiprocessing.active_children()]
                shown = ", ".join(f"{value:.1f}" for value in own)
                lines.append(f"after {number * 64:,} pictures: {shown} MiB of each worker's own")
    return lines


def _resident(pid: int | str, own: bool = False) -> float:
    """MiB of a process; own: what it shares with no other."""
    wanted = ("Private_Clean:", "Private_Dirty:") if own else ("Rss:",)
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(words[1]) for words in lines if words[0] in wanted) / 1024


def main(argv: list[str] | None = None) -> None:
    """Measure and print tables; `--json` writes them to a file as well."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading", description=__doc__.split("\n\n")[0]
    )
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    parser.add_argument("--images", type=Path, default=shipped, help="JPEGs (default: scikit-learn's two)")
    parser.add_argument("--count", type=int, default=160, help="pictures read per way and repeat")
    parser.add_argument("--repeats", type=int, default=7, help="pairs")
    parser.add_argument("--memory", action="store_true", help="show what labels and workers hold instead")
    parser.add_argument("--workers", type=int, default=2, help="--memory: processes that read")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args(argv)
    if not options.images.is_dir() or not jpegs(options.images):
        parser.error(f"{options.images}: no folder with JPEGs; give --images")
    if options.repeats < 1 or options.count < 1 or options.workers < 1:
        parser.error("--repeats, --count and --workers must be at least 1")
    if options.memory:
        print("\n".join(memory(options.workers)))
        return
    torch.set_num_threads(1)
    rows = [row for name in DATASETS for row in speed(name, options.images, options.count, options.repeats)]
    print(
        "| pixels | way | images/s of one core | times the release (lowest to highest) |\n|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['dataset']} | {row['way']} | {row['images_per_second']:.0f} | "
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) |"
        )
    pixels = equality(options.images)
    print(
        "\n| resize | pictures | within one grey level | equal | mean difference | largest |\n|---|---|---|---|---|---|"
    )
    for row in pixels:
        print(
            f"| {row['resize']} | {row['pictures']} | {row['within_one']:.4%} | {row['equal']:.2%} | "
            f"{row['mean']:.4f} | {row['largest']} |"
        )
    if options.json:
        write_json(options.json, {"speed": rows, "pixels": pixels})


if __name__ == "__main__":
    main()
