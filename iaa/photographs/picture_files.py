"""Pictures by their names: what a name may be, which file it means, and which pictures a folder has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from iaa.photographs.tables import refuse_where

# What a name may not contain.
NAME_PROBLEMS = {
    "the image's name is empty": r"^$",
    "the image's name holds a NUL character": "\0",
    "leaves the image folder; names are relative to it": r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)",
}


def read_names(path, table: pd.DataFrame, column: str, suffix: str = "") -> list[str]:
    """The picture file of each row, relative to the image folder. Raises InputError."""
    names = table[column].map(plain_name)
    for problem, pattern in NAME_PROBLEMS.items():
        refuse_where(path, table, names.str.contains(pattern), column, problem)
    return list(names + suffix)


def plain_name(name: str) -> str:
    """A file name without stray spaces, `./` and doubled slashes, so that each image has one name."""
    name = name.strip()
    return name if ".." in name or not name else PurePosixPath(name).as_posix()


def file_finder(folder: str | os.PathLike) -> Callable[[str], str | None]:
    """A function that gives a file's name as it is on the disk, or None; the case of the ending may differ (`.JPG`)."""

    @cache
    def names_in(parent: str) -> dict[str, str]:
        path = Path(folder, parent)
        names = os.listdir(path) if path.is_dir() else []
        return {_lower_ending(name): name for name in names} | {name: name for name in names}

    def find(name: str) -> str | None:
        parent, base = os.path.split(name)
        on_disk = names_in(parent).get(base) or names_in(parent).get(_lower_ending(base))
        return on_disk and os.path.join(parent, on_disk)

    return find


def _lower_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()


def walk_folders(
    folder: str | os.PathLike, onerror: Callable[[OSError], None], seen: set[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it, each with the names of its files, in order; hidden files and folders are left out.

    Links to folders are followed, after the folders themselves. Each real folder is visited once: its path is added to
    `seen`, and those there are left out. onerror: called for a folder that cannot be read.
    """
    seen = set() if seen is None else seen
    for path, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        real, within = os.path.realpath(path), []
        if real not in seen:
            seen.add(real)
            within = [name for name in folders if not name.startswith(".")]
            yield path, sorted(name for name in files if not name.startswith("."))
        folders[:] = sorted(within, key=lambda name: (os.path.islink(os.path.join(path, name)), name))


def find_pictures(folder: str | os.PathLike) -> tuple[list[str], int]:
    """The names of all files in and below a folder that end as a picture's, in order; and how many other files there are.

    See `walk_folders`. Raises OSError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    names = []
    for path, files in walk_folders(folder, refuse):
        names += [(Path(path).relative_to(folder) / name).as_posix() for name in files]
    endings = Image.registered_extensions()
    pictures = sorted(name for name in names if os.path.splitext(name)[1].lower() in endings)
    return pictures, len(names) - len(pictures)
