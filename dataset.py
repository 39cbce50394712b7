"""From labels to batches: the splits of a dataset, the released transforms, loaders whose order is their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import functional as TF

from labels import Format, Labels, find_images, hold_out, read_labels
from option import InputError


class Batch(NamedTuple):
    """images: (B, 3, H, W), normalised; targets: (B, outputs); names: B file names."""

    images: Tensor
    targets: Tensor
    names: list[str]


@dataclass(frozen=True)
class Splits:
    """Labels by split. `notes` says in words what was done to get them."""

    train: Labels | None
    val: Labels | None
    test: Labels
    notes: tuple[str, ...] = ()


class Transform:
    """PIL image to normalised tensor, as released; a random flip and crop in training.

    size: of the square given to the network. AVA (and the demo): bicubic resize to it. The others: bilinear, in
    training to 256/224 of it and a random crop. The resize ignores the aspect ratio.
    """

    def __init__(self, dataset: str, size: int, train: bool):
        self.size, self.train = size, train
        like_ava = dataset in ("ava", "demo")
        self.resample = Image.Resampling.BICUBIC if like_ava else Image.Resampling.BILINEAR
        self.resize = round(size * 256 / 224) if train and not like_ava else size

    def picture(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The RGB picture that the network sees, before normalisation."""
        image = image.resize((self.resize, self.resize), self.resample)
        if self.train and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.resize > self.size:
            left, top = (rng.randint(0, self.resize - self.size) for _ in range(2))
            image = image.crop((left, top, left + self.size, top + self.size))
        return image

    def __call__(self, image: Image.Image, rng: random.Random) -> Tensor:
        tensor = TF.to_tensor(self.picture(image, rng))
        return TF.normalize(tensor, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class PhotoDataset(torch.utils.data.Dataset):
    """Images of one split. An image that does not decode comes back as an InputError, raised by `batches`."""

    def __init__(self, labels: Labels, folder: str | Path, transform: Transform):
        self.labels, self.folder, self.transform = labels, Path(folder), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: tuple[int, int]):
        """draw: (row, seed of its augmentation)."""
        row, seed = draw
        name = str(self.labels.images[row])
        try:
            with Image.open(self.folder / name) as image:
                picture = image.convert("RGB")
        except Exception as error:  # decoders raise anything at all on a damaged file
            reason = str(error) or type(error).__name__
            return InputError(
                f"{self.folder / name}: does not decode ({reason}); replace it or remove its row"
            )
        return self.transform(picture, random.Random(seed)), torch.from_numpy(self.labels.targets[row]), name


class Draws(Sampler):
    """Rows, each with a seed of its own, so that neither depends on how many workers read them.

    shuffle: a new order every epoch, from `seed` and the epoch; set `epoch` before iterating.
    """

    def __init__(self, length: int, seed: int, shuffle: bool):
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if not self.shuffle:
            return ((row, 0) for row in range(self.length))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return zip(rows, seeds, strict=True)


def read_splits(
    folder: str | Path,
    images: str | Path,
    form: Format,
    *,
    train: bool = True,
    calibrate: bool = False,
    select_on_test: bool = False,
    skip_missing: bool = False,
    val_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Splits:
    """Read `train.csv`, `val.csv` and `test.csv` of `folder` and find their images.

    train: False reads test.csv only, and with `calibrate` train.csv too. select_on_test: test.csv serves as the validation set, as in the release.
    Where there is no val.csv, `val_share` of train.csv is held out, by `seed`.
    """
    folder, notes = Path(folder), []
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --path_to_save_csv names the folder of the CSVs")

    def read(name: str) -> Labels:
        labels, skipped = find_images(read_labels(folder / name, form, limit), images, skip_missing)
        if skipped:
            notes.append(f"{name}: {skipped} rows skipped, their images are missing")
        return labels

    test = read("test.csv")
    if not train:
        return Splits(read("train.csv") if calibrate else None, None, test, tuple(notes))
    training = read("train.csv")
    if select_on_test:
        validation = test
        notes.append("released protocol: the checkpoint is selected on test.csv")
    elif (folder / "val.csv").is_file():
        validation = read("val.csv")
    else:
        training, validation = hold_out(training, val_share, seed)
        notes.append(f"no val.csv: {len(validation)} rows of train.csv held out for validation")
    splits = {"train": training, "val": validation, "test": test}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = set(splits[first].images) & set(splits[second].images)
        if shared and splits[first] is not splits[second]:
            notes.append(f"warning: {len(shared)} images are in {first} and in {second}, as {min(shared)}")
    return Splits(training, validation, test, tuple(notes))


def make_loader(
    labels: Labels,
    images: str | Path,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of Batches: shuffled and augmented if `transform` is for training, else in the CSV's order."""
    return DataLoader(
        PhotoDataset(labels, images, transform),
        batch_size=batch_size,
        sampler=Draws(len(labels), seed, shuffle=transform.train),
        num_workers=num_workers,
        collate_fn=_collate,
        persistent_workers=num_workers > 0 and transform.train,
        pin_memory=pin_memory,
        # Its own generator: starting workers must not advance the one that drop path draws from.
        generator=torch.Generator().manual_seed(seed),
    )


def batches(loader: DataLoader, epoch: int = 0) -> Iterator[Batch]:
    """The batches of one epoch. Raises InputError naming an image that does not decode."""
    loader.sampler.epoch = epoch
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _collate(samples: list) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images, targets, names = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), list(names))
