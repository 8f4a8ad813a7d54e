"""The one config model: every key of a RUN.yaml, with its help sentence beside it.

The config page of the docs and the JSON schema derive from the descriptions here.
`config/load.py` reads a file and overrides into it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def long_data(value: Any) -> Any:
    """`data` with its short forms written out: FILE, a list of files, and the keys of one source beside the others."""
    if isinstance(value, (str, list)):
        value = {"train": value}
    if not isinstance(value, dict):
        return value
    long = dict(value)
    if "train" not in long and "path" in long:
        long["train"] = {key: long.pop(key) for key in SourceConfig.model_fields if key in long}
    elif "train" not in long and "registry" in long:
        long["train"] = []
    if "train" in long:
        sources = long["train"] if isinstance(long["train"], list) else [long["train"]]
        long["train"] = [_long_source(source) for source in sources]
    if "validation" in long:
        long["validation"] = _long_source(long["validation"])
    return long


def _long_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """Which model to start from; a plain string in YAML means `{name: …}`."""

    name: str = Field(description="Hub id, local folder, GGUF file, or a built-in name (see `tunewright ls models`).")
    source: Literal["auto", "huggingface", "local"] = Field(
        "auto", description="Where to look for the name; auto tries built-in, then local, then Hugging Face."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; recorded in the run.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Type of the frozen weights and of the arithmetic; auto is bfloat16 where that is fast.",
    )


class ColumnsConfig(Section):
    """Names of the columns that hold each part of an example; unset ones are guessed and shown."""

    prompt: str | None = Field(None, description="Column with the question or instruction.")
    query: str | None = Field(None, description="Column with further input, added below the prompt.")
    response: str | None = Field(None, description="Column with the answer.")
    system: str | None = Field(None, description="Column with the system prompt of the row.")
    history: str | None = Field(None, description="Column with earlier turns as [[question, answer], …].")
    messages: str | None = Field(None, description="Column with the turns of a multi-turn dialog.")
    tools: str | None = Field(None, description="Column with the tools the assistant may call, a JSON list.")
    chosen: str | None = Field(None, description="Column with the better answer.")
    rejected: str | None = Field(None, description="Column with the worse answer.")
    label: str | None = Field(None, description="Column that says whether the answer is good, true or false.")
    text: str | None = Field(None, description="Column with raw text, for pre-training.")


class TagsConfig(Section):
    """Keys and names inside the turns of a dialog; unset ones are those in common use."""

    role_tag: str | None = Field(None, description="Key of who speaks, such as from or role.")
    content_tag: str | None = Field(None, description="Key of what is said, such as value or content.")
    user_tag: str | None = Field(None, description="Name of the user, such as human.")
    assistant_tag: str | None = Field(None, description="Name of the assistant, such as gpt.")
    observation_tag: str | None = Field(None, description="Name of a tool that answers, such as observation.")
    function_tag: str | None = Field(None, description="Name of the assistant where it calls a tool: function_call.")
    system_tag: str | None = Field(None, description="Name of the system prompt's turn, such as system.")


class SourceConfig(Section):
    """Data of one kind: a file, a folder, a pattern, or a data set on a hub; a string in YAML means `{path: …}`."""

    path: str = Field(
        min_length=1,
        description="JSON, JSONL, CSV, TSV, Excel, Parquet, Arrow, .txt or .md file (text also .gz or .zst), a folder "
        "or pattern of these, or a hub id.",
    )
    source: Literal["local", "huggingface", "modelscope"] = Field(
        "local", description="Where the path leads: to files here, or to a data set on a hub."
    )
    subset: str | None = Field(None, description="Subset of a data set; its default one unless named.")
    split: str | None = Field(
        None, description="Split of a data set or folder, or several as train+test; train unless named."
    )
    folder: str | None = Field(
        None, description="Read only this folder or file, or files like this pattern, of a data set."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a data set on a hub.")
    format: Literal[
        "auto",
        "alpaca",
        "query-response",
        "prompt-completion",
        "conversation",
        "sharegpt",
        "openai",
        "xtuner",
        "hh",
        "text",
    ] = Field(
        "auto", description="Form of the rows (`tunewright ls formats`); auto looks at them and shows what it is."
    )
    kind: Literal["auto", "dialog", "preference", "labelled", "prompt", "text"] = Field(
        "auto", description="What a row is: answered, ranked, labelled good or bad, a prompt alone, or raw text."
    )
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig, description="Column names, where the guess is wrong.")
    tags: TagsConfig = Field(default_factory=TagsConfig, description="Keys of turns, where the guess is wrong.")
    guess: bool = Field(
        True,
        description="Look for columns that are not named; false reads the named ones only, or the form's own if none.",
    )
    sheet: str | None = Field(None, description="Excel sheet to read; the first one unless named.")
    encoding: str | None = Field(
        None, description="Text encoding such as big5; UTF-8 unless declared, or plainly GB18030 (GBK)."
    )
    delimiter: Literal["auto", "comma", "semicolon", "tab", "bar"] = Field(
        "auto", description="What separates the columns of a CSV file; auto looks at its first rows."
    )
    max_samples: Annotated[int, Field(gt=0)] | None = Field(None, description="Read at most this many rows.")
    weight: float = Field(
        1.0, gt=0, description="Share of its examples in each epoch: 0.5 takes half of them by turns, 2 each one twice."
    )
    num_samples: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Train on this many of its examples, drawn once by the seed; repeated where there are fewer."
    )


class DataConfig(Section):
    """What to learn from."""

    registry: str | None = Field(
        None, description="LLaMA-Factory's dataset_info.json, its folder, REMOTE:org/repo, or ONLINE for hub ids."
    )
    use: list[str] = Field(default_factory=list, description="Sets of the registry to train on, besides data.train.")
    hub: Literal["auto", "huggingface", "modelscope"] = Field(
        "auto", description="Which hub a set of the registry comes from; auto follows USE_MODELSCOPE_HUB."
    )
    train: list[SourceConfig] = Field(description="A path, a list of paths, or mappings.")
    validation: float | int | SourceConfig | None = Field(
        0.02, description="Held-out examples: a share below 1, a count, a file of their own, or null for none."
    )
    system: str | None = Field(
        None, description="System prompt where a row has none; also used by chat, evaluation and export afterwards."
    )
    template: str = Field(
        "auto",
        description="How dialogs are written: auto is the tokenizer's own chat template, or the one that fits the "
        "model's name; otherwise a name from `tunewright ls templates`, or the path of a Jinja file.",
    )
    reasoning: Literal["train", "strip"] = Field(
        "train",
        description="What a thinking model wrote before its answers: train on it, or strip it and switch thinking off, "
        "afterwards too.",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest sequence in tokens; what becomes of longer examples is too_long's to say."
    )
    too_long: Literal["keep_oldest", "keep_newest", "drop"] = Field(
        "keep_oldest",
        description="Dialogs beyond max_length are cut between turns, keeping the oldest or the newest that fit, or "
        "dropped; answers are never cut. All are counted.",
    )
    drop_bad_rows: bool = Field(False, description="Go on although more than a tenth of the rows must be left out.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return long_data(value)

    @field_validator("train")
    @classmethod
    def _train_something(cls, value: list[SourceConfig], info: ValidationInfo) -> list[SourceConfig]:
        if not value and info.data.get("registry") is None:
            raise ValueError("must not be empty")
        return value

    @field_validator("template")
    @classmethod
    def _template_name(cls, value: str) -> str:
        if any(mark in value for mark in ("{{", "{%", "\n")):
            raise ValueError("must be a name or the path of a file with the Jinja text")
        return value

    @field_validator("validation")
    @classmethod
    def _validation_size(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0 <= value < 1 and not value.is_integer():
            raise ValueError("a share must lie between 0 and 1, a count must be a whole number")
        if isinstance(value, (int, float)) and value < 0:
            raise ValueError("must not be negative")
        return value


class MethodConfig(Section):
    """What is minimised and what is trained."""

    stage: Literal["pt", "sft"] = Field("sft", description="pt continues pre-training on raw text, sft learns answers.")
    tuning: Literal["full", "lora"] = Field(
        "lora",
        description="full trains every weight that text passes through, lora small adapters beside frozen ones.",
    )


class LoraConfig(Section):
    """Adapters (LoRA, arXiv 2106.09685); used when method.tuning is lora."""

    rank: int = Field(8, ge=1, description="Rank of the adapters: how much they can hold.")
    alpha: float = Field(16, gt=0, description="Adapters are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of adapter inputs dropped while training.")
    target: str | list[str] = Field("all-linear", description="all-linear, or names of the linear layers to adapt.")


class TrainConfig(Section):
    """How training runs."""

    batch_size: int = Field(16, ge=1, description="Examples per optimizer step, over all devices.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training examples.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Train for this many steps, whatever epochs says."
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate; null takes 2e-4 for lora and 2e-5 for full."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="How the rate falls after warm-up.")
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of the steps over which the rate rises from zero.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    seed: int = Field(
        42, ge=0, le=2**63 - 1, description="Decides split, order, which examples are drawn, adapters and dropout."
    )
    save_steps: int = Field(100, ge=1, description="Write a checkpoint every so many steps.")
    keep_checkpoints: int = Field(3, ge=1, description="How many checkpoints to keep; the newest survive.")
    evaluate_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Validation loss and samples every so many steps; null follows save_steps."
    )
    forest_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Distinct tokens computed at once; null lets the memory plan choose. Never changes the result.",
    )
    recompute: Literal["auto", "off", "full"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="How many decoder layers, from the first, are computed again in the backward to save memory "
        "(activation checkpointing): a number, off, full, or auto for the quickest that fits, which is none where all "
        "fits. Never changes the result.",
    )


class SamplesConfig(Section):
    """Answers printed before, during and after training."""

    prompts: list[str] | None = Field(None, description="Fixed questions; null takes three from the data.")
    max_new_tokens: int = Field(96, ge=1, description="Length limit of a sample answer.")


class EvaluateConfig(Section):
    """The report at the end."""

    at_end: bool = Field(True, description="Compare base and tuned when training is done.")
    prompts: int = Field(32, ge=1, description="How many held-out questions are answered for stop and loop rate.")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answer limit there; null takes four times the 99th percentile of reference lengths."
    )


class ChatConfig(Section):
    """How chat samples; kept with the run and used after export."""

    temperature: float = Field(0.7, ge=0, description="0 always takes the likeliest token.")
    top_p: float = Field(0.9, gt=0, le=1, description="Sample among the likeliest tokens of this total probability.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer in tokens.")


class RunConfig(Section):
    """Everything about one training."""

    schema_version: Literal[1] = Field(1, description="Version of this file's form.")
    model: ModelConfig = Field(description="The model to start from.")
    data: DataConfig = Field(description="What to learn from.")
    method: MethodConfig = Field(default_factory=MethodConfig, description="What is minimised and what is trained.")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="Adapter settings.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="How training runs.")
    samples: SamplesConfig = Field(default_factory=SamplesConfig, description="Answers shown along the way.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="The report at the end.")
    chat: ChatConfig = Field(default_factory=ChatConfig, description="Sampling in chat.")
    output: str | None = Field(None, description="Run folder; null makes one under runs/ named after the data.")

    @field_validator("model", mode="before")
    @classmethod
    def _model_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, resolved from the tuning where the config leaves it open."""
        if self.train.learning_rate is not None:
            return self.train.learning_rate
        return 2e-4 if self.method.tuning == "lora" else 2e-5

    @property
    def evaluate_steps(self) -> int:
        """Steps between validation passes."""
        return self.train.evaluate_steps or self.train.save_steps
