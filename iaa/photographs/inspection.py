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
from iaa.photographs.labels import name_format, read_names, read_table, require_columns
from iaa.runtime.files import atomic_write
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
        return min(
            (KINDS[kind][0] for kind in self.kinds.split(" + ")), key=["stops", "spoils", "used"].index
        )


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
                frames = _frames(picture)
        except PermissionError:
            return Finding(name, size, "unreadable")
        except Image.DecompressionBombError as error:
            return Finding(name, size, "too large", detail=_line(error))
        except UnidentifiedImageError:
            return Finding(name, size, "not an image")
        except Exception as error:  # decoders raise anything at all on a damaged file
            cut = "truncated" in str(error).lower()
            return Finding(name, size, "truncated" if cut else "damaged", detail=_line(error))
    if frames != 1 and properties[0] != "MPO":
        kinds.insert(0, "animated")
    return Finding(name, size, " + ".join(kinds) or "plain", *properties, frames)


def _frames(picture: Image.Image) -> int:
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def inspect_files(
    folder: str | os.PathLike, names: Sequence[str], num_workers: int = 0, watch: StopSignal | None = None
) -> list[Finding]:
    """Examine pictures in parallel. Raises Interrupted when a signal comes."""
    findings = workers.map_parallel(
        workers.FunctionDataset(partial(inspect_file, folder)), names, num_workers
    )
    return list(workers.with_progress(findings, "look at pictures", len(names), watch))


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """pictures.csv: a row for each picture."""
    with atomic_write(path) as file:
        file.reconfigure(errors="surrogateescape")  # file names are bytes
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([Finding._fields, *findings])


def pictures_in(folder: str | os.PathLike) -> tuple[list[str], int]:
    """The names of all pictures in and below a folder, in order, and how many other files there are.

    A picture is known by the ending of its name. Hidden files and folders are ignored. Raises OSError if a folder cannot be
    read.
    """
    names: list[str] = []

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
    images: dict[str, list[str]] = {}
    for finding in findings:
        for kind in finding.kinds.split(" + "):
            images.setdefault(kind, []).append(finding.image)
    lines = [f"{len(findings)} pictures; what training does with them:"]
    for kind, (_, training) in KINDS.items():
        if names := images.get(kind):
            example = "" if kind == "plain" else f"; the first is {names[0]}"
            lines.append(f"{len(names):>8}  {kind:<14} {training}{example}")
    return "\n".join(lines)


def read_named(path: Path) -> pd.DataFrame:
    """A CSV as text, with the names of its pictures in an additional column `_file`. Raises InputError."""
    table = read_table(path)
    label_format = name_format(table)
    require_columns(path, table, [label_format.image_column])
    return table.assign(_file=read_names(path, table, label_format))


def write_clean(tables: dict[Path, pd.DataFrame], bad: set[str], out: Path, copies: set[str]) -> list[str]:
    """Write each CSV of `tables` to the folder `out`, without the rows of `bad` pictures. Returns a line on each.

    copies: pictures that are also in another split; train.csv goes without them.
    """
    lines = []
    out.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        removed = bad | copies if path.name == "train.csv" else bad
        rows = table[~table["_file"].isin(removed)].drop(columns="_file")
        with atomic_write(out / path.name) as file:
            rows.to_csv(file, index=False)
        warning = "" if len(rows) else "; none is left, and training refuses an empty CSV"
        lines.append(f"{out / path.name}: {len(rows)} of {len(table)} rows{warning}")
    return lines
