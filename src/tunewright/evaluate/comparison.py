"""Several runs side by side: what differs in their configs, and what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from tunewright.evaluate.report import summarise_training
from tunewright.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run. `settings` holds only the config keys that differ between the runs compared, dotted.

    Losses in nats per token, `training_loss` over the last steps; the rates come from the run's report; `seconds` are
    those of training. What a run does not have yet is None.
    """

    path: str
    state: str
    settings: dict[str, Any]
    steps: int | None
    training_loss: float | None
    validation_loss: float | None
    stop_rate: float | None
    loop_rate: float | None
    samples_per_second: float | None
    seconds: float | None
    peak_memory_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_runs(runs: Sequence[RunFolder]) -> list[RunResult]:
    """The results of `runs`, in their order."""
    configs = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs[1:])]
    return [
        _result(run, {key: config.get(key) for key in differing}) for run, config in zip(runs, configs, strict=True)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a list of mappings, such as data.train, is numbered unless it has one entry."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = value[0] if len(value) == 1 else {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or as much of their paths as tells them apart."""
    parts = [path.absolute().parts for path in paths]
    depth = 1
    while len({one[-depth:] for one in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(one[-depth:]) for one in parts]


def _settings(run: RunFolder) -> dict[str, Any]:
    """All config keys that bear on the result, and the data's hash: the same path may have held other rows."""
    config = flatten(run.config.model_dump(mode="json", exclude={"output", "schema_version"}))
    del config["train.forest_tokens"], config["train.recompute"]  # how it is computed, which never changes what
    return {**config, "data sha256": run.provenance["data_sha256"][:12]}


def _result(run: RunFolder, settings: dict[str, Any]) -> RunResult:
    training = summarise_training(run.metrics())
    report = orjson.loads(run.report_json.read_bytes()) if run.report_json.is_file() else {}
    tuned = report.get("tuned", {})
    return RunResult(
        path=str(run.path),
        state=run.status()["state"],
        settings=settings,
        steps=training.get("steps"),
        training_loss=training.get("last_loss"),
        validation_loss=tuned.get("validation_loss", training.get("last_validation_loss")),
        stop_rate=tuned.get("stop_rate"),
        loop_rate=tuned.get("loop_rate"),
        samples_per_second=training.get("samples_per_second"),
        seconds=training.get("seconds"),
        peak_memory_bytes=training.get("peak_memory_bytes"),
    )
