"""The names of the files in a run folder; nothing else knows them."""

import os
from pathlib import Path


class RunNames:
    """Where everything of the run in `path` lies or will lie."""

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

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies or will lie."""
        return self.checkpoints_path / f"step-{step}"


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    run = RunNames(path)
    return all(map(os.path.isfile, (run.config_path, run.template_path, run.stop_json)))
