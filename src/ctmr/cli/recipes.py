"""`ctmr recipe`: the recipes by name, and one of them in full."""

from __future__ import annotations

from typing import Annotated

import typer

from ctmr.cli.options import Settings

app = typer.Typer(help="The recipes: one typed tree of settings each.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """The recipes by name."""
    from ctmr.recipe.loading import load, recipe_names

    for name in recipe_names():
        print(f"{name:<16}{load(name).description or 'every field at its default'}")


@app.command()
def resolve(
    name: Annotated[str, typer.Argument(help="Recipe by name, or a YAML file.")], settings: Settings = None
) -> None:
    """Print a recipe in full, every default filled in."""
    from ctmr.recipe.loading import load, render

    print(render(load(name, settings or [])), end="")
