"""Parameters against the types of the compiled pipeline, and the pipeline against its own definition."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from ctmr.kubeflow.local_api.faults import ApiError
from ctmr.kubeflow.local_api.parameters import Declared, ParameterType, check
from ctmr.kubeflow.local_api.specification import Specification, check_trusted

INTEGERS = st.integers(-(2**53), 2**53)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | INTEGERS | DOUBLES | st.text(max_size=20)
VALUES = {
    ParameterType.STRING: st.text(),
    ParameterType.BOOLEAN: st.booleans(),
    ParameterType.NUMBER_INTEGER: INTEGERS | INTEGERS.map(float),
    ParameterType.NUMBER_DOUBLE: INTEGERS | DOUBLES,
    ParameterType.LIST: st.lists(PLAIN, max_size=4),
    ParameterType.STRUCT: st.dictionaries(st.text(max_size=5), PLAIN, max_size=4),
}
KINDS = {
    ParameterType.STRING: str,
    ParameterType.BOOLEAN: bool,
    ParameterType.NUMBER_INTEGER: int,
    ParameterType.NUMBER_DOUBLE: float,
    ParameterType.LIST: list,
    ParameterType.STRUCT: dict,
}
ANYTHING = st.one_of(*VALUES.values(), st.none())
TYPES = st.sampled_from(list(VALUES))


def one(kind: ParameterType) -> dict[str, Declared]:
    return {"it": Declared(kind, required=True)}


@given(kind=TYPES, data=st.data())
def test_a_value_of_the_declared_type_passes_unchanged_as_that_type(kind, data):
    value = data.draw(VALUES[kind])
    found = check({"it": value}, one(kind))["it"]
    assert type(found) is KINDS[kind]
    assert found == value


@given(kind=TYPES, value=ANYTHING)
def test_a_value_of_another_type_is_refused_with_name_found_and_expected(kind, value):
    numbers = (ParameterType.NUMBER_INTEGER, ParameterType.NUMBER_DOUBLE)
    is_number = type(value) in (int, float)
    assume(type(value) is not KINDS[kind])
    assume(not (is_number and kind is ParameterType.NUMBER_DOUBLE))
    assume(not (is_number and kind in numbers and float(value).is_integer()))
    with pytest.raises(ApiError) as refused:
        check({"it": value}, one(kind))
    assert refused.value.status == 400
    assert "it is " in str(refused.value)
    assert f"expected {kind}" in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_double_must_be_finite(value):
    with pytest.raises(ApiError, match="not a finite double"):
        check({"it": value}, one(ParameterType.NUMBER_DOUBLE))


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 1e300, 10**400])
def test_an_integer_that_a_double_cannot_hold_is_refused(value):
    with pytest.raises(ApiError, match=r"2\^53"):
        check({"it": value}, one(ParameterType.NUMBER_INTEGER))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.5])
def test_an_integer_must_be_whole(value):
    with pytest.raises(ApiError, match="expected NUMBER_INTEGER"):
        check({"it": value}, one(ParameterType.NUMBER_INTEGER))


def test_all_faults_stand_in_one_sentence_with_the_known_parameters():
    declared = {
        "dataset_rev": Declared(ParameterType.STRING, required=True),
        "steps": Declared(ParameterType.NUMBER_INTEGER, required=False, default=1200),
        "name": Declared(ParameterType.STRING, required=True),
    }
    with pytest.raises(ApiError) as refused:
        check({"dataset_rev": 123, "steps": "many", "datset": 1}, declared)
    said = str(refused.value)
    for part in (
        "datset is unknown",
        "name (STRING) is missing",
        "dataset_rev is 123 (a number), expected STRING",
        "'\"123\"'",
        'steps is "many" (text), expected NUMBER_INTEGER',
        "steps (NUMBER_INTEGER, default 1200)",
    ):
        assert part in said


def test_a_parameter_with_a_default_may_be_left_out_and_is_not_filled_in():
    assert check({}, {"it": Declared(ParameterType.STRING, required=False, default="x")}) == {}


def test_a_literal_parameter_takes_its_literals_only():
    declared = {"plane": Declared(ParameterType.STRING, required=True, allowed=("axial", "sagittal"))}
    assert check({"plane": "axial"}, declared) == {"plane": "axial"}
    with pytest.raises(ApiError, match='"coronal"; allowed are "axial", "sagittal"'):
        check({"plane": "coronal"}, declared)


def test_the_declared_parameters_are_those_of_the_pipeline(pipeline_spec):
    found = Specification.of(pipeline_spec).parameters
    assert found["script"] == Declared(ParameterType.STRING, required=True)
    assert found["count"] == Declared(ParameterType.NUMBER_INTEGER, required=False, default=3)
    assert type(found["count"].default) is int
    assert found["flag"] == Declared(ParameterType.BOOLEAN, required=False)
    assert {d.type for d in found.values()} == set(VALUES)


def test_a_pipeline_survives_yaml_and_the_api(pipeline_spec):
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    alone = Specification.of(pipeline_spec)
    assert Specification.of_yaml(alone.yaml().encode()).document == alone.document
    both = Specification.of({"pipeline_spec": pipeline_spec, "platform_spec": platform})
    assert len(list(yaml.safe_load_all(both.yaml()))) == 2
    assert Specification.of_yaml(both.yaml().encode()).document == both.document
    assert Specification.of(both.document).document == both.document


def broken(pipeline_spec: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    node = pipeline_spec
    *parents, last = path.split("/")
    for key in parents:
        node = node[key]
    node[last] = value
    return pipeline_spec


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("surprise", 1, "surprise"),
        ("root/dag/tasks/work/componentRef/nmae", "x", "nmae"),
        ("root", {}, "no root with a dag"),
        ("root/dag/tasks/work/componentRef/name", "comp-other", "'comp-other', which is not there"),
        ("components/comp-work/executorLabel", "exec-other", "'exec-other', which is not there"),
        ("pipelineInfo/name", "../../elsewhere", "'../../elsewhere'"),
        ("root/dag/tasks/..", {"componentRef": {"name": "comp-work"}}, "'..'"),
        ("components/comp-work/outputDefinitions", {"artifacts": {"/tmp/x": {}}}, "'/tmp/x'"),
        ("root/inputDefinitions/artifacts", {"scan": {}}, "['scan']"),
        ("deploymentSpec/executors/exec-work/container/comand", [], "comand"),
    ],
)
def test_what_is_not_a_pipeline_that_could_run_is_refused(pipeline_spec, path, value, said):
    with pytest.raises(ApiError) as refused:
        Specification.of(broken(pipeline_spec, path, value))
    assert refused.value.status == 400
    assert said in str(refused.value)


@pytest.mark.parametrize("tree", [None, 3, "text", [], {"pipeline_spec": 3}, {"pipeline_spec": {}, "platform_spec": 1}])
def test_what_is_no_pipeline_at_all_is_refused(tree):
    with pytest.raises(ApiError):
        Specification.of(tree)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f\x8b\x08\x00",
        b"PK\x03\x04",
        b"a: [",
        b"!!python/object/apply:os.system [id]",
        b"a: 1\n---\nb: 2\n---\nc: 3",
    ],
)
def test_an_uploaded_file_must_be_a_compiled_pipeline(content):
    with pytest.raises(ApiError) as refused:
        Specification.of_yaml(content)
    assert refused.value.status == 400


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)))
def test_no_tree_at_all_breaks_the_parser(tree):
    try:
        Specification.of({"pipelineInfo": {"name": "x"}, "root": tree, "deploymentSpec": tree})
    except ApiError as refused:
        assert refused.status == 400


def reference_file(tmp_path, pipeline_spec):
    path = tmp_path / "reference.yaml"
    path.write_text(Specification.of(pipeline_spec).yaml())
    return path


def test_the_trusted_pipeline_may_have_another_name_caching_and_resources(tmp_path, pipeline_spec):
    reference = reference_file(tmp_path, pipeline_spec)
    other = json.loads(json.dumps(pipeline_spec))
    other["pipelineInfo"] = {"name": "another", "description": "of mine"}
    other["sdkVersion"] = "kfp-9.9.9"
    other["root"]["dag"]["tasks"]["work"]["cachingOptions"] = {"enableCache": True}
    container = other["deploymentSpec"]["executors"]["exec-work"]["container"]
    container["resources"] = {"cpuLimit": 2.0}
    check_trusted(Specification.of(other), reference)


CONDITION = {"condition": "__import__('os').system('id')"}


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("root", "dag", "tasks", "work", "triggerPolicy"), CONDITION, "root"),
        (("root", "dag", "tasks", "work", "iteratorPolicy"), {"parallelismLimit": 9}, "root"),
        (("root", "dag", "tasks", "again"), {"componentRef": {"name": "comp-work"}, "taskInfo": {"name": "x"}}, "root"),
        (("root", "dag", "tasks", "work", "inputs", "parameters", "x"), {"runtimeValue": {"constant": "y"}}, "root"),
        (("root", "inputDefinitions", "parameters", "more"), {"parameterType": "STRING"}, "root"),
        (("components", "comp-more"), {"executorLabel": "exec-work"}, "component comp-more"),
        (("components", "comp-work", "inputDefinitions", "parameters", "x"), {"parameterType": "STRING"}, "comp-work"),
        (("defaultPipelineRoot",), "/elsewhere", "defaultPipelineRoot"),
    ],
)
def test_the_trusted_executors_in_another_graph_are_refused(tmp_path, pipeline_spec, path, value, part):
    reference = reference_file(tmp_path, pipeline_spec)
    place = pipeline_spec
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    with pytest.raises(ApiError, match=rf"differs in [^;]*{part}.*CTMR_ALLOW_ANY_PIPELINE=1"):
        check_trusted(Specification.of(pipeline_spec), reference)


def test_a_platform_of_its_own_is_refused(tmp_path, pipeline_spec):
    reference = reference_file(tmp_path, pipeline_spec)
    executors = {"exec-work": {"secretAsEnv": [{"secretName": "s"}]}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
    with pytest.raises(ApiError, match="differs in platform kubernetes"):
        check_trusted(Specification.of({"pipeline_spec": pipeline_spec, "platform_spec": platform}), reference)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", ["sh", "-ec", "python3 -m kfp.dsl.executor_main", "print('evil')"]),
        ("args", ["--function_to_execute", "evil"]),
        ("image", "evil:1"),
        ("env", [{"name": "PYTHONPATH", "value": "/evil"}]),
    ],
)
def test_a_pipeline_with_foreign_code_is_refused(tmp_path, pipeline_spec, field, value):
    reference = reference_file(tmp_path, pipeline_spec)
    pipeline_spec["deploymentSpec"]["executors"]["exec-work"]["container"][field] = value
    submitted = Specification.of(pipeline_spec)
    with pytest.raises(ApiError, match=r"executor exec-work;.*CTMR_ALLOW_ANY_PIPELINE=1") as refused:
        check_trusted(submitted, reference)
    assert refused.value.status == 400
    check_trusted(submitted, None)


def test_without_a_reference_nothing_is_trusted(tmp_path, pipeline_spec):
    with pytest.raises(ApiError, match=r"is not .*missing\.yaml of this checkout"):
        check_trusted(Specification.of(pipeline_spec), tmp_path / "missing.yaml")
