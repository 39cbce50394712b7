"""The demo dataset: two photographs cut up and damaged by known amounts. Its scores are not aesthetics."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from tqdm import tqdm

from iaa.errors import InputError
from iaa.photographs.labels import AVA
from iaa.photographs.tables import write_csv
from iaa.runtime.files import atomic_write

VERSION = "1"  # raise it when the recipe below changes, so that old copies are built anew
SEED = 2023
COUNTS = {"train": 640, "val": 128, "test": 192}
# Vertical bands of each 640-pixel photograph, disjoint: no pixel is in two splits.
BANDS = {"train": ((0, 176), (304, 480)), "val": ((176, 304),), "test": ((480, 640),)}
CROP = (96, 128)  # side of a crop, in pixels of the photograph
MIN_CONTRAST = 25  # standard deviation of a crop's pixels: no bare sky
SIDE = 160  # side of a saved picture, in pixels
CAST = (230, 140, 40)  # the colour that a bad picture is tinted with
LEVELS = np.arange(1, 11)
# Each has an amount, 0 to 1.
DAMAGES = ("blur", "noise", "exposure", "tilt", "colour")
WEIGHTS = np.array([2.6, 2.2, 2.0, 1.6, 1.8])  # what full damage of each kind costs, in levels


def build(folder: str | os.PathLike, images: str | os.PathLike) -> bool:
    """Write `train.csv`, `val.csv`, `test.csv` to `folder` and the pictures to `images`, as AVA would be.

    Returns False, and does nothing, if this version exists already. An interrupted build starts again; two builds at a time
    write the same files. Raises InputError if a folder holds pictures or CSVs that are not the demo's.
    """
    folder, images = Path(folder), Path(images)
    stamps = [path / "demo_version.txt" for path in (folder, images)]
    if all(stamp.is_file() and stamp.read_text() == VERSION for stamp in stamps):
        return False

    from sklearn.datasets import load_sample_images  # slow to import

    for stamp in stamps:
        if not stamp.is_file() and any([*stamp.parent.glob("*.csv"), *stamp.parent.glob("*.jpg")]):
            foreign = "holds files that are not the demo's; give --dataset or another folder"
            raise InputError(f"{stamp.parent}: {foreign}")
    for stamp in stamps:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text("being built")
    photographs = load_sample_images().images
    number = 1
    for split, count in COUNTS.items():
        rng = np.random.default_rng([SEED, number])
        rows = []
        for _ in tqdm(range(count), f"building the demo's {split} pictures", leave=False, disable=None):
            severity = rng.random()  # a bad photograph is bad in several ways
            amounts = (severity + rng.normal(0, 0.1, len(DAMAGES))).clip(0, 1)
            picture = damage(draw_crop(photographs, split, rng), amounts, rng)
            with atomic_write(images / f"{number}.jpg", "wb", flush=False) as file:  # another run may read it
                picture.save(file, "JPEG", quality=95)
            rows.append([number, *draw_votes(amounts, rng)])
            number += 1
        table = pd.DataFrame(rows, columns=[AVA.image_column, *AVA.vote_columns])
        write_csv(folder / f"{split}.csv", table)
    for stamp in stamps:
        stamp.write_text(VERSION)
    return True


def draw_crop(photographs: list[np.ndarray], split: str, rng: np.random.Generator) -> Image.Image:
    """A random square from the split's bands of a random photograph, SIDE pixels wide, with enough contrast.

    It is mirrored and its colour channels are exchanged at random, so that its content says nothing of the score.
    """
    photograph = photographs[rng.integers(len(photographs))]
    left, right = BANDS[split][rng.integers(len(BANDS[split]))]
    side = int(rng.integers(CROP[0], CROP[1] + 1))
    while True:
        x = int(rng.integers(left, right - side + 1))
        y = int(rng.integers(0, photograph.shape[0] - side + 1))
        pixels = photograph[y : y + side, x : x + side]
        if pixels.std() >= MIN_CONTRAST:
            break
    pixels = pixels[:, :: rng.choice([-1, 1]), rng.permutation(3)]
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def damage(picture: Image.Image, amounts: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Apply `amounts` of DAMAGES to an RGB picture: tilted, blurred, too dark, tinted, noisy."""
    blur, noise, exposure, tilt, colour = amounts
    if tilt:
        angle = float(tilt) * 30 * rng.choice([-1, 1])
        picture = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(0.5 + 4.5 * float(blur)))
    if exposure:
        picture = picture.point([round(value * 2 ** (-1.5 * float(exposure))) for value in range(256)] * 3)
    if colour:
        picture = Image.blend(picture, Image.new("RGB", picture.size, CAST), 0.5 * float(colour))
    if noise:
        pixels = np.asarray(picture, np.float32)
        pixels = pixels + rng.normal(0, 50 * float(noise), pixels.shape)
        picture = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    return picture


def mean_opinion(amounts: np.ndarray) -> float:
    """The mean, 1 to 10, of the votes on a picture: 9 less the cost of its damage."""
    return float(np.clip(9.0 - amounts @ WEIGHTS, 1.0, 10.0))


def draw_votes(amounts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(10,) counts of 200 votes, spread normally around `mean_opinion`."""
    spread = np.exp(-0.5 * ((LEVELS - mean_opinion(amounts)) / 1.3) ** 2)
    return rng.multinomial(200, spread / spread.sum())
