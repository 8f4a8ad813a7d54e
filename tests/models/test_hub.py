"""huggingface_hub's real code against a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.folders import tiny_folder
from tests.models.fake_hub import COMMIT, FakeHub, serve

FETCH = """
import json, sys
from tunewright.errors import TunewrightError
from tunewright.models.hub import hub_folder
said = []
try:
    folder, commit = hub_folder(sys.argv[1], sys.argv[2] or None, said.append)
    print(json.dumps({"path": str(folder), "revision": commit, "said": said}))
except TunewrightError as error:
    print(json.dumps({"error": str(error), "code": error.exit_code}))
"""
CHUNK = 10 * 1024 * 1024  # huggingface_hub writes a download in pieces of this size


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    model = tiny_folder(tmp_path_factory.mktemp("hub") / "model")
    shutil.copy(model / "config.json", model / "pytorch_model.bin")
    denied = {"me/gated": (403, "GatedRepo"), "me/private": (401, "RepoNotFound")}
    with serve(FakeHub({"me/tiny": model}, denied)) as running:
        yield running


def fetch(url: str, home: Path, name: str, revision: str = "", **variables: str) -> dict[str, object]:
    # A proxy or token of the machine has no business here.
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and key[:3] != "HF_"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name, revision],
        env={**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_downloads_safetensors_only_and_falls_back_to_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    first = fetch(hub.url, tmp_path, "me/tiny")
    assert first["revision"] == COMMIT
    names = {path.name for path in Path(str(first["path"])).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "pytorch_model.bin" not in names

    offline = fetch(hub.url, tmp_path, "me/tiny", HF_HUB_OFFLINE="1")
    assert offline["path"] == first["path"]
    assert "HF_HUB_OFFLINE" in str(offline["said"])
    away = fetch("http://127.0.0.1:9", tmp_path, "me/tiny")
    assert away["path"] == first["path"]
    nothing = fetch("http://127.0.0.1:9", tmp_path / "empty", "me/tiny")
    assert "cannot be reached and there is no complete copy" in str(nothing["error"])
    assert nothing["code"] == 1


def test_refusals_say_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    for name, revision, words in (
        ("me/gated", "", "accept its terms"),
        ("me/private", "", "not found"),
        ("me/none", "", "not found"),
        ("me/tiny", "v9", "no such branch"),
    ):
        result = fetch(hub.url, tmp_path, name, revision)
        assert words in str(result["error"])
        assert result["code"] == 2


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    content = os.urandom(25_000_000)
    (model / "model.safetensors").write_bytes(content)
    with serve(FakeHub({"me/tiny": model}, break_at=CHUNK + 2_000_000)) as hub:
        folder = Path(str(fetch(hub.url, tmp_path / "home", "me/tiny")["path"]))
        again = fetch(hub.url, tmp_path / "home", "me/tiny")
        asked = [line for line in hub.requests if line.startswith("GET") and "model.safetensors" in line]
    assert again["path"] == str(folder)
    assert (folder / "model.safetensors").read_bytes() == content
    assert len(asked) == 2
    assert asked[1].endswith(f" bytes={CHUNK}-")
