"""`tunewright ls [recipes|models|formats] [--json]`: what can be named in a config."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from tunewright.cli.output import print_json, print_table

FORMATS = {
    "alpaca": "a question and an answer: instruction, input, output, system, history, tools, or any two columns",
    "query-response": "the same as query, response, history (ms-swift)",
    "prompt-completion": "the same as prompt, completion, of text or of messages (TRL)",
    "conversation": "a list of turns in one of the next three forms, told from the rows",
    "openai": 'turns with a speaker: {"messages": [{"role": …, "content": …}, …], "tools": […]}',
    "sharegpt": 'turns with a speaker: {"conversations": [{"from": …, "value": …}, …], "system": …, "tools": …}',
    "xtuner": 'questions with answers: {"conversation": [{"system": …, "input": …, "output": …}, …]}',
    "hh": "a better and a worse answer, each a whole dialog in one text: chosen, rejected",
    "text": "raw text for pre-training (method.stage: pt)",
}
KINDS = "Answers may also be ranked (chosen, rejected), labelled good or bad (label), or left out (prompts alone)."


class Kind(StrEnum):
    recipes = "recipes"
    models = "models"
    formats = "formats"


def ls(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; everything unless named.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List recipes, built-in models and data formats."""
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
    if Kind.formats in kinds:
        print(KINDS)
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


def list_formats() -> list[dict[str, Any]]:
    """Each value that `format` of a data source can have."""
    return [{"format": name, "rows": rows} for name, rows in FORMATS.items()]


LISTINGS = {Kind.recipes: list_recipes, Kind.models: list_models, Kind.formats: list_formats}
