"""Environment variables of ctmr, all of them: `docs/environment.md` is this table."""

from __future__ import annotations

import os
from typing import NamedTuple

from ctmr.errors import InputError

HOME = "CTMR_HOME"
STUDY_STORAGE = "CTMR_STUDY_STORAGE"
PROCESSES = "CTMR_PROCESSES"
TRAIN_PROCESSES = "CTMR_TRAIN_PROCESSES"
ALLOW_ANY_PIPELINE = "CTMR_ALLOW_ANY_PIPELINE"
TRITON_CONTROL_KEY = "CTMR_TRITON_CONTROL_KEY"
TRITON_CA = "CTMR_TRITON_CA"
TRITON_CERTIFICATE = "CTMR_TRITON_CERTIFICATE"
TRITON_KEY = "CTMR_TRITON_KEY"
EVENTS = "CTMR_EVENTS"
WORKSPACE = "CTMR_WORKSPACE"
PARENT_RUN = "CTMR_PARENT_RUN"
DRILL = "CTMR_DRILL"

RUN_NAME = "{run}"
"""Stands in the value of `WORKSPACE` for ``<recipe>-<dataset>``."""


class Variable(NamedTuple):
    """One row of the table, in Markdown."""

    name: str
    read_by: str
    meaning: str
    default: str


VARIABLES = (
    Variable(HOME, "every command", "Folder that holds all state", "`.ctmr` of the working directory"),
    Variable(
        STUDY_STORAGE,
        "stage tune",
        "Address of the tuning study's database: `sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/DATABASE` for "
        "workers on several machines",
        "SQLite in the stage's work folder",
    ),
    Variable(
        PROCESSES,
        "stages fetch and preprocess, `ctmr dataset add`, `ctmr demo`",
        "Processes that work side by side on images",
        "as many as there are cores",
    ),
    Variable(TRAIN_PROCESSES, "stage train", "Processes that train together on this machine, under torchrun", "1"),
    Variable(
        ALLOW_ANY_PIPELINE,
        "the local pipeline endpoint",
        "`1` lets it run pipelines whose code is not that of this checkout",
        "only `pipelines/ct_mr.yaml` runs",
    ),
    Variable(
        TRITON_CONTROL_KEY,
        "stage deploy and `ctmr synthesize`, with a Triton elsewhere",
        "Key that the server of `deploy.url` wants to hear before it loads, unloads or lists models: the value of "
        "`ctmr-control` in its `--grpc-restricted-protocol`",
        "none is sent; the embedded server's is in `triton/control.key` of the home",
    ),
    Variable(
        TRITON_CA,
        "stage deploy and `ctmr synthesize`, with a Triton elsewhere",
        "PEM file of the certificates that the server's must lead to; with it the connection is encrypted",
        "the connection is not encrypted",
    ),
    Variable(
        TRITON_CERTIFICATE,
        "stage deploy and `ctmr synthesize`, with a Triton elsewhere",
        "PEM file of this client's own certificate, for mutual TLS",
        "none is shown",
    ),
    Variable(
        TRITON_KEY,
        "stage deploy and `ctmr synthesize`, with a Triton elsewhere",
        "PEM file of its key",
        "none is shown",
    ),
    Variable(
        EVENTS,
        "Kubeflow tasks; a local run sets it",
        "File that a task's events are appended to",
        "tasks print for the log of their container",
    ),
    Variable(
        WORKSPACE,
        "Kubeflow tasks; a local run sets it",
        f"Folder that keeps the stages' outputs between runs; `{RUN_NAME}` in it stands for `<recipe>-<dataset>`",
        "each task has a disk of its own",
    ),
    Variable(
        PARENT_RUN,
        "every stage; a whole run sets it",
        "MLflow run that the runs of its stages are nested in",
        "a stage's run stands alone",
    ),
    Variable(DRILL, "the tests (`make drill`)", "`full` runs fault drills at full length", "the short form"),
)


def count_of(name: str) -> int | None:
    """Return the number of processes that a variable asks for; None when it is not set.

    Raises
    ------
    InputError
        It is no such number.
    """
    asked = os.environ.get(name, "")
    if asked and (not asked.isdecimal() or int(asked) < 1):
        raise InputError(f"{name} is {asked!r}; it must be a number of processes from 1 on")
    return int(asked) if asked else None


def table() -> str:
    """Return the table as Markdown."""
    rows = [f"| `{v.name}` | {v.read_by} | {v.meaning} | {v.default} |" for v in VARIABLES]
    return "\n".join(["| variable | read by | meaning | default |", "|---|---|---|---|", *rows, ""])
