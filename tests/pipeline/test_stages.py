"""The stages are found by their files: names, order and help without an import, the rest by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctmr.errors import InputError
from ctmr.pipeline import stages

EIGHT = ("fetch", "validate", "preprocess", "tune", "train", "evaluate", "register", "deploy")


def also(monkeypatch: pytest.MonkeyPatch, folder: Path, **files: str) -> None:
    """Take a folder's stages too."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(folder)])


def test_the_eight_stand_in_the_order_in_which_data_goes_through_them() -> None:
    assert stages.names() == EIGHT


@pytest.mark.parametrize("name", EIGHT)
def test_a_stage_declares_what_it_is(name: str) -> None:
    declared, stage = stages.declared()[name], stages.load(name)
    assert (declared.name, declared.help) == (stage.name, stage.help) == (name, stage.help)
    assert (declared.takes, declared.options) == (stage.takes, stage.options)
    assert stage.help.endswith(".") and stage.help.count(".") == 1


def test_stages_that_wait_for_the_same_stage_stand_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"""x"""\n\nSTAGE = Stage("{}", takes={{"a": "evaluate/cases.csv"}}, sections=(), run=run)\n'
    also(monkeypatch, tmp_path, zeal=text.format("zeal"), audit=text.format("audit"))
    assert stages.names() == (*EIGHT[:6], "audit", "register", "zeal", "deploy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def run():\n    pass\n", "odd.py does not end with STAGE = Stage"),
        ('\nSTAGE = Stage("odd", takes={"a": WHERE})\n', "odd.py does not end with STAGE = Stage"),
        ('\nSTAGE = Stage("even", takes={})\n', "declares the stage 'even'; the file and its stage have one name"),
        ('\nSTAGE = Stage("odd", takes={"a": "nowhere/x"})\n', "nowhere.* leave, and there is no such stage"),
        ('\nSTAGE = Stage("odd", takes={"a": "odd"})\n', "cycle"),
    ],
)
def test_a_file_that_declares_no_stage_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    also(monkeypatch, tmp_path, odd=text)
    with pytest.raises(ValueError, match=words):
        stages.names()


def test_a_stage_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no stage 'trian'; the stages are fetch, .*deploy"):
        stages.load("trian")
