"""Strict YAML: nothing lost, nothing multiplied, numbers as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.system import strict_yaml

NUMBERS: dict[str, Any] = {
    "1e-4": 1e-4,
    "1E3": 1e3,
    "-2.5e-3": -2.5e-3,
    ".5": 0.5,
    "1.": 1.0,
    "1.10": 1.1,
    "010": 10,
    "-7": -7,
    "0x10": 16,
    "0o17": 15,
    "-1_024": -1024,
    "1:30": "1:30",
    "1.2.3": "1.2.3",
    "2026-11-30x": "2026-11-30x",
    "e5": "e5",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_what_a_person_means(text: str) -> None:
    found = strict_yaml.read(text, "it")
    assert found == NUMBERS[text] and type(found) is type(NUMBERS[text])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_comes_back(value: float) -> None:
    assert strict_yaml.read(repr(value), "it") == value


@given(st.integers())
def test_every_integer_comes_back(value: int) -> None:
    assert strict_yaml.read(str(value), "it") == value


def test_infinity_and_nan_have_their_yaml_names() -> None:
    low, none = strict_yaml.read("[-.inf, .nan]", "it")
    assert low == -math.inf and math.isnan(none)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {steps: 5}\ntrain: {seed: 3}", "'train' is given twice"),
        ("gate: {a: {min: 1, min: 0}}", "'min' is given twice"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ("a: !!python/object/apply:os.system ['true']", "constructor"),
        ("a: [1, 2", "flow"),
        ("x" * (2**20 + 1), "at most 1048576"),
    ],
)
def test_what_loses_or_multiplies_content_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InputError, match=r"^recipe a") as caught:
        strict_yaml.read(text, "recipe a")
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        strict_yaml.read(text, "it")
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x: " + "7" * 5000, "a number of 5000 digits; at most 400 are read"),
        ("x: 0x" + "f" * 5000, "a number of 5002 digits"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("? [a]\n: 1", "unhashable key"),
        ("x: 2024-99-99", "month must be in 1..12"),
        ("x" * (strict_yaml.MAXIMUM_CHARACTERS + 1), "at most 1048576 are read"),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("reader", [strict_yaml.read, strict_yaml.documents])
def test_what_would_fill_memory_or_stack_is_one_sentence(reader, text, words):
    with pytest.raises(InputError) as caught:
        reader(text, "it")
    said = str(caught.value)
    assert words in said and "\n" not in said and len(said) < 400


def test_documents_of_programs_keep_the_numbers_of_their_version():
    assert strict_yaml.documents("a: 1e-3\n---\nb: 010\n", "it") == [{"a": "1e-3"}, {"b": 8}]
