"""Rules for a compiled pipeline: what Kubeflow runs as written and kfp.local 2.17 silently does not, or cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctmr.errors import InputError

Tree = Mapping[str, Any]

SINGLE_OUTPUT = "Output"
"""Name that Kubeflow gives the output of a component that returns one value."""
REMOTE = ("s3://", "gs://", "minio://", "oci://", "http://", "https://")
_CHANNEL = re.compile(r"inputs\.parameter_values\['([^']+)'\]")


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Attributes
    ----------
    where
        Task or component.
    rule
        Short name.
    sentence
        What would happen, and what to write instead.
    """

    where: str
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence} [{self.rule}]"


def lint(tree: Tree) -> list[Problem]:
    """Return what is wrong with a compiled pipeline (its first YAML document), in a stable order."""
    components: Mapping[str, Tree] = tree.get("components", {})
    executors: Mapping[str, Tree] = tree.get("deploymentSpec", {}).get("executors", {})
    found = [problem for name, executor in executors.items() for problem in _executor(name, executor)]
    for dag in (tree["root"], *components.values()):
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            found += [*_condition(name, task), *_loop(name, task), *_inputs(name, task, components)]
    return sorted(found, key=lambda p: (p.where, p.rule, p.sentence))


def parse_strictly(tree: Tree, platform: Tree | None = None) -> None:
    """Parse a compiled pipeline into Kubeflow's own messages, where an unknown or ill-typed field is an error.

    Raises
    ------
    InputError
        It is not a pipeline.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        json_format.ParseDict(tree, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
        if platform is not None:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise InputError(f"this is not a compiled Kubeflow pipeline: {' '.join(str(error).split())}") from None


def _condition(name: str, task: Tree) -> Iterator[Problem]:
    condition = task.get("triggerPolicy", {}).get("condition", "")
    if not condition:
        return
    parameters = task.get("inputs", {}).get("parameters", {})
    for channel in _CHANNEL.findall(condition):
        key = parameters.get(channel, {}).get("taskOutputParameter", {}).get("outputParameterKey", SINGLE_OUTPUT)
        if key != SINGLE_OUTPUT:
            yield Problem(
                name,
                "named-output",
                f"its condition reads the named output {key!r} and would never be true; "
                "compare a component's single return value",
            )
    if "double(" in condition:
        yield Problem(
            name,
            "int-and-float",
            "its condition compares an integer with a float and would never be true; write both as float, literals too",
        )
    if _CHANNEL.sub("x", condition).count("'") % 2 or _CHANNEL.sub("x", condition).count('"'):
        yield Problem(
            name,
            "quote",
            "its condition compares with a text that holds a quote and would never be true; compare with a plain word",
        )


def _loop(name: str, task: Tree) -> Iterator[Problem]:
    if "parameterIterator" not in task and "artifactIterator" not in task:
        return
    items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
    for channel, source in task.get("inputs", {}).get("parameters", {}).items():
        if "taskOutputParameter" in source and channel != items:
            producer = source["taskOutputParameter"]["producerTask"]
            yield Problem(
                name,
                "outer-output-in-loop",
                f"its body uses an output parameter of {producer} and would get the "
                "loop's item in its place; hand over a pipeline parameter or an artifact",
            )


def _inputs(name: str, task: Tree, components: Mapping[str, Tree]) -> Iterator[Problem]:
    component = components.get(task.get("componentRef", {}).get("name", ""), {})
    given = task.get("inputs", {})
    if "dag" in component and given.get("artifacts") and not given.get("parameters"):
        yield Problem(
            name,
            "artifacts-only",
            "it is a group whose only inputs are artifacts, which raises; give it a parameter "
            "too, or write its tasks one level up",
        )
    for parameter, spec in component.get("inputDefinitions", {}).get("parameters", {}).items():
        unset = parameter not in given.get("parameters", {})
        if "executorLabel" in component and spec.get("isOptional") and "defaultValue" not in spec and unset:
            yield Problem(
                name,
                "none-default",
                f"its parameter {parameter!r} defaults to None, which raises; give it a value of its type",
            )


def _executor(name: str, executor: Tree) -> Iterator[Problem]:
    if "importer" in executor:
        uri = str(executor["importer"].get("artifactUri", {}).get("constant", ""))
        if uri.startswith(REMOTE):
            yield Problem(name, "importer", f"it imports {uri}, which is not downloaded; fetch it in a component")
        return
    container = executor.get("container", {})
    command = " ".join([*container.get("command", []), *container.get("args", [])])
    if "createpvc" in container.get("image", ""):
        yield Problem(name, "create-volume", "it creates a volume, which raises; mount one that exists")
    elif "kfp.dsl.executor_main" not in command:
        yield Problem(
            name,
            "container-component",
            "it is a container component, which raises without a container engine; write a Python component",
        )
    if "pip install" in command:
        yield Problem(
            name,
            "installs-packages",
            "it installs packages when it runs, so two runs may differ; put them into the image",
        )
