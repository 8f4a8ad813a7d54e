"""The run folder: the one place that knows the names of the files in it, and how each is written and read.

Everything about a training lies in its folder; the command line and the page are views of it. Files that are replaced
(`status.json`, reports) are written aside and renamed, lines (`metrics.jsonl`, `samples.jsonl`) are appended with one
write each, so that a reader never sees half of either, and a kill at any moment leaves at most one cut last line.
"""

import os
import shutil
import socket
import time
from collections.abc import Sequence
from functools import cached_property
from glob import iglob
from pathlib import Path
from typing import Any, Literal

import orjson

from tunewright.config.load import PROVENANCE, load_config
from tunewright.config.schema import RunConfig, SourceConfig
from tunewright.config.yaml import read_yaml, to_yaml
from tunewright.errors import RunError, UsageError
from tunewright.files import write_atomic
from tunewright.runs.checkpoints import step_folders

State = Literal["running", "done", "failed", "interrupted"]
LOG_TAIL = 5  # lines of the log shown for a run that died


class RunFolder:
    """One run. `create` makes a new folder, `open` takes an existing one; both give the same object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.template_path = path / "template.jinja"
        self.stop_json = path / "stop.json"
        self.plan_json = path / "plan.json"
        self.metrics_path = path / "metrics.jsonl"
        self.samples_path = path / "samples.jsonl"
        self.log_path = path / "log.txt"
        self.tensorboard_path = path / "tensorboard"
        self.checkpoints_path = path / "checkpoints"
        self.adapter_path = path / "adapter"
        self.model_path = path / "model"
        self.report_json = path / "report.json"
        self.report_md = path / "report.md"
        self.loss_png = path / "loss.png"
        self.status_json = path / "status.json"

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        command: str,
        *,
        template_source: str,
        stop_ids: Sequence[int],
        provenance: dict[str, Any],
    ) -> "RunFolder":
        """A new run folder with config, template and stop ids in it, complete from the moment it exists.

        `provenance` comes from `runs.provenance.collect`. File paths in the config are made absolute, so that the run
        can be resumed and repeated from any folder. Raises UsageError as `check_output` does.
        """
        check_output(path)
        staged = cls(path.with_name(f".{path.name}.{os.getpid()}.new"))
        staged.path.mkdir(parents=True)
        try:
            values = _absolute_paths(config, Path(provenance["model"]["folder"])).model_dump(mode="json")
            values["output"] = str(path.absolute())
            header = (
                f"# The resolved config of this run; `tunewright train {path / 'config.yaml'} output=NEW` repeats it.\n"
            )
            text = header + to_yaml({**values, PROVENANCE: {"command": command, **provenance}})
            write_atomic(staged.config_path, text.encode())
            write_atomic(staged.template_path, template_source.encode())
            write_atomic(staged.stop_json, orjson.dumps({"stop_ids": list(stop_ids)}))
            if path.exists():
                path.rmdir()  # empty, as check_output made sure; a rename onto a folder is not possible everywhere
            os.rename(staged.path, path)
        except BaseException:
            shutil.rmtree(staged.path, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run; raises UsageError where there is none."""
        run = cls(path)
        if not path.exists():
            raise UsageError(f"there is no run folder {path}; `tunewright runs` lists the runs here")
        if not is_run(path):
            raise UsageError(f"{path} is not a run: it has no config.yaml with template.jinja and stop.json beside it")
        return run

    # What the run was made from

    @cached_property
    def config(self) -> RunConfig:
        """The resolved config."""
        return load_config(self.config_path)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Command, time, versions, data hash and base model of the run."""
        found = read_yaml(self.config_path)[0].get(PROVENANCE)
        if not isinstance(found, dict):
            raise UsageError(f"{self.config_path} has no {PROVENANCE}; it was not written by a run")
        return found

    @property
    def template_source(self) -> str:
        """Jinja text of the chat template the run was trained with."""
        return self.template_path.read_text(encoding="utf-8")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token id that ends an answer."""
        return tuple(orjson.loads(self.stop_json.read_bytes())["stop_ids"])

    @property
    def model_folder(self) -> Path:
        """Folder of the base model as it was resolved; raises UsageError if it is no longer there."""
        folder = Path(self.provenance["model"]["folder"])
        if not folder.is_dir():
            name = self.config.model.name
            raise UsageError(
                f"the base model {name} of run {self.path} is no longer at {folder}; "
                f"`tunewright check {self.config_path}` fetches it again"
            )
        return folder

    # Lines that grow while training

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; numbers may be numpy scalars."""
        append_line(self.metrics_path, record)

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        return read_lines(self.metrics_path)

    def append_sample(self, record: dict[str, Any]) -> None:
        """Add one line to samples.jsonl."""
        append_line(self.samples_path, record)

    def samples(self) -> list[dict[str, Any]]:
        """All whole lines of samples.jsonl."""
        return read_lines(self.samples_path)

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Replace plan.json."""
        write_atomic(self.plan_json, orjson.dumps(plan, option=orjson.OPT_INDENT_2))

    def rewind(self, step: int) -> None:
        """Forget metrics and samples after `step`, before a resumed run writes them again."""
        for path in (self.metrics_path, self.samples_path):
            if path.exists():
                kept = [record for record in read_lines(path) if record.get("step", 0) <= step]
                write_atomic(path, b"".join(_line(record) for record in kept))

    # State

    def write_status(self, state: State, step: int, total_steps: int, reason: str | None = None) -> None:
        """Say where the run stands; called at every step, so that the heartbeat moves."""
        import psutil

        now = time.time()
        before = self._read_status()
        record = {
            "state": state,
            "step": step,
            "total_steps": total_steps,
            "reason": reason,
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "host": socket.gethostname(),
            "started": before.get("started", now),
            "heartbeat": now,
            "ended": None if state == "running" else now,
        }
        write_atomic(self.status_json, orjson.dumps(record), durable=state != "running")

    def status(self) -> dict[str, Any]:
        """The last written status. `died` when it says running and the process is gone; `new` before there is one."""
        record = self._read_status()
        if not record:
            return {"state": "new", "step": 0, "total_steps": 0, "reason": None}
        if record["state"] == "running" and record["host"] == socket.gethostname() and not is_alive(record):
            last = self.log_tail()
            reason = "the process is gone without a word" + (f"; last in its log:\n{last}" if last else "")
            record |= {"state": "died", "reason": reason, "ended": record["heartbeat"]}
        return record

    def log_tail(self, lines: int = LOG_TAIL) -> str:
        """The last lines of log.txt, empty if there are none."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _read_status(self) -> dict[str, Any]:
        if not self.status_json.exists():
            return {}
        record: dict[str, Any] = orjson.loads(self.status_json.read_bytes())
        return record

    # Results

    def checkpoints(self) -> list[Path]:
        """Folders `checkpoints/step-N`, newest first; whether one is sound is for its manifest to say."""
        return list(step_folders(self.checkpoints_path).values())

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies or will lie."""
        return self.checkpoints_path / f"step-{step}"


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    run = RunFolder(path)
    return run.config_path.is_file() and run.template_path.is_file() and run.stop_json.is_file()


def is_alive(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status is still that process: its number may have been given to another."""
    import psutil

    try:
        process = psutil.Process(status["pid"])
        ended = process.status() == psutil.STATUS_ZOMBIE  # over, and its parent has not looked yet
        return not ended and abs(process.create_time() - status["process_started"]) < 2
    except psutil.NoSuchProcess:
        return False


def check_output(path: Path) -> None:
    """Raise UsageError unless a run folder can be created at `path`: it is free, or an empty folder."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"output: {path} is a file; name a folder for the run with output=DIR")
    if is_run(path):
        raise UsageError(
            f"output: {path} already holds a run; name a new folder with output=DIR, "
            f"or go on with that run: tunewright resume {path}"
        )
    names = sorted(entry.name for entry in path.iterdir())
    if names:
        raise UsageError(
            f"output: {path} is not empty (it holds {', '.join(names[:3])}{', …' if len(names) > 3 else ''}); "
            "name a new folder with output=DIR"
        )


def choose_output(config: RunConfig, root: Path = Path("runs")) -> Path:
    """`output` of the config, or the first free of `runs/STEM`, `runs/STEM-2`, … named after the first data file."""
    if config.output is not None:
        return Path(config.output).expanduser()
    first = next((source.path for source in config.data.train), next(iter(config.data.use), "run"))
    return free_folder(root / (Path(first).stem or "run"))


def free_folder(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


# Files


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line with a single write; a line that a kill had cut off is removed first."""
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_line(record))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file, without a cut last one; empty if there is no file. Raises RunError on any other damage."""
    if not path.exists():
        return []
    *whole, _cut = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            records.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise RunError(f"{path}:{number}: this line is damaged: {error}") from error
    return records


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _absolute_paths(config: RunConfig, model_folder: Path) -> RunConfig:
    data, model = config.data, config.model
    changes: dict[str, Any] = {"train": [_absolute_source(source) for source in data.train]}
    if isinstance(data.validation, SourceConfig):
        changes["validation"] = _absolute_source(data.validation)
    if data.template != "auto":
        changes["template"] = _absolute(data.template)
    if data.registry is not None:
        changes["registry"] = _absolute(data.registry)
    # A built-in or hub name stays, even if a folder here happens to be called the same.
    if Path(model.name).suffix == ".gguf" or Path(model.name).absolute() == model_folder.absolute():
        model = model.model_copy(update={"name": _absolute(model.name)})
    return config.model_copy(update={"data": data.model_copy(update=changes), "model": model})


def _absolute_source(source: SourceConfig) -> SourceConfig:
    if source.source != "local":
        return source
    path = Path(source.path).expanduser()
    is_pattern = not path.exists() and any(True for _ in iglob(str(path), recursive=True))
    return source.model_copy(update={"path": str(path.absolute()) if is_pattern else _absolute(source.path)})


def _absolute(name: str) -> str:
    """A path that exists, made absolute."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
