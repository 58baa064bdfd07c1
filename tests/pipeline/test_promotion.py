"""The champion is one transaction: replaced by what was compared with it, or by a person's word, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.pipeline import stages
from ctmr.pipeline.promotion import (
    REPLACE_UNCOMPARED,
    Contender,
    identity,
    is_unfinished,
    promote,
    promotions,
    recover,
    registry_lock,
    require_recorded,
)
from ctmr.serving import rollout
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Version

OLD = Version("tiny", "1", "r1", "old", {})
OTHER = Version("tiny", "7", "r7", "other", {})
NEW = Contender("tiny", "2", "new", "champion", True, identity(OLD), False, "")
UNCOMPARED = replace(NEW, replaces_champion=False, uncompared=True, stays="version 1 was made for another grid")
WORSE = replace(NEW, replaces_champion=False, stays="kid is 2, worse than version 1 with 1")
MINE = Version("tiny", "2", "r2", "new", {})


# Who may


def test_who_was_compared_with_exactly_the_champion_replaces_it() -> None:
    assert NEW.why_not(OLD, "") == ""
    assert replace(NEW, compared_with=None).why_not(None, "") == ""


@pytest.mark.parametrize(
    ("compared", "today"), [(OLD, OTHER), (OLD, None), (None, OLD), (OLD, replace(OLD, digest="x"))]
)
@pytest.mark.parametrize("candidate", [NEW, UNCOMPARED])
def test_another_champion_than_the_compared_one_is_never_replaced(
    candidate: Contender, compared: Version | None, today: Version | None
) -> None:
    stale = replace(candidate, compared_with=identity(compared))
    with pytest.raises(EnvironmentFault, match=r"compared with .*, and now .*; nothing was changed, run it again"):
        stale.why_not(today, "we changed the grid")


def test_where_nothing_compares_a_person_decides() -> None:
    assert "another grid; a person decides: `ctmr deploy --replace-uncompared REASON`" in UNCOMPARED.why_not(OLD, "")
    assert UNCOMPARED.why_not(OLD, "we changed the grid") == ""


def test_a_person_does_not_overrule_a_comparison() -> None:
    assert WORSE.why_not(OLD, "") == WORSE.stays
    with pytest.raises(InputError, match=r"--replace-uncompared is for a model that could not be compared.*worse than"):
        WORSE.why_not(OLD, "I like it")


@pytest.mark.parametrize("candidate", [NEW, WORSE, UNCOMPARED])
def test_the_champion_itself_is_always_served_again(candidate: Contender) -> None:
    assert candidate.why_not(MINE, "") == ""


def test_a_version_that_was_rolled_back_comes_back_by_a_persons_word_alone() -> None:
    said = NEW.why_not(OLD, "", "bone where air is")
    assert said == (
        "version 2 was rolled back (bone where air is); a person decides: `ctmr deploy --replace-uncompared REASON`"
    )
    assert NEW.why_not(OLD, "it was the scanner", "bone where air is") == ""


def test_the_persons_word_is_an_option_of_deploy() -> None:
    assert set(stages.load("deploy").options) == {REPLACE_UNCOMPARED}


# The transaction


@dataclass
class Registry:
    """Versions and an alias in memory; `fault` is called before each request with its name."""

    champion_: Version | None = OLD
    tags: dict[str, str] = field(default_factory=dict)
    fault: Callable[[str], None] = lambda name: None
    loses_answers: bool = False

    def champion(self, name: str, alias: str) -> Version | None:
        self.fault("champion")
        return self.champion_

    def tag_version(self, name: str, version: str, tags: dict[str, str]) -> None:
        self.fault("tag")
        self.tags |= tags

    def alias(self, name: str, alias: str, version: str) -> None:
        self.fault("alias")
        self.champion_ = Version(name, version, "r2", "new", {})
        if self.loses_answers:
            raise EnvironmentFault("no answer")


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rollouts that succeed, as far as `commit` lets them: what was proven, and what was taken back."""
    seen: list[str] = []

    def deploy(client: Any, repository: Path, release: Any, prove: Any, *, commit: Any, reshape: bool) -> Any:
        prove(release.model, "2")
        seen.append("live" + (" reshaped" if reshape else ""))
        try:
            commit()
        except BaseException:
            seen.append("taken back")
            raise

    monkeypatch.setattr(rollout, "deploy", deploy)
    return seen


def run(
    home: Home, registry: Registry, candidate: Contender = NEW, prove: Any = lambda *_: None, reason: str = ""
) -> None:
    home.root.mkdir(exist_ok=True)
    releases: Any = [SimpleNamespace(model="tiny_mr2ct")]
    client: Any = None
    with registry_lock(home):
        tracking: Any = registry
        promote(candidate, releases, prove, home=home, tracking=tracking, client=client, reason=reason)


def settled(home: Home, registry: Registry, *versions: str) -> bool:
    """True when the registry's champion and the record's versions are these, and nothing is left to finish."""
    champion = registry.champion_.version if registry.champion_ else None
    recorded = [line["version"] for line in promotions(home)]
    return (champion, recorded, is_unfinished(home)) == (versions[0], list(versions[1:]), False)


def test_a_promotion_moves_the_alias_once_the_rollout_is_proven_and_is_recorded(home: Home, rolled: list[str]) -> None:
    registry, seen = Registry(), list[str]()
    run(home, registry, prove=lambda *_: seen.append(registry.champion_.version if registry.champion_ else ""))
    assert seen == ["1"] and rolled == ["live"]
    assert settled(home, registry, "2", "2") and registry.tags == {"replaces": "1"}
    (line,) = promotions(home)
    assert (line["previous"], line["digest"], line["uncompared"]) == ("1", "new", "")


def test_a_persons_reason_is_recorded_in_tags_and_record(home: Home, rolled: list[str]) -> None:
    registry = Registry()
    run(home, registry, UNCOMPARED, reason="we changed the grid")
    assert registry.tags == {"replaces": "1", "replaced_uncompared": "we changed the grid", "rolled_back": ""}
    assert promotions(home)[0]["uncompared"] == "we changed the grid" and rolled == ["live reshaped"]


def test_a_rollout_that_fails_moves_nothing(home: Home, rolled: list[str]) -> None:
    registry = Registry()

    def wrong(name: str, version: str) -> None:
        raise CtmrError("golden inference differs")

    with pytest.raises(CtmrError, match="golden"):
        run(home, registry, prove=wrong)
    assert settled(home, registry, "1") and rolled == []


def test_a_champion_that_another_machine_made_meanwhile_stays(home: Home, rolled: list[str]) -> None:
    registry = Registry()

    def meanwhile(name: str, version: str) -> None:
        registry.champion_ = OTHER

    with pytest.raises(EnvironmentFault, match="compared with version 1, and now version 7 is the champion"):
        run(home, registry, prove=meanwhile)
    assert settled(home, registry, "7") and rolled == ["live", "taken back"]


def test_an_alias_that_another_machine_moves_in_the_same_moment_is_noticed(home: Home, rolled: list[str]) -> None:
    registry = Registry()
    move = registry.alias

    def and_another(name: str, alias: str, version: str) -> None:
        move(name, alias, version)
        registry.champion_ = OTHER

    registry.alias = and_another  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match="points at version 7 after it was moved to version 2"):
        run(home, registry)
    assert settled(home, registry, "7") and rolled == ["live", "taken back"]


@pytest.mark.parametrize("request_", ["tag", "alias"])
def test_an_outage_before_the_alias_moved_changes_nothing(home: Home, rolled: list[str], request_: str) -> None:
    registry = Registry()

    def fault(name: str) -> None:
        if name == request_:
            raise EnvironmentFault("MLflow is down")

    registry.fault = fault
    with pytest.raises(EnvironmentFault, match="down"):
        run(home, registry)
    assert settled(home, registry, "1") and rolled == ["live", "taken back"]


def test_an_answer_that_is_lost_does_not_undo_what_was_done(home: Home, rolled: list[str]) -> None:
    registry = Registry(loses_answers=True)
    run(home, registry)
    assert settled(home, registry, "2", "2") and rolled == ["live"]


@pytest.mark.parametrize("moved", [True, False])
def test_while_the_registry_is_silent_the_journal_waits_and_the_registry_decides_later(
    home: Home, rolled: list[str], moved: bool
) -> None:
    registry, calls = Registry(loses_answers=moved), list[str]()

    def fault(name: str) -> None:
        calls.append(name)
        if "alias" in calls and not (name == "alias" and moved):
            raise EnvironmentFault("MLflow is down")

    registry.fault = fault
    with pytest.raises(EnvironmentFault):
        run(home, registry)
    assert is_unfinished(home)
    registry.fault = lambda name: None
    tracking: Any = registry
    said = recover(home, tracking)
    assert ("finished" if moved else "undone") in said
    assert settled(home, registry, *(["2", "2"] if moved else ["1"]))
    assert recover(home, tracking) == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", "{}", "[" * 100_000, '{"entry": {}, "url": "", "standings": []}', '{"entry": []}'],
)
def test_a_damaged_journal_is_named(home: Home, text: str) -> None:
    home.root.mkdir(exist_ok=True)
    (home.root / "promotion.json").write_text(text)
    with pytest.raises(EnvironmentFault, match=r"promotion\.json is damaged"):
        recover(home)


def test_a_torn_line_of_the_record_hides_no_other(home: Home) -> None:
    home.root.mkdir(exist_ok=True)
    a, b = ({"model": name, "alias": "champion", "version": "1", "digest": "d"} for name in "ab")
    damaged = ['{"mod', "null", "[]", "7", '{"model": "c"}', "[" * 100_000]
    home.promotions.write_text("".join(f"{line}\n" for line in (json.dumps(a), *damaged, json.dumps(b))))
    assert [line["model"] for line in promotions(home)] == ["a", "b"]


def test_the_lock_keeps_two_deployments_apart(home: Home) -> None:
    with registry_lock(home), pytest.raises(EnvironmentFault, match="under way"), registry_lock(home, busy="under way"):
        pass


# A registry that says something else than it did


def test_a_champion_whose_digest_is_not_the_one_that_was_promoted_is_refused(home: Home) -> None:
    home.root.mkdir()
    champion = identity(OLD)
    assert champion is not None
    require_recorded(home, champion)
    lines = [{"model": "tiny", "version": v, "digest": d} for v, d in (("1", "first"), ("2", "new"), ("1", "old"))]
    home.promotions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    require_recorded(home, champion)
    require_recorded(home, {**champion, "version": "3", "digest": "of another machine"})
    with pytest.raises(EnvironmentFault, match=r"calls tiny version 1 the model changed…, and .* promoted as old…"):
        require_recorded(home, {**champion, "digest": "changed"})
