"""Hyperband over slots: the brackets of the paper, and who is pruned, against Optuna's own pruners."""

import random
from collections import Counter

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Pruner
from ctmr.tuning.hyperband import bracket_of, bracket_sizes, goes_on, rungs
from ctmr.tuning.trial import Slot, SlotState, bracket, report_steps, should_prune

optuna.logging.set_verbosity(optuna.logging.ERROR)


def recipe_of(**tune):
    recipe = Recipe()
    return recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"pruner": Pruner.HYPERBAND, **tune})})


# Brackets


def test_the_brackets_are_those_of_the_papers_table():
    """Table 1 of Li et al. 2018, R = 81 and η = 3: n = 81, 34, 15, 8, 5."""
    assert bracket_sizes(81, 3) == [81, 34, 15, 8, 5]
    assert [rungs(b, 81, 3) for b in range(5)] == [[1, 3, 9, 27], [3, 9, 27], [9, 27], [27], []]


@pytest.mark.parametrize(("reports", "reduction"), [(1, 3), (2, 3), (3, 3), (4, 3), (8, 2), (9, 3), (20, 4), (243, 3)])
def test_the_brackets_are_those_of_optuna(reports, reduction):
    pruner = optuna.pruners.HyperbandPruner(max_resource=reports, reduction_factor=reduction)
    pruner._try_initialization(optuna.create_study())
    if reports != 243:  # log(243, 3) is 4.999… in floating point, and Optuna loses a bracket
        assert bracket_sizes(reports, reduction) == pruner._trial_allocation_budgets
    else:
        assert len(bracket_sizes(reports, reduction)) == 6


@given(reports=st.integers(1, 30), reduction=st.integers(2, 5), slots=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_every_bracket_has_its_share_of_any_first_slots(reports, reduction, slots):
    sizes = bracket_sizes(reports, reduction)
    counts = Counter(bracket_of(number, sizes) for number in range(slots))
    for b, size in enumerate(sizes):
        # The quota rule of a fair seat, within one for each other bracket.
        assert abs(counts[b] - slots * size / sum(sizes)) < max(2, len(sizes) - 1)
    whole = Counter(bracket_of(number, sizes) for number in range(slots, slots + sum(sizes)))
    assert [whole[b] for b in range(len(sizes))] == sizes


def test_nobody_competes_at_the_last_report():
    assert rungs(0, 1, 3) == [] and rungs(0, 3, 3) == [1] and rungs(1, 3, 3) == []


# Who goes on


@pytest.mark.parametrize(
    ("score", "rivals", "expected"),
    [
        (5.0, [], True),
        (5.0, [4.0], False),
        (3.0, [4.0, 9.0, 8.0, 7.0], True),
        (4.0, [3.0, 5.0, 6.0, 7.0, 8.0], True),
        (4.5, [3.0, 4.0, 6.0, 7.0, 8.0], False),
        (3.0, [3.0], True),
    ],
)
def test_the_best_third_goes_on_and_the_best_one_always(score, rivals, expected):
    assert goes_on(score, rivals, 3) is expected


@pytest.mark.parametrize(("reports", "reduction"), [(4, 3), (9, 3), (8, 2), (5, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_one_worker_prunes_what_optunas_successive_halving_prunes(reports, reduction, seed):
    """Optuna keeps rungs in the trials' system attributes; here they follow from the slots."""
    recipe = recipe_of(workers=1, steps=reports, reports=reports, reduction=reduction, trials=40)
    count = len(bracket_sizes(reports, reduction))
    studies = [
        optuna.create_study(
            direction="minimize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=reduction, min_early_stopping_rate=b
            ),
        )
        for b in range(count)
    ]
    rng, slots, stopped_early = random.Random(seed), [], 0
    for number in range(40):
        reference, mine, state = studies[bracket(recipe, number)].ask(), {}, SlotState.COMPLETE
        for step in range(1, reports + 1):
            mine[step] = rng.choice([rng.random(), 0.5])
            reference.report(mine[step], step)
            pruned = should_prune(recipe, number, slots, mine)
            if step < reports:
                assert pruned is reference.should_prune(), (number, step)
            else:
                assert not pruned
            if pruned:
                state = SlotState.PRUNED
                stopped_early += 1
                break
        slots.append(Slot(number, state, {}, mine, mine[max(mine)]))
    assert stopped_early > 5


# Waves


WIDE = recipe_of(workers=3, steps=40, reports=4)


def done(number, score, state=SlotState.COMPLETE):
    return Slot(number, state, {}, {10: score, 20: score, 30: score, 40: score}, score)


def first_bracket(count):
    return [n for n in range(count) if bracket(WIDE, n) == 0]


def test_a_wave_holds_slots_of_both_brackets():
    assert report_steps(WIDE) == [10, 20, 30, 40]
    assert {bracket(WIDE, n) for n in range(3)} == {0, 1}


def test_rivals_are_the_slots_of_earlier_waves_in_the_same_bracket():
    earlier, mine = [done(n, 1.0 + n) for n in range(3)], first_bracket(9)
    slot = next(n for n in mine if n >= 3)
    assert should_prune(WIDE, slot, earlier, {10: 1.5})
    assert not should_prune(WIDE, slot, earlier, {10: 0.5})
    neighbours = [done(n, 0.1) for n in range(3, 6) if n != slot]
    assert not should_prune(WIDE, slot, [*neighbours, *earlier], {10: 0.5})
    others = [done(n, 0.1 if bracket(WIDE, n) else 1.0 + n) for n in range(3)]
    assert not should_prune(WIDE, slot, others, {10: 0.5})


def test_the_first_wave_is_never_pruned_nor_is_anybody_between_rungs():
    earlier = [done(n, 1.0) for n in range(3)]
    late = next(n for n in range(3, 9) if bracket(WIDE, n) == 1)
    assert not any(should_prune(WIDE, n, [], {10: 99.0}) for n in range(3))
    slot = next(n for n in first_bracket(9) if n >= 3)
    assert not should_prune(WIDE, slot, earlier, {10: 0.5, 20: 99.0})
    assert should_prune(WIDE, slot, earlier, {10: 0.5, 20: 0.5, 30: 99.0})
    assert not should_prune(WIDE, slot, earlier, {10: 0.5, 20: 0.5, 30: 0.5, 40: 99.0})
    assert not should_prune(WIDE, late, earlier, {10: 99.0})
    assert should_prune(WIDE, late, earlier, {10: 99.0, 20: 99.0, 30: 99.0})


def test_a_pruned_rival_counts_and_a_failed_one_does_not():
    slot = next(n for n in first_bracket(9) if n >= 3)
    pruned = Slot(0, SlotState.PRUNED, {}, {10: 1.0}, 1.0)
    failed = Slot(0, SlotState.FAILED, {}, {10: 1.0}, None, "its process died")
    assert should_prune(WIDE, slot, [pruned], {10: 1.5})
    assert not should_prune(WIDE, slot, [failed], {10: 1.5})


def test_without_a_pruner_nothing_is_pruned():
    recipe = recipe_of(workers=3, steps=40, reports=4, pruner=Pruner.NONE)
    assert not any(should_prune(recipe, n, [done(k, 1.0) for k in range(3)], {10: 99.0}) for n in range(3, 9))
