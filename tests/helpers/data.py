"""Small datasets, and command lines of runs on them."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageCms

# Colour profiles: sRGB, and sRGB with red and green exchanged.
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"TEMP").replace(b"gXYZ", b"rXYZ").replace(b"TEMP", b"gXYZ")
AVA_COLUMNS = ["image_id", *(f"score{i}" for i in range(2, 12))]


def make_pictures(folder: Path, names, size=(48, 40), seed=0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


def make_ava(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    start = 100
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        ids = range(start, start + count)
        rows = [[i, *rng.integers(0, 30, 10)] for i in ids]
        pd.DataFrame(rows, columns=AVA_COLUMNS).to_csv(tmp_path / f"{split}.csv", index=False)
        make_pictures(tmp_path / "images", [f"{i}.jpg" for i in ids], seed=start)
        start += count
    return tmp_path


def arguments(folder: Path, dataset: str = "ava", **options) -> list[str]:
    """A command line for a short CPU run on `folder`. True stands for a flag, None leaves an option out.

    --eval writes no page where nobody asks for one by report_images=None, its default: drawing takes half the time.
    """
    options = {
        "report_images": 0 if options.get("eval") else None,
        "dataset": dataset,
        "path_to_images": folder / "images",
        "path_to_save_csv": folder,
        "experiment_dir_name": folder / "run",
        "model": "eat_test",
        "num_epoch": 1,
        "batch_size": 6,
        "num_workers": 0,
        "gpu_id": "cpu",
    } | options
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words
