"""Check every picture: whether it decodes, what kind it is, and what training does with it."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from iaa.photographs import workers
from iaa.photographs.colour import find_srgb_conversion
from iaa.photographs.decode import error_text, open_image, orientation
from iaa.photographs.tables import write_csv
from iaa.runtime.signals import StopSignal

# What each kind does to training (it `stops` it, `spoils` it unnoticed, or is `used`), and what training does with it.
KINDS = {
    "missing": ("stops", "ends, or leaves it out with --skip_missing: there is no such file"),
    "damaged": ("stops", "ends: the file does not decode; pictures.csv says why"),
    "too large": ("stops", "ends: more than 300 million pixels (JPEG: 1,000 million) are refused"),
    "16-bit grey": ("spoils", "(or floating point) cuts its values off at 255, so it is almost white; convert it to 8 bits"),
    "CMYK": ("used", "converts it to RGB, without its colour profile"),
    "other colours": ("used", "takes its values for sRGB, though it has another colour profile"),
    "transparent": ("used", "drops the transparency; the colours beneath it show"),
    "rotated": ("used", "sees it as it is stored: EXIF's orientation is ignored, as in the release"),
    "plain": ("used", "sees it as it is, in RGB"),
}  # fmt: skip


class Finding(NamedTuple):
    """What was found in one picture. kinds: names of KINDS, joined by ` + `. detail: why it does not decode."""

    image: str
    bytes: int
    kinds: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
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
        size = path.stat().st_size
    except OSError:
        return Finding(name, -1, "missing")
    try:
        with open_image(path) as picture:
            properties = picture.format or "", picture.mode, *picture.info.get("full_size", picture.size)
            kinds = " + ".join(_kinds(picture)) or "plain"
            picture.convert("RGB")
            return Finding(name, size, kinds, *properties)
    except Exception as error:  # decoders raise anything at all on a damaged file
        kind = "too large" if isinstance(error, Image.DecompressionBombError) else "damaged"
        return Finding(name, size, kind, detail=error_text(error))


def _kinds(picture: Image.Image) -> list[str]:
    tests = {
        "16-bit grey": picture.mode.startswith(("I", "F")),
        "CMYK": picture.mode == "CMYK",
        "other colours": find_srgb_conversion(picture) is not None,
        "transparent": picture.has_transparency_data,
        "rotated": orientation(picture) != 1,
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


def report(findings: Sequence[Finding]) -> str:
    """A table: how many pictures of each kind, what training does with them, and the first of them."""
    lines = [f"{len(findings)} pictures; what training does with them:"]
    for kind, (_, training) in KINDS.items():
        if images := [finding.image for finding in findings if kind in finding.kinds.split(" + ")]:
            example = "" if kind == "plain" else f"; the first is {images[0]}"
            lines.append(f"{len(images):>8}  {kind:<14} {training}{example}")
    return "\n".join(lines)
