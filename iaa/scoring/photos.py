"""Photographs as pixels for the network, from files of any kind, one by one or in batches that other processes read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from iaa.networks.attention_maps import AttentionMap, mean_map
from iaa.photographs import decode, workers
from iaa.photographs.colour import find_srgb_conversion
from iaa.photographs.decode import TURNS, Resize, error_text, open_image, orientation, read_plain_jpeg


@dataclass
class ScoredPhoto:
    """A photograph: its error; or, once it is scored, raw outputs (levels,), and each layer's map if these are recorded.

    turned: EXIF says that it is stored turned. other_colours: its colour profile is not sRGB's. origin: its `url` and `key`, from the shard.
    """

    path: str
    error: str = ""  # "" where there is none
    turned: bool = False
    other_colours: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    outputs: np.ndarray | None = None
    attention_maps: Mapping[str, AttentionMap] = field(default_factory=dict)

    @cached_property
    def attention(self) -> np.ndarray | None:
        """The mean of the layers' maps (H, W), if these are recorded."""
        return mean_map(list(self.attention_maps.values())) if self.attention_maps else None


class PhotoBatch(NamedTuple):
    """A batch of photographs, in order, with the pixels of those without an error: (readable ones, 3, side, side) uint8.

    shard: its tar. A shard's last batch has no photographs; fault: what of the shard could not be read, and why.
    """

    photos: list[ScoredPhoto]
    images: Tensor
    shard: str = ""
    fault: str = ""


@dataclass
class Photos(Dataset):
    """Photographs and their pixels by path. decoder: `pil`, as in evaluation, or `fast`. upright: turned as EXIF says.

    max_pixels: see `open_image`. srgb: converted by their colour profiles.
    """

    resize: Resize
    decoder: str = "pil"
    upright: bool = False
    batch_size: int = 16
    num_workers: int = 0  # processes that read
    max_bytes: int = 2**28  # of a member of a shard
    max_pixels: int | None = None
    srgb: bool = False

    def __getitem__(self, path: str) -> tuple[ScoredPhoto, np.ndarray | None]:
        return self.read(path, path)

    def read(self, path: str, source: str | bytes) -> tuple[ScoredPhoto, np.ndarray | None]:
        """The photograph, and its pixels (side, side, 3) uint8 or None. source: a path, or a file's content."""
        try:
            with open_image(source, self.max_pixels) as picture:
                turned = orientation(picture) != 1
                other_colours = find_srgb_conversion(picture) is not None
                is_changed = (turned and self.upright) or (other_colours and self.srgb)
                fast = self.decoder == "fast" and not is_changed
                pixels = read_plain_jpeg(source, self.resize) if fast else None
                if pixels is None:
                    pixels = np.asarray(self.resize.pil(to_rgb(picture, self.upright, self.srgb)))
                return ScoredPhoto(path, turned=turned, other_colours=other_colours), pixels
        except Exception as error:  # decoders raise anything at all on a damaged file
            remedy = "; --max_pixels allows more" * isinstance(error, Image.DecompressionBombError)
            return ScoredPhoto(path, explain_failure(source, error) + remedy), None

    def batches(self, paths: Iterable[str]) -> Iterator[PhotoBatch]:
        """In the order of `paths`, which are asked for no further ahead than keeps the workers busy. Raises InputError."""
        iterator = iter(paths)
        sampler = iter(lambda: list(islice(iterator, self.batch_size)), [])
        options = {"batch_sampler": sampler, "collate_fn": self.collate}
        loader = workers.make_worker_loader(self, self.num_workers, self.batch_bytes, **options)
        return workers.checked_items(loader)

    @property
    def batch_bytes(self) -> int:
        """Of the pixels of a batch."""
        return self.batch_size * self.resize.side**2 * 3

    def collate(self, samples: list) -> PhotoBatch:
        read = [pixels for _, pixels in samples if pixels is not None]
        images = np.stack(read) if read else np.empty((0, self.resize.side, self.resize.side, 3), np.uint8)
        return PhotoBatch([photo for photo, _ in samples], torch.from_numpy(images).permute(0, 3, 1, 2))


def open_rgb(source: decode.PhotoFile, upright: bool = False, side: int | None = None) -> Image.Image:
    """A photograph in RGB, as `to_rgb` makes it. May raise any Exception.

    side: for a thumbnail; a JPEG is decoded at a reduced size of at least that many pixels, which is faster.
    """
    with open_image(source) as picture:
        if side is not None:
            picture.draft("RGB", (side, side))
        return to_rgb(picture, upright)


def to_rgb(picture: Image.Image, upright: bool = False, srgb: bool = False) -> Image.Image:
    """An opened picture in RGB, as evaluation has it: as stored, unless `upright`, and without its profile, unless `srgb`.

    16-bit grey is scaled to 8 bits; PIL's own conversion, which training and evaluation use, cuts it off at 255 and
    leaves a white picture. Raises ValueError for floating point and 32-bit pixels, which do not say what value is white.
    """
    turn = TURNS.get(orientation(picture)) if upright else None
    convert = find_srgb_conversion(picture) if srgb else None
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        kind = "floating point" if picture.mode == "F" else "32-bit"
        raise ValueError(f"its pixels are {kind}; convert it to 8 bits")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).round().astype(np.uint8))
    picture = convert(picture) if convert else picture.convert("RGB")
    return picture if turn is None else picture.transpose(turn)


def explain_failure(source: str | os.PathLike | bytes, error: Exception) -> str:
    """The reason why a photograph could not be read, in a few words. source: its path, or the file's content."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    is_unknown = isinstance(error, UnidentifiedImageError)
    if is_unknown and not (len(source) if isinstance(source, bytes) else os.path.getsize(source)):
        return "the file has 0 bytes"
    return "the file is cut short" if "truncated" in str(error).lower() else error_text(error)
