"""One rule for the names of runs and models; the served ones lead back to the registered ones."""

from __future__ import annotations

from importlib import resources

import pytest

from ctmr.imaging.volume import Direction
from ctmr.tracking import names
from ctmr.tracking.names import Part


def test_runs_and_models_are_named_by_recipe_and_dataset_unless_the_recipe_names_the_model() -> None:
    assert names.run_name("demo", "phantom") == names.model_name(None, "demo", "phantom") == "demo-phantom"
    assert names.model_name("brain", "demo", "phantom") == "brain"


@pytest.mark.parametrize("model", ["demo-phantom", "brain_mr2ct", "a_ct2mr_b"])
@pytest.mark.parametrize("direction", Direction)
def test_a_served_name_leads_back_to_the_registered_one(model: str, direction: Direction) -> None:
    served = names.served_name(model, direction)
    assert served == f"{model}_{direction.value}" and names.registered_name(served, direction) == model


@pytest.mark.parametrize("part", Part)
def test_a_candidates_three_models_are_known_as_such(part: Part) -> None:
    assert names.is_candidate(names.candidate_name("demo_mr2ct") + part)
    assert not names.is_candidate("demo_mr2ct" + part)


def test_the_program_inside_triton_which_cannot_import_this_knows_the_same_parts() -> None:
    program = resources.files("ctmr.serving").joinpath("backend", "volume", "model.py").read_text(encoding="utf-8")
    assert f'removesuffix("{Part.VOLUME}")' in program and f"{{base}}{Part.RANGE}" in program


def test_a_study_and_its_trials_have_names_that_say_what_they_are() -> None:
    assert (names.study_name("ab12"), names.trial_name(7)) == ("ctmr-tune-ab12", "trial 7")
