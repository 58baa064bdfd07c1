"""Compile the pipeline of this checkout: the same text every time, so that the checked-in file can be compared."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ctmr.errors import EnvironmentFault, InputError
from ctmr.kubeflow.lint import Problem, lint, parse_strictly
from ctmr.pipeline.kfp_local import shipped_pipeline


def compile_pipeline(image: str = "") -> str:
    """Return the compiled pipeline as YAML text.

    Parameters
    ----------
    image
        Image of every task; empty: ``components.IMAGE``.

    Raises
    ------
    EnvironmentFault
        `pipelines/` and `components/` are not there: they belong to a checkout, not to the installed package.
    """
    root = shipped_pipeline().parents[1]
    if not (root / "components").is_dir():
        raise EnvironmentFault(f"there is no components/ in {root}; compile from a checkout of ctmr")
    sys.path.insert(0, str(root))
    try:
        from kfp import compiler

        from pipelines.ct_mr import ct_mr
    finally:
        sys.path.remove(str(root))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(ct_mr, str(path))
        text = path.read_text(encoding="utf-8")
    if not image:
        return text
    return text.replace(f"image: {_image()}\n", f"image: {image}\n")


def check(path: Path) -> list[Problem]:
    """Parse a compiled pipeline strictly and return the rules it breaks.

    Raises
    ------
    InputError
        The file is missing, no YAML, or no pipeline.
    """
    documents = read(path)
    parse_strictly(*documents)
    return lint(documents[0])


def read(path: Path) -> list[Mapping[str, Any]]:
    """Return the one or two documents of a compiled pipeline: the pipeline, and what it asks of a platform."""
    if not path.is_file():
        raise InputError(f"there is no pipeline at {path}; `ctmr pipeline compile` writes one")
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not 1 <= len(documents) <= 2 or not all(isinstance(d, dict) for d in documents) or "root" not in documents[0]:
        raise InputError(f"{path} is not a compiled pipeline; `ctmr pipeline compile` writes one")
    return documents


def _image() -> str:
    from components import IMAGE

    return str(IMAGE)
