"""A submitted pipeline: parsed strictly as the IR that it claims to be, and compared with what may run here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from ctmr.errors import InputError
from ctmr.kubeflow.local_api.faults import invalid
from ctmr.kubeflow.local_api.parameters import Declared, ParameterType
from ctmr.system import strict_yaml
from ctmr.system.environment import ALLOW_ANY_PIPELINE

Tree = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 _.-]{0,199}")
"""What kfp.local makes folders of."""
_SHOWN = 5


@dataclass(frozen=True)
class Specification:
    """A compiled pipeline.

    Attributes
    ----------
    message
        The PipelineSpec.
    platform_message
        The PlatformSpec that was compiled beside it; empty without one.
    """

    message: Any
    platform_message: Any

    @classmethod
    def of(cls, tree: object) -> Specification:
        """Return the pipeline of an API request: a PipelineSpec, or one with its PlatformSpec.

        Raises
        ------
        ApiError
            It does not parse, or could not run.
        """
        if isinstance(tree, dict) and "pipeline_spec" in tree and set(tree) <= {"pipeline_spec", "platform_spec"}:
            return cls._checked(tree["pipeline_spec"], tree.get("platform_spec") or {})
        return cls._checked(tree, {})

    @classmethod
    def of_yaml(cls, content: bytes) -> Specification:
        """Return the pipeline of a compiled YAML file: one document, or two with the PlatformSpec.

        Raises
        ------
        ApiError
            It is not YAML, does not parse, or could not run.
        """
        try:
            documents = strict_yaml.documents(content.decode(), "it")
        except (UnicodeDecodeError, InputError) as error:
            raise invalid(
                f"the uploaded file is not YAML ({_short(error)}); upload the compiled pipeline itself, not an archive"
            ) from None
        if not 1 <= len(documents) <= 2:
            raise invalid(f"the uploaded file holds {len(documents)} YAML documents; a compiled pipeline has 1 or 2")
        return cls._checked(documents[0], documents[1] if len(documents) == 2 else {})

    @classmethod
    def _checked(cls, pipeline: object, platform: object) -> Specification:
        if not isinstance(pipeline, dict) or not isinstance(platform, dict):
            raise invalid("pipeline_spec must be a JSON object: the compiled pipeline (PipelineSpec)")
        found = cls(
            _parse(pipeline, pipeline_spec_pb2.PipelineSpec(), "pipeline_spec"),
            _parse(platform, pipeline_spec_pb2.PlatformSpec(), "platform_spec"),
        )
        found._check_references()
        found._check_names()
        return found

    @property
    def name(self) -> str:
        """Name that the pipeline was compiled with."""
        return str(self.message.pipeline_info.name)

    @property
    def description(self) -> str:
        """Description that the pipeline was compiled with."""
        return str(self.message.pipeline_info.description)

    @cached_property
    def pipeline(self) -> Tree:
        """The PipelineSpec as JSON."""
        tree: Tree = _tree(self.message, "pipeline_spec")
        return tree

    @cached_property
    def platform(self) -> Tree:
        """The PlatformSpec as JSON; empty without one."""
        tree: Tree = _tree(self.platform_message, "platform_spec")
        return tree

    @property
    def document(self) -> Tree:
        """The form in which the API carries it."""
        return {"pipeline_spec": self.pipeline, "platform_spec": self.platform} if self.platform else self.pipeline

    def yaml(self) -> str:
        """Return the compiled file that `ctmr.pipeline.kfp_local` reads."""
        trees = [self.pipeline, self.platform] if self.platform else [self.pipeline]
        text: str = yaml.safe_dump_all(trees, sort_keys=True)
        return text

    @cached_property
    def executors(self) -> Tree:
        """Executor name → what it runs."""
        tree = _tree(self.message.deployment_spec, "deploymentSpec")
        config = _parse(tree, pipeline_spec_pb2.PipelineDeploymentConfig(), "deploymentSpec")
        return {name: _tree(executor, "deploymentSpec") for name, executor in config.executors.items()}

    @property
    def meaning(self) -> Mapping[str, object]:
        """All that decides what runs, by the name of the part: executors but for resources, graphs but for caching."""
        tree = dict(self.pipeline)
        deployment = dict(tree.pop("deploymentSpec", {}))
        deployment.pop("executors", None)
        components = tree.pop("components", {})
        for told in ("pipelineInfo", "sdkVersion"):
            tree.pop(told, None)
        return {
            **{f"executor {name}": _without_resources(executor) for name, executor in self.executors.items()},
            **{f"component {name}": _without_caching(component) for name, component in components.items()},
            **{f"platform {name}": part for name, part in self.platform.get("platforms", {}).items()},
            **({"deploymentSpec": deployment} if deployment else {}),
            **{**tree, "root": _without_caching(tree["root"])},
        }

    @property
    def parameters(self) -> dict[str, Declared]:
        """Parameters of the pipeline by name."""
        return {name: _declared(spec) for name, spec in self.message.root.input_definitions.parameters.items()}

    def _check_references(self) -> None:
        message = self.message
        if message.root.WhichOneof("implementation") != "dag":
            raise invalid("pipeline_spec has no root with a dag: it is not a compiled pipeline")
        wanted = sorted(k for k, v in message.root.input_definitions.artifacts.items() if not v.is_optional)
        if wanted:
            raise invalid(f"the pipeline takes the artifacts {wanted} as inputs; a run can be given parameters only")
        for dag in self._dags():
            for name, task in dag.tasks.items():
                if task.component_ref.name not in message.components:
                    raise invalid(f"task {name!r} refers to component {task.component_ref.name!r}, which is not there")
        for name, component in message.components.items():
            if component.executor_label and component.executor_label not in self.executors:
                raise invalid(f"component {name!r} refers to executor {component.executor_label!r}, which is not there")

    def _check_names(self) -> None:
        names = {self.name, *self.message.components}
        for dag in self._dags():
            names |= set(dag.tasks)
        for component in (self.message.root, *self.message.components.values()):
            names |= {*component.output_definitions.artifacts, *component.output_definitions.parameters}
        for name in sorted(names):
            if not _NAME.fullmatch(name):
                raise invalid(
                    f"the name {name!r} in pipeline_spec cannot be a folder's name; allowed are up to 200 letters, "
                    "digits, blanks and _ . -"
                )

    def _dags(self) -> Iterator[Any]:
        yield self.message.root.dag
        for component in self.message.components.values():
            yield component.dag


def check_trusted(submitted: Specification, reference: Path | None) -> None:
    """Refuse a pipeline that is not the reference pipeline.

    Code runs not from executors alone: kfp evaluates conditions, and a graph may hand one task's output to another.

    Parameters
    ----------
    reference
        Compiled file that is trusted; None trusts every pipeline.

    Raises
    ------
    ApiError
        The pipeline differs in more than resources, caching, name and description, or there is no reference.
    """
    if reference is None:
        return
    where = f"{reference.parent.name}/{reference.name} of this checkout"
    try:
        trusted = Specification.of_yaml(reference.read_bytes()).meaning
    except OSError:
        trusted = {}
    foreign = [name for name, part in submitted.meaning.items() if part != trusted.get(name)]
    foreign += sorted(set(trusted) - set(submitted.meaning))
    if foreign:
        raise invalid(
            f"the pipeline {submitted.name!r} is not {where}: it differs in {_listed(foreign)}; submit that file, "
            f"or start the local runner with {ALLOW_ANY_PIPELINE}=1, which lets any pipeline run as you"
        )


def _without_resources(executor: Tree) -> Tree:
    container = {k: v for k, v in executor.get("container", {}).items() if k != "resources"}
    return {**executor, "container": container}


def _without_caching(component: Tree) -> Tree:
    """Return a component without what kfp's ``--disable-caching`` changes: this runner caches by content itself."""
    if "dag" not in component:
        return component
    tasks = component["dag"].get("tasks", {})
    plain = {name: {k: v for k, v in task.items() if k != "cachingOptions"} for name, task in tasks.items()}
    return {**component, "dag": {**component["dag"], "tasks": plain}}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _declared(spec: Any) -> Declared:
    kind = ParameterType(pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(spec.parameter_type))
    # A protobuf Value knows doubles only; a whole number reads better as one.
    cast = int if kind is ParameterType.NUMBER_INTEGER else lambda value: value
    given = spec.HasField("default_value")
    return Declared(
        kind,
        required=not spec.is_optional and not given,
        default=cast(_tree(spec.default_value, "a default value")) if given else None,
        allowed=tuple(cast(_tree(value, "a literal")) for value in spec.literals),
    )


def _parse(tree: object, message: Any, what: str) -> Any:
    try:
        return json_format.ParseDict(tree, message)
    except (json_format.ParseError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise invalid(f"{what} is not what kfp compiles: {_short(error)}") from None


def _tree(message: Any, what: str) -> Any:
    try:
        return json_format.MessageToDict(message)
    except (json_format.Error, ValueError, RecursionError) as error:
        raise invalid(f"{what} is not what kfp compiles: {_short(error)}") from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
