"""One HTML page that needs no other file: photographs, their scores, votes and attention.

page.html is its frame, page.css its style, page.js its behaviour. This module prepares the numbers and the thumbnails.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib import colormaps
from PIL import Image

from iaa.photographs import workers
from iaa.runtime.files import atomic_write, to_json
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import open_rgb

LARGE, SMALL = 384, 192  # long side of a thumbnail, in pixels
LARGE_UP_TO = 500  # photographs; a longer page has small thumbnails: 5,000 take less than 60 MB
CHUNK = 100  # thumbnails in one element of the page
DEMO = "The demo's scores are of damage done to two photographs. They are not aesthetics."
# Numbers of a photograph beside its scores: the label, and whether the number is a share, shown in percent.
NUMBERS = {
    "below": ("Share below", True),
    "spread": ("Spread of votes", False),
    "attention_background": ("Attention to background", True),
}


@dataclass(frozen=True)
class Photo:
    """One photograph of the page. Scores are on the dataset's own scale."""

    image: str  # its name, as in the table of scores
    path: Path | None  # its file, for the thumbnail; None: no picture
    score: float | None  # None where there is an error
    error: str = ""
    votes: Sequence[float] = ()  # vote distribution, level 1 first: raw outputs, which may be negative
    attention: np.ndarray | None = None  # (h, w), attention mass per cell of the picture; sums to at most 1
    other: float | None = None  # the true score, where it is known
    other_votes: Sequence[float] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)  # keys: those of NUMBERS


@dataclass
class Page:
    """The content of the page beside its photographs."""

    title: str
    facts: dict[str, str]  # weights, dataset, date ...
    score_range: tuple[float, float]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, str] = ("score", "other score")  # of `Photo.score` and `Photo.other`
    figures: Sequence[Sequence[str]] = ()  # a table of metrics as texts, its header first
    remarks: Sequence[str] = ()  # notes beside the table
    charts: list[dict[str, str]] = field(default_factory=list)  # of charts.py


def write_page(
    path: str | os.PathLike,
    page: Page,
    photos: Sequence[Photo],
    *,
    upright: bool = False,
    num_workers: int = 0,
    stop: StopSignal | None = None,
) -> None:
    """Write the page, thumbnail by thumbnail. A photograph that cannot be opened has a placeholder.

    upright: turn the photographs by EXIF; False shows them as the network sees them.
    Raises Interrupted when a signal comes, InputError where a worker dies, OSError where the page cannot be written.
    """
    head, tail = fill_frame(page.title, make_content(page, photos, Path(path).parent))
    side = LARGE if len(photos) <= LARGE_UP_TO else SMALL
    paths = [photo.path for photo in photos]
    make = partial(make_thumbnail, side=side, upright=upright)
    thumbnails = workers.map_parallel(make, paths, num_workers, "report", stop)
    with atomic_write(path, "wb") as file:
        file.write(head)
        while chunk := list(islice(thumbnails, CHUNK)):
            lines = b"\n".join(map(base64.b64encode, chunk))
            file.write(b'<script type="text/plain" class="thumbnails">%s</script>\n' % lines)
        file.write(tail)


def fill_frame(title: str, content: dict) -> tuple[bytes, bytes]:
    """page.html with its content: the bytes before the thumbnails, and those after them."""
    files = (Path(__file__).with_name(f"page.{kind}") for kind in ("html", "css", "js"))
    frame, style, script = (file.read_text(encoding="utf-8") for file in files)
    values = {
        "title": html.escape(title),
        "style": style,
        "script": script,
        "style_hash": make_hash(style),
        "script_hash": make_hash(script),
        "data": to_json(content).replace("<", "\\u003c"),  # a name cannot end the element
    }
    frame = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], frame)
    head, _, tail = frame.encode().partition(b"<!-- thumbnails -->\n")
    return head, tail


def make_hash(text: str) -> str:
    """The hash by which the page's security policy allows this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def make_content(page: Page, photos: Sequence[Photo], folder: Path) -> dict:
    """The data of the page's script, as plain lists and numbers. folder: the page's, for links."""
    numbers = [
        {"key": key, "label": label, "share": share, "values": _rounded(p.numbers.get(key) for p in photos)}
        for key, (label, share) in NUMBERS.items()
        if any(key in photo.numbers for photo in photos)
    ]
    attention, limit = scale_attention(photos)
    common = os.path.commonprefix([photo.image for photo in photos])  # noqa: RUF071  cut at a slash
    common = common[: common.rfind("/") + 1]
    return {
        "facts": [*page.facts.items(), *([("Folder", common)] if common else [])],
        "cut": len(common),
        "notes": page.notes,
        "names": page.names,
        "figures": page.figures,
        "remarks": page.remarks,
        "range": page.score_range,
        "charts": page.charts,
        "colours": colormaps["cividis"](np.arange(256), bytes=True)[:, :3].tolist(),
        "attention_limit": limit,
        "numbers": numbers,
        "chunk": CHUNK,
        "photos": {
            "image": [photo.image for photo in photos],
            "link": [make_link(photo.path, folder) for photo in photos],
            "error": [photo.error for photo in photos],
            "score": _rounded(photo.score for photo in photos),
            "other": _rounded(photo.other for photo in photos),
            "votes": [_rounded(photo.votes, 4) for photo in photos],
            "other_votes": [_rounded(photo.other_votes, 4) for photo in photos],
            "attention": attention,
        },
    }


def _rounded(values: Iterable[float | None], digits: int = 6) -> list[float]:
    """Rounded values; the page's JSON has null for None and for values that are not finite."""
    return np.array([*values], np.float64).round(digits).tolist()


def scale_attention(photos: Sequence[Photo]) -> tuple[list[list[list[int]] | None], float | None]:
    """Maps of 0 to 255, and the attention that 255 means, the same for all pictures, in multiples of an even share.

    It is the 90th percentile of the pictures' maxima, so that a single odd picture does not darken all others.
    """
    maps = [None if p.attention is None else np.float32(p.attention) * p.attention.size for p in photos]
    peaks = [values.max() for values in maps if values is not None]
    limit = max(float(np.quantile(peaks, 0.9)), 1.5) if peaks else None
    return [
        m if m is None else np.rint((m / limit).clip(0, 1) * 255).astype(int).tolist() for m in maps
    ], limit


def make_link(path: Path | None, folder: Path) -> str | None:
    """A link to the file: relative if it lies in or below the page's folder, so that both can be moved; else absolute."""
    if path is None:
        return None
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return quote(os.fsencode(path.relative_to(folder))) if folder in path.parents else path.as_uri()


def make_thumbnail(path: Path | None, side: int, upright: bool) -> bytes:
    """A JPEG with the photograph's aspect ratio; empty where it cannot be read."""
    file = io.BytesIO()
    try:
        picture = open_rgb(path, upright, side=LARGE)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        picture.save(file, "JPEG", quality=78, optimize=True)
    except Exception:  # no path, or a damaged file, on which decoders raise anything at all
        return b""
    return file.getvalue()
