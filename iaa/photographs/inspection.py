"""Check every picture: whether it decodes, what kind it is, and what training does with it."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import ExifTags, Image, UnidentifiedImageError

from iaa.photographs import workers
from iaa.photographs.decode import open_image
from iaa.photographs.labels import write_csv
from iaa.runtime.signals import StopSignal

# What each kind does to training (it `stops` it, `spoils` it unnoticed, or is `used`), and what training does with it.
KINDS = {
    "missing": ("stops", "ends, or leaves it out with --skip_missing: there is no such file"),
    "empty": ("stops", "ends: the file has 0 bytes"),
    "not an image": ("stops", "ends: no decoder knows the file"),
    "unreadable": ("stops", "ends: there is no permission to read the file"),
    "truncated": ("stops", "ends: the file is cut short"),
    "damaged": ("stops", "ends: the file does not decode"),
    "too large": ("stops", "ends: more than 178 million pixels are refused, not decoded"),
    "16-bit grey": ("spoils", "(or floating point) cuts its values off at 255, so it is almost white; convert it to 8 bits"),
    "animated": ("used", "sees the first frame, or page"),
    "CMYK": ("used", "converts it to RGB, without its colour profile"),
    "transparent": ("used", "drops the transparency; the colours beneath it show"),
    "rotated": ("used", "sees it as it is stored: EXIF's orientation is ignored, as in the release"),
    "plain": ("used", "sees it as it is, in RGB"),
}  # fmt: skip


class Finding(NamedTuple):
    """What was found in one picture. kinds: names of KINDS, joined by ` + `. frames: 0 if they cannot be counted."""

    image: str
    bytes: int
    kinds: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The worst verdict of its kinds: `stops`, `spoils` or `used`."""
        verdicts = [KINDS[kind][0] for kind in self.kinds.split(" + ")]
        return min(verdicts, key=["stops", "spoils", "used"].index)


def inspect_file(folder: str | os.PathLike, name: str) -> Finding:
    """Decode one picture, as training would."""
    path = Path(folder) / name
    try:
        return inspect_image(path, name, path.stat().st_size)
    except OSError:
        return Finding(name, -1, "missing")


def inspect_image(source: Path | io.BytesIO, name: str, size: int) -> Finding:
    """Decode a file, or its content of `size` bytes, as the picture `name`."""
    if size == 0:
        return Finding(name, size, "empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of pictures that are large or written oddly
        try:
            with open_image(source) as picture:
                properties = (picture.format or "", picture.mode, *picture.size)
                kinds = _kinds(picture)
                picture.convert("RGB")
                frames = _count_frames(picture)
        except PermissionError:
            return Finding(name, size, "unreadable")
        except UnidentifiedImageError:
            return Finding(name, size, "not an image")
        except Exception as error:  # decoders raise anything at all on a damaged file
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            kind = "truncated" if "truncated" in detail.lower() else "damaged"
            if isinstance(error, Image.DecompressionBombError):
                kind = "too large"
            return Finding(name, size, kind, detail=detail)
    if frames != 1 and properties[0] != "MPO":
        kinds.insert(0, "animated")
    return Finding(name, size, " + ".join(kinds) or "plain", *properties, frames)


def _count_frames(picture: Image.Image) -> int:
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:  # the first frame decodes all the same
        return 0


def _kinds(picture: Image.Image) -> list[str]:
    exif = picture.getexif() if picture.format in ("JPEG", "MPO", "TIFF") else {}
    tests = {
        "16-bit grey": picture.mode.startswith(("I", "F")),
        "CMYK": picture.mode == "CMYK",
        "transparent": picture.has_transparency_data,
        "rotated": exif.get(ExifTags.Base.Orientation, 1) not in (0, 1),
    }
    return [kind for kind, is_kind in tests.items() if is_kind]


def inspect_files(
    folder: str | os.PathLike, names: Sequence[str], num_workers: int, stop: StopSignal, out: Path
) -> list[Finding]:
    """Inspect pictures in parallel, and write pictures.csv to the folder `out`. Raises Interrupted when a signal comes."""
    inspect = partial(inspect_file, folder)
    findings = list(workers.map_parallel(inspect, names, num_workers, "check pictures", stop))
    table = pd.DataFrame(findings, columns=Finding._fields, dtype=object)
    write_csv(out / "pictures.csv", table, quoting=csv.QUOTE_NONNUMERIC)
    return findings


def find_pictures(folder: str | os.PathLike) -> tuple[list[str], int]:
    """The names of all files in and below a folder that end as a picture's, in order; and how many other files there are.

    Hidden files and folders are ignored. Raises OSError for a folder that cannot be read.
    """
    names = []

    def refuse(error: OSError) -> None:
        raise error

    for path, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(path).relative_to(folder)
        names += [(within / name).as_posix() for name in files if not name.startswith(".")]
    endings = Image.registered_extensions()
    pictures = sorted(name for name in names if os.path.splitext(name)[1].lower() in endings)
    return pictures, len(names) - len(pictures)


def report(findings: Sequence[Finding]) -> str:
    """A table: how many pictures of each kind, what training does with them, and the first of them."""
    lines = [f"{len(findings)} pictures; what training does with them:"]
    for kind, (_, training) in KINDS.items():
        if images := [finding.image for finding in findings if kind in finding.kinds.split(" + ")]:
            example = "" if kind == "plain" else f"; the first is {images[0]}"
            lines.append(f"{len(images):>8}  {kind:<14} {training}{example}")
    return "\n".join(lines)
