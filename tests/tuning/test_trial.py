"""What a slot of the study tries, and when it is pruned: functions of recipe, slot and earlier waves alone."""

import math
import random
from dataclasses import replace

import pytest

from ctmr.errors import InputError
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Choice, Integers, LogUniform, Pruner, Sampler, Uniform
from ctmr.tuning.trial import Slot, SlotState, propose, report_steps, should_prune, trial_recipe

LR, CYCLE = "train.lr_generator", "loss.cycle"
WAVE = 3
SPACE = {LR: LogUniform(low=1e-4, high=1e-2), CYCLE: Uniform(low=0.0, high=10.0)}


def recipe_of(**tune):
    recipe = Recipe()
    section = recipe.tune.model_copy(update={"space": SPACE, "workers": WAVE, **tune})
    return recipe.model_copy(update={"tune": section})


def done(number, lr, cycle, reports, state=SlotState.COMPLETE):
    return Slot(number, state, {LR: lr, CYCLE: cycle}, reports, reports[max(reports)])


def history(count):
    """Slots that tried random values; the score is the distance to lr 1e-3 and cycle 2."""
    rng = random.Random(0)
    slots = []
    for number in range(count):
        lr, cycle = 10 ** rng.uniform(-4, -2), rng.uniform(0, 10)
        slots.append(done(number, lr, cycle, {5: 2.0, 10: abs(math.log10(lr) + 3) + abs(cycle - 2)}))
    return slots


# Parameters


def test_the_first_slot_is_the_recipe_itself():
    recipe = override(recipe_of(), [(LR, 3e-4), (CYCLE, 2.5)])
    assert propose(recipe, 0, []) == {LR: 3e-4, CYCLE: 2.5}


def test_a_proposal_lies_in_the_search_range_and_differs_within_a_wave_and_between_seeds():
    proposals = [propose(recipe_of(), number, history(30)) for number in range(30, 33)]
    proposals += [propose(recipe_of(seed=seed), 30, history(30)) for seed in (1, -1, 10**12)]
    assert all(1e-4 <= p[LR] <= 1e-2 and 0 <= p[CYCLE] <= 10 for p in proposals)
    assert len({(p[LR], p[CYCLE]) for p in proposals}) == 6


@pytest.mark.parametrize("count", [3, 30])
def test_a_proposal_does_not_depend_on_its_own_wave_nor_on_the_order_of_slots(count):
    known = history(count)
    expected = propose(recipe_of(), count + 1, known)
    neighbours = [done(count, 5e-3, 9.0, {10: 0.001}), done(count + 2, 5e-3, 9.0, {10: 0.001})]
    assert propose(recipe_of(), count + 1, [*known, *neighbours]) == expected
    shuffled = [*neighbours, *known]
    random.Random(1).shuffle(shuffled)
    assert propose(recipe_of(), count + 1, shuffled) == expected


def test_proposals_learn_from_earlier_waves():
    learned = [propose(recipe_of(seed=seed), 60, history(60)) for seed in range(20)]
    ignorant = [propose(recipe_of(seed=seed), 3, history(3)) for seed in range(20)]

    def distance(proposals):
        return sum(abs(math.log10(p[LR]) + 3) + abs(p[CYCLE] - 2) for p in proposals) / len(proposals)

    assert distance(learned) < 0.6 * distance(ignorant)


def test_a_failed_slot_teaches_nothing():
    known = history(30)
    failed = [*known[:29], Slot(29, SlotState.FAILED, known[29].params, {5: 2.0}, None, "its process died")]
    assert propose(recipe_of(), 30, failed) == propose(recipe_of(), 30, known[:29])


def test_a_recipe_whose_own_value_lies_outside_the_search_range_can_be_tuned():
    space = {LR: SPACE[LR], "network.generator.blocks": Choice(values=(4, 5))}
    recipe = override(recipe_of(space=space), [("network.generator.blocks", 6), (LR, 0.5)])
    first = propose(recipe, 0, [])
    assert first == {LR: 0.5, "network.generator.blocks": 6}
    later = propose(recipe, 3, [Slot(0, SlotState.COMPLETE, first, {10: 1.0}, 1.0)])
    assert 1e-4 <= later[LR] <= 1e-2 and later["network.generator.blocks"] in (4, 5)


def test_whole_numbers_names_and_flags_are_searched_and_keep_their_types():
    space = {
        "network.generator.kind": Choice(values=("resnet", "unet")),
        "network.generator.blocks": Integers(low=1, high=3),
        "train.pool": Integers(low=0, high=50, step=25),
        "train.discriminator_every": Integers(low=1, high=8, log=True),
        "train.flip": Choice(values=(True, False)),
        "train.rotation_deg": Uniform(low=0.0, high=15.0),
    }
    recipe = override(recipe_of(space=space), [("network.generator.blocks", 3)])
    proposals = [propose(recipe, 0, [])]
    for number in range(1, 40):
        slots = [Slot(n, SlotState.COMPLETE, p, {10: float(n % 7)}, float(n % 7)) for n, p in enumerate(proposals)]
        proposals.append(propose(recipe, number, slots))
    assert {p["network.generator.kind"] for p in proposals} == {"resnet", "unet"}
    assert {p["network.generator.blocks"] for p in proposals} == {1, 2, 3}
    assert {p["train.pool"] for p in proposals} == {0, 25, 50}
    assert {p["train.flip"] for p in proposals} == {True, False}
    assert all(type(p["train.discriminator_every"]) is int for p in proposals)
    trained = trial_recipe(recipe, proposals[-1])
    assert trained.train.rotation_deg == proposals[-1]["train.rotation_deg"]
    assert trained.network.generator.kind == proposals[-1]["network.generator.kind"]


def test_a_combination_that_contradicts_itself_is_one_sentence():
    keys = ("train.generator_every", "train.discriminator_every")
    with pytest.raises(InputError, match=r"^tune.space: train: one of generator_every and disc.* must be 1"):
        trial_recipe(recipe_of(), dict.fromkeys(keys, 2))


def test_proposals_that_contradict_themselves_are_drawn_again_and_in_the_end_fail_by_name():
    ratios = {f"train.{who}_every": Choice(values=(1, 2)) for who in ("generator", "discriminator")}
    proposals = [propose(recipe_of(space=ratios), number, []) for number in range(40)]
    assert {tuple(p.values()) for p in proposals} == {(1, 1), (1, 2), (2, 1)}
    assert proposals == [propose(recipe_of(space=ratios), number, []) for number in range(40)]
    hopeless = recipe_of(space={key: Choice(values=(2, 3)) for key in ratios})
    with pytest.raises(InputError, match="must be 1"):
        trial_recipe(hopeless, propose(hopeless, 1, []))


def test_random_proposals_ignore_what_is_known():
    recipe = recipe_of(sampler=Sampler.RANDOM)
    assert propose(recipe, 30, history(30)) == propose(recipe, 30, [])
    assert propose(recipe_of(), 30, history(30)) != propose(recipe_of(), 30, [])


@pytest.mark.parametrize(("steps", "reports"), [(400, 3), (7, 4), (1000, 7), (43, 3), (43, 6)])
def test_a_trial_trains_on_its_subset_until_its_first_report(steps, reports):
    recipe = recipe_of(steps=steps, reports=reports, subset_images=20)
    trained = trial_recipe(recipe, {}).train
    first = report_steps(recipe)[0]
    on_subset = [step < trained.subset_fraction * trained.steps for step in range(steps)]
    assert trained.subset_images == 20 and on_subset == [step < first for step in range(steps)]
    assert trial_recipe(recipe_of(steps=steps), {}).train.subset_images == 0


def test_more_reports_than_steps_are_as_many_as_there_are_steps():
    assert report_steps(recipe_of(steps=2, reports=4)) == [1, 2]
    assert report_steps(recipe_of(steps=400, reports=3)) == [133, 266, 400]


def test_a_trial_trains_its_parameters_within_its_budget():
    recipe = trial_recipe(recipe_of(steps=7, threads=1), {LR: 5e-4, CYCLE: 3.0})
    assert (recipe.train.lr_generator, recipe.loss.cycle) == (5e-4, 3.0)
    assert (recipe.train.steps, recipe.train.threads) == (7, 1)


# The median rule. Three complete slots have reported 1, 2 and 6 at step 5: median 2.

MEDIAN = recipe_of(pruner=Pruner.MEDIAN)


@pytest.fixture
def three():
    return [done(k, 1e-3, 1.0, {5: first, 10: 0.5}) for k, first in enumerate((1.0, 2.0, 6.0))]


@pytest.mark.parametrize(("report", "pruned"), [(1.9, False), (2.0, False), (2.1, True), (6.1, True)])
def test_a_trial_worse_than_the_median_of_earlier_waves_is_pruned(three, report, pruned):
    assert should_prune(MEDIAN, 3, three, {5: report}) is pruned


def test_the_best_of_a_trials_reports_counts(three):
    assert not should_prune(MEDIAN, 3, three, {5: 0.4, 10: 0.6})
    assert should_prune(MEDIAN, 3, three, {5: 0.6, 10: 0.7})


def test_nothing_is_pruned_by_its_own_wave_or_before_a_wave_is_complete(three):
    neighbours = [done(k, 1e-3, 1.0, {5: 0.1, 10: 0.1}) for k in (3, 4)]
    assert not should_prune(MEDIAN, 5, [*three, *neighbours], {5: 1.5})
    assert should_prune(MEDIAN, 6, [*three, *neighbours], {5: 1.5})
    assert not should_prune(MEDIAN, 2, three, {5: 100.0})
    assert not should_prune(MEDIAN, 3, three[:2], {5: 100.0})
    pruned = [*three[:2], replace(three[2], state=SlotState.PRUNED)]
    assert not should_prune(MEDIAN, 3, pruned, {5: 100.0})
    assert not should_prune(MEDIAN, 3, three, {})
