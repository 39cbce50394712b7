"""XMP sidecars: a photograph's stars, and who gave them. An existing one is edited in place: its other bytes stay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.parsers import expat

from iaa.photographs.decode import error_text, refuse_no_file
from iaa.runtime.files import atomic_write

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
# The element that holds a photograph's properties, behind its parent. expat joins a namespace and a name by a line break.
DESCRIPTION = [f"{RDF}\nRDF", f"{RDF}\nDescription"]
NAMESPACES = {"xmp": "http://ns.adobe.com/xap/1.0/", "eat": "http://ns.eat-iaa/1.0/"}
# The stars that programs show, -1 for rejected; the stars that we wrote; the score that they follow. Ours have another
# name than Rating, because ExifTool, by which immich reads, tells tags by their names alone.
RATING, STARS, SCORE = "xmp:Rating", "eat:stars", "eat:score"
PROPERTIES = {f"{NAMESPACES[name[:3]]}\n{name[4:]}": name for name in (RATING, STARS, SCORE)}
NEW = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
""".encode()
JPEG_MARK = b"http://ns.adobe.com/xap/1.0/\0"  # stands before the XMP in a JPEG
_NAME, _ATTRIBUTE = re.compile(rb"<[^\s/>]+"), re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class Packet:
    """XMP in UTF-8. `values`: the texts of its PROPERTIES, by our names.

    Raises ValueError for anything else, and for XMP with a document type, whose entities could expand without limit.
    """

    def __init__(self, data: bytes):
        self.data, self.values = data, {}
        self._spans: list[tuple[int, int, str]] = []  # the bytes of each property, with the blanks before it
        self._insert_at = 0  # the byte behind the name of the first rdf:Description; 0: not read yet
        self._prefixes: dict[str, str] = {}  # the prefixes declared there, with their namespaces
        self._path: list[
            tuple[str, int]
        ] = []  # from the root to the current element, each with its first byte
        self._text: list[str] = []
        self._declared: dict[str, str] = {}  # the prefixes declared for the current element
        self._parser = expat.ParserCreate("UTF-8", "\n")
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = self._text.append
        self._parser.StartNamespaceDeclHandler = self._declared.__setitem__
        self._parser.EndNamespaceDeclHandler = lambda prefix: self._declared.pop(prefix, None)
        self._parser.StartDoctypeDeclHandler = self._refuse_document_type
        try:
            data.decode()  # expat reads UTF-16, too
            self._parser.Parse(data, True)
        except (expat.ExpatError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not XML in UTF-8 ({error})") from None
        if not self._insert_at:
            raise ValueError("it is XML, but no XMP: there is no rdf:Description in an rdf:RDF")

    def _refuse_document_type(self, *_: object) -> None:
        raise ValueError("it has a document type")

    def _is_in_description(self) -> bool:
        return [element for element, _ in self._path[-2:]] == DESCRIPTION

    def _start(self, element: str, _: object) -> None:
        at = self._parser.CurrentByteIndex
        self._path.append((element, at))
        self._text.clear()
        if not self._is_in_description():
            return
        at = _NAME.match(self.data, at).end()
        if not self._insert_at:
            self._insert_at, self._prefixes = at, dict(self._declared)
        while match := _ATTRIBUTE.match(self.data, at):
            prefix, _, name = match[1].decode().rpartition(":")
            self._add(f"{self._declared.get(prefix)}\n{name}", match[2].decode()[1:-1], at, match.end())
            at = match.end()

    def _end(self, element: str) -> None:
        at, (_, first) = self._parser.CurrentByteIndex, self._path.pop()
        if self._is_in_description():
            after = self.data.index(b">", at) + 1 if self.data.startswith(b"</", at) else at
            self._add(element, "".join(self._text), len(self.data[:first].rstrip()), after)

    def _add(self, element: str, value: str, first: int, after: int) -> None:
        if name := PROPERTIES.get(element):
            self.values[name] = value.strip()
            self._spans.append((first, after, name))

    def person_rating(self) -> str | None:
        """The rating of a person, which we did not write. "": a person removed ours; None: no person rated."""
        rating, ours = self.values.get(RATING, ""), self.values.get(STARS)
        is_ours = rating == ours or (ours is None and rating in ("", "0"))  # programs write 0 for no stars
        return None if is_ours else rating

    def merged(self, values: Mapping[str, str]) -> bytes:
        """The same XMP with these PROPERTIES, as attributes of the first rdf:Description. Raises ValueError."""
        if values.items() <= self.values.items():
            return self.data
        new = {prefix: uri for prefix, uri in NAMESPACES.items() if prefix not in self._prefixes}
        attributes = {f"xmlns:{prefix}": uri for prefix, uri in new.items()} | values
        text = "".join(f' {name}="{value}"' for name, value in attributes.items())
        parts, at = [self.data[: self._insert_at], text.encode()], self._insert_at
        for first, after, name in sorted(self._spans):
            if name in values:
                parts.append(self.data[at:first])
                at = after
        data = b"".join([*parts, self.data[at:]])
        if Packet(data).values != self.values | values:
            raise ValueError("its prefixes xmp or eat stand for something else")
        return data


def sidecar_paths(photo: str | os.PathLike) -> tuple[str, str]:
    """`a.jpg.xmp` and `a.xmp` for `a.jpg`."""
    return f"{os.fspath(photo)}.xmp", f"{os.path.splitext(photo)[0]}.xmp"


@contextmanager
def _errors_with_path(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error_text(error)}; left alone") from error


def read_sidecar(path: str) -> bytes | None:
    """The content of a sidecar; None if it does not exist. Raises OSError."""
    if not os.path.exists(path):
        return None
    refuse_no_file(path)
    return Path(path).read_bytes()


def read_person_rating(photo: str | os.PathLike) -> str | None:
    """A person's rating of a photograph, see `Packet`: from a sidecar of either name, else from a JPEG itself.

    Raises ValueError, which names the sidecar, if one cannot be read.
    """
    for path in sidecar_paths(photo):
        with _errors_with_path(path):
            data = read_sidecar(path)
            if data is not None and (rating := Packet(data).person_rating()) is not None:
                return rating
    with suppress(OSError, ValueError):
        return Packet(_xmp_in_jpeg(photo)).person_rating()
    return None


def _xmp_in_jpeg(photo: str | os.PathLike) -> bytes:
    """The XMP in the first MiB of a JPEG; empty if there is none, or the file is no JPEG."""
    refuse_no_file(photo)
    with open(photo, "rb") as file:
        before, _, rest = file.read(2**20).partition(JPEG_MARK)
    size = int.from_bytes(before[-2:], "big")  # of the segment, from these two bytes on
    return rest[: size - 2 - len(JPEG_MARK)] if before.startswith(b"\xff\xd8") else b""


def write_stars(photo: str, sidecar: str, stars: int, score: float, overwrite: bool) -> bool:
    """Put stars and score into a photograph's sidecar, atomically, if that changes it. Returns whether the stars are in it.

    A person's rating stays, unless `overwrite`. Beside it an existing sidecar gets only the score, and no new sidecar is
    made: programs would read that one instead of the rated file. Raises ValueError, which names the sidecar.
    """
    is_rated = not overwrite and read_person_rating(photo) is not None
    with _errors_with_path(sidecar):
        refuse_no_file(photo)
        before = read_sidecar(sidecar)
        if is_rated and before is None:
            return False
        ours = {} if is_rated else {RATING: str(stars), STARS: str(stars)}
        after = Packet(NEW if before is None else before).merged(ours | {SCORE: f"{score:.4f}"})
        if after != before:
            with atomic_write(os.path.realpath(sidecar), "wb") as file:
                file.write(after)
    return not is_rated
