"""Which photographs are asked for: files, folders, globs, lists, shards; in an order that does not change, each once."""

from __future__ import annotations

import codecs
import glob
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import chain
from typing import NamedTuple

from PIL import Image

from option import InputError
from photographs.decode import FORMATS

SHARDS = (".tar", ".tar.gz", ".tgz")


class Found(NamedTuple):
    """A file, a shard, or a folder that could not be looked into, with the reason."""

    path: str
    error: str = ""

    @property
    def is_shard(self) -> bool:
        return not self.error and is_shard(self.path)


def is_shard(path: str) -> bool:
    """Whether a file is a tar of photographs, by its ending."""
    return path.lower().endswith(SHARDS)


def shards_of(path: str) -> list[str]:
    """The shards in which a photograph may lie, by its path: `a.tar` of `a.tar/b.jpg`."""
    return [path[: found.end()] for found in re.finditer(r"\.(tar|tar\.gz|tgz)(?=/)", path, re.IGNORECASE)]


@cache
def picture_endings() -> set[str]:
    """Those of files that are read as photographs, `.jpg` and so on."""
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}


class Sources:
    """The photographs of a command line, each once: iterate as often as you like.

    paths: files, taken whatever their ending; folders, searched all the way down for files that end as pictures do,
        hidden ones left out; globs with `*`, `?`, `[...]` and `**`; shards, which folders are not searched for, and
        patterns of them with braces.
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
        self.paths, self.lists, self.left_out = paths, lists, Counter()

    @property
    def countable(self) -> bool:
        """Whether they can be counted before they are used."""
        return all(os.path.isfile(name) for name in self.lists)  # a pipe is read once

    def __iter__(self) -> Iterator[Found]:
        return self.unseen(set())

    def unseen(self, seen: set[int], key: Callable[[str], str] = str) -> Iterator[Found]:
        """Those that are not in `seen`, to which they are added: 64-bit hashes, of which a million take some 70 MB."""
        self.left_out.clear()
        for found in self._all():
            number = hash(key(os.path.abspath(found.path)))
            if number not in seen:
                seen.add(number)
                yield found

    def _all(self) -> Iterator[Found]:
        for path in chain.from_iterable(map(_without_braces, self.paths)):
            is_glob = glob.has_magic(path) and not os.path.lexists(path)
            matches = sorted(glob.iglob(path, recursive=True), key=_place) if is_glob else [path]
            for match in matches:
                yield from self._of(match)
            if not matches:
                yield Found(path, "nothing matches")
        for name in self.lists:
            for line in _lines(name):
                yield from self._of(line)

    def _of(self, path: str) -> Iterator[Found]:
        """The file itself, or what a folder holds: its own photographs, then those of the folders in it."""
        if not os.path.isdir(path):
            if is_shard(path):
                _need_webdataset()
            yield Found(path)
            return
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            try:
                names, folders = self._look_into(folder)
            except OSError as error:
                yield Found(folder, f"the folder cannot be read ({(error.strerror or str(error)).lower()})")
                continue
            yield from (Found(os.path.join(folder, name)) for name in sorted(names))
            waiting += [os.path.join(folder, name) for name in sorted(folders, reverse=True)]

    def _look_into(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of photographs and of folders; other files are counted."""
        names, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders += [entry.name] * (not entry.is_symlink())
                elif ending in picture_endings():
                    names.append(entry.name)
                elif entry.is_file():
                    self.left_out[ending or "no ending"] += 1
        return names, folders


def _without_braces(path: str) -> Iterable[str]:
    """The shards of a pattern as `photos-{000..999}.tar`; any other path itself."""
    if "{" not in path or not is_shard(path) or os.path.lexists(path):
        return [path]
    _need_webdataset()
    import braceexpand  # comes with webdataset

    try:
        return braceexpand.braceexpand(path)
    except braceexpand.UnbalancedBracesError:
        raise InputError(
            f"{path}: a brace in it has no other half; write it as photos-{{000..999}}.tar"
        ) from None


def _need_webdataset() -> None:
    """Raises InputError where it is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise InputError("shards (.tar) need webdataset: pip install -r requirements/scale.txt")


def _place(path: str) -> tuple[list[str], str]:
    """What puts paths in the order of a walk: a folder's own files before those below it."""
    return os.path.dirname(path).split(os.sep), path


def _lines(name: str) -> Iterator[str]:
    """The paths of a list. File names are bytes: what is not UTF-8 comes back as it was."""
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        for line in file:
            if text := os.fsdecode(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")):
                yield text
