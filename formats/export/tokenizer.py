"""The tokenizer.json and tokenizer_config.json of an export."""

import json
from typing import Any

from tokenization.base import Tokenizer

CHAT_TEMPLATE = (  # the messages as records/dialogues.py writes them
    "{% set before = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.system = before.system + message['content'] + '\\n\\n' %}"
    "{% else %}<|im_start|>{{ before.system + message['content'] }}<|im_end|>{% set before.system = '' %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
CHAT_TASKS = ("dialogue", "poem")


def end_marker(tokenizer: Tokenizer, task: str) -> str | None:
    """Return the name in SPECIAL_TOKENS of the token that ends the output for a task, or None if there is none."""
    name = "message_end" if task in CHAT_TASKS else "end_of_text"
    return None if getattr(tokenizer, name) is None else name


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of the tokenizer.json."""
    description = json.loads(tokenizer.library.to_str())
    description["post_processor"] = None  # it could add tokens to a text
    return description


def tokenizer_config_json(tokenizer: Tokenizer, task: str, block_size: int) -> dict[str, Any]:
    """Return the content of the tokenizer_config.json."""
    end = end_marker(tokenizer, task)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # AutoTokenizer changes the tokens of other classes
        "clean_up_tokenization_spaces": False,  # true removes the space before a comma
        "model_max_length": block_size,
        "padding_side": "left",  # generation continues a batch at its right end
        "bos_token": None,
        "eos_token": None if end is None else token_name(getattr(tokenizer, end), tokenizer),
        "unk_token": None,
        "pad_token": None if tokenizer.padding is None else token_name(tokenizer.padding, tokenizer),
    }
    if task in CHAT_TASKS:
        config["chat_template"] = CHAT_TEMPLATE
    return config


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    """Return the name of a special token."""
    return next(name for name, i in tokenizer.special_tokens.items() if i == token_id)
