"""Chat templates of other projects: a conversation as the token ids that a chat model was trained on.

A Hugging Face folder has a template in Jinja, in `chat_template.jinja` or `tokenizer_config.json`, which writes a
conversation as one text with the names of special tokens around messages. Here, text that somebody typed never becomes
a special token: the template gets a placeholder for each message, its output is searched for special tokens, and only
then are the messages put in. The ids equal those of `transformers` unless a message contains the name of a special
token, or the template does more with a message than to write it, to strip white space around it, and to ask whether it
is empty.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tokenization.base import SURROGATE, Tokenizer
from tokenization.library import MAX_FILE_BYTES
from tokenization.template_process import MAX_SECONDS
from utils.errors import UserError
from utils.files import PROJECT, read_if_there

VARIABLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARKS = "\ue000\ue001"  # characters for private use, which templates do not contain
PLACEHOLDER = re.compile("(\ue000aA[0-9]+\ue001)")  # the letters show changes of case
MAX_REPEATS = 10  # of a message in what a template writes


class ChatTemplate(NamedTuple):
    """A chat template in Jinja, and the special tokens that it can refer to: variable, such as bos_token -> name."""

    source: str
    special_tokens: dict[str, str]


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the ChatTemplate of a folder of Hugging Face, None if it has none. Raises UserError."""
    config_path, template_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_if_there(config_path)
    source = config.get("chat_template")
    if isinstance(source, list):
        source = default_template(source, config_path)
    if template_path.is_file():
        source = read_text(template_path)
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(f"{config_path} has a chat_template that is not text: download it again")
    return ChatTemplate(source, {name: config_token(config, name, config_path) for name in VARIABLES
                                 if config.get(name) is not None})


def default_template(named: list, where: Path) -> str:
    """Return the template "default" of a list of {"name": ..., "template": ...}. Raises UserError."""
    try:
        templates = {entry["name"]: entry["template"] for entry in named}
    except (TypeError, LookupError):
        raise UserError(f"{where} has a malformed list of chat templates: download it again") from None
    if "default" not in templates:
        raise UserError(f"{where} has chat templates, but none is the default: {', '.join(map(repr, templates))}")
    return templates["default"]


def config_token(config: dict, name: str, where: Path) -> str:
    """Return a special token of a tokenizer_config.json, which is text or {"content": text}. Raises UserError."""
    token = config[name]
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str) or SURROGATE.search(token):
        raise UserError(f"{where} has a {name} that is not text: download it again")
    return token


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises UserError."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes: download it again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: download it again") from None


# ---- Writing a conversation ------------------------------------------------------------------------------------------


def chat_ids(template: ChatTemplate, messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a conversation by a ChatTemplate, up to where the reply of the assistant starts.

    `messages` is a list of {"role": ..., "content": text}. Roles are trusted, contents are not: they are encoded as
    ordinary text. Raises UserError if the template fails, refuses the messages, changes their text or writes nothing,
    and as `encode_with_special_tokens` of the tokenizer does.
    """
    contents, marked = {}, []
    for message in messages:
        text = message["content"].strip()
        if text:  # without the white space around it, for templates that strip it
            placeholder = f"\ue000aA{len(contents)}\ue001"
            contents[placeholder] = text
            message = message | {"content": message["content"].replace(text, placeholder, 1)}
        marked.append(message)
    variables = template.special_tokens | {"messages": marked, "add_generation_prompt": True, "tools": None,
                                           "documents": None}
    rendered = render(template.source, variables)
    check_placeholders(rendered, contents)

    def put_in_contents(text: str) -> str:
        return PLACEHOLDER.sub(lambda match: contents[match[0]], text)

    ids = tokenizer.encode_with_special_tokens(rendered, put_in_contents)
    if not ids:
        raise UserError("the chat template writes nothing: use another model")
    return ids


def check_placeholders(rendered: str, contents: dict[str, str]) -> None:
    """Raise UserError if a template wrote a placeholder that is not in `contents`, or one of them too often."""
    parts = PLACEHOLDER.split(rendered)
    written, placeholders = parts[::2], Counter(parts[1::2])
    if not contents.keys() >= placeholders.keys() or any(mark in part for part in written for mark in MARKS):
        raise UserError("the chat template changes the text of messages, which is not supported: use another model")
    if max(placeholders.values(), default=0) > MAX_REPEATS:
        raise UserError(f"the chat template writes a message more than {MAX_REPEATS} times: use another model")


def render(source: str, variables: dict[str, Any]) -> str:
    """Return what a template writes in a process of its own. Raises UserError if it fails or exceeds the limits.

    It takes at most MAX_SECONDS and writes at most MAX_CHARACTERS. Its memory is limited on Linux only.
    """
    request = json.dumps({"template": source, "variables": variables})
    command = [sys.executable, "-m", "tokenization.template_process"]
    try:
        done = subprocess.run(command, cwd=PROJECT, input=request.encode(), capture_output=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"the chat template did not end within {MAX_SECONDS} seconds: use another one") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise UserError(f"the chat template was stopped: it took more than {MAX_SECONDS} seconds or too much memory. "
                        "Use another one") from None
    if "error" in answer:
        raise UserError(f"the chat template failed: {answer['error']}")
    return answer["text"]
