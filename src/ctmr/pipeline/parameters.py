"""Parameters of the pipeline: one table for the command line, MLproject, dvc.yaml and Kubeflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """Something that a person gives, under whichever door's name.

    Attributes
    ----------
    name
        In MLproject, in ``dataset.yaml`` of the DVC door, and in this project's own code.
    option
        On the command line.
    kfp
        In the Kubeflow pipeline; empty where that has another way.
    default
        The same at every door; of a `repeatable` parameter it stands for none.
    repeatable
        A list: given several times on the command line, a list in Kubeflow, one text elsewhere (`assignments`).
    """

    name: str
    option: str
    kfp: str
    help: str
    default: str = ""
    repeatable: bool = False


DEMO = "demo"
"""As a dataset: the phantom cohort, made where it is not there yet. As a recipe: ``recipes/demo.yaml``."""

DATASET = Parameter(
    "dataset", "--dataset", "dataset_repo", f"Folder of images, a git + DVC repository, or {DEMO} (phantoms).", DEMO
)
REVISION = Parameter(
    "revision", "--revision", "dataset_rev", "Git revision of the DVC repository; default: the current one."
)
PATH = Parameter("path", "--path", "dataset_path", "Path the DVC repository tracks; needed when it tracks several.")
RECIPE = Parameter("recipe", "--recipe", "recipe", "Recipe by name, or a YAML file.", DEMO)
OVERRIDES = Parameter(
    "overrides",
    "--set",
    "overrides",
    "Override a recipe key; repeatable, or several in one text: a=1; b.c=2.",
    repeatable=True,
)
OUT = Parameter("out", "--out", "", "Folder of the stages' outputs; default .ctmr/runs/<recipe>-<dataset>.")

PARAMETERS = (DATASET, REVISION, PATH, RECIPE, OVERRIDES, OUT)

_NEXT_ASSIGNMENT = re.compile(r";\s*(?=[\w.]+\s*=)")


def assignments(texts: Sequence[str]) -> list[str]:
    """Return single ``key=value`` assignments from texts that hold any number of them.

    A semicolon separates where another ``key=`` follows; any other belongs to the value, as commas and brackets do.

    Examples
    --------
    >>> assignments(["train.steps=5; preprocess.size=[32, 32]", "description=small; for tests", ""])
    ['train.steps=5', 'preprocess.size=[32, 32]', 'description=small; for tests']
    """
    parts = (part.strip().rstrip(";").rstrip() for text in texts for part in _NEXT_ASSIGNMENT.split(text))
    return [part for part in parts if part]
