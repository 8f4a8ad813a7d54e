"""What is imported when: nothing heavy before a mistake is told, and for a run nothing that it does not use."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunewright.cli.imports import heavy_imports

HEAVY = ["torch", "transformers.modeling_utils", "peft", "accelerate"]
# Each is imported by something that a run may call, or by an optional part of what it does.
UNUSED = [
    "matplotlib", "tensorboard", "tensorflow", "pandas", "sklearn", "scipy", "datasets", "pyarrow", "openpyxl",
    "bitsandbytes", "IPython",
]  # fmt: skip

RUN_VERB = """
import json, sys
from tunewright.cli.app import main
try:
    main(sys.argv[2:])
except SystemExit as leave:
    print(json.dumps([leave.code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""
IMPORT = """
import importlib, json, sys
importlib.import_module(sys.argv[2])
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def _last_line(script: str, *words: str) -> object:
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "words",
    [
        ["train", "smollm2-135m-instruct/lora-persona", "train.batch_sise=8"],
        ["train", "--model", "smollm2-135m-instruct"],
        ["check", "smollm2-135m-instruct/lora-persona", "method.tuning=lorra"],
        ["resume", "no-such-run"],
        ["chat", "no-such-run", "--base"],
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_imported(words: list[str]) -> None:
    assert _last_line(RUN_VERB, json.dumps(HEAVY), *words) == [2, []]


@pytest.mark.parametrize("module", ["tunewright.engine.start", "tunewright.chat.partner", "tunewright.cli.check"])
def test_nothing_is_imported_that_the_run_does_not_use(module: str) -> None:
    assert _last_line(IMPORT, json.dumps(UNUSED), module) == []


def test_training_needs_what_is_called_heavy() -> None:
    """Else the tests above would pass with names that nobody imports."""
    assert _last_line(IMPORT, json.dumps(HEAVY), "tunewright.engine.start") == HEAVY


def test_heavy_imports_leave_the_collector_as_it_was() -> None:
    frozen = gc.get_freeze_count()
    with heavy_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError(Path(__file__).name)
    assert gc.isenabled()
    gc.disable()
    try:
        with heavy_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
