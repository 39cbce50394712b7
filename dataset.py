"""From labels to batches: the splits of a dataset, the released transforms, loaders in a reproducible order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from iaa.errors import InputError
from iaa.photographs import workers
from iaa.photographs.decode import decoding_error, read_fast, read_pil
from iaa.photographs.labels import LabelFormat, Labels, find_images, hold_out, read_labels

if TYPE_CHECKING:
    from iaa.photographs.cache import Cache  # needs lmdb, which scoring does without

# Mean and standard deviation of red, green and blue, in [0, 1], by which a network's input is normalised.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class Batch(NamedTuple):
    """A batch of the loader. Its uint8 pixels take a quarter of the memory of the network's input; see `to_input`."""

    images: Tensor  # (B, 3, H, W) uint8, channels last in memory; or features, see iaa/training/features.py
    flips: Tensor  # (B,) bool: images to be mirrored
    targets: Tensor  # (B, outputs)
    names: list[str]


class Splits(NamedTuple):
    """Labels by split; `notes` are lines for the log."""

    train: Labels | None
    val: Labels | None
    test: Labels
    notes: tuple[str, ...] = ()
    skipped_test_rows: int = 0  # rows of test.csv whose pictures are missing


class Transform:
    """The released transform: a resize, and in training a random crop and flip.

    size: of the square given to the network. The resize is the label format's, and ignores the aspect ratio. AVA (and the
    demo): bicubic to that size. The others: bilinear, in training to 256/224 of it and a random crop.
    """

    def __init__(self, label_format: LabelFormat, size: int, train: bool):
        self.size, self.train = size, train
        self.resize = label_format.resize(size, train)

    def __call__(self, resized: np.ndarray, rng: random.Random) -> tuple[np.ndarray, bool]:
        """resized: (side, side, 3) uint8. Returns the crop (size, size, 3), and whether it has yet to be mirrored."""
        flip = self.train and rng.random() < 0.5
        left = top = 0
        if spare := self.resize.side - self.size:
            left, top = rng.randint(0, spare), rng.randint(0, spare)
            if flip:  # `left` counts in the mirrored picture
                left = spare - left
        return resized[top : top + self.size, left : left + self.size], flip


def to_input(batch: Batch, device: torch.device, statistics: Statistics | None = IMAGENET) -> Tensor:
    """The network's normalised float32 input, (B, 3, H, W) on the device. statistics: the network's attribute."""
    images = batch.images.to(device, non_blocking=True)
    return normalize_images(images, batch.flips.to(device, non_blocking=True), statistics)


def normalize_images(images: Tensor, flips: Tensor, statistics: Statistics | None = IMAGENET) -> Tensor:
    """Mirror and normalise. images: (B, 3, H, W) uint8; flips: (B,) bool. Returns float32 on the images' device.

    statistics: None for features (B, F, 2), which are mirrored only: their last axis is the picture and its mirror image.
    """
    images = torch.where(flips.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)
    if statistics is None:
        return images
    mean, std = _statistics_on(images.device, statistics)
    return images.float().div_(255).sub_(mean).div_(std)


@cache
@torch.inference_mode(False)  # the first caller may be in it, a later one may train
def _statistics_on(device: torch.device, statistics: Statistics) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)


class Sample(NamedTuple):
    """A row of the labels for a reading process. The labels themselves stay in the main process."""

    name: str
    target: np.ndarray  # (outputs,)
    seed: int  # of the augmentation


class PhotoDataset(torch.utils.data.Dataset):
    """Images by `Sample`. Returns an InputError for an image that does not decode; `batches` raises it.

    decoder: `pil` or `fast`, see `iaa.photographs.decode`. cache: of pictures with this resize and decoder, or None.
    """

    def __init__(self, folder: str | Path, transform: Transform, decoder: str, cache: Cache | None):
        self.folder, self.transform, self.decoder, self.cache = Path(folder), transform, decoder, cache

    def __getitem__(self, sample: Sample):
        path = self.folder / sample.name
        try:
            if self.cache is not None:
                resized = self.cache.read(sample.name)
            else:
                read = read_fast if self.decoder == "fast" else read_pil
                resized = read(path, self.transform.resize)
        except Exception as error:  # decoders raise anything at all on a damaged file
            return decoding_error(path, error)
        image, flip = self.transform(resized, random.Random(sample.seed))
        return image, flip, sample.target, sample.name

    def collate(self, samples: list) -> Batch | InputError:
        """One batch; or the first error among the samples."""
        if errors := [sample for sample in samples if isinstance(sample, InputError)]:
            return errors[0]
        images, flips, targets, names = zip(*samples, strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(pixels, torch.tensor(flips), torch.from_numpy(np.stack(targets)), list(names))


class ResumableBatchSampler(Sampler):
    """Batches of Samples. Order and seeds follow from `seed` and the epoch alone, so an epoch can go on at any batch.

    shuffle: a new order every epoch, and a seed for each sample; else the order of the CSV. Set `epoch`, and `start`, the
    number of batches to skip, before iterating.
    rank, world_size: this process, and how many there are. Shuffled rows are dealt out one by one, a few of them twice so that
    every process has as many. In the CSV's order whole batches are dealt out, the same that a single process would have.
    """

    def __init__(
        self, labels: Labels, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ):
        self.labels, self.batch_size, self.seed, self.shuffle = labels, batch_size, seed, shuffle
        self.world_size = world_size
        self.epoch = self.start = 0
        count = len(labels)  # `positions`: places in the epoch's order, for each batch of this process
        if shuffle:
            share = -(-count // world_size)
            self.positions = (torch.arange(rank, share * world_size, world_size) % count).split(batch_size)
        else:
            self.positions = torch.arange(count).split(batch_size)[rank::world_size]

    def join_single(self) -> None:
        """Have a last batch of a single row join the batch before it: some networks and losses need two images."""
        *rest, last = self.positions
        if rest and len(last) == 1:
            self.positions = (*rest[:-1], torch.cat([rest[-1], last]))

    @property
    def num_images(self) -> int:
        """Number of images of this process in an epoch."""
        return sum(map(len, self.positions))

    def __len__(self) -> int:
        """How many batches this process has in an epoch."""
        return len(self.positions)

    def __iter__(self) -> Iterator[list[Sample]]:
        names, targets, count = self.labels.images, self.labels.targets, len(self.labels)
        rows, seeds = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            rows = torch.randperm(count, generator=generator)
            seeds = torch.randint(2**62, (count,), generator=generator)
        for batch in self.positions[self.start :]:
            drawn = zip(rows[batch].tolist(), seeds[batch].tolist(), strict=True)
            yield [Sample(str(names[row]), targets[row], seed) for row, seed in drawn]


def read_splits(
    folder: str | Path,
    images: str | Path,
    label_format: LabelFormat,
    *,
    train: bool = True,
    select_on_test: bool = False,
    skip_missing: bool = False,
    val_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Splits:
    """Read `train.csv`, `val.csv` and `test.csv` of `folder`, and find their images in `images`.

    train: False reads test.csv only. select_on_test: use test.csv for validation, as in the release. Without a val.csv,
    `val_share` of train.csv is held out, by `seed`.
    Raises InputError for missing folders, and what `read_labels` and `find_images` raise.
    """
    folders = ((folder, "path_to_save_csv"), (images, "path_to_images"))
    missing = [
        f"{path}: no such folder; --{name} names it" for path, name in folders if not Path(path).is_dir()
    ]
    if missing:
        raise InputError(f"{'; '.join(missing)}; prepare_data.py makes the CSVs")
    notes, skipped = [], {}

    def read(name: str) -> Labels:
        labels = read_labels(Path(folder) / name, label_format, limit)
        labels, skipped[name] = find_images(labels, images, skip_missing)
        if skipped[name]:
            notes.append(f"{name}: {skipped[name]} rows skipped, their images are missing")
        return labels

    test, validation = read("test.csv"), None
    training = read("train.csv") if train else None
    if train and select_on_test:
        validation = test
        notes.append("released protocol: the checkpoint is selected on test.csv")
    elif train and (Path(folder) / "val.csv").is_file():
        validation = read("val.csv")
    elif train:
        training, validation = hold_out(training, val_share, seed)
        notes.append(f"no val.csv: {len(validation)} rows of train.csv held out for validation")
    if train:
        notes += _shared_images({"train": training, "val": validation, "test": test})
    return Splits(training, validation, test, tuple(notes), skipped["test.csv"])


def _shared_images(splits: dict[str, Labels]) -> Iterator[str]:
    """A warning for every two splits that share images."""
    for (first, first_labels), (second, second_labels) in combinations(splits.items(), 2):
        shared = set(first_labels.images) & set(second_labels.images)
        if shared and first_labels is not second_labels:
            yield f"warning: {len(shared)} images are in {first} and in {second}, as {min(shared)}"


def make_loader(
    labels: Labels,
    images: str | Path,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    decoder: str = "pil",
    cache: Cache | None = None,
    persistent: bool = False,
) -> DataLoader:
    """A loader of Batches: shuffled and augmented if `transform` is for training, else in the CSV's order.

    rank, world_size: see `ResumableBatchSampler`. decoder, cache: see `PhotoDataset`. persistent: keep the workers from epoch
    to epoch.
    """
    dataset = PhotoDataset(images, transform, decoder, cache)
    return workers.make_worker_loader(
        dataset,
        num_workers,
        batch_size * transform.size**2 * 3,
        batch_sampler=ResumableBatchSampler(labels, batch_size, seed, transform.train, rank, world_size),
        collate_fn=dataset.collate,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=pin_memory,
        # A generator of its own: starting workers must not advance torch's, which drop path draws from.
        generator=torch.Generator().manual_seed(seed),
    )


def batches(loader: DataLoader, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
    """The batches of one epoch, from number `start`. Raises InputError if an image does not decode or a worker dies."""
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, start
    for batch in workers.checked_items(loader):
        if isinstance(batch, InputError):
            raise batch
        yield batch
