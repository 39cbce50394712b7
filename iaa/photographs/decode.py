"""From a picture's file to the pixels of a square: by PIL, as released; or faster, by torchvision."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from iaa.errors import InputError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will go
    decode_jpeg = None
# requirements/photos.txt brings both.
try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None
try:
    import rawpy
except ImportError:
    rawpy = None

PhotoFile = str | os.PathLike | BinaryIO | bytes  # a path, an open file, a file's content
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # PIL's own limit; larger JPEGs are decoded at a reduced size
MAX_PIXELS_JPEG, MAX_PIXELS_OTHERS = 1_000_000_000, 300_000_000  # larger pictures are refused
REDUCED_SIDE = 1024  # of a reduced JPEG, at least
ONE_AT_A_TIME = 50_000_000  # pixels: larger pictures take much memory
# A process holds it while it decodes such a picture; reading processes share one, see `workers.py`.
large_picture = threading.RLock()
# The formats of photographs. PIL recognises more, whatever the file's ending, and has Ghostscript execute PostScript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "HEIF")
HEIC_ENDINGS = {".heic", ".heif", ".hif"}
RAW_ENDINGS = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"}
INSTALL = "HEIC and RAW files need `pip install -r requirements/photos.txt`"
# By EXIF's orientation: what turns the stored picture upright.
_TURN = Image.Transpose
TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
LIBRAW_ORIENTATIONS = (1, 2, 4, 3, 5, 8, 6, 7)  # EXIF's, by LibRaw's number of a turn


class LenientPngStream(PngImagePlugin.PngStream):
    """PIL's reader of a PNG's chunks, but damaged or large metadata is skipped: chunks whose kinds begin with a small letter."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        try:
            return super().call(cid, pos, length)
        except (ValueError, SyntaxError, IndexError, struct.error):
            if not cid[:1].islower():
                raise
            self.fp.seek(pos + length)
            return b""

    def crc(self, cid: bytes, data: bytes) -> None:
        (self.crc_skip if cid[:1].islower() else super().crc)(cid, data)


def read_app_segment(picture: JpegImagePlugin.JpegImageFile, marker: int) -> None:
    """PIL's reader of a JPEG's metadata; a damaged segment is skipped."""
    with suppress(IndexError, struct.error):
        JpegImagePlugin.APP(picture, marker)
    picture.icclist = [part for part in picture.icclist if len(part) >= 14]  # whose numbers PIL needs


PngImagePlugin.PngStream = LenientPngStream
JpegImagePlugin.MARKER |= {app: (f"APP{app & 15}", "", read_app_segment) for app in range(0xFFE0, 0xFFF0)}


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


@cache
def picture_endings() -> set[str]:
    """The endings of files that are read as photographs: `.jpg` and so on."""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return endings | RAW_ENDINGS if rawpy else endings


def ending_of(path: str | os.PathLike) -> str:
    """`.jpg` for `a.JPG`."""
    return os.path.splitext(path)[1].lower()


@contextmanager
def open_image(source: PhotoFile, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The context of an opened photograph; nothing else here may call `Image.open`. Large ones wait for each other.

    max_pixels: by default MAX_PIXELS_JPEG or MAX_PIXELS_OTHERS. A JPEG above MAX_PIXELS is reduced; `info` has its `full_size`.
    Of a RAW file, which only a path can name, this is the preview in it, upright.
    Raises UnidentifiedImageError for other formats, DecompressionBombError above `max_pixels`, and whatever else PIL raises.
    """
    if isinstance(source, (str, os.PathLike)):
        refuse_no_file(source)
    turn = None
    if _has_ending(source, RAW_ENDINGS):
        source, turn = read_preview(source)
    elif isinstance(source, bytes):
        source = io.BytesIO(source)
    with warnings.catch_warnings(action="ignore"), _open_any_size(source) as picture:  # of large or odd ones
        count, is_jpeg = picture.width * picture.height, picture.format in ("JPEG", "MPO")
        limit = max_pixels or (MAX_PIXELS_JPEG if is_jpeg else MAX_PIXELS_OTHERS)
        if count > limit:
            raise Image.DecompressionBombError(f"it has {count:,} pixels, more than {limit:,}")
        with large_picture if count > ONE_AT_A_TIME else nullcontext():
            if count > MAX_PIXELS:
                picture.info["full_size"] = picture.size
                picture.draft(None, (REDUCED_SIDE, REDUCED_SIDE))  # reduces JPEGs only
            yield picture if turn is None else _turned(picture, turn)


def _has_ending(source: PhotoFile, endings: Container[str]) -> bool:
    return isinstance(source, (str, os.PathLike)) and ending_of(source) in endings


def read_preview(path: str | os.PathLike) -> tuple[BinaryIO, Image.Transpose | None]:
    """The largest preview in a RAW file, and what turns it upright, as the RAW file says. Raises ValueError."""
    if rawpy is None:
        raise ValueError(INSTALL)
    try:
        with rawpy.imread(os.fspath(path)) as raw:
            preview, turn = raw.extract_thumb(), TURNS.get(LIBRAW_ORIENTATIONS[raw.sizes.flip])
    except rawpy.LibRawError as error:
        raise ValueError(f"no preview can be read in it ({error.args[0].decode()})") from error
    if preview.format == rawpy.ThumbFormat.JPEG:
        return io.BytesIO(preview.data), turn
    file = io.BytesIO()
    Image.fromarray(preview.data).save(file, "PPM")
    file.seek(0)
    return file, turn


def _turned(picture: Image.Image, turn: Image.Transpose) -> Image.Image:
    upright = picture.transpose(turn)
    upright.format = picture.format
    # Without EXIF, which says how the picture was stored.
    upright.info = {"icc_profile": picture.info.get("icc_profile")}
    return upright


def _open_any_size(source: PhotoFile) -> Image.Image:
    """`Image.open`, without PIL's limit."""
    try:
        return Image.open(source, formats=readable_formats())
    except UnidentifiedImageError:
        if pillow_heif is None and _has_ending(source, HEIC_ENDINGS):
            raise ValueError(INSTALL) from None
        raise
    except Image.DecompressionBombError:
        with large_picture:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(source, formats=readable_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = before


def refuse_no_file(path: str | os.PathLike) -> None:
    """Raises OSError unless `path` is a plain file: reading a pipe could wait for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):  # folders that can be read are not read as files
        raise OSError("the folder cannot be read")
    if not stat.S_ISREG(mode):
        raise OSError("it is not a plain file")


def orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 for none. EXIF that cannot be read is none: the pixels may be whole."""
    if picture.format == "PNG":
        picture.load()  # as `getexif` would, but an error is the picture's, and PIL raises it once
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in TURNS else 1
    except Exception:  # PIL raises anything at all on damaged EXIF
        return 1


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
    if not isinstance(source, bytes):
        refuse_no_file(source)
    data = bytearray(source if isinstance(source, bytes) else Path(source).read_bytes())
    if not 0 < (count := _pixels_of_plain_jpeg(data)) <= MAX_PIXELS:
        return None
    try:
        with large_picture if count > ONE_AT_A_TIME else nullcontext():
            if decode_jpeg is not None:
                pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            else:
                with open_image(bytes(data)) as picture:
                    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            return resize.tensor(pixels).permute(1, 2, 0).numpy()
    except Exception:  # decoders raise anything at all on a damaged file
        return None


def _pixels_of_plain_jpeg(data: bytearray) -> int:
    """How many, if the headers up to the frame's say: 8 bits, 1 or 3 channels, baseline or progressive. Else 0."""
    at = 2
    if data[:2] != b"\xff\xd8":
        return 0
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            plain = marker <= 0xC2 and data[at + 4] == 8 and data[at + 9] in (1, 3)
            return height * width if plain else 0
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def error_text(error: Exception) -> str:
    """The reason of an exception in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "no decoder knows the file"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


def decoding_error(path: Path, error: Exception) -> InputError:
    """The InputError for a picture that could not be read. error: a decoder's; an InputError is returned as it is."""
    if isinstance(error, InputError):
        return error
    return InputError(f"{path}: does not decode ({error_text(error)}); replace it or remove its row")
