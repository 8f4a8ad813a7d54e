"""The templates of our table: their exact text, and what they teach."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.dialogs import HERE, TEMPLATES, TOKENIZER, attempt, dialogs, plain, stretches
from tests.tokenizers import tiny_tokenizer
from tunewright.data.examples import Dialog, Message, ToolCall
from tunewright.data.template import ChatTemplate, EncodedDialog
from tunewright.data.template_source import template_source
from tunewright.data.template_table import Entry, fitting, named, table
from tunewright.errors import UsageError

# One system prompt S, one question Q, its answer A, another question and answer; <s> and </s> are the model's own.
EXACT = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
    "intern2": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
    "intern": "<s><|System|>:S\n<|User|>:Q\n<|Bot|>:A<eoa>\n<|User|>:R\n<|Bot|>:B<eoa>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST] B </s>",
    "llama2_zh": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A</s><s>[INST] R [/INST] B</s>",
    "mistral": "<s>[INST] S\n\nQ [/INST] A</s>[INST] R [/INST] B</s>",
    "mistral_small": "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>[INST]R[/INST]B</s>",
    "gemma": "<s><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n",
    "phi": "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n"
    "<|user|>\nR<|end|>\n<|assistant|>\nB<|end|>\n",
    "phi4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>R<|im_end|>"
    "<|im_start|>assistant<|im_sep|>B<|im_end|>",
    "phi2": "S\n\nInstruct: Q\nOutput: A</s>\nInstruct: R\nOutput: B</s>\n",
    "glm4": "[gMASK]<sop><|system|>\nS<|user|>\nQ<|assistant|>\nA<|user|>\nR<|assistant|>\nB</s>",
    "chatglm3": "[gMASK]sop<|system|>\nS<|user|>\nQ<|assistant|>\nA<|user|>\nR<|assistant|>\nB</s>",
    "baichuan": "S<reserved_102>Q<reserved_103>A<reserved_102>R<reserved_103>B</s>",
    "baichuan2": "S<reserved_106>Q<reserved_107>A<reserved_106>R<reserved_107>B</s>",
    "deepseek": "<s>S\n\nUser: Q\n\nAssistant: A</s>User: R\n\nAssistant: B</s>",
    "deepseekcoder": "<s>S### Instruction:\nQ\n### Response:\nA\n<|EOT|>\n"
    "### Instruction:\nR\n### Response:\nB\n<|EOT|>\n",
    "deepseek3": "<s>S<｜User｜>Q<｜Assistant｜>A</s><｜User｜>R<｜Assistant｜>B</s>",
    "deepseekr1": "<s>S<｜User｜>Q<｜Assistant｜>A</s><｜User｜>R<｜Assistant｜><think>\n\n</think>\n\nB</s>",
    "falcon": "S\nUser: Q\nFalcon:A\nUser: R\nFalcon:B\n</s>",
    "xverse": "SHuman: Q\n\nAssistant: A</s>Human: R\n\nAssistant: B</s>",
    "yuan": "SQ<sep>A<eod>\nR<sep>B<eod>\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nR</s>\n<|assistant|>\nB</s>\n",
    "vicuna": "<s>S USER: Q ASSISTANT: A</s>USER: R ASSISTANT: B</s>",
    "alpaca": "S\n\n### Instruction:\nQ\n\n### Response:\nA</s>\n\n### Instruction:\nR\n\n### Response:\nB</s>\n\n",
    "default": "System: S</s>\nHuman: Q</s>\nAssistant:A</s>\nHuman: R</s>\nAssistant:B</s>\n",
}
EXACT |= dict.fromkeys(("qwen", "qwen1", "qwen3_nothink", "yi"), EXACT["chatml"])
EXACT["qwen3"] = EXACT["chatml"].replace("\nB", "\n<think>\n\n</think>\n\nB")

NO_SYSTEM = {
    "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
    "qwen1": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "llama2_zh": "<s>[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\nQ",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: Q",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nQ",
}


def test_every_template_is_spelled_out_here() -> None:
    assert set(EXACT) == set(table())


@pytest.mark.parametrize("name", EXACT)
def test_exact_text(name: str) -> None:
    turns = [("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]
    messages = [Message("system", "S"), *(Message(role, content) for role, content in turns)]  # type: ignore[arg-type]  # roles
    assert TEMPLATES[name].render(messages) == EXACT[name]
    prompt = TEMPLATES[name].render(messages[:-1], add_generation_prompt=True)
    assert EXACT[name].startswith(prompt)
    begins = EXACT[name].split("S", 1)[0] if name not in ("glm4", "chatglm3") else "[gMASK]"
    assert TEMPLATES[name].render(messages[1:]).startswith(NO_SYSTEM.get(name, begins[:2]))


@pytest.mark.parametrize("name", EXACT)
@given(dialog=dialogs())
@settings(max_examples=25, deadline=None)
def test_ids_are_the_text_and_loss_is_on_answers_and_stops(name: str, dialog: Dialog) -> None:
    template, entry = TEMPLATES[name], table()[name]
    result = attempt(template, dialog)
    stop = TOKENIZER.eos_token_id if entry.stop == "{eos}" else TOKENIZER.convert_tokens_to_ids(entry.stop)
    assert stop in template.stop_ids
    for sequence in result.sequences:
        assert TOKENIZER(TOKENIZER.decode(sequence.input_ids.tolist()), add_special_tokens=False)["input_ids"] == (
            sequence.input_ids.tolist()
        )
    whole = template.render(dialog.messages, tools=dialog.tools)
    if dialog.messages[-1].train:
        assert TOKENIZER.decode(result.sequences[-1].input_ids.tolist()) == whole
    found = list(stretches(result.sequences))
    trained = [message for message in dialog.messages if message.train]
    assert sorted(weight for *_, weight in found) == sorted(message.weight for message in trained)
    assert all(ids[-1] == stop for ids, *_ in found)
    texts = [TOKENIZER.decode(ids[first:]) for ids, first, _ in found]
    for message in trained:
        assert any(message.content.strip() in text and (message.reasoning or "") in text for text in texts)


@pytest.mark.parametrize("name", EXACT)
@given(dialog=dialogs())
@settings(max_examples=25, deadline=None)
def test_all_turns_at_once_are_the_union_of_each_alone(name: str, dialog: Dialog) -> None:
    template = TEMPLATES[name]
    expansions = set()
    for i, message in enumerate(dialog.messages):
        if message.train:
            earlier = tuple(replace(m, weight=0.0) for m in dialog.messages[:i])
            alone = attempt(template, replace(dialog, messages=(*earlier, message)))
            expansions |= set(stretches(alone.sequences))
    assert set(stretches(attempt(template, dialog).sequences)) == expansions


@pytest.mark.parametrize("name", EXACT)
@given(some=st.lists(dialogs(), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_no_example_changes_another(name: str, some: list[Dialog]) -> None:
    together = TEMPLATES[name].attempt_many(some)
    for result, dialog in zip(together, some, strict=True):
        assert isinstance(result, EncodedDialog)
        assert plain(result) == plain(attempt(TEMPLATES[name], dialog))


@pytest.mark.parametrize("name", EXACT)
def test_tools_calls_and_results_are_shown(name: str) -> None:
    call = ToolCall("clock", '{"zone": "灯"}')
    messages = (
        Message("user", "Q"),
        Message("assistant", "One moment.", tool_calls=(call, call)),
        Message("tool", "noon", name="clock"),
        Message("tool", "night", name="clock"),
        Message("assistant", "Noon."),
    )
    text = TEMPLATES[name].render(messages, tools='[{"name": "clock", "description": "灯"}]')
    calls = '<tool_call>\n{"name": "clock", "arguments": {"zone": "灯"}}\n</tool_call>'
    assert f"One moment.\n{calls}\n{calls}" in text
    assert '{"type": "function", "function": {"name": "clock", "description": "灯"}}' in text
    assert "noon" in text
    assert "night" in text


@pytest.mark.parametrize("name", ["qwen3", "deepseekr1"])
def test_thoughts_are_trained_and_forgotten(name: str) -> None:
    messages = tuple(
        m for i in "12" for m in (Message("user", f"Q{i}"), Message("assistant", f"A{i}", reasoning=f"T{i}"))
    )
    early, late = attempt(TEMPLATES[name], Dialog(messages, HERE)).sequences
    texts = [TOKENIZER.decode(ids[first:]) for ids, first, _ in [*stretches((early,)), *stretches((late,))]]
    opening = "" if name == "deepseekr1" else "<think>\n"
    end = "</s>" if name == "deepseekr1" else "<|im_end|>"
    assert texts == [f"{opening}T{i}\n</think>\n\nA{i}{end}" for i in "12"]
    assert "T1" not in TOKENIZER.decode(late.input_ids.tolist())


@pytest.mark.parametrize("name", ["qwen3", "deepseekr1"])
def test_stripped_reasoning_is_neither_trained_nor_prompted_for(name: str, tmp_path: Path) -> None:
    source = template_source(TOKENIZER, name, tmp_path, reasoning="strip")
    template = ChatTemplate(TOKENIZER, source, (), "strip")
    inline = Message("assistant", "<think>\nhm\n</think>\n\nyes")
    apart = Message("assistant", "yes", reasoning="hm")
    for answer in (inline, apart, Message("assistant", "yes")):
        (encoded,) = template.encode(Dialog((Message("user", "Q"), answer), HERE))
        ((ids, first, _),) = stretches((encoded,))
        assert TOKENIZER.decode(ids[first:]) in ("yes<|im_end|>", "yes</s>")
        assert list(ids[:first]) == template.prompt_ids([Message("user", "Q")])
    # A run keeps the text alone, and chat renders its prompts with it.
    assert ChatTemplate(TOKENIZER, source, ()).render([Message("user", "Q")], True).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("baichuan-inc/Baichuan2-7B-Chat", "baichuan2"),
        ("bigscience/bloomz-7b1", "default"),
        ("THUDM/chatglm3-6b", "chatglm3"),
        ("THUDM/glm-4-9b-chat", "glm4"),
        ("deepseek-ai/deepseek-llm-7b-chat", "deepseek"),
        ("deepseek-ai/deepseek-moe-16b-chat", "deepseek"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseekr1"),
        ("tiiuae/falcon-7b-instruct", "falcon"),
        ("google/gemma-2-2b-it", "gemma"),
        ("internlm/internlm2_5-7b-chat", "intern2"),
        ("internlm/internlm-chat-7b", "intern"),
        ("models/Llama-2-7b-chat-hf/", "llama2"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama3"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("microsoft/phi-1_5", "phi2"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi"),
        ("Qwen/Qwen-7B-Chat", "qwen1"),
        ("Qwen/Qwen1.5-0.5B-Chat", "qwen1"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("xverse/XVERSE-13B-Chat", "xverse"),
        ("01-ai/Yi-6B-Chat", "yi"),
        ("IEITYuan/Yuan2-2B-hf", "yuan"),
        ("Qwen/Qwen3-8B-Base", None),
        ("meta-llama/Meta-Llama-3-8B", None),
        ("smollm2-135m-instruct", None),
    ],
)
def test_models_find_their_template(model: str, name: str | None) -> None:
    assert fitting(model) == name


def test_names_choose_and_files_override(tmp_path: Path) -> None:
    assert named("llama3_chat") is table()["llama3"]
    assert template_source(TOKENIZER, "alpaca", tmp_path) == table()["alpaca"].source
    (tmp_path / "alpaca").write_text("{{ messages }}", encoding="utf-8")
    assert template_source(TOKENIZER, "alpaca", tmp_path) == "{{ messages }}"
    bare = tiny_tokenizer("chatml")
    bare.chat_template = None
    assert template_source(bare, "auto", tmp_path, "x/Qwen1.5-7B-Chat") == table()["qwen1"].source
    with pytest.raises(UsageError, match=r"cannot read .*alpacca.*did you mean alpaca\?"):
        template_source(TOKENIZER, "alpacca", tmp_path)


def test_markers_the_tokenizer_lacks_are_told_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama3 writes <\|start_header_id\|> .*no token.*default, alpaca"):
        template_source(tiny_tokenizer("chatml"), "llama3", tmp_path)
    endless = tiny_tokenizer("chatml")
    endless.eos_token = None
    with pytest.raises(UsageError, match="alpaca ends answers with the model's end-of-text token, and it has none"):
        template_source(endless, "alpaca", tmp_path)


def test_a_template_can_be_sent_to_another_process() -> None:
    template = pickle.loads(pickle.dumps(TEMPLATES["qwen3"]))
    dialog = Dialog((Message("user", "Q"), Message("assistant", "A")), HERE)
    assert template.encode(dialog)[0].input_ids.tolist() == TEMPLATES["qwen3"].encode(dialog)[0].input_ids.tolist()


def test_unknown_fields_in_the_table_are_errors() -> None:
    with pytest.raises(ValueError, match="answr"):
        Entry.model_validate({"about": "", "system": "", "user": "", "reply": "", "answer": "", "answr": ""})
