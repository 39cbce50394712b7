"""Progress: a bar on a terminal; elsewhere, as in a file or a pipe, a line now and then."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from tqdm import tqdm

from iaa.runtime import distributed
from iaa.runtime.liveness import repeated

log = logging.getLogger("eat")

FIRST, EVERY = 20, 120  # seconds until the first line, and between two lines
LINE = "{desc}: {n_fmt} of {total_fmt} images, {rate_noinv_fmt}, {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} images, {rate_noinv_fmt}{postfix}"


@contextmanager
def progress_bar(title: str, images: int | None, done: int = 0) -> Iterator[tqdm]:
    """A bar, which counts images done by `update`. On a terminal it is drawn, elsewhere it logs lines; only rank 0 does.

    images: of all; None if the number is not known. done: images done before, which the rate leaves out.
    """
    is_drawn = sys.stderr.isatty() and distributed.rank() == 0
    shown = {"unit": " images", "leave": False, "dynamic_ncols": True}
    with ExitStack() as stack:
        if not is_drawn:
            shown |= {"file": stack.enter_context(open(os.devnull, "w")), "mininterval": 1e9}
        bar = stack.enter_context(tqdm(desc=title, total=images, initial=done, **shown))
        if not is_drawn:
            stack.enter_context(repeated(partial(_log, bar), FIRST, EVERY))
        yield bar


def _log(bar: tqdm) -> None:
    line = LINE if bar.total else LINE_WITHOUT_TOTAL
    log.info("%s", tqdm.format_meter(**bar.format_dict | {"bar_format": line}))
