"""`tunewright export` and its options, as a user calls it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Command
from tests.folders import tiny_folder, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("export")
    return str(tiny_run(root / "run", tiny_folder(root / "model")).path)


def test_size_and_type_of_the_written_files(tunewright: Command, run: str, tmp_path: Path) -> None:
    done = tunewright("export", run, str(tmp_path / "out"), "--max-shard-size", "20KB", "--dtype", "float32")
    assert done.code == 0, done.err
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {torch.float32}


def test_by_default_one_file_of_the_type_of_the_base(tunewright: Command, run: str, tmp_path: Path) -> None:
    assert tunewright("export", run, str(tmp_path / "out")).code == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter-only", "--dtype", "float32"], "--dtype: --adapter-only writes the adapter as it is"),
        (["--adapter-only", "--max-shard-size", "1GB"], "--max-shard-size: --adapter-only writes the adapter as it is"),
        (["--max-shard-size", "big"], "--max-shard-size: 'big' is no size; write it as 500MB or 2GB"),
    ],
)
def test_options_that_cannot_hold_are_refused(
    tunewright: Command, run: str, tmp_path: Path, words: list[str], message: str
) -> None:
    done = tunewright("export", run, str(tmp_path / "out"), *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()
