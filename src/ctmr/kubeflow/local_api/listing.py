"""Filtering, sorting and paging of records, as the list calls of the Kubeflow Pipelines API describe them."""

from __future__ import annotations

import base64
import binascii
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ctmr.kubeflow.local_api.faults import invalid

Document = Mapping[str, Any]
DEFAULT_PAGE = 20
LARGEST_PAGE = 200
_TIMES = ("created_at", "scheduled_at", "finished_at", "last_run_created_at")
_OPERATIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "EQUALS": operator.eq,
    "NOT_EQUALS": operator.ne,
    "GREATER_THAN": operator.gt,
    "GREATER_THAN_EQUALS": operator.ge,
    "LESS_THAN": operator.lt,
    "LESS_THAN_EQUALS": operator.le,
    "IN": lambda found, wanted: found in wanted,
    "IS_SUBSTRING": operator.contains,
}
_NUMBERS = {
    1: "EQUALS",
    2: "NOT_EQUALS",
    3: "GREATER_THAN",
    5: "GREATER_THAN_EQUALS",
    6: "LESS_THAN",
    7: "LESS_THAN_EQUALS",
    8: "IN",
    9: "IS_SUBSTRING",
}
"""Numbers of filter.proto, which kfp.Client sends in place of the names; there is no 4."""
_VALUES = ("string_value", "timestamp_value", "string_values")


@dataclass(frozen=True)
class Query:
    """Question of a list call.

    Attributes
    ----------
    page_size
        Records a page; 0 is `DEFAULT_PAGE`, more than `LARGEST_PAGE` is that.
    page_token
        From the page before; empty for the first.
    sort_by
        ``field``, ``field asc`` or ``field desc``; empty is by creation.
    filter
        JSON of a Filter message; empty for all.
    """

    page_size: int = 0
    page_token: str = ""
    sort_by: str = ""
    filter: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Query:
        """Return the query of a URL's parameters."""
        size = query.get("page_size", "") or "0"
        if not (size.isascii() and size.isdecimal()):
            raise invalid(f"page_size is {size!r}; allowed are whole numbers from 0")
        return cls(int(size), query.get("page_token", ""), query.get("sort_by", ""), query.get("filter", ""))


@dataclass(frozen=True)
class Page:
    """One page of records, how many there are in all, and the token of the next page (empty on the last)."""

    documents: list[Document]
    total: int
    next_token: str


def page(records: Sequence[tuple[int, Document]], query: Query, fields: Mapping[str, str]) -> Page:
    """Return one page.

    A page starts after the last record of the page before, so records that appear meanwhile shift nothing.

    Parameters
    ----------
    records
        (position, document), in order of creation; positions are unique.
    fields
        Name that a caller may sort and filter by → key in the document.

    Raises
    ------
    ApiError
        Unknown field, operation or token.
    """
    holds = _predicate(query.filter, fields)
    key, descending = _order(query.sort_by, fields)
    chosen = [(str(d.get(key, "")), position, d) for position, d in records if holds(d)]
    chosen.sort(key=lambda item: item[:2], reverse=descending)
    after = _read_token(query)
    rest = [i for i in chosen if after is None or (i[:2] < after if descending else i[:2] > after)]
    size = min(query.page_size or DEFAULT_PAGE, LARGEST_PAGE)
    shown = rest[:size]
    token = _write_token(query, shown[-1][:2]) if len(rest) > size else ""
    return Page([d for _, _, d in shown], len(chosen), token)


def _order(sort_by: str, fields: Mapping[str, str]) -> tuple[str, bool]:
    words = sort_by.split() or ["created_at"]
    if len(words) > 2 or words[0] not in fields or words[1:] not in ([], ["asc"], ["desc"]):
        raise invalid(f"sort_by is {sort_by!r}; allowed is one of {sorted(fields)}, followed by asc or desc")
    return fields[words[0]], words[1:] == ["desc"]


def _predicate(text: str, fields: Mapping[str, str]) -> Callable[[Document], bool]:
    try:
        tree = json.loads(text) if text else {}
        predicates = [_test(p, fields) for p in tree.get("predicates", [])]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise invalid(f'filter is {text[:200]!r}; expected {{"predicates": [{{"operation", "key", value}}]}}') from None
    return lambda document: all(holds(document) for holds in predicates)


def _test(predicate: Mapping[str, Any], fields: Mapping[str, str]) -> Callable[[Document], bool]:
    given, name = predicate.get("operation"), str(predicate.get("key"))
    operation = _NUMBERS.get(given, "") if isinstance(given, int) else str(given)
    if operation not in _OPERATIONS:
        raise invalid(f"the filter's operation is {given!r}; allowed are {', '.join(_OPERATIONS)}")
    if name not in fields:
        raise invalid(f"the filter's key is {name!r}; allowed are {', '.join(sorted(fields))}")
    holds, key = _OPERATIONS[operation], fields[name]
    wanted = _wanted(predicate, key, several=operation == "IN")

    def test(document: Document) -> bool:
        if key not in document:
            return False
        found = document[key]
        return holds(datetime.fromisoformat(found) if key in _TIMES else str(found), wanted)

    return test


def _wanted(predicate: Mapping[str, Any], key: str, *, several: bool) -> Any:
    """Return the value of a predicate, whose name is in snake_case or camelCase."""
    plain = {"".join("_" + c.lower() if c.isupper() else c for c in name): v for name, v in predicate.items()}
    given = {name: plain[name] for name in _VALUES if name in plain}
    right = "string_values" if several else "timestamp_value" if key in _TIMES else "string_value"
    if set(given) != {right}:
        raise invalid(f"the filter's value for {key!r} must be {right}; found {sorted(given) or 'none'}")
    if several:
        values = given[right].get("values", [])
        return [datetime.fromisoformat(v) if key in _TIMES else str(v) for v in values]
    if key in _TIMES:
        moment = datetime.fromisoformat(given[right])
        if moment.tzinfo is None:
            raise invalid(f"the filter's time {given[right]!r} has no zone; write it as 2026-01-31T12:00:00Z")
        return moment
    return str(given[right])


def _write_token(query: Query, last: tuple[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([query.sort_by, query.filter, *last]).encode()).decode()


def _read_token(query: Query) -> tuple[str, int] | None:
    if not query.page_token:
        return None
    try:
        sort_by, filter_, key, position = json.loads(base64.urlsafe_b64decode(query.page_token.encode()))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise invalid(f"page_token {query.page_token[:80]!r} was not given out here") from None
    if (sort_by, filter_) != (query.sort_by, query.filter):
        raise invalid("page_token belongs to a list with another sort_by or filter; ask for the first page again")
    return str(key), int(position)
