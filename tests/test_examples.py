"""The examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = (
    "ctmr.evaluation.gate:judge",
    "ctmr.imaging.origin:says_synthetic",
    "ctmr.imaging.volume:Volume",
    "ctmr.io:read_image",
    "ctmr.io.dicom.synthetic:write_synthetic_series",
    "ctmr.metrics.measurement:measure_paired",
    "ctmr.metrics.protocol:Protocol",
    "ctmr.networks.normaliser:Normaliser",
    "ctmr.networks.translator:Translator",
    "ctmr.recipe.recipe:Recipe",
    "ctmr.system.tables:write_csv",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place, _, attribute = name.partition(":")
    module = import_module(place)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(module, attribute), name, module=module, globs=dict(vars(module)))
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    done = runner.run(example, out=said.append)
    assert done.attempted > 0 and done.failed == 0, "".join(said)
