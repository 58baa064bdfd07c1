"""The table of environment variables: whole, and the page in docs says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctmr.errors import InputError
from ctmr.system import environment
from ctmr.system.environment import VARIABLES, count_of, table

ROOT = Path(__file__).resolve().parents[2]
CODE = ("src", "components", "pipelines", "recipes", "infra", "benchmarks", "docs", "tests")
FILES = ("Makefile", "README.md", "CONTRIBUTING.md", "MLproject", "dvc.yaml", "pyproject.toml")
VARIABLE = re.compile(r"CTMR_[A-Z][A-Z_]*[A-Z]")


def test_every_variable_that_occurs_anywhere_is_in_the_table_and_no_other():
    files = [p for name in CODE for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    found = {
        name
        for file in [*files, *(ROOT / name for name in FILES)]
        for name in VARIABLE.findall(file.read_text(errors="ignore"))
    }
    assert found == {v.name for v in VARIABLES}


def test_each_name_is_spelt_once_in_the_code():
    texts = {
        p: VARIABLE.findall(re.sub(r'""".*?"""', "", p.read_text(), flags=re.DOTALL)) for p in ROOT.glob("src/**/*.py")
    }
    spelt = {str(p.relative_to(ROOT / "src")): names for p, names in texts.items() if names}
    assert spelt == {"ctmr/system/environment.py": [v.name for v in VARIABLES]}


def test_the_page_is_the_table():
    assert table() in (ROOT / "docs" / "environment.md").read_text()


@pytest.mark.parametrize(("text", "count"), [("", None), ("1", 1), ("12", 12)])
def test_a_number_of_processes_is_read(monkeypatch, text, count):
    monkeypatch.setenv(environment.PROCESSES, text)
    assert count_of(environment.PROCESSES) == count


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_another_text_is_no_number_of_processes(monkeypatch, text):
    monkeypatch.setenv(environment.TRAIN_PROCESSES, text)
    with pytest.raises(InputError, match=f"^{environment.TRAIN_PROCESSES} is '{text}'; it must be a number"):
        count_of(environment.TRAIN_PROCESSES)
