"""Photographs to which a person gave stars, as labels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from iaa.errors import InputError
from iaa.photographs.labels import LabelFormat
from iaa.photographs.official import PreparedLabels
from iaa.photographs.picture_files import find_pictures, join_pairs
from iaa.photographs.sidecars import read_person_rating


def read_stars(folder: str | os.PathLike) -> PreparedLabels:
    """The photographs in and below a folder that have 1 to 5 stars of a person, in sidecars or in JPEGs. Raises InputError."""
    names, _ = find_pictures(folder)
    stars, dropped, notes = {}, Counter(), []
    for name in names:
        try:
            rating = float(read_person_rating(Path(folder) / name) or 0)
        except ValueError as error:
            dropped["without stars that can be read"] += 1
            notes = notes or [f"the first whose stars cannot be read: {name} ({error})"]
            continue
        if 1 <= rating <= 5:
            stars[name] = rating
        else:
            dropped["rejected (-1)" if rating < 0 else "without stars of a person"] += 1
    kept = join_pairs(list(stars))
    if not kept:
        raise InputError(f"{folder}: none of the {len(names)} photographs in it has 1 to 5 stars of a person")
    dropped["RAW files with a JPEG"] = len(stars) - len(kept)
    table = pd.DataFrame({"image": kept, "score": [stars[name] for name in kept], "split": ""})
    return PreparedLabels(table, LabelFormat(scale=(1.0, 5.0)), len(names), dropped=+dropped, notes=notes)
