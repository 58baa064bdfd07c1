"""No file of the package that speaks to Optuna uses a name that Optuna keeps to itself."""

import ast
from pathlib import Path

import pytest

import ctmr

SOURCES = sorted(Path(ctmr.__file__).parent.rglob("*.py"))


def private_names(source):
    """Return what is private of other objects than ``self``, and private modules of Optuna that are imported."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self")):
                pass
            case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                found.append(name)
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "optuna":
                found += [part for part in [*module.split("."), *(n.name for n in names)] if part.startswith("_")]
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.startswith("optuna.") and "._" in n.name]
    return found


def test_optunas_private_names_are_used_nowhere():
    speak = [path for path in SOURCES if "optuna" in path.read_text()]
    assert {"study.py", "storage.py", "trial.py"} <= {path.name for path in speak}
    assert {str(path): names for path in speak if (names := private_names(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "study._storage.set_trial_user_attr(1, 'a', 2)",
        "optuna.storages._heartbeat.is_heartbeat_enabled(storage)",
        "from optuna.storages._rdb import models",
        "from optuna.study._tell import _tell_with_warning",
        "import optuna.storages._rdb.models",
        "self._study._study_id",
    ],
)
def test_a_private_name_is_seen(line):
    assert private_names(line)
