"""The pages of docs/recipes say what the recipes' files hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctmr.recipe.loading import load

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
RECIPES = sorted(p.stem for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if p.stem != "demo")
SETTING = re.compile(r"`([a-z_]+(?:\.[a-z0-9_]+)*) = ([^`]+)`")


def at(tree: dict[str, Any], key: str) -> Any:
    found: Any = tree
    for part in key.split("."):
        assert part in found, f"the recipe has no key {key}"
        found = found[part]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_on_a_recipes_page_is_the_recipes(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    tree = load(name).dump()
    settings = SETTING.findall(page)
    assert len(settings) >= 8
    wrong = {key: (at(tree, key), text) for key, text in settings if at(tree, key) != yaml.safe_load(text)}
    assert not wrong


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_changes_in_networks_and_losses_stands_on_its_page(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    file = yaml.safe_load((Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text())
    shown = {key for key, _ in SETTING.findall(page)}
    for section in ("generator", "discriminator"):
        assert f"network.{section}.kind" in shown or "kind" not in file["network"].get(section, {})
    for key in ("adversarial", "cycle"):
        assert f"loss.{key}" in shown or name == "ctmr"
    assert "train.steps" in shown or name == "ctmr"


def test_every_recipe_has_its_page_and_no_page_lacks_its_recipe() -> None:
    pages = {p.stem for p in PAGES.glob("*.md")} - {"README", "comparisons"}
    assert pages == set(RECIPES)


def test_every_loss_that_a_paper_plots_stands_on_its_page() -> None:
    for name in RECIPES:
        page = (PAGES / f"{name}.md").read_text()
        assert all(f"`{loss}`" in page for loss in load(name).loss.log_as)
