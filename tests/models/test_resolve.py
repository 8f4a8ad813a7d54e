import json
from pathlib import Path

import pytest

from tests.folders import tiny_folder
from tests.models.gguf_file import write_gguf
from tunewright.config.schema import ModelConfig
from tunewright.errors import UsageError
from tunewright.models.resolve import ModelFolder, resolve_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def refusal(name: str, base: Path, source: str = "auto") -> str:
    with pytest.raises(UsageError) as caught:
        resolve_model(ModelConfig.model_validate({"name": name, "source": source}), base)
    return str(caught.value)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_folders_relative_and_absolute(model: Path, tmp_path: Path) -> None:
    assert resolve_model(ModelConfig(name="model"), tmp_path) == ModelFolder(model, "model")
    assert resolve_model(ModelConfig(name="./model", source="local"), tmp_path).path == model
    assert resolve_model(ModelConfig(name=str(model)), Path("/")).path == model


def test_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    folder = resolve_model(ModelConfig(name="./tiny.gguf"), tmp_path)
    assert (folder.path / "model.safetensors").is_file()
    assert folder.name == "./tiny.gguf"


def test_unknown_names_suggest(tmp_path: Path) -> None:
    assert "did you mean smollm2-135m-instruct?" in refusal("SmolLM2-135M", tmp_path)
    assert "owner/name" in refusal("qqqq", tmp_path)
    assert "does not exist" in refusal("./nowhere", tmp_path)
    assert "does not exist" in refusal("missing.gguf", tmp_path)
    assert "does not exist" in refusal("owner/name", tmp_path, source="local")


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = refusal(str(model), Path())
    assert "pytorch_model.bin is a pickle file" in message
    assert "safetensors" in message


def test_remote_code_is_refused_and_named(model: Path) -> None:
    change(model / "config.json", model_type="internlm2", auto_map={"AutoModelForCausalLM": "modeling_internlm2.X"})
    assert "Python code from its own folder, which tunewright never does" in refusal(str(model), Path())


def test_auto_map_of_a_native_architecture_is_no_hindrance(model: Path) -> None:
    change(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.X"})
    assert resolve_model(ModelConfig(name=str(model)), Path()).path == model


@pytest.mark.parametrize(
    ("kind", "words"), [("bert_", "did you mean bert?"), ("vit", "do not generate text"), ("llama", None)]
)
def test_architectures(model: Path, kind: str, words: str | None) -> None:
    change(model / "config.json", model_type=kind)
    if words is None:
        resolve_model(ModelConfig(name=str(model)), Path())
    else:
        assert words in refusal(str(model), Path())


def test_half_a_folder_says_what_is_missing(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").rename(model / "elsewhere")
    assert "no tokenizer" in refusal(str(model), Path())
    (model / "elsewhere").rename(model / "tokenizer.json")
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model-1.safetensors").write_bytes(b"")
    assert "1 of 2 weight files are missing, first model-2.safetensors" in refusal(str(model), Path())
    assert f"the model seems to be in {model}" in refusal(str(tmp_path), Path())


def test_an_adapter_or_a_file_of_a_model_is_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}')
    assert "adapter of me/base" in refusal("./adapter", tmp_path)
    assert f"give its folder, {model}" in refusal(str(model / "model.safetensors"), Path())
    (model / "config.json").write_text("{")
    assert "not valid JSON" in refusal(str(model), Path())


def test_a_revision_of_what_is_not_on_a_hub_is_refused(model: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    for name in ("model", "tiny.gguf", "smollm2-135m-instruct"):
        with pytest.raises(UsageError, match=r"model.revision is v2, but .* only models on a hub have revisions"):
            resolve_model(ModelConfig(name=name, revision="v2"), tmp_path)
