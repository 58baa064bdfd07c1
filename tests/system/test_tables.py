"""Tables: no cell is run by a spreadsheet or obeyed by a terminal, numbers stay numbers, and names come back."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import pytest

import ctmr
from ctmr.system.tables import cell, write_csv


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t=", "\r=", " =", "\u200b=", "\uff1d"])
def test_a_subject_that_begins_a_formula_is_text(begin: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["case", "subject"], [["a", f'{begin}HYPERLINK("http://x","y")']])
    with (tmp_path / "t.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["subject"].startswith("'") and "HYPERLINK" in row["subject"]


@pytest.mark.parametrize("text", ["-3.5", "+2", "-1e-05", "-inf", "nan", "P-01", "a=b", "", 'ä, "quoted"\nline'])
def test_numbers_and_plain_names_stay_as_they_are(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["x", "y"], [[text, -4.25]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [["x", "y"], [text, "-4.25"]]


@pytest.mark.parametrize("text", ["x;=1", "x\n@a", "x; +1+1", "x\t-1+1"])
def test_a_formula_behind_what_parts_cells_in_some_countries_is_text(text: str) -> None:
    assert cell(text) == text[:2] + "'" + text[2:]


def test_escapes_of_a_terminal_are_shown() -> None:
    assert cell("\x1b[31mred") == "\\x1b[31mred"


def test_tables_are_written_in_one_place() -> None:
    """A new table through the csv module or pandas would hold whatever a file is named."""
    package = Path(ctmr.__file__).parent
    writers = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Attribute) and node.attr in ("to_csv", "DictWriter")
            from_csv = isinstance(node, ast.Attribute) and node.attr == "writer" and ast.unparse(node) == "csv.writer"
            if named or from_csv:
                writers.add(file.relative_to(package).as_posix())
    assert writers == {"system/tables.py"}
