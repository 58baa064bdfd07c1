"""Filter, order and pages of lists."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctmr.kubeflow.local_api.faults import ApiError
from ctmr.kubeflow.local_api.listing import LARGEST_PAGE, Query, page

FIELDS = {
    "id": "run_id",
    "display_name": "display_name",
    "state": "state",
    "created_at": "created_at",
    "finished_at": "finished_at",
}
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def records(count: int, **more):
    return [
        (
            k,
            {
                "run_id": str(k),
                "display_name": f"run {k % 3}",
                "state": "RUNNING" if k % 2 else "FAILED",
                "created_at": (BEGIN + timedelta(seconds=k // 2)).isoformat(timespec="milliseconds"),
                **more,
            },
        )
        for k in range(count)
    ]


def predicate(operation, key, **value) -> Query:
    return Query(filter=json.dumps({"predicates": [{"operation": operation, "key": key, **value}]}), page_size=200)


def ids(shown) -> list[str]:
    return [d["run_id"] for d in shown.documents]


@given(
    count=st.integers(0, 40),
    size=st.integers(1, 15),
    sort_by=st.sampled_from(["", "created_at", "created_at desc", "display_name asc", "state desc", "finished_at"]),
)
def test_the_pages_together_are_the_whole_list_once_in_order(count, size, sort_by):
    everything = records(count)
    found, token = [], ""
    for _ in range(count + 1):
        shown = page(everything, Query(size, token, sort_by), FIELDS)
        assert shown.total == count
        found += shown.documents
        token = shown.next_token
        if not token:
            break
        assert len(shown.documents) == size
    assert sorted(d["run_id"] for d in found) == sorted(d["run_id"] for _, d in everything)
    key = sort_by.split()[0] if sort_by else "created_at"
    keys = [str(d.get(key, "")) for d in found]
    assert keys == sorted(keys, reverse=sort_by.endswith("desc"))


def test_records_that_appear_between_two_pages_shift_nothing():
    first = page(records(6), Query(3, "", "created_at desc"), FIELDS)
    second = page(records(9), Query(3, first.next_token, "created_at desc"), FIELDS)
    assert ids(first) + ids(second) == ["5", "4", "3", "2", "1", "0"]


def test_a_page_has_a_largest_size():
    assert len(page(records(LARGEST_PAGE + 5), Query(10_000), FIELDS).documents) == LARGEST_PAGE


@pytest.mark.parametrize("operation", [1, "EQUALS"])
def test_operations_have_numbers_and_names(operation):
    shown = page(records(6), predicate(operation, "display_name", stringValue="run 1"), FIELDS)
    assert ids(shown) == ["1", "4"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (predicate("NOT_EQUALS", "state", string_value="FAILED"), ["1", "3", "5"]),
        (predicate(9, "display_name", stringValue="n 2"), ["2", "5"]),
        (predicate("IN", "id", stringValues={"values": ["0", "4", "9"]}), ["0", "4"]),
        (predicate("GREATER_THAN", "created_at", timestampValue="2026-01-01T00:00:01Z"), ["4", "5"]),
        (predicate(7, "created_at", timestamp_value="2026-01-01T01:00:00+01:00"), ["0", "1"]),
        (predicate("LESS_THAN", "finished_at", timestampValue="2030-01-01T00:00:00Z"), []),
    ],
)
def test_each_predicate_selects(query, expected):
    assert ids(page(records(6), query, FIELDS)) == expected


def test_predicates_must_all_hold():
    both = [
        {"operation": "EQUALS", "key": "state", "stringValue": "FAILED"},
        {"operation": "EQUALS", "key": "display_name", "stringValue": "run 1"},
    ]
    assert ids(page(records(6), Query(filter=json.dumps({"predicates": both})), FIELDS)) == ["4"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(filter="{"), "filter is"),
        (Query(filter="[]"), "filter is"),
        (Query(filter='{"predicates": 3}'), "filter is"),
        (predicate("LIKE", "state", stringValue="x"), "'LIKE'"),
        (predicate(4, "state", stringValue="x"), "4"),
        (predicate("EQUALS", "colour", stringValue="x"), "'colour'"),
        (predicate("EQUALS", "state", intValue=3), "must be string_value"),
        (predicate("EQUALS", "created_at", timestampValue="yesterday"), "filter is"),
        (predicate("EQUALS", "created_at", timestampValue="2026-01-01T00:00:00"), "no zone"),
        (Query(sort_by="colour"), "'colour'"),
        (Query(sort_by="created_at upwards"), "upwards"),
        (Query(page_token="nonsense"), "not given out here"),
        (Query(page_token=base64.b64encode(b"[" * 99_999).decode()), "not given out here"),
        (Query(page_token=base64.b64encode(b'["state", "", "x", 1]').decode()), "another sort_by"),
    ],
)
def test_an_impossible_query_is_refused_in_one_sentence(query, said):
    with pytest.raises(ApiError) as refused:
        page(records(3), query, FIELDS)
    assert refused.value.status == 400
    assert said in str(refused.value)


@pytest.mark.parametrize("size", ["-1", "many", "1.5", "²"])
def test_the_size_of_a_page_is_a_whole_number(size):
    with pytest.raises(ApiError, match="page_size"):
        Query.of({"page_size": size})
