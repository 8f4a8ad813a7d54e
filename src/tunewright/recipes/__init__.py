"""The configs shipped with tunewright, `FAMILY/NAME.yaml`; each opens with the command that runs it."""

from pathlib import Path

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names such as `smollm2-135m-instruct/lora-persona`, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def find_recipe(name: str) -> Path | None:
    """File of a recipe, with or without `.yaml` in its name; None if there is none."""
    name = name.removesuffix(".yaml")
    return FOLDER / f"{name}.yaml" if name in recipe_names() else None


def purpose(path: Path) -> str:
    """What a recipe is for: its second line, below the command that runs it."""
    return path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
