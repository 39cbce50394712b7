"""Tables of labels: read as text, each row with its line number, so that an error can name line and value; and written."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.runtime.files import atomic_write

log = logging.getLogger("eat")

MAX_BYTES = 2**28  # of an unpacked table
NAME_COLUMNS = ("image", "image_id", "image_name", "img_name", "img_path", "file", "filename", "name", "id")
SEPARATORS = {",": "commas", ";": "semicolons, so numbers may have decimal commas", "\t": "tabs", "|": "bars"}
UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # by their marks
EXCELS_SEPARATOR = re.compile(r'^("?)sep=([,;\t|])\1(?=[\r\n])')  # the first line of some CSVs, for Excel
THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}(,\d{3})+\s*")  # a comma may separate these instead of decimals


def read_table(path: str | os.PathLike, separator: str | None = None) -> pd.DataFrame:
    """A CSV as text, indexed by line numbers, without blank lines and without empty columns that have no name.

    separator: by default that of Excel's first line, or the one of SEPARATORS that the header has most of. Raises InputError.
    """
    rows, text = {}, _read_text(path)
    separator = separator or _find_separator(path, text)
    text = EXCELS_SEPARATOR.sub("", text, 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows[reader.line_num] = row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a readable CSV ({error})") from None
    if not rows:
        raise InputError(f"{path}: empty; it needs rows")
    columns = [column.strip() for column in rows.pop(min(rows))]
    for line, row in rows.items():
        if any(map(str.strip, row[len(columns) :])):
            hint = f"a value with a {separator!r} in it needs quotes"
            raise InputError(f"{path}, line {line}: {len(row)} columns, not {len(columns)}; {hint}")
        row += [""] * (len(columns) - len(row))
    table = pd.DataFrame([row[: len(columns)] for row in rows.values()], list(rows), columns, dtype=str)
    is_empty = table.map(str.strip).eq("").all().to_numpy()
    table = table.loc[:, (table.columns != "") | ~is_empty]
    if table.empty:
        raise InputError(f"{path}: no rows under the header {', '.join(columns)}")
    if table.columns.has_duplicates:
        repeated = table.columns[table.columns.duplicated()]
        raise InputError(f"{path}: column {', '.join(repeated)} stands there more than once")
    table.attrs["separator"] = separator
    return table


def _find_separator(path: str | os.PathLike, text: str) -> str:
    header, named = re.match(r"[\r\n]*([^\r\n]*)", text)[1], EXCELS_SEPARATOR.match(text)
    separator = named[2] if named else max(SEPARATORS, key=header.count)
    if separator != ",":
        tell_once(f"{path}: its columns are separated by {SEPARATORS[separator]}")
    return separator


@cache
def tell_once(message: str) -> None:
    """Log a message, but not again."""
    log.info("%s", message)


def read_lines(path: str | os.PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """As `read_table`, for a file without a header whose columns are separated by blanks; the first may hold blanks."""
    lines = enumerate(io.StringIO(_read_text(path), newline=""), 1)
    rows = {line: text.strip().rsplit(None, len(columns) - 1) for line, text in lines if text.strip()}
    if not rows:
        raise InputError(f"{path}: empty; it needs rows")
    for line, row in rows.items():
        if len(row) != len(columns):
            raise InputError(f"{path}, line {line}: {len(row)} columns, not {len(columns)}")
    return pd.DataFrame(list(rows.values()), list(rows), columns, dtype=str)


def read_name_list(path: str | os.PathLike, column: str) -> pd.DataFrame:
    """Names of photographs, indexed by line or record, in a column of this name.

    A CSV (.csv), or a JSON list of records (.json), has them in the first of NAME_COLUMNS, whatever its case; of any other
    file each line is a name.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".json"):
        return read_lines(path, [column])
    table = read_table(path) if ending == ".csv" else _read_records(path)
    columns = {name.lower().replace(" ", "_"): name for name in reversed(table.columns)}
    found = [columns[name] for name in NAME_COLUMNS if name in columns]
    if not found:
        listed = ", ".join(NAME_COLUMNS)
        raise InputError(f"{path}: no column of names ({listed}); found {', '.join(table.columns)}")
    names = table[found[:1]].set_axis([column], axis=1)
    refuse_where(path, names, names[column].str.strip() == "", column, "the image's name is empty")
    return names


def _read_records(path: str | os.PathLike) -> pd.DataFrame:
    """A JSON list of records as text, indexed by their numbers."""
    try:
        records = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(records, list) or not records or not all(isinstance(row, dict) for row in records):
        raise InputError(f'{path}: not a JSON list of records, as [{{"image": "a.jpg"}}, ...]')
    texts = [{name: str(value) for name, value in row.items()} for row in records]
    return pd.DataFrame(texts, range(1, len(texts) + 1)).fillna("")


def _read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8 or UTF-16; also packed by gzip."""
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder, not a file of labels; name the file in it")
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; check its name and folder")
    if not Path(path).is_file():
        raise InputError(f"{path}: is a device or a pipe; save the labels in a file")
    content = Path(path).read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise EOFError(f"it takes more than {MAX_BYTES >> 20} MiB")
        if b"\0" in content and not content.startswith(tuple(UTF16)):
            # Of the two orders of bytes only the right one has line ends.
            [mark] = [mark for mark, order in UTF16.items() if "\n" in content.decode(order, "ignore")]
            content = mark + content
            tell_once(f"{path}: read as UTF-16, though it has no mark of it")
        return decode_text(content)
    except ValueError:
        raise InputError(f"{path}: not UTF-8 text; save it as such") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: does not unpack ({error}); get it anew") from None


def decode_text(content: bytes, errors: str = "strict") -> str:
    """UTF-8, or UTF-16 where a mark says so. errors: see `bytes.decode`."""
    return content.decode("utf-16" if content.startswith(tuple(UTF16)) else "utf-8-sig", errors)


def write_csv(path: str | os.PathLike, table: pd.DataFrame, **style: Any) -> None:
    """Write a table, without its index. File names are bytes, whatever they say. style: arguments of `to_csv`."""
    with atomic_write(path, "wb") as file:
        table.to_csv(file, index=False, errors="surrogateescape", **style)


def require_columns(path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises InputError naming the columns that the table lacks."""
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}")


def read_numbers(path, table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """(N, columns) finite float64, also with decimal commas, unless these may be commas of thousands. Raises InputError."""
    texts, separator, problem = table[list(columns)], table.attrs.get("separator"), "not a number"
    values = texts.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    unread = texts.to_numpy()[np.isnan(values)]
    if len(unread) and separator != ";" and all(map(THOUSANDS.fullmatch, unread)):
        problem += ", or one of two; write decimals with a point, thousands without a comma"
    elif len(unread):
        texts = texts.replace(r"^(\s*[-+]?\d*),(\d+\s*)$", r"\1.\2", regex=True)
        values = texts.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    refuse_where(path, table, ~np.isfinite(values), columns, problem)
    if len(unread) and separator != ";":
        tell_once(f"{path}: commas in its numbers are decimal commas")
    return values


def refuse_where(path, table: pd.DataFrame, bad: Any, columns: str | Sequence[str], problem: str) -> None:
    """Raises InputError for the first bad value. columns: one name, or several; bad: bool, with the columns' shape."""
    bad = np.asarray(bad, bool).reshape(len(table), -1)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name = columns if isinstance(columns, str) else columns[column]
        count = bad.any(1).sum()
        more = f" ({count} such rows)" if count > 1 else ""
        value = str(table[name].iloc[row])
        raise InputError(f"{path}, line {table.index[row]}: {name} = {value!r}: {problem}{more}")
