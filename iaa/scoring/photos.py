"""Photographs as pixels for the network, from files of any kind, one by one or in batches that other processes read."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from iaa.photographs import workers
from iaa.photographs.decode import Resize, open_image, read_plain_jpeg
from iaa.scoring.sources import Source


class PhotoBatch(NamedTuple):
    """A batch of photographs, in order. A photograph that cannot be read has an error and no pixels.

    shard: its tar; is_last: it is the shard's last batch. origins: the `url` and `key` of each photograph in a shard.
    """

    paths: list[str]
    errors: list[str]  # "" where there is none
    turned: int  # photographs that are stored turned, as EXIF says
    images: Tensor  # (readable ones, 3, side, side) uint8
    origins: Sequence[Mapping[str, str]]
    shard: str = ""
    is_last: bool = False


class Photos(Dataset):
    """Pixels of photographs by path. decoder: `pil`, as in evaluation, or `fast`. upright: turned as EXIF says."""

    def __init__(self, resize: Resize, decoder: str = "pil", upright: bool = False):
        self.resize, self.decoder, self.upright = resize, decoder, upright

    def __getitem__(self, source: Source) -> tuple[str, str, bool, np.ndarray | None]:
        """The path, its error, whether EXIF turns it, its pixels (side, side, 3) uint8 or None."""
        path, error = source
        return (path, error, False, None) if error else (path, *self.read(path))

    def read(self, source: str | bytes) -> tuple[str, bool, np.ndarray | None]:
        """Error, EXIF and pixels, as `__getitem__` has them. source: a path, or a file's content."""
        try:
            with _opened(source) as picture:
                turned = picture.getexif().get(0x0112, 1) not in (0, 1)
                fast = self.decoder == "fast" and not (turned and self.upright)
                pixels = read_plain_jpeg(source, self.resize) if fast else None
                if pixels is None:
                    pixels = np.asarray(self.resize.pil(to_rgb(picture, self.upright)))
                return "", turned, pixels
        except Exception as error:  # decoders raise anything at all on a damaged file
            return explain_failure(source, error), False, None

    def collate(self, samples: list) -> PhotoBatch:
        paths, errors, turned, pixels = zip(*samples, strict=True) if samples else ((),) * 4
        read = [image for image in pixels if image is not None]
        images = np.stack(read) if read else np.empty((0, self.resize.side, self.resize.side, 3), np.uint8)
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return PhotoBatch(list(paths), list(errors), sum(turned), images, [{}] * len(samples))


def photo_batches(
    photos: Photos, sources: Iterable[Source], batch_size: int, num_workers: int
) -> Iterator[PhotoBatch]:
    """Batches in the order of `sources`, which are read no further ahead than keeps the workers busy. Raises InputError."""
    iterator = iter(sources)
    source_batches = iter(lambda: list(islice(iterator, batch_size)), [])
    return workers.checked_items(
        workers.make_worker_loader(
            photos, num_workers, batch_sampler=source_batches, collate_fn=photos.collate
        )
    )


def open_rgb(
    source: str | os.PathLike | bytes, upright: bool = False, side: int | None = None
) -> Image.Image:
    """A photograph in RGB, as `to_rgb` makes it, from a path or a file's content. May raise any Exception.

    side: for a thumbnail; a JPEG is decoded at a reduced size of at least that many pixels, which is faster.
    """
    with _opened(source) as picture:
        if side is not None:
            picture.draft("RGB", (side, side))
        return to_rgb(picture, upright)


@contextmanager
def _opened(source: str | os.PathLike | bytes) -> Iterator[Image.Image]:
    """The open picture. source: the path of a plain file, or its content."""
    if not isinstance(source, bytes):
        refuse_pipe(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of pictures that are large or written oddly
        with open_image(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            yield picture


def refuse_pipe(path: str | os.PathLike) -> None:
    """Raises OSError unless `path` is a plain file: reading a pipe could wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a plain file")


def to_rgb(picture: Image.Image, upright: bool = False) -> Image.Image:
    """An opened picture in RGB, as evaluation has it: as stored, unless `upright`, and without a colour profile.

    16-bit grey is scaled to 8 bits; PIL's own conversion, which training and evaluation use, cuts it off at 255 and
    leaves a white picture. Raises ValueError for floating point and 32-bit pixels, which do not say what value is white.
    """
    if upright:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        raise ValueError(
            f"its pixels are {'floating point' if picture.mode == 'F' else '32-bit'}; convert it to 8 bits"
        )
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).round().astype(np.uint8))
    return picture.convert("RGB")


def explain_failure(source: str | os.PathLike | bytes, error: Exception) -> str:
    """The reason why a photograph could not be read, in a few words. source: its path, or the file's content."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        return "no decoder knows the file" if size else "the file has 0 bytes"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more than 178 million pixels"
    return "the file is cut short" if "truncated" in str(error).lower() else error_text(error)


def error_text(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
