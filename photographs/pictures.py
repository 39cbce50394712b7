"""A look at every picture: whether it decodes, what kind it is, and what training will do with it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import ExifTags, Image, UnidentifiedImageError

from commands.files import atomic_write
from commands.growing import Growing, fingerprint, read_csv, write_csv
from commands.signals import Watch
from option import InputError
from photographs import workers
from photographs.decode import open_image
from photographs.labels import names_format, read_names, read_table, require

_WHITE = "cuts its values off at 255, so it is almost white"
# What it does to training: `stops` it, `spoils` it unnoticed, or the picture is `used`; and what training does with it.
KINDS = {
    "missing": ("stops", "ends, or leaves it out with --skip_missing: there is no such file"),
    "empty": ("stops", "ends: the file has 0 bytes"),
    "not an image": ("stops", "ends: no decoder knows the file"),
    "unreadable": ("stops", "ends: there is no permission to read the file"),
    "truncated": ("stops", "ends: the file is cut short"),
    "damaged": ("stops", "ends: the file does not decode"),
    "too large": ("stops", "ends: more than 178 million pixels are refused, not decoded"),
    "16-bit grey": ("spoils", f"(or floating point) {_WHITE}; convert it to 8 bits"),
    "16-bit colour": ("used", "keeps the upper 8 bits of each value"),
    "animated": ("used", "sees the first frame, or page"),
    "CMYK": ("used", "converts it to RGB, without its colour profile"),
    "grey": ("used", "sees three equal channels"),
    "palette": ("used", "looks its colours up"),
    "transparent": ("used", "drops the transparency; the colours beneath it show"),
    "rotated": ("used", "sees it as it is stored: EXIF's orientation is ignored, as in the release"),
    "other colours": ("used", "converts it to RGB"),
    "plain": ("used", "sees it as it is"),
}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_GREY, _DEEP = {"1", "L", "LA", "La"}, ("I;16", "I", "F")


class Finding(NamedTuple):
    """One picture. kinds: of KINDS, joined by ` + `. bytes and changed tell whether the file is still that one."""

    image: str
    bytes: int
    changed: int
    kinds: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The worst of its kinds'."""
        return min(
            (KINDS[kind][0] for kind in self.kinds.split(" + ")), key=["stops", "spoils", "used"].index
        )


COLUMNS = list(Finding._fields)


def examine(folder: str | os.PathLike, name: str) -> Finding:
    """Decode one picture, as training would."""
    path = Path(folder) / name
    return look(path, (name, *fingerprint(path)))


def look(source: Path | io.BytesIO, known: tuple[str, int, int]) -> Finding:
    """Decode a file, or its content. known: its name, bytes and time of change."""
    if known[1] <= 0:
        return Finding(*known, "empty" if known[1] == 0 else "missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of pictures that are large or written oddly
        try:
            with open_image(source) as picture:
                about = (picture.format or "", picture.mode, *picture.size)
                kinds = _kinds(picture)
                picture.convert("RGB")
                frames = _frames(picture)
        except PermissionError:
            return Finding(*known, "unreadable")
        except Image.DecompressionBombError as error:
            return Finding(*known, "too large", detail=_line(error))
        except UnidentifiedImageError:
            with source if isinstance(source, io.BytesIO) else source.open("rb") as file:
                file.seek(0)
                cut = file.read(8).startswith(_MAGIC)
            return Finding(*known, "truncated" if cut else "not an image")
        except Exception as error:  # decoders raise anything at all on a damaged file
            cut = "truncated" in str(error).lower()
            return Finding(*known, "truncated" if cut else "damaged", detail=_line(error))
    if frames != 1 and about[0] != "MPO":
        kinds.insert(0, "animated")
    return Finding(*known, " + ".join(kinds) or "plain", *about, frames)


def _frames(picture: Image.Image) -> int:
    """How many; 0 where they cannot be counted, which keeps nobody from decoding the first."""
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:
        return 0


def _kinds(picture: Image.Image) -> list[str]:
    mode, deep = picture.mode, picture.mode.startswith(_DEEP)
    exif = picture.getexif() if picture.format in ("JPEG", "MPO", "TIFF") else {}
    deep_png = picture.format == "PNG" and any(";16" in str(tile[-1]) for tile in picture.tile)
    found = {
        "16-bit grey": deep,
        "16-bit colour": deep_png and not deep,
        "CMYK": mode == "CMYK",
        "grey": mode in _GREY,
        "palette": mode in ("P", "PA"),
        "transparent": mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info,
        "rotated": exif.get(ExifTags.Base.Orientation, 1) not in (0, 1),
        "other colours": mode in ("YCbCr", "LAB", "HSV"),
    }
    return [kind for kind, is_it in found.items() if is_it]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def examine_all(
    folder: str | os.PathLike,
    names: Sequence[str],
    journal: str | os.PathLike,
    num_workers: int = 0,
    watch: Watch | None = None,
) -> list[Finding]:
    """Examine pictures in parallel, noting each for the CSV `journal`, where those that have not changed since are found.

    Raises Interrupted when a signal comes, with the journal written; InputError where that is no journal of ours.
    """
    folder, notes = Path(folder), Growing(journal, COLUMNS)

    def write(rows: Iterable[list]) -> None:
        write_csv(notes.path, [COLUMNS, *{row[0]: row for row in rows}.values()])

    with notes.open(write, lambda: _read(notes.path)) as note:
        seen = {row[0]: Finding(*row) for row in notes.rows()}
        known = {name: (finding.bytes, finding.changed) for name, finding in seen.items()}
        wanted = [name for name in names if known.get(name) != fingerprint(folder / name)]
        found = workers.each(workers.Calls(partial(examine, folder)), wanted, num_workers)
        done = len(names) - len(wanted)
        for finding in workers.watched(found, "look at pictures", len(names), watch, done):
            note(finding)
            seen[finding.image] = finding
    return [seen[name] for name in names]


def _read(path: Path) -> Iterator[list]:
    """The rows of a `pictures.csv`. Raises InputError where it is none of ours."""
    try:
        for number, row in enumerate(read_csv(path)):
            if number:
                yield [*row[:1], *map(int, row[1:3]), *row[3:6], *map(int, row[6:9]), row[9]]
            elif row != COLUMNS:
                raise ValueError(f"its header is not {','.join(COLUMNS)}")
    except ValueError as error:
        raise InputError(f"{path}: not a list of pictures ({error}); move it away") from None


def pictures_in(folder: str | os.PathLike) -> tuple[list[str], int]:
    """The names of all files in a folder and those in it that end as pictures do, in order, and how many do not.

    Hidden ones are left out. Raises OSError where a folder cannot be read.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(place).relative_to(folder)
        found += [(within / name).as_posix() for name in files if not name.startswith(".")]
    endings = Image.registered_extensions()
    names = sorted(name for name in found if os.path.splitext(name)[1].lower() in endings)
    return names, len(found) - len(names)


def report(findings: Sequence[Finding]) -> str:
    """A table: how many pictures of each kind, what training does with them, and the first of them."""
    images: dict[str, list[str]] = {}
    for finding in findings:
        for kind in finding.kinds.split(" + "):
            images.setdefault(kind, []).append(finding.image)
    lines = [f"{len(findings)} pictures; what training does with them:"]
    for kind, (_, training) in KINDS.items():
        if own := images.get(kind):
            example = "" if kind == "plain" else f"; the first is {own[0]}"
            lines.append(f"{len(own):>8}  {kind:<14} {training}{example}")
    return "\n".join(lines)


def named_in(path: Path) -> pd.DataFrame:
    """A CSV as it is, as text, with the pictures that it names in the column `_file`."""
    table = read_table(path)
    form = names_format(table)
    require(path, table, [form.image_column])
    return table.assign(_file=read_names(path, table, form))


def write_clean(tables: dict[Path, pd.DataFrame], bad: set[str], out: Path, copies: set[str]) -> list[str]:
    """Write each CSV of `tables` to the folder `out`, without the rows of the pictures in `bad`. Returns what was done.

    copies: pictures that are in another split, too; train.csv goes without them.
    """
    lines = []
    out.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        left_out = bad | copies if path.name == "train.csv" else bad
        kept = table[~table["_file"].isin(left_out)].drop(columns="_file")
        with atomic_write(out / path.name) as file:
            kept.to_csv(file, index=False)
        left = "" if len(kept) else "; none is left, and training refuses an empty CSV"
        lines.append(f"{out / path.name}: {len(kept)} of {len(table)} rows{left}")
    return lines
