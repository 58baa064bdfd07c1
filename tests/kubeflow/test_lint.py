"""The rules for compiled pipelines: each finds the pipeline that breaks it, and ours breaks none."""

from pathlib import Path
from typing import NamedTuple, Optional

import pytest
import yaml
from kfp import compiler, dsl, kubernetes

from ctmr.errors import InputError
from ctmr.kubeflow.compile import check, read
from ctmr.kubeflow.lint import lint, parse_strictly
from ctmr.pipeline.kfp_local import shipped_pipeline


def component(function):
    return dsl.component(function, base_image="python:3.11", install_kfp_package=False)


@component
def number(a: int) -> int:
    return a


@component
def real(a: float) -> float:
    return a


@component
def named(a: int) -> NamedTuple("Out", [("passed", bool), ("why", str)]):
    return (a > 1, "because")


@component
def word(s: str) -> str:
    return s


@component
def numbers() -> list:
    return [1, 2]


@component
def optional(o: Optional[int] = None):  # noqa: UP045
    print(o)


@component
def make(out: dsl.Output[dsl.Dataset]):
    Path(out.path).write_text("x")


@component
def use(data: dsl.Input[dsl.Dataset]):
    print(data.path)


@component
def last(state: dsl.PipelineTaskFinalStatus):
    print(state)


@dsl.container_component
def container():
    return dsl.ContainerSpec(image="alpine", command=["true"])


@dsl.component(base_image="python:3.11", packages_to_install=["six"], install_kfp_package=False)
def installs():
    print("x")


@dsl.pipeline
def inner(data: dsl.Input[dsl.Dataset]):
    use(data=data)


@dsl.pipeline
def condition_on_a_named_output():
    with dsl.If(named(a=1).outputs["passed"] == True):  # noqa: E712
        word(s="x")


@dsl.pipeline
def float_output_and_int_literal(limit: float = 2.0):
    with dsl.If(real(a=limit).output >= 2):
        word(s="x")


@dsl.pipeline
def int_output_and_float_parameter(limit: float = 2.0):
    with dsl.If(number(a=1).output >= limit):
        word(s="x")


@dsl.pipeline
def comparison_with_a_quote(s: str = "x"):
    with dsl.If(s == "it's"):
        word(s="x")


@dsl.pipeline
def loop_with_an_outer_output():
    outer = real(a=1.0)
    with dsl.ParallelFor([1.0, 2.0]):
        real(a=outer.output)


@dsl.pipeline
def import_from_a_bucket():
    use(data=dsl.importer(artifact_uri="s3://bucket/key", artifact_class=dsl.Dataset).output)


@dsl.pipeline
def creates_a_volume():
    kubernetes.CreatePVC(pvc_name="x", access_modes=["ReadWriteOnce"], size="1Gi")


@dsl.pipeline
def optional_number():
    optional()


@dsl.pipeline
def group_of_artifacts_only():
    inner(data=make().outputs["out"])


@dsl.pipeline
def exit_handler_of_artifacts_only():
    made = make()
    with dsl.ExitHandler(last()):
        use(data=made.outputs["out"])


@dsl.pipeline
def with_a_container():
    container()


@dsl.pipeline
def installs_when_it_runs():
    installs()


@dsl.pipeline
def what_is_allowed(limit: float = 2.0, items: list = [1]):  # noqa: B006
    made = make()
    with dsl.If(real(a=limit).output >= limit), dsl.ParallelFor(items) as item:
        number(a=item)
    with dsl.ParallelFor(numbers().output) as item:
        number(a=item)
        use(data=made.outputs["out"])
    with dsl.If(word(s="x").output == "pass"):
        use(data=made.outputs["out"])


def compiled(pipeline, tmp_path):
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path


@pytest.mark.parametrize(
    ("pipeline", "rule"),
    [
        (condition_on_a_named_output, "named-output"),
        (float_output_and_int_literal, "int-and-float"),
        (int_output_and_float_parameter, "int-and-float"),
        (comparison_with_a_quote, "quote"),
        (loop_with_an_outer_output, "outer-output-in-loop"),
        (import_from_a_bucket, "importer"),
        (creates_a_volume, "create-volume none-default"),
        (optional_number, "none-default"),
        (group_of_artifacts_only, "artifacts-only"),
        (exit_handler_of_artifacts_only, "artifacts-only"),
        (with_a_container, "container-component"),
        (installs_when_it_runs, "installs-packages"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_each_rule_finds_the_pipeline_that_breaks_it(pipeline, rule, tmp_path):
    assert {p.rule for p in check(compiled(pipeline, tmp_path))} == set(rule.split())


def test_what_runs_everywhere_breaks_no_rule(tmp_path):
    assert check(compiled(what_is_allowed, tmp_path)) == []


def test_the_shipped_pipeline_breaks_no_rule():
    assert check(shipped_pipeline()) == []


def test_a_problem_names_task_consequence_and_remedy(tmp_path):
    (problem,) = check(compiled(condition_on_a_named_output, tmp_path))
    assert problem.where.startswith("condition-")
    assert "'passed'" in problem.sentence and "never be true" in problem.sentence and "compare" in problem.sentence


def test_an_unknown_field_is_no_pipeline():
    tree = dict(read(shipped_pipeline())[0])
    tree["surprise"] = 1
    with pytest.raises(InputError, match="surprise"):
        parse_strictly(tree)


@pytest.mark.parametrize("text", ["[1", "a: 1\n", "- 1\n", "root: {}\n---\na: 1\n---\nb: 1\n", ""])
def test_a_file_that_is_no_pipeline_is_refused_in_one_sentence(text, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        check(path)
    assert "\n" not in str(caught.value) and "x.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml"):
        check(tmp_path / "absent.yaml")


def test_lint_looks_into_nested_groups(tmp_path):
    @dsl.pipeline
    def nested(s: str = "x"):
        with dsl.If(s == "a"), dsl.If(named(a=1).outputs["passed"] == True):  # noqa: E712
            word(s="x")

    assert [p.rule for p in lint(next(yaml.safe_load_all(compiled(nested, tmp_path).read_text())))] == ["named-output"]
