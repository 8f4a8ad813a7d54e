"""Turn pydantic's errors about a config into sentences: place, dotted key, what is wrong, what to write instead."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tunewright.config.keys import Key, Origins, dotted, leaves, locate, long_key
from tunewright.config.schema import RunConfig

LONGEST_SHOWN = 60  # characters of a text that is not what it should be

# What people write who come from other tools.
SYNONYMS = {
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "warmup_ratio": "train.warmup",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target",
    "target_modules": "lora.target",
    "finetuning_type": "method.tuning",
    "model_name_or_path": "model.name",
    "dataset": "data.train",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "val_size": "data.validation",
    "output_dir": "output",
    "gradient_checkpointing": "train.recompute",
}


def explain(error: ValidationError, origins: Origins, source: str) -> list[str]:
    """One sentence for each mistake; `source` is named where no line is known."""
    sentences: dict[Key, str] = {}
    for details in error.errors():
        union = _union_key(details["loc"])
        if union is not None:
            section, value = _model_at(union), _input_of_union(union, error)
            if section is None or not isinstance(value, dict):
                details |= {"loc": union, "type": "union", "input": value}
            elif details["loc"][len(union)] != section.__name__:
                continue  # a mapping was given: only its keys are worth a word
            else:
                details["loc"] = union + details["loc"][len(union) + 1 :]  # without pydantic's name of the branch
        place, key = _place(details["loc"], origins, source)
        sentences.setdefault(key, f"{place}: {dotted(key)}: {_sentence(details)}")
    return list(sentences.values())


def misplaced_booleans(tree: Mapping[str, Any], origins: Origins, source: str) -> list[str]:
    """Sentences about true or false where a number belongs: pydantic would read them as 1 and 0."""
    sentences = []
    for key, value in leaves(tree):
        types = _types(_annotation(key)[0])
        if isinstance(value, bool) and bool not in types and {int, float} & types:
            place, shown = _place(key, origins, source)
            sentences.append(f"{place}: {dotted(shown)}: must be a number, not true or false")
    return sentences


def _place(key: Key, origins: Origins, source: str) -> tuple[str, Key]:
    """Where a value was given, and its key as it is written there; where only a section was, as the schema has it."""
    own, nearest = origins.get(long_key(key)), locate(key, origins)
    return nearest.place if nearest else source, own.written if own else key


def _sentence(details: Mapping[str, Any]) -> str:
    value, context, loc = details["input"], details.get("ctx", {}), details["loc"]
    shown = _spell(value)
    match details["type"]:
        case "missing":
            description = _field_description(loc)
            return f"is missing: {description}"
        case "extra_forbidden":
            return f"unknown key; {_suggest_key(loc)}"
        case "literal_error":
            allowed = [str(choice) for choice in _choices(loc)]
            near = get_close_matches(str(value), allowed, 1)
            return f"{shown} is not one of {', '.join(allowed)}" + (f"; did you mean {near[0]}?" if near else "")
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"must be a whole number, not {shown}"
        case "float_parsing" | "float_type":
            return f"must be a number, not {shown}"
        case "finite_number":
            return f"must be a finite number, not {shown}"
        case "bool_parsing" | "bool_type":
            return f"must be true or false, not {shown}"
        case "string_type":
            return f"must be text, not {shown}" + ("" if isinstance(value, (dict, list)) else "; put it in quotes")
        case "greater_than":
            return f"must be greater than {_bound(context['gt'])}, not {shown}"
        case "greater_than_equal":
            return f"must be at least {_bound(context['ge'])}, not {shown}"
        case "less_than":
            return f"must be less than {_bound(context['lt'])}, not {shown}"
        case "less_than_equal":
            return f"must be at most {_bound(context['le'])}, not {shown}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "list_type":
            return f"must be a list, not {shown}; write [a, b]"
        case "model_type" | "dict_type" | "model_attributes_type":
            model = _model_at(loc)
            keys = f" with keys out of {', '.join(model.model_fields)}" if model else ""
            return f"must be a mapping{keys}, not {shown}"
        case "value_error":
            return f"{context['error']}, not {shown}"
        case "union":
            return f"cannot be {shown}: {_field_description(loc)}"
        case _:
            return f"{details['msg']}, not {shown}"


def _bound(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spell(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}…")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else str(value)


def _suggest_key(loc: Key) -> str:
    name = str(loc[-1]).lower().replace("-", "_")
    model = _model_at(loc[:-1]) or RunConfig
    here = list(model.model_fields)
    if name in here:
        return f"did you mean {name}?"
    if name in SYNONYMS:
        return f"did you mean {SYNONYMS[name]}?"
    elsewhere = {known.split(".")[-1]: known for known in reversed(list(_all_keys(RunConfig)))}
    if name in elsewhere:
        return f"did you mean {elsewhere[name]}?"
    if near := get_close_matches(name, here, 1):
        return f"did you mean {near[0]}?"
    if near := get_close_matches(name, elsewhere, 1, cutoff=0.75):
        return f"did you mean {elsewhere[near[0]]}?"
    return f"known keys here are {', '.join(here)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for child in _models_in(field.annotation):
            yield from _all_keys(child, f"{prefix}{name}.")


# Walking the schema along an error's location, whose parts are keys, list indexes and names of union branches.


def _model_at(loc: Key) -> type[BaseModel] | None:
    """The section that lies at a location, None where it holds a plain value."""
    model: type[BaseModel] | None = RunConfig
    for part in loc:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), None)
    return model


def _annotation(loc: Key) -> tuple[Any, str]:
    """Annotation and description of the last field that a location passes."""
    model: type[BaseModel] | None = RunConfig
    annotation: Any = RunConfig
    description = ""
    for part in loc:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            field = model.model_fields[part]
            annotation, description = field.annotation, field.description or ""
            model = next(_models_in(annotation), None)
    return annotation, description


def _field_description(loc: Key) -> str:
    return _annotation(loc)[1]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _choices(loc: Key) -> Iterator[Any]:
    for annotation in _types(_annotation(loc)[0]):
        if get_origin(annotation) is Literal:
            yield from get_args(annotation)


def _types(annotation: Any) -> set[Any]:
    """The types that a union or an annotated type stands for."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for inner in get_args(annotation) for kind in _types(inner)}
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    return {annotation}


def _union_key(loc: Key) -> Key | None:
    """The field of several types that a location passes, None where there is none: pydantic tells of each branch."""
    for end in range(1, len(loc)):
        part = loc[end]
        model = _model_at(loc[: end - 1])
        if model is not None and loc[end - 1] in model.model_fields and isinstance(part, str):
            below = _model_at(loc[:end])
            if below is None or part not in below.model_fields:
                annotation = model.model_fields[str(loc[end - 1])].annotation
                if get_origin(annotation) in (Union, UnionType):
                    return loc[:end]
    return None


def _input_of_union(union: Key, error: ValidationError) -> Any:
    """What the user gave for the whole field, taken from a branch that refused it at once."""
    whole = [details for details in error.errors() if details["loc"][: len(union)] == union]
    direct = [details["input"] for details in whole if len(details["loc"]) == len(union) + 1]
    return direct[0] if direct else {}
