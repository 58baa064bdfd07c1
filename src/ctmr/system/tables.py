"""Tables as CSV files, the one place that writes them: what a name holds is shown there and never run."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ctmr.errors import visible

_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[\s\u200b\ufeff]*[=+\-@＝＋－＠]|[\t\r\n])")
"""Places where a spreadsheet takes what follows for a formula: a cell's beginning, and what parts cells in some
countries, whatever the quotes; blanks before do not count, and East Asian ones take wide signs too."""


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, end: str = "\r\n") -> None:
    """Write a table; every text goes through `cell`, and every line ends with `end`.

    Examples
    --------
    >>> write_csv(Path("t.csv"), ["subject", "value"], [["=1+1", "-3.5"], ["P1", 2]])
    >>> Path("t.csv").read_text().splitlines()
    ['subject,value', "'=1+1,-3.5", 'P1,2']
    """
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator=end)
        for row in (header, *rows):
            writer.writerow([cell(value) if isinstance(value, str) else value for value in row])


def cell(text: str) -> str:
    """Return a text as a table shows it: without control characters, an apostrophe before what begins a formula.

    A number stays one, whatever its sign.
    """
    return visible(text if _is_number(text) else _FORMULA.sub(r"\1'", text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
