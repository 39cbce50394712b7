"""From a picture's file to the pixels of a square: by PIL, as released; or faster, by torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from iaa.errors import InputError

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # PIL refuses to decode larger images
# The formats of photographs. PIL recognises more, whatever the file's ending, and has Ghostscript execute PostScript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "HEIF")


@dataclass(frozen=True)
class Resize:
    """An antialiased resize to a square of `side` pixels, whatever the aspect ratio. method: `bicubic` or `bilinear`."""

    side: int
    method: str

    def pil(self, picture: Image.Image) -> Image.Image:
        return picture.resize((self.side, self.side), Image.Resampling[self.method.upper()])

    def tensor(self, picture: Tensor) -> Tensor:
        """picture: (3, H, W) uint8. Returns (3, side, side) uint8, within one grey level of PIL's resize."""
        return F.interpolate(picture[None], (self.side, self.side), mode=self.method, antialias=True)[0]


@cache
def readable_formats() -> list[str]:
    """The FORMATS that this PIL reads. MPO is read as JPEG, HEIF by a plugin."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Open a photograph; nothing else here may call `Image.open`.

    Raises UnidentifiedImageError for other formats, and whatever else PIL raises.
    """
    return Image.open(source, formats=readable_formats())


def read_pil(path: str | os.PathLike, resize: Resize) -> np.ndarray:
    """Returns the release's pixels, (side, side, 3) uint8. Raises whatever PIL raises, which may be any exception."""
    with open_image(path) as picture:
        return np.asarray(resize.pil(picture.convert("RGB")))


def read_fast(path: str | os.PathLike, resize: Resize) -> np.ndarray:
    """As `read_pil`, within one grey level: plain JPEGs by torchvision, which resizes faster; other files by PIL."""
    pixels = read_plain_jpeg(path, resize)
    return read_pil(path, resize) if pixels is None else pixels


def read_plain_jpeg(source: str | os.PathLike | bytes, resize: Resize) -> np.ndarray | None:
    """As `read_fast`, for a file or its bytes. Returns None if it is damaged or no plain JPEG: then PIL must decide."""
    data = bytearray(source if isinstance(source, bytes) else Path(source).read_bytes())
    if _is_plain_jpeg(data):
        try:
            picture = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            return resize.tensor(picture).permute(1, 2, 0).numpy()
        except RuntimeError:
            pass
    return None


def _is_plain_jpeg(data: bytearray) -> bool:
    """Whether the headers up to the frame's say: 8 bits, 1 or 3 channels, baseline or progressive, not too large."""
    at = 2
    if data[:2] != b"\xff\xd8":
        return False
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            plain = marker <= 0xC2 and data[at + 4] == 8 and data[at + 9] in (1, 3)
            return plain and 0 < height * width <= MAX_PIXELS
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def error_text(error: Exception) -> str:
    """A decoder's error in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "no decoder knows it"
    return " ".join(str(error).split()) or type(error).__name__


def decoding_error(path: Path, error: Exception) -> InputError:
    """The InputError for a picture that could not be read. error: a decoder's; an InputError is returned as it is."""
    if isinstance(error, InputError):
        return error
    return InputError(f"{path}: does not decode ({error_text(error)}); replace it or remove its row")
