"""The report: one HTML page that needs nothing else, with photographs, their scores, votes and attention.

The page's frame is page.html, its style page.css, its behaviour parts.js and page.js, its charts charts.py's;
here are the numbers and the thumbnails.
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
from torch.utils.data import Dataset

from commands.files import atomic_write, to_json
from commands.signals import Watch
from inference import charts
from inference.photos import open_rgb
from photographs import workers

HERE = Path(__file__).parent
LARGE, SMALL = 384, 192  # long side of a thumbnail, in pixels
LARGE_UP_TO = 500  # photographs; a page of more has small ones, so that 5,000 stay below 60 MB
CHUNK = 100  # thumbnails in one element of the page
GRID = 32  # most cells of an attention map, each way
LIST = 10  # rows of the lists of worst errors and largest disagreements
DEMO = "The demo's scores are of damage done to two photographs. They are not aesthetics."
# The numbers of a photograph beside its scores: their label, and whether they are shares, shown in percent.
NUMBERS = {
    "below": ("Share below", True),
    "spread": ("Spread of votes", False),
    "attention_background": ("Attention to background", True),
}


@dataclass(frozen=True)
class Photo:
    """One photograph of the page. All scores are on the dataset's own scale."""

    image: str  # its name, as in the table of scores
    path: Path | None  # its file, for the thumbnail; None: no picture
    score: float | None  # None where there is an error
    error: str = ""
    votes: Sequence[float] = ()  # vote distribution, level 1 first: raw outputs, which may be negative
    attention: np.ndarray | None = None  # (h, w), attention mass per cell of the picture; sums to at most 1
    true: float | None = None
    other: float | None = None  # by the run or checkpoint that it is compared with, on that one's scale
    other_votes: Sequence[float] = ()  # by the same; the true ones where nothing is compared
    numbers: Mapping[str, float] = field(default_factory=dict)  # by the names of NUMBERS


@dataclass(frozen=True)
class Page:
    """What the page says of all photographs. The arrays are for photographs that are not all on the page."""

    title: str
    facts: Mapping[str, str]  # what was used: weights, dataset, date ...
    score_range: tuple[float, float]
    notes: Sequence[str] = ()
    other_name: str = ""  # of the run that is compared; empty: none
    other_range: tuple[float, float] | None = None  # its scale, where it is another: ranks are compared
    figures: Sequence[Sequence[str]] = ()  # a table of metrics as texts, its header first
    remarks: Sequence[str] = ()  # what belongs beside it
    all_scores: np.ndarray | None = None  # (N,)
    all_true: np.ndarray | None = None  # (N,), row by row as `all_scores`


def choose(errors: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The rows, in order, of the photographs that a page of at most `limit` shows.

    errors: (N,), predicted minus true. Half of the page are the largest, the rest is a sample of the others.
    """
    if len(errors) <= limit:
        return np.arange(len(errors))
    ranked, half = np.argsort(-np.abs(errors), kind="stable"), limit // 2
    sample = np.random.default_rng(seed).choice(np.sort(ranked[half:]), limit - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], sample]))


open_photo = partial(open_rgb, side=LARGE)  # as it is stored: the network ignores EXIF's orientation


def write_page(
    path: str | os.PathLike,
    page: Page,
    photos: Sequence[Photo],
    *,
    open_photo: Callable[[Path], Image.Image] = open_photo,
    num_workers: int = 0,
    stop: Watch | None = None,
) -> None:
    """Write the page, thumbnail by thumbnail. A picture that cannot be opened has a placeholder.

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
    """page.html, filled, up to the place of the thumbnails and from there on."""
    files = ("page.html", "page.css", "parts.js", "page.js")
    frame, style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in files)
    script = "".join(scripts)
    values = {
        "title": html.escape(plain(title)),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": to_json(content).replace("<", "\\u003c"),  # no name ends the element that it stands in
    }
    filled = re.sub(r"\{\{(\w+)\}\}", lambda found: values.get(found[1], ""), frame)
    head, _, tail = filled.rpartition("<!-- thumbnails -->\n")
    return head.encode(), tail.encode()


def _hash(text: str) -> str:
    """What the page's security policy allows to run: this very text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def plain(text: str) -> str:
    """Text that UTF-8 can hold: the bytes of a file name that are no text are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _content(page: Page, photos: Sequence[Photo], folder: Path) -> dict:
    """What its script reads, as plain lists and numbers."""
    scores, true, other = (_array(getattr(p, name) for p in photos) for name in ("score", "true", "other"))
    everyone = scores if page.all_scores is None else _array(page.all_scores)
    truth = (scores, true) if page.all_true is None else (everyone, _array(page.all_true))
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
        "total": len(everyone),
        "other": _comparison(page, scores, other, ranks) if page.other_name else None,
        "distributions": charts.distributions(everyone, truth[1], other, plain(page.other_name), ranks),
        "scatters": {
            "true": charts.scatter(*truth, ("predicted score", "true score"), True),
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
    """Rounded; what is not finite is null in the page's JSON."""
    return _array(values).round(digits).tolist()


def _named_numbers(photos: Sequence[Photo]) -> list[dict]:
    found = []
    for name, (label, share) in NUMBERS.items():
        if any(name in photo.numbers for photo in photos):
            values = _numbers(photo.numbers.get(name) for photo in photos)
            found.append({"key": name, "label": label, "share": share, "values": values})
    return found


def _share_below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(N,), which share of the finite `among` lies below each of `values` (N,); half of those that equal it count."""
    ranked = np.sort(among[np.isfinite(among)])
    places = sum(np.searchsorted(ranked, values, side) for side in ("left", "right")) / 2
    return np.where(np.isfinite(values), places / max(1, len(ranked)), np.nan)


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
    """Maps as [height, width, base64 of a byte per cell], and what the byte 255 stands for, all pictures alike.

    That is in multiples of an even share of the picture's cells: the 90th percentile of the pictures' maxima, so that
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
    """To the file: relative where it lies with the page, so that both can be moved; otherwise where it is now."""
    if path is None:
        return None
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return quote(os.fsencode(path.relative_to(folder))) if folder in path.parents else path.as_uri()


class _Pictures(Dataset):
    def __init__(self, side: int, open_photo: Callable[[Path], Image.Image]):
        self.side, self.open_photo = side, open_photo

    def __getitem__(self, path: Path | None) -> bytes:
        """A JPEG of the photograph's own aspect ratio; empty where it cannot be read."""
        file = io.BytesIO()
        try:
            picture = self.open_photo(path)
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=3)
            picture.save(file, "JPEG", quality=78, optimize=True)
        except Exception:  # there is no path, or decoders raise anything at all on a damaged file
            return b""
        return file.getvalue()


def _thumbnails(photos, open_photo, num_workers: int, stop: Watch | None) -> Iterator[bytes]:
    side = LARGE if len(photos) <= LARGE_UP_TO else SMALL
    thumbnails = workers.each(_Pictures(side, open_photo), [photo.path for photo in photos], num_workers)
    return workers.watched(thumbnails, "report", len(photos), stop)
