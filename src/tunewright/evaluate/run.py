"""Evaluate a run, base against tuned, and write its report: `evaluate_run` at the end of training, `tunewright eval`.

With adapters the base model is the same weights with the adapters off; after full tuning it is loaded beside.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared
from tunewright.data.examples import EncodedSet
from tunewright.errors import UsageError
from tunewright.evaluate.evaluation import Evaluation, Material, evaluate_model, gather_material
from tunewright.evaluate.plots import plot_run
from tunewright.evaluate.report import Report, build_report, write_report
from tunewright.runs.checkpoints import step_folders
from tunewright.runs.folder import RunFolder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model = PreTrainedModel | PeftModel

Say = Callable[[str], None]


def evaluate_run(
    run: RunFolder,
    model: "Model",
    tokenizer: "PreTrainedTokenizerBase",
    prepared: Prepared,
    *,
    config: RunConfig | None = None,
    forest_tokens: int | None = None,
    poll: Callable[[], None] = lambda: None,
    say: Say = lambda line: None,
) -> Report:
    """Measure base and tuned on the run's held-out data; write report.json, report.md and loss.png into the run.

    `model` is the tuned model, with its adapters or fully trained; it is left as it was. `config` is the run's own,
    or that with other evaluation settings. `poll` is called between pieces of work and may raise to end it.
    """
    config = config or run.config
    material = gather_material(
        config,
        tokenizer,
        prepared.template,
        prepared.stop_ids,
        prepared.validation,
        prepared.validation_examples,
        prepared.train_examples,
        forest_tokens,
    )
    base, tuned = evaluate_both(run, model, tokenizer, material, poll, say)
    metrics = run.metrics()
    report = build_report(material, base, tuned, run=run_facts(run), data=data_facts(prepared), metrics=metrics)
    write_report(report, run.report_json, run.report_md)
    if metrics:
        plot_run(metrics, run.loss_png)
    return report


def evaluate_both(
    run: RunFolder,
    model: "Model",
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    poll: Callable[[], None] = lambda: None,
    say: Say = lambda line: None,
) -> tuple[Evaluation, Evaluation]:
    """Evaluations of the model that `run` started from and of `model`, on the same material."""
    from peft import PeftModel

    from tunewright.models.load import load_model, on_device

    say(_announce("base model", material))
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base = evaluate_model(model, tokenizer, material, poll)
    else:
        base = evaluate_model(
            on_device(load_model(run.model_folder, model.dtype), model.device), tokenizer, material, poll
        )
    say(_announce("tuned model", material))
    return base, evaluate_model(model, tokenizer, material, poll)


def run_facts(run: RunFolder) -> dict[str, Any]:
    """What the report says about a run's settings; JSON-ready."""
    config, provenance = run.config, run.provenance
    settings: dict[str, Any] = {"learning rate": config.learning_rate, "batch size": config.train.batch_size}
    if config.method.tuning == "lora":
        settings |= {"LoRA rank": config.lora.rank, "alpha": f"{config.lora.alpha:g}"}
    settings |= {"schedule": config.train.schedule, "max length": config.data.max_length, "seed": config.train.seed}
    return {
        "name": run.path.absolute().name,
        "path": str(run.path),
        "model": Path(config.model.name).name if Path(config.model.name).is_absolute() else config.model.name,
        "revision": provenance["model"]["revision"],
        "stage": config.method.stage,
        "tuning": config.method.tuning,
        "settings": settings,
        "versions": provenance["versions"],
        "data_sha256": provenance["data_sha256"],
        "checkpoints": sorted(step_folders(run.checkpoints_path)),
    }


def data_facts(prepared: Prepared) -> dict[str, Any]:
    """What the report says about the data; JSON-ready."""
    return {
        "sources": [Path(source.path).name for source in prepared.loaded.sources],
        "rows": prepared.loaded.rows,
        "dropped": sum(dropped.count for dropped in prepared.dropped),
        "duplicates": prepared.loaded.duplicates,
        "examples": len(prepared.train),
        "validation_examples": len(prepared.validation),
        "tokens": _tokens(prepared.train),
        "supervised_tokens": prepared.train.supervised_tokens,
    }


def require_same_data(run: RunFolder, sha256: str) -> None:
    """Raise UsageError when the run's data files are no longer the ones it was trained on.

    Other data would be split otherwise, and rows the model was trained on would count as held out.
    """
    trained: Mapping[str, Any] = run.provenance
    if trained["data_sha256"] != sha256:
        raise UsageError(
            f"the data files of {run.path} have changed since it was trained, so which rows were held out is no "
            "longer known; put them back, or name data to evaluate on with --data FILE"
        )


def _tokens(data: EncodedSet) -> int:
    return int(data.lengths.sum())


def _announce(name: str, material: Material) -> str:
    work = []
    if len(material.sequences):
        work.append(f"scoring {len(material.sequences):,} held-out sequences")
    if material.questions or material.fixed:
        questions = len(dict.fromkeys([*material.questions, *material.fixed]))
        work.append(f"answering {questions} questions in up to {material.limit} tokens each")
    return f"{name}: {' and '.join(work) or 'nothing to measure'}"
