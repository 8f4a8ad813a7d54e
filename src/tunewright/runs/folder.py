"""The run folder: everything about a training lies in it; the command line and the page are views of it.

Files that are replaced (`status.json`, reports) are written aside and renamed, lines (`metrics.jsonl`,
`samples.jsonl`) are appended with one write each, so that a reader never sees half of either, and a kill at any moment
leaves at most one cut last line.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson

from tunewright.config.load import PROVENANCE, load_config
from tunewright.config.schema import RunConfig
from tunewright.config.yaml import read_yaml, to_yaml
from tunewright.errors import UsageError
from tunewright.files import cause, write_atomic
from tunewright.runs.absolute import absolute_paths
from tunewright.runs.checkpoints import step_folders
from tunewright.runs.lines import append_line, keep_lines, read_lines
from tunewright.runs.liveness import why_gone
from tunewright.runs.names import RunNames, is_run
from tunewright.runs.output import check_output

State = Literal["running", "done", "failed", "interrupted"]
LOG_TAIL = 5  # lines of the log shown for a run that died


class RunFolder(RunNames):
    """One run. `create` makes a new folder, `open` takes an existing one; both give the same object."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writing_status = threading.Lock()

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        command: str,
        *,
        template_source: str | None,
        stop_ids: Sequence[int],
        provenance: dict[str, Any],
    ) -> "RunFolder":
        """A new run folder with config, template and stop ids in it; it is a run once all three are there.

        `provenance` comes from `runs.provenance.collect`. File paths in the config are made absolute, so that the run
        can be resumed and repeated from any folder. Raises UsageError as `check_output` does, and where the system
        refuses to write.
        """
        check_output(path)
        values = absolute_paths(config, Path(provenance["model"]["folder"])).model_dump(mode="json")
        values["output"] = str(path.absolute())
        header = (
            f"# The resolved config of this run; `tunewright train {path / 'config.yaml'} output=NEW` repeats it.\n"
        )
        text = header + to_yaml({**values, PROVENANCE: {"command": command, **provenance}})
        run = cls(path)
        contents = {
            run.template_path: (template_source or "").encode(),
            run.stop_json: orjson.dumps({"stop_ids": list(stop_ids)}),
            run.config_path: text.encode(),
        }
        made = not os.path.exists(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for file, content in contents.items():
                write_atomic(file, content)
        except BaseException as error:
            with suppress(OSError):
                for file in contents:
                    file.unlink(missing_ok=True)
                if made:
                    path.rmdir()
            if isinstance(error, OSError):
                raise UsageError(
                    f"output: {path} cannot be written ({cause(error)}); name another folder with output=DIR"
                ) from error
            raise
        return run

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
    def template_source(self) -> str | None:
        """Jinja text of the chat template the run was trained with; None for raw text, which needs none."""
        return self.template_path.read_text(encoding="utf-8") or None

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

    # What grows while training

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
            keep_lines(path, step)

    def checkpoints(self) -> list[Path]:
        """Folders `checkpoints/step-N`, newest first; whether one is sound is for its manifest to say."""
        return list(step_folders(self.checkpoints_path).values())

    # State

    def write_status(self, state: State, step: int, total_steps: int, reason: str | None = None) -> None:
        """Say where the run stands; called at every step."""
        import psutil

        now = time.time()
        with self._writing_status:
            record = {
                "state": state,
                "step": step,
                "total_steps": total_steps,
                "reason": reason,
                "pid": os.getpid(),
                "process_started": psutil.Process().create_time(),
                "host": socket.gethostname(),
                "started": self._read_status().get("started", now),
                "heartbeat": now,
                "ended": None if state == "running" else now,
            }
            write_atomic(self.status_json, orjson.dumps(record), durable=state != "running")

    def beat(self) -> None:
        """Move the heartbeat of a running run: another machine knows by it that the process lives."""
        with self._writing_status:
            record = self._read_status()
            if record.get("state") == "running":
                write_atomic(self.status_json, orjson.dumps(record | {"heartbeat": time.time()}), durable=False)

    def status(self) -> dict[str, Any]:
        """The last written status. `died` when it says running and the process is gone; `new` before there is one."""
        record = self._read_status()
        if not record:
            return {"state": "new", "step": 0, "total_steps": 0, "reason": None}
        if record["state"] == "running" and (reason := why_gone(record)) is not None:
            last = self.log_tail()
            record |= {
                "state": "died",
                "reason": reason + (f"; last in its log:\n{last}" if last else ""),
                "ended": record["heartbeat"],
            }
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
        try:
            record: dict[str, Any] = orjson.loads(self.status_json.read_bytes())
        except FileNotFoundError:
            return {}
        except orjson.JSONDecodeError:
            # Only a power cut leaves it so: it is replaced whole, but while the run goes on not forced to the disk.
            plan = orjson.loads(self.plan_json.read_bytes()) if self.plan_json.exists() else {}
            return {
                "state": "died",
                "step": max((line["step"] for line in self.metrics()), default=0),
                "total_steps": plan.get("steps", 0),
                "reason": f"{self.status_json} is damaged, as a power cut leaves it",
            }
        return record
