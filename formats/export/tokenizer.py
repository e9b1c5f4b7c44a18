"""The tokenizer.json and tokenizer_config.json of Hugging Face folders."""

import json

DIALOGUE = (
    "{% set before = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.system = before.system + message['content'] + '\\n\\n' %}"
    "{% else %}<|im_start|>{{ before.system + message['content'] }}<|im_end|>{% set before.system = '' %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)  # as in data/dialogues.py
END_MARKERS = {"dialogue": "message_end", "poem": "message_end"}  # of all other tasks: end_of_text


def end_marker(tokenizer, task):
    """The name in SPECIAL_TOKENS of the token at which the model of a task stops, None if the tokenizer has none."""
    name = END_MARKERS.get(task, "end_of_text")
    return None if getattr(tokenizer, name) is None else name


def name_of(token, tokenizer):
    """The name of a special token, given its id."""
    return next(name for name, i in tokenizer.special_tokens.items() if i == token)


def write_tokenizer(tokenizer):
    """The content of a tokenizer.json."""
    description = json.loads(tokenizer.library.to_str())
    description["post_processor"] = None  # which may add tokens to a text
    return description


def write_tokenizer_config(tokenizer, task, block_size):
    """The content of a tokenizer_config.json."""
    end = end_marker(tokenizer, task)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # of other classes, AutoTokenizer changes the tokens
        "clean_up_tokenization_spaces": False,  # true removes the space before a comma
        "model_max_length": block_size,
        "padding_side": "left",  # a batch is continued at its right end
        "bos_token": None,
        "eos_token": None if end is None else name_of(getattr(tokenizer, end), tokenizer),
        "unk_token": None,
        "pad_token": None if tokenizer.padding is None else name_of(tokenizer.padding, tokenizer),
    }
    if END_MARKERS.get(task) == "message_end":
        config["chat_template"] = DIALOGUE
    return config
