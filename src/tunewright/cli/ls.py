"""`tunewright ls [recipes|models|templates|formats] [--json]`: what can be named in a config."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from tunewright.cli.output import print_json, print_table

FORMATS = {
    "alpaca": "a question and an answer per row: instruction, input, output, system, history, or any two columns",
    "conversation": 'several turns per row: {"conversation": [{"system": …, "input": …, "output": …}, …]}',
    "text": "raw text for pre-training (method.stage: pt)",
}


class Kind(StrEnum):
    recipes = "recipes"
    models = "models"
    templates = "templates"
    formats = "formats"


def ls(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; everything unless named.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List recipes, built-in models, chat templates and data formats."""
    kinds = [kind] if kind else list(Kind)
    listing = {each.value: LISTINGS[each]() for each in kinds}
    if as_json:
        print_json(listing[kind] if kind else listing)
        return
    for each in kinds:
        if kind is None:
            print(f"{each}:")
        rows = [list(map(str, entry.values())) for entry in listing[each]]
        print_table(list(listing[each][0]), rows, indent="" if kind else "  ")
        if kind is None:
            print()
    if Kind.recipes in kinds:
        print("Copy a recipe and make it yours: tunewright cp RECIPE FILE")


def list_recipes() -> list[dict[str, Any]]:
    """Name and purpose of each shipped recipe."""
    from tunewright.recipes import FOLDER, purpose, recipe_names

    return [{"recipe": name, "purpose": purpose(FOLDER / f"{name}.yaml")} for name in recipe_names()]


def list_models() -> list[dict[str, Any]]:
    """Name, licence, download size and title of each built-in model."""
    from tunewright.models.builtin import BUILTIN

    return [
        {"model": name, "licence": model.licence, "download": f"{model.bytes / 1e6:.0f} MB", "title": model.title}
        for name, model in BUILTIN.items()
    ]


def list_templates() -> list[dict[str, Any]]:
    """Each name that `data.template` can have, with one dialog as it writes it; `stop` ends an answer."""
    from tunewright.data.template_table import table

    return [
        {
            "template": name,
            "about": entry.about,
            "stop": entry.stop.replace("{eos}", "end of text"),
            "example": entry.example.replace("\n", "⏎"),
        }
        for name, entry in table().items()
    ]


def list_formats() -> list[dict[str, Any]]:
    """Each value that `format` of a data source can have."""
    return [{"format": name, "rows": rows} for name, rows in FORMATS.items()]


LISTINGS = {
    Kind.recipes: list_recipes,
    Kind.models: list_models,
    Kind.templates: list_templates,
    Kind.formats: list_formats,
}
