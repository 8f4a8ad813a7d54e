"""The names that people give the columns of their files and the keys of their turns; compared without case."""

# Question and answer that belong together, likeliest first.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("q", "a"),
    ("query", "response"),
    ("query", "answer"),
    ("query", "output"),
    ("input", "output"),
    ("input", "response"),
    ("user", "assistant"),
    ("问题", "回答"),
    ("问题", "答案"),
    ("提问", "回答"),
    ("问", "答"),
    ("指令", "输出"),
    ("输入", "输出"),
)
QUESTIONS = tuple(dict.fromkeys(question for question, _ in PAIRS))
ANSWERS = tuple(dict.fromkeys(answer for _, answer in PAIRS))
# A better and a worse answer.
RANKED = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
)
REJECTED = ("rejected", "rejected_response")  # beside an ordinary answer, which is then the better one
LABELS = ("kto_tag", "label")
MESSAGES = ("conversation", "conversations", "messages", "dialog", "dialogue", "对话")
TEXTS = ("text", "content", "文本", "正文", "内容")
OPTIONAL = {
    "query": ("input", "query", "输入"),
    "system": ("system", "system_prompt", "系统", "系统提示"),
    "history": ("history", "历史"),
    "tools": ("tools", "functions"),
}

# All names that decide how a row is read.
USUAL = frozenset(
    (*QUESTIONS, *ANSWERS, *(name for pair in RANKED for name in pair), *REJECTED, *LABELS, *MESSAGES, *TEXTS)
).union(*OPTIONAL.values())

# Turns: of who speaks, of what is said, and of those that hold both a question and its answer.
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
TURN_PAIRS = (
    ("input", "output"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("user", "assistant"),
    ("question", "answer"),
    ("query", "response"),
    ("q", "a"),
)

# What each form itself calls the columns it needs.
OWN = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "query-response": {"prompt": "query", "response": "response"},
    "prompt-completion": {"prompt": "prompt", "response": "completion"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
    "xtuner": {"messages": "conversation"},
    "hh": {"chosen": "chosen", "rejected": "rejected"},
    "text": {"text": "text"},
}
# Names that are those of a known form, so that finding them is no guess: what a row is about, and what is beside it.
STANDARD = {
    ("instruction", "output"),
    ("query", "response"),
    ("prompt", "completion"),
    ("instruction",),
    ("query",),
    ("prompt",),
    ("text",),
    (),
    *((name,) for name in MESSAGES),
    *((name, "completion") for name in ("prompt",)),
}
STANDARD_ANSWERS = {"chosen", "rejected", "rejected_response", *LABELS}

# Columns of pictures and sounds, as LLaMA-Factory and ms-swift call them.
MEDIA = ("images", "videos", "audios")
