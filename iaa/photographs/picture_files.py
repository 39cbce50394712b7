"""Pictures by their names: what a name may be, which file it means, which pictures a folder has, and lists of names."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pandas as pd
from PIL import Image

from iaa.photographs.decode import HEIC_ENDINGS, INSTALL, RAW_ENDINGS, ending_of, picture_endings
from iaa.photographs.tables import decode_text, refuse_where, tell_once

# What a name may not contain.
NAME_PROBLEMS = {
    "the image's name is empty": r"^$",
    "the image's name holds a NUL character": "\0",
    "leaves the image folder; names are relative to it": r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)",
}

# Folders that other programs put among photographs, with small copies of them or with notes.
JUNK_FOLDERS = {"@eaDir", "__MACOSX"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, given without its parents, is hidden, or another program's."""
    return name.startswith(".") or name in JUNK_FOLDERS


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
    """A function that gives a file's name as it is on the disk, or None.

    The case of the ending may differ (`.JPG`), how accents are composed (NFC, NFD), and slashes may be Windows'.
    """

    @cache
    def names_in(parent: str) -> dict[str, str]:
        path = Path(folder, parent)
        names = os.listdir(path) if path.is_dir() else []
        return {plain_spelling(name): name for name in names} | {name: name for name in names}

    @cache
    def find_folder(name: str) -> str | None:
        return name if not name or Path(folder, name).is_dir() else find_entry(name)

    def find_entry(name: str) -> str | None:
        parent, base = os.path.split(name)
        if (parent := find_folder(parent)) is None:
            return None
        on_disk = names_in(parent).get(base) or names_in(parent).get(plain_spelling(base))
        return on_disk and os.path.join(parent, on_disk)

    def find(name: str) -> str | None:
        on_disk = find_entry(name) or ("\\" in name and find_entry(name.replace("\\", "/"))) or None
        if on_disk and on_disk.lower() != name.lower():
            where = folder or "the list"
            tell_once(f"{where}: names are found though they are spelt otherwise there (accents, slashes)")
        return on_disk

    return find


def plain_spelling(name: str) -> str:
    """A file name with composed accents, and its ending in lower case."""
    stem, ending = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def walk_folders(
    folder: str | os.PathLike, onerror: Callable[[OSError], None], seen: set[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it, each with the names of its files, in order; hidden ones (`is_hidden`) are left out.

    Links to folders are followed, after the folders themselves. Each real folder is visited once: its path is added to
    `seen`, and those there are left out. onerror: called for a folder that cannot be read.
    """
    seen = set() if seen is None else seen
    for path, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        real, within = os.path.realpath(path), []
        if real not in seen:
            seen.add(real)
            within = [name for name in folders if not is_hidden(name)]
            yield path, sorted(name for name in files if not is_hidden(name))
        folders[:] = sorted(within, key=lambda name: (os.path.islink(os.path.join(path, name)), name))


def read_list(name: str) -> Iterator[str]:
    """The paths in a list, one in each line, or each with a NUL behind it (`find -print0`). name: of a file; `-`: standard input.

    File names are bytes; those that are not UTF-8 keep their bytes. A list with the mark of UTF-16 is read as such. A path
    that does not exist is replaced by the file that `file_finder` finds. Raises OSError.
    """
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        find = file_finder("")
        for line in _lines(file):
            if path := os.fsdecode(line.removeprefix(codecs.BOM_UTF8)):
                yield path if os.path.lexists(path) else find(path) or path


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The parts of a file between its line ends, or between its NULs if it has any."""
    chunk, rest = file.read1(), b""
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        chunk = decode_text(chunk + file.read(), "replace").encode()
    has_nuls = b"\0" in chunk
    while chunk:
        *lines, rest = (rest + chunk).split(b"\0" if has_nuls else b"\n")
        yield from lines if has_nuls else (line.rstrip(b"\r") for line in lines)
        chunk = file.read1()
    yield rest


def find_pictures(folder: str | os.PathLike) -> tuple[list[str], Counter[str]]:
    """The names of all files in and below a folder that end as a picture's, in order; and the endings of other files.

    See `walk_folders`. Raises OSError for a folder that cannot be read.
    """
    names, errors = [], []
    for path, files in walk_folders(folder, errors.append):
        names += [(Path(path).relative_to(folder) / name).as_posix() for name in files]
    if errors:
        raise errors[0]
    endings = picture_endings() | Image.registered_extensions().keys()
    pictures = sorted(name for name in names if ending_of(name) in endings)
    return pictures, Counter(ending for ending in map(ending_of, names) if ending not in endings)


def describe_endings(counts: Counter[str]) -> str:
    """`3 .heic, 2 .txt`, and what to install for HEIC and RAW files among them."""
    text = ", ".join(f"{count} {ending or 'no ending'}" for ending, count in counts.most_common(5))
    return text + f" ({INSTALL})" * bool(counts.keys() & (HEIC_ENDINGS | RAW_ENDINGS))


def join_pairs(names: Sequence[str]) -> list[str]:
    """The names without the RAW files that have a partner: a JPEG or HEIC whose name differs in its ending alone."""
    partners = {".jpg", ".jpeg", *HEIC_ENDINGS} & picture_endings()
    stems = {os.path.splitext(name)[0] for name in names if ending_of(name) in partners}
    joined = {name for name in names if ending_of(name) in RAW_ENDINGS and os.path.splitext(name)[0] in stems}
    return [name for name in names if name not in joined]
