"""Tables as spreadsheets leave them, in whatever encoding and with whatever signs between their columns."""

from __future__ import annotations

import csv
import re
from pathlib import Path

__all__ = ["table_lines"]

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a text begins
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")


def table_lines(path: Path) -> list[list[str]]:
    """The cells of a table in text, line by line, without the blanks around them.

    The text is in UTF-8, or in UTF-16 as spreadsheets write it. Between cells stand tabs, semicolons or commas, whichever
    comes first in that list and in the first line. ``0,5`` in a cell is ``0.5``.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such text.
    """
    content = path.read_bytes()
    if content.startswith(b"PK"):
        raise ValueError(f"{path.name}: expected a text, got a file of a spreadsheet program: save it as CSV in UTF-8")
    try:
        lines = content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: expected a text in UTF-8, but byte {error.start} is not: save it as UTF-8"
        ) from error
    delimiter = next((sign for sign in "\t;" if sign in "".join(lines[:1])), ",")
    cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    return [[_DECIMAL_COMMA.sub(r"\1.\2", c) if _DECIMAL_COMMA.fullmatch(c) else c for c in row] for row in cells]
