"""Parameters of a run, checked against the types that the compiled pipeline declares."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ctmr.kubeflow.local_api.faults import invalid

LARGEST_INTEGER = 2**53
"""Beyond it a double, which is what the API and kfp carry numbers in, no longer holds every integer."""


class ParameterType(StrEnum):
    """ParameterTypeEnum of pipeline_spec.proto."""

    NUMBER_DOUBLE = "NUMBER_DOUBLE"
    NUMBER_INTEGER = "NUMBER_INTEGER"
    STRING = "STRING"
    BOOLEAN = "BOOLEAN"
    LIST = "LIST"
    STRUCT = "STRUCT"
    TASK_FINAL_STATUS = "TASK_FINAL_STATUS"
    TASK_CONFIG = "TASK_CONFIG"
    UNSPECIFIED = "PARAMETER_TYPE_ENUM_UNSPECIFIED"


@dataclass(frozen=True)
class Declared:
    """A parameter as the pipeline declares it.

    Attributes
    ----------
    type
        Its type.
    required
        True when a run must give it.
    default
        Value when a run does not; None without one.
    allowed
        The only values it takes; empty for any.
    """

    type: ParameterType
    required: bool
    default: Any = None
    allowed: tuple[Any, ...] = ()


_PLAIN: dict[ParameterType, type] = {
    ParameterType.STRING: str,
    ParameterType.BOOLEAN: bool,
    ParameterType.LIST: list,
    ParameterType.STRUCT: dict,
}
_FOUND = {str: "text", bool: "a boolean", list: "a list", dict: "an object", type(None): "null"}


def check(given: Mapping[str, Any], declared: Mapping[str, Declared]) -> dict[str, Any]:
    """Return the values as the pipeline takes them: a float for a double, an int for an integer.

    JSON has one kind of number, so 3 and 3.0 are both an integer and a double.

    Parameters
    ----------
    given
        Name → value of a run, plain JSON types.
    declared
        Name → what the pipeline declares.

    Raises
    ------
    ApiError
        Unknown, missing or ill-typed parameters; all of them in one sentence.
    """
    faults = [f"{name} is unknown" for name in sorted(set(given) - set(declared))]
    values = {}
    for name, one in sorted(declared.items()):
        if name not in given:
            if one.required:
                faults.append(f"{name} ({one.type}) is missing")
            continue
        try:
            values[name] = _typed(given[name], one)
        except ValueError as error:
            faults.append(f"{name} {error}")
    if faults:
        known = ", ".join(f"{name} ({one.type}{_default(one)})" for name, one in sorted(declared.items()))
        raise invalid(f"the parameters do not fit the pipeline: {'; '.join(faults)}. It takes {known or 'none'}")
    return values


def _typed(value: Any, declared: Declared) -> Any:
    found = _number(value, declared.type) if declared.type.startswith("NUMBER") else _plain(value, declared.type)
    if declared.allowed and found not in declared.allowed:
        raise ValueError(f"is {_show(value)}; allowed are {', '.join(_show(v) for v in declared.allowed)}")
    return found


def _plain(value: Any, wanted: ParameterType) -> Any:
    kind = _PLAIN.get(wanted)
    if kind is None:
        raise ValueError(f"is of type {wanted}, which a run cannot give")
    if type(value) is not kind:
        # 1.10 arrives as 1.1: of a number with a point, what was typed is not known any more.
        example = "1.10" if isinstance(value, float) else value
        hint = f"; in quotes it stays text: '\"{example}\"'" if wanted is ParameterType.STRING else ""
        raise _mismatch(value, wanted, hint)
    return value


def _number(value: Any, wanted: ParameterType) -> int | float:
    if type(value) not in (int, float):
        raise _mismatch(value, wanted)
    if wanted is ParameterType.NUMBER_DOUBLE:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"is {_show(value)}, which is not a finite double")
        return number
    if isinstance(value, float) and not value.is_integer():
        raise _mismatch(value, wanted)
    if abs(value) > LARGEST_INTEGER:
        raise ValueError(f"is {_show(value)}; integers up to ±2^53 pass through the API unchanged")
    return int(value)


def _mismatch(value: Any, wanted: ParameterType, hint: str = "") -> ValueError:
    kind = _FOUND.get(type(value), "a number")
    return ValueError(f"is {_show(value)} ({kind}), expected {wanted}{hint}")


def _default(declared: Declared) -> str:
    if declared.required:
        return ", required"
    return f", default {_show(declared.default)}" if declared.default is not None else ", optional"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:79] + "…"
