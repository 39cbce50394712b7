"""Which photographs are asked for: files, folders, globs, lists; in order and one at a time, however many there are."""

from __future__ import annotations

import fnmatch
import glob
import heapq
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from PIL import Image

from option import InputError

CHUNK = 50_000  # names of one folder that are held at a time, to put them in order
# Endings of formats that PIL can name but not read as a photograph.
_NO_PHOTOGRAPHS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


class Found(NamedTuple):
    """A file, or a folder that could not be looked into, with the reason."""

    path: str
    error: str = ""


class Sources:
    """The photographs of a command line, in an order that does not change: iterate as often as you like.

    paths: files, taken whatever their ending; folders, searched all the way down for files that end as pictures do,
        hidden ones left out; globs with `*`, `?`, `[...]` and `**`. A path that lies in another one's folder counts once.
    lists: text files with a path in each line, `-` for standard input, which can be read once only.
    left_out: the endings of files in folders that were left out, counted in the latest iteration.
    """

    def __init__(self, paths: Sequence[str], lists: Sequence[str] = ()):
        for name in lists:
            if name != "-" and (os.path.isdir(name) or not os.path.exists(name)):
                what = "is a folder" if os.path.isdir(name) else "no such file"
                raise InputError(f"--list {name}: {what}; it should be a text with a path in each line")
        if not paths and not lists:
            raise InputError("no photographs: give files, folders, globs, or --list FILE")
        if lists.count("-") > 1:
            raise InputError("--list -: standard input can be read once; give it once")
        self.paths, self.lists, self.left_out = _without_repeats(paths), lists, Counter()
        self._endings = {
            ending for ending, form in Image.registered_extensions().items() if form not in _NO_PHOTOGRAPHS
        }

    @property
    def countable(self) -> bool:
        """Whether they can be counted before they are used."""
        return all(os.path.isfile(name) for name in self.lists)  # a pipe is read once

    def __iter__(self) -> Iterator[Found]:
        self.left_out.clear()
        for path in self.paths:
            yield from self._of(path)
        for name in self.lists:
            for line in _lines(name):
                yield from self._walk(line) if os.path.isdir(line) else (Found(line),)

    def _of(self, path: str) -> Iterator[Found]:
        if os.path.isdir(path):
            yield from self._walk(path)
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = False
            for match in _matches(path):
                found = True
                yield from self._of(match) if os.path.isdir(match) else (Found(match),)
            if not found:
                yield Found(path, "nothing matches")
        else:
            yield Found(path)

    def _walk(self, top: str) -> Iterator[Found]:
        for folder in _folders(top):
            try:
                for name in _in_order(folder, self._is_photograph, self.left_out):
                    yield Found(os.path.join(folder, name))
            except OSError as error:
                yield Found(folder, f"the folder cannot be read ({(error.strerror or str(error)).lower()})")

    def _is_photograph(self, entry: os.DirEntry) -> bool:
        return _ending(entry) in self._endings and not entry.name.startswith(".") and not entry.is_dir()


def _ending(entry: os.DirEntry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _folders(top: str) -> Iterator[str]:
    """A folder and all below it, however deep, each before those below it. One that cannot be listed has none."""
    levels = [iter([top])]
    while levels:
        if (folder := next(levels[-1], None)) is None:
            levels.pop()
        else:
            yield folder
            levels.append(_below(folder))


def _below(folder: str) -> Iterator[str]:
    with suppress(OSError):
        for name in _in_order(folder, _is_folder):
            yield os.path.join(folder, name)


def _is_folder(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)


def _in_order(
    folder: str, wanted: Callable[[os.DirEntry], bool], others: Counter | None = None
) -> Iterator[str]:
    """The names in a folder, sorted, CHUNK of them at a time, so that millions take no more memory than those.

    others: counts the endings of the files that are not wanted.
    """

    def names_after(last: str) -> Iterator[str]:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if entry.name > last and wanted(entry):
                    yield entry.name
                elif others is not None and not last and not entry.name.startswith(".") and entry.is_file():
                    others[_ending(entry) or "no ending"] += 1

    last = ""
    while True:
        names = heapq.nsmallest(CHUNK, names_after(last))
        yield from names
        if len(names) < CHUNK:
            return
        last = names[-1]


def _matches(pattern: str) -> Iterator[str]:
    """What a glob matches, in order; `**` is any number of folders."""
    start, parts = ("/", pattern[1:].split("/")) if pattern.startswith("/") else ("", pattern.split("/"))
    yield from _match(start, [part for part in parts if part])


def _match(folder: str, parts: list[str]) -> Iterator[str]:
    first, *rest = parts
    if not glob.has_magic(first):
        path = os.path.join(folder, first)
        if not rest and os.path.lexists(path):
            yield path
        elif rest and os.path.isdir(path):
            yield from _match(path, rest)
        return
    if first == "**":
        for below in _folders(folder):
            yield from _match(below, rest or ["*"])
        return
    try:

        def wanted(entry: os.DirEntry) -> bool:
            hidden = entry.name.startswith(".") and not first.startswith(".")
            # Folders are what a last `**` goes down into.
            return fnmatch.fnmatchcase(entry.name, first) and not hidden and (not rest or entry.is_dir())

        for name in _in_order(folder, wanted):
            path = os.path.join(folder, name)
            if rest:
                yield from _match(path, rest)
            else:
                yield path
    except OSError:
        return  # as the shell does: what cannot be looked into matches nothing


def _lines(name: str) -> Iterator[str]:
    """The paths of a list. File names are bytes: what is not UTF-8 comes back as it was."""
    if name == "-":
        for line in sys.stdin.buffer:
            if text := os.fsdecode(line.rstrip(b"\r\n")):
                yield text
        return
    with open(name, "rb") as file:
        for number, line in enumerate(file):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
            if text := os.fsdecode(text.rstrip(b"\r\n")):
                yield text


def _without_repeats(paths: Sequence[str]) -> list[str]:
    """Each once, and none that lies in a folder that is there, too."""
    kept: dict[str, str] = {}
    for path in paths:
        kept.setdefault(os.path.abspath(path), path)
    folders = {place for place in kept if os.path.isdir(place)}

    def inside(place: str) -> bool:
        parent = os.path.dirname(place)
        return parent != place and (parent in folders or inside(parent))

    return [path for place, path in kept.items() if not inside(place)]
