"""The README.md of an exported model: what it is, how to use it, what was proven."""

from tunewright.export.proof import Proof
from tunewright.runs.folder import RunFolder

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Who are you?"}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens={max_new_tokens})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

_USE_ADAPTER = """\
```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
```
"""


def model_card(run: RunFolder, name: str, weights: str, proof: Proof) -> str:
    """Card of a merged model."""
    use = _USE.format(name=name, max_new_tokens=run.config.chat.max_new_tokens)
    return _card(run, name, weights, use, f"Checked after writing: {proof}.\n")


def adapter_card(run: RunFolder, name: str, weights: str) -> str:
    """Card of an adapter, which needs its base model."""
    return _card(run, name, weights, _USE_ADAPTER.format(name=name), "The adapter needs its base model beside it.\n")


def _card(run: RunFolder, name: str, weights: str, use: str, note: str) -> str:
    config = run.config
    tuning = config.method.tuning + (f" (rank {config.lora.rank})" if config.method.tuning == "lora" else "")
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [tunewright]\n---\n",
        f"# {name}\n",
        f"{config.model.name} fine-tuned by {tuning} with tunewright; weights: {weights}. "
        "The licence of the base model applies.\n",
        "## Use\n",
        use,
        note,
    ]
    if config.data.system:
        # a fence longer than any run of backticks in the text, so that the text cannot end it
        fence = "`" * max(3, 1 + _longest_run(config.data.system, "`"))
        parts += [
            "## System prompt\n",
            "The model was trained with this system prompt; the chat template adds it when a dialog has none.\n",
            f"{fence}\n{config.data.system}\n{fence}\n",
        ]
    return "\n".join(parts)


def _longest_run(text: str, character: str) -> int:
    longest = length = 0
    for found in text:
        length = length + 1 if found == character else 0
        longest = max(longest, length)
    return longest
