"""`tunewright cp RECIPE FILE`: copy a recipe to a file of your own."""

from pathlib import Path
from typing import Annotated

import typer

from tunewright.errors import UsageError


def cp(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, as `tunewright ls recipes` shows it.")],
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="New file, or a folder to put it in.")],
) -> None:
    """Copy a recipe to a file of your own."""
    source = recipe_file(recipe)
    target = destination / source.name if destination.is_dir() else destination
    # The first line is the command that runs the recipe; in the copy it runs the copy.
    text = source.read_text(encoding="utf-8").replace(recipe.removesuffix(".yaml"), target.as_posix(), 1)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists already, and a copy would overwrite it; name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    print(f"Copied {recipe} to {target}. Next: put your data into it, then")
    print(f"  tunewright check {target}")


def recipe_file(name: str) -> Path:
    """File of a recipe; raises UsageError that names the nearest one."""
    from difflib import get_close_matches

    from tunewright.recipes import find_recipe, recipe_names

    found = find_recipe(name)
    if found is not None:
        return found
    names = recipe_names()
    same_end = [known for known in names if known.split("/")[1] == name.removesuffix(".yaml")]
    near = same_end or get_close_matches(name, names, 1)
    hint = f"did you mean {' or '.join(near)}?" if near else "`tunewright ls recipes` lists them"
    raise UsageError(f"there is no recipe {name!r}; {hint}")
