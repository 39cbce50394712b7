"""From a picture's file to the pixels of a square: by PIL, as released; or faster, by torchvision."""

from __future__ import annotations

import io
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

from option import InputError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will go
    decode_jpeg = None

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # PIL refuses to decode larger ones
# The formats of photographs. PIL knows more, by content whatever the ending, and gives PostScript to Ghostscript to execute.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "HEIF")


@dataclass(frozen=True)
class Resize:
    """To a square of `side` pixels whatever the aspect ratio, antialiased. method: `bicubic` or `bilinear`."""

    side: int
    method: str

    def pil(self, picture: Image.Image) -> Image.Image:
        return picture.resize((self.side, self.side), Image.Resampling[self.method.upper()])

    def tensor(self, picture: Tensor) -> Tensor:
        """(3, H, W) uint8, to within one grey level of PIL's."""
        return F.interpolate(picture[None], (self.side, self.side), mode=self.method, antialias=True)[0]


@cache
def readable_formats() -> list[str]:
    """Those of FORMATS that this PIL reads; MPO is read as JPEG, HEIF by a plugin."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Open a photograph, as every place that opens one does. Raises what PIL raises, UnidentifiedImageError for other formats."""
    return Image.open(source, formats=readable_formats())


def read_pil(path: str | os.PathLike, resize: Resize) -> np.ndarray:
    """(side, side, 3) uint8: the release's pixels. Raises what PIL raises, which is anything at all."""
    with open_image(path) as picture:
        return np.asarray(resize.pil(picture.convert("RGB")))


def read_fast(path: str | os.PathLike, resize: Resize) -> np.ndarray:
    """As `read_pil`, within one grey level: plain JPEGs by torchvision, which resizes faster; all others by PIL."""
    pixels = read_plain(path, resize)
    return read_pil(path, resize) if pixels is None else pixels


def read_plain(source: str | os.PathLike | bytes, resize: Resize) -> np.ndarray | None:
    """As `read_fast`, of a file or its bytes, but None for all that is not a plain JPEG, or damaged: PIL decides about those."""
    data = bytearray(source if isinstance(source, bytes) else Path(source).read_bytes())
    if _is_plain_jpeg(data):
        try:
            return resize.tensor(_decode(torch.frombuffer(data, dtype=torch.uint8))).permute(1, 2, 0).numpy()
        except RuntimeError:
            pass
    return None


def _is_plain_jpeg(data: bytearray) -> bool:
    """8 bits, grey or three colours, baseline or progressive, not too large: by its headers up to the frame's."""
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


def undecodable(path: Path, error: Exception) -> InputError:
    """What to tell of a picture that could not be read: of what a decoder raised, or the InputError itself."""
    if isinstance(error, InputError):
        return error
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no decoder knows it" if unknown else " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path}: does not decode ({reason}); replace it or remove its row")


def _decode(data: Tensor) -> Tensor:
    """(3, H, W) uint8, on the CPU. Raises RuntimeError where the file is damaged."""
    if decode_jpeg is not None:
        return decode_jpeg(data, ImageReadMode.RGB)
    try:
        with open_image(io.BytesIO(data.numpy())) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:
        raise RuntimeError(str(error)) from error
