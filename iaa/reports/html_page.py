"""One HTML page that needs no other file: photographs, their scores, votes and attention.

page.html is its frame, page.css its style, widgets.js and page.js its behaviour; charts.py draws its charts. This module
prepares the numbers and the thumbnails.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import numpy as np
import scipy
from matplotlib import colormaps
from PIL import Image

from iaa.photographs import workers
from iaa.reports import charts
from iaa.runtime.files import atomic_write, to_json
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import open_rgb

HERE = Path(__file__).parent
LARGE, SMALL = 384, 192  # long side of a thumbnail, in pixels
LARGE_UP_TO = 500  # photographs; a longer page has small thumbnails: 5,000 take less than 60 MB
CHUNK = 100  # thumbnails in one element of the page
GRID = 32  # at most so many cells of an attention map in a row or a column
LIST = 10  # rows of the lists of worst errors and largest disagreements
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
    true: float | None = None
    other: float | None = None  # the score that it is compared with, on `Page.other_range`
    other_votes: Sequence[float] = ()  # of the compared scores; without a comparison the true votes
    numbers: Mapping[str, float] = field(default_factory=dict)  # keys: those of NUMBERS


@dataclass(frozen=True)
class Page:
    """The content of the page beside its photographs. The arrays cover all photographs, also those that are not on the page."""

    title: str
    facts: Mapping[str, str]  # weights, dataset, date ...
    score_range: tuple[float, float]
    notes: Sequence[str] = ()
    other_name: str = ""  # of the scores that are compared; "": none
    other_range: tuple[float, float] | None = None  # their scale; where it is another one, ranks are compared
    figures: Sequence[Sequence[str]] = ()  # a table of metrics as texts, its header first
    remarks: Sequence[str] = ()  # notes beside the table
    all_scores: np.ndarray | None = None  # (N,)
    all_true: np.ndarray | None = None  # (N,), in the order of `all_scores`


def choose(errors: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The rows, in order, of the photographs that a page of at most `limit` shows.

    errors: (N,), predicted minus true. Half of the page shows the largest errors, the rest a sample of the others.
    """
    if len(errors) <= limit:
        return np.arange(len(errors))
    ranked, half = np.argsort(-np.abs(errors), kind="stable"), limit // 2
    sample = np.random.default_rng(seed).choice(np.sort(ranked[half:]), limit - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], sample]))


open_photo = partial(open_rgb, side=LARGE)  # not turned by EXIF, as the network sees it


def write_page(
    path: str | os.PathLike,
    page: Page,
    photos: Sequence[Photo],
    *,
    open_photo: Callable[[Path], Image.Image] = open_photo,
    num_workers: int = 0,
    stop: StopSignal | None = None,
) -> None:
    """Write the page, thumbnail by thumbnail. A photograph that cannot be opened has a placeholder.

    Raises Interrupted when a signal comes, InputError where a worker dies, OSError where the page cannot be written.
    """
    path = Path(path)
    head, tail = _frame(page.title, _content(page, photos, path.parent))
    thumbnails = _thumbnails(photos, open_photo, num_workers, stop)
    with atomic_write(path, "wb") as file:
        file.write(head)
        while chunk := list(islice(thumbnails, CHUNK)):
            lines = b"\n".join(map(base64.b64encode, chunk))
            file.write(b'<script type="text/plain" class="thumbnails">%s</script>\n' % lines)
        file.write(tail)


def _frame(title: str, content: dict) -> tuple[bytes, bytes]:
    """page.html with its content: the bytes before the thumbnails, and those after them."""
    files = ("page.html", "page.css", "widgets.js", "page.js")
    frame, style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in files)
    script = "".join(scripts)
    values = {
        "title": html.escape(plain(title)),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": to_json(content).replace("<", "\\u003c"),  # a name cannot end the element
    }
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: values.get(match[1], ""), frame)
    head, _, tail = filled.rpartition("<!-- thumbnails -->\n")
    return head.encode(), tail.encode()


def _hash(text: str) -> str:
    """The hash by which the page's security policy allows this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def plain(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are not UTF-8 become \\xNN."""
    return text.encode("utf-8", "backslashreplace").decode()


def _content(page: Page, photos: Sequence[Photo], folder: Path) -> dict:
    """The data of the page's script, as plain lists and numbers."""
    scores, true, other = (_array(getattr(p, name) for p in photos) for name in ("score", "true", "other"))
    all_scores = scores if page.all_scores is None else _array(page.all_scores)
    score_pairs = (scores, true) if page.all_true is None else (all_scores, _array(page.all_true))
    if not page.other_name:
        other = np.full(len(photos), np.nan)
    ranks = page.other_range is not None and tuple(page.other_range) != tuple(page.score_range)
    difference = _share_below(scores, scores) - _share_below(other, other) if ranks else scores - other
    attention, limit = _attention_maps(photos)
    return {
        "facts": [[plain(str(name)), plain(str(value))] for name, value in page.facts.items()],
        "notes": [plain(note) for note in page.notes],
        "figures": [[plain(text) for text in row] for row in page.figures],
        "remarks": [plain(remark) for remark in page.remarks],
        "range": [float(value) for value in page.score_range],
        "total": len(all_scores),
        "other": _comparison(page, scores, other, ranks) if page.other_name else None,
        "distributions": charts.distributions(
            all_scores, score_pairs[1], other, plain(page.other_name), ranks
        ),
        "scatters": {
            "true": charts.scatter(*score_pairs, ("predicted score", "true score"), True),
            "other": charts.scatter(scores, other, ("score by this run", "score by the other"), not ranks),
        },
        "colours": colormaps["cividis"](np.arange(256), bytes=True)[:, :3].tolist(),
        "attention_limit": limit,
        "numbers": _named_numbers(photos),
        "chunk": CHUNK,
        "list": LIST,
        "photos": {
            "image": [plain(photo.image) for photo in photos],
            "link": [_link(photo.path, folder) for photo in photos],
            "error": [plain(photo.error) for photo in photos],
            "score": _numbers(scores),
            "true": _numbers(true),
            "other": _numbers(other),
            "difference": _numbers(difference),
            "votes": [_numbers(photo.votes, 4) for photo in photos],
            "other_votes": [_numbers(photo.other_votes, 4) for photo in photos],
            "attention": attention,
        },
    }


def _array(values: Iterable[float | None]) -> np.ndarray:
    """(N,), nan for None."""
    return np.array([*values], np.float64)


def _numbers(values: Iterable[float | None], digits: int = 6) -> list[float]:
    """Rounded values; the page's JSON has null for those that are not finite."""
    return _array(values).round(digits).tolist()


def _named_numbers(photos: Sequence[Photo]) -> list[dict]:
    columns = []
    for name, (label, share) in NUMBERS.items():
        if any(name in photo.numbers for photo in photos):
            values = _numbers(photo.numbers.get(name) for photo in photos)
            columns.append({"key": name, "label": label, "share": share, "values": values})
    return columns


def _share_below(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(N,), the share of the finite `reference` below each of `values` (N,); equal ones count half."""
    ranked = np.sort(reference[np.isfinite(reference)])
    counts = sum(np.searchsorted(ranked, values, side) for side in ("left", "right")) / 2
    return np.where(np.isfinite(values), counts / max(1, len(ranked)), np.nan)


def _comparison(page: Page, scores: np.ndarray, other: np.ndarray, ranks: bool) -> dict:
    pair = np.stack([scores, other])
    pair = pair[:, np.isfinite(pair).all(0)]
    varied = pair.shape[1] > 1 and (np.ptp(pair, 1) > 0).all()
    return {
        "name": plain(page.other_name),
        "range": [float(value) for value in page.other_range or page.score_range],
        "ranks": ranks,
        "srcc": round(float(scipy.stats.spearmanr(*pair).statistic), 6) if varied else None,
        "count": pair.shape[1],
    }


def _attention_maps(photos: Sequence[Photo]) -> tuple[list[list | None], float | None]:
    """Maps as [height, width, base64 of a byte per cell], and the value of the byte 255, the same for all pictures.

    The value is a multiple of an even share of the picture's cells: the 90th percentile of the pictures' maxima, so that
    a single odd picture does not darken all others.
    """
    maps = [None if photo.attention is None else _coarse(photo.attention) for photo in photos]
    peaks = [values.max() for values in maps if values is not None]
    limit = max(float(np.quantile(peaks, 0.9)), 1.5) if peaks else None

    def packed(values: np.ndarray) -> list:
        scaled = np.rint((values / limit).clip(0, 1) * 255).astype(np.uint8)
        return [*values.shape, base64.b64encode(scaled.tobytes()).decode()]

    return [None if values is None else packed(values) for values in maps], limit


def _coarse(attention: np.ndarray) -> np.ndarray:
    """Attention (h, w) in multiples of an even share, in at most GRID x GRID cells."""
    values = np.nan_to_num(np.asarray(attention, np.float32))
    height, width = values.shape
    shares = Image.fromarray(values * values.size)
    return np.asarray(shares.resize((min(width, GRID), min(height, GRID)), Image.Resampling.BOX))


def _link(path: Path | None, folder: Path) -> str | None:
    """A link to the file: relative if it lies in or below the page's folder, so that both can be moved; else absolute."""
    if path is None:
        return None
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return quote(os.fsencode(path.relative_to(folder))) if folder in path.parents else path.as_uri()


def _thumbnail(open_photo: Callable[[Path], Image.Image], side: int, path: Path | None) -> bytes:
    """A JPEG with the photograph's aspect ratio; empty where it cannot be read."""
    file = io.BytesIO()
    try:
        picture = open_photo(path)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        picture.save(file, "JPEG", quality=78, optimize=True)
    except Exception:  # no path, or a damaged file, on which decoders raise anything at all
        return b""
    return file.getvalue()


def _thumbnails(photos, open_photo, num_workers: int, stop: StopSignal | None) -> Iterator[bytes]:
    side = LARGE if len(photos) <= LARGE_UP_TO else SMALL
    paths = [photo.path for photo in photos]
    return workers.map_parallel(partial(_thumbnail, open_photo, side), paths, num_workers, "report", stop)
