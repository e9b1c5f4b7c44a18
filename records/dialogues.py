"""Dialogues: from files to examples for training.

A dialogue is a list of texts that alternate: user, assistant, user, ... It starts with the user and ends with the
assistant. As tokens, each message is enclosed in the markers `message_start` and `message_end`, without the name of its
role. Every message of the assistant with its `message_end` is supervised, and nothing else.

Files are one of:

- text: one message per line, a blank line between dialogues;
- .jsonl or .json: records `{"messages": [{"role": "user", "content": "..."}, ...]}` with the roles system, user and
  assistant, or `{"conversations": [{"from": "human", "value": "..."}, ...]}` with system, human and gpt.

Records that do not alternate are used as follows, and counted as changed:

- a system message is put before the user message that follows it, separated by a blank line;
- consecutive messages of one role are joined by a line feed;
- assistant messages before the first user message are dropped;
- user and system messages after the last assistant message are dropped.

A record is skipped if it has a single message, or no assistant message after a user message; if a message is empty, is
not text, lacks a key or has another role.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from tqdm import trange

from reading.options import ReadOptions
from reading.paths import Paths, list_files
from reading.rows import Row
from reading.tables import clean_text, is_table, json_kind, read_rows
from reading.text_files import BLANK, encoding_of, lines
from records.examples import Examples, Parts, next_token_example
from records.parsing import parse_records
from records.poems import read_poems, requests
from records.report import DataReport
from tokenization.base import Tokenizer
from utils.errors import UserError
from utils.printable import one_line

SUFFIXES = (".txt", ".jsonl", ".json")  # of the files that are read in a folder
FORMATS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # key of the list: keys of a message
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
BATCH = 1000  # dialogues that are encoded at once

Dialogue = list[str]


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_dialogues(path: Paths, options: ReadOptions, report: DataReport) -> list[Dialogue]:
    """Return the dialogues of a file, of all .txt, .jsonl and .json files in a folder, or of a list of them.

    Skipped and changed records are counted. Raises UserError if a file is malformed, or no dialogue is left.
    """

    def parse(record: dict, place: str) -> Dialogue:
        dialogue, changes = to_dialogue(parse_messages(record))
        for change in changes:
            report.change(change, place)
        return dialogue

    return parse_records(list_files(path, SUFFIXES), partial(dialogue_rows, options=options), parse, report)


def poem_dialogues(path: Paths, options: ReadOptions, report: DataReport) -> list[Dialogue]:
    """Return the poems of .json files as dialogues of two messages, a request and the poem; `path` as above.

    Skipped poems are counted. Raises UserError if no poem is left.
    """
    poems = read_poems(list_files(path, (".json",)), options, report)
    return [[request, poem] for request, poem in requests(poems, seed=0)]


def dialogue_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Yield the dialogues in a file: a table or a .json list, or else a text file."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        raise UserError(f"{path} is a table: dialogues are read from .txt, .jsonl and .json files")
    if is_table(path):
        return read_rows(path, options)
    return text_rows(path, options)


def text_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Yield the dialogues in a text file. White space around messages is stripped."""
    texts, start = [], 1
    with open(path, encoding=encoding_of(path, options.encoding)) as file:
        for number, line in enumerate(chain(lines(file, path), [""]), 1):
            text = line.strip(BLANK).strip()
            if text:
                texts.append(text)
                continue
            if texts:
                roles = cycle(("user", "assistant"))
                messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
                yield Row(f"line {start}", {"messages": messages}, file.buffer.tell())
            texts, start = [], number + 1


def parse_messages(record: dict) -> list[tuple[str, str]]:
    """Return the (role, text) of each message of a record. Raises UserError, which says what is wrong with it.

    >>> parse_messages({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
    [('user', 'Hi'), ('assistant', 'Hello')]
    """
    for key, keys in FORMATS.items():
        if key in record:
            if not isinstance(record[key], list):
                raise UserError(f"{key} is {json_kind(record[key])}, not a list")
            return [parse_message(message, *keys) for message in record[key]]
    raise UserError("no messages or conversations")


def parse_message(message: Any, role_key: str, text_key: str) -> tuple[str, str]:
    """Return (role, text) of a message in JSON. Raises UserError, which says what is wrong with it."""
    if not isinstance(message, dict):
        raise UserError(f"a message is {json_kind(message)}, not an object")
    for key in (role_key, text_key):
        if key not in message:
            raise UserError(f"a message has no {key}")
        if not isinstance(message[key], str):
            raise UserError(f"a message has a {key} that is {json_kind(message[key])}, not text")
    role, text = message[role_key], clean_text(message[text_key])
    if role not in ROLES:
        raise UserError(f"a message has a role other than {', '.join(ROLES)}")
    if not text.strip():
        raise UserError("a message is empty")
    return ROLES[role], text


def to_dialogue(messages: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return (dialogue, changes) of (role, text) pairs, as described above. Raises UserError if nothing is left.

    >>> to_dialogue([("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("assistant", "Friend!")])[0]
    ['Be kind.\\n\\nHi', 'Hello\\nFriend!']
    """
    if not messages:
        raise UserError("no message")
    if len(messages) == 1:
        raise UserError("a single message")
    dialogue, system, last_role, changes = [], [], None, []
    for role, text in messages:
        if role == "system":
            system.append(text)
            continue
        if role == "assistant" and last_role is None:
            changes.append("dropped assistant messages before the first user message")
            continue
        if role == "user" and system:
            changes.append("put the system message before the user message")
            text, system = "\n\n".join([*system, text]), []
        if role == last_role:
            changes.append("joined consecutive messages of one role")
            dialogue[-1] += f"\n{text}"
        else:
            dialogue.append(text)
        last_role = role
    if last_role == "user" or system:
        changes.append("dropped messages after the last assistant message")
    if last_role == "user":
        dialogue.pop()
    if not dialogue:
        raise UserError("no assistant message follows a user message")
    return dialogue, list(dict.fromkeys(changes))


def split_dialogues(dialogues: list[Dialogue]) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return (training, validation): every tenth distinct dialogue is for validation.

    Dialogues that differ only in white space around their messages are equal, and on one side.
    """
    train, val, numbers = [], [], {}
    for dialogue in dialogues:
        number = numbers.setdefault(tuple(text.strip() for text in dialogue), len(numbers))
        split = val if number % 10 == 1 else train  # both exist from two on
        split.append(dialogue)
    return train, val


# ---- Tokens ----------------------------------------------------------------------------------------------------------


def prompt_ids(messages: list[str], tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a history that ends with a user message, up to where the reply starts.

    They are those that come before that reply in training. Raises UserError if the tokenizer lacks a character.
    """
    parts = [*dialogue_parts(messages, tokenizer), ([tokenizer.message_start], False)]
    return [i for ids, _ in parts for i in ids]


def dialogue_parts(dialogue: Dialogue, tokenizer: Tokenizer) -> Parts:
    """Return the parts of a dialogue, each text encoded on its own. Raises UserError for an unknown character."""
    return message_parts(tokenizer.encode_batch(dialogue), tokenizer)


def message_parts(encoded: list[list[int]], tokenizer: Tokenizer) -> Parts:
    """Return the parts of a dialogue from the token ids of each of its messages."""
    parts = []
    for i, ids in enumerate(encoded):
        is_from_assistant = i % 2 == 1
        parts += [([tokenizer.message_start], False), ([*ids, tokenizer.message_end], is_from_assistant)]
    return parts


def dialogue_examples(dialogues: list[Dialogue], tokenizer: Tokenizer, block_size: int, report: DataReport) -> Examples:
    """Return the Examples of dialogues, for a model with a context of `block_size` tokens.

    A longer dialogue becomes several examples of as many whole turns (a user message and its reply) as fit. A turn that
    does not fit on its own has its reply cut off, without an end marker, or is left out if its user message fills the
    context. Characters that the tokenizer lacks are removed.

    Dialogues that are kept, skipped and changed are counted; their place is the start of their first message. Raises
    UserError if there are dialogues but no example.
    """
    examples = Examples(
        next_token_example(message_parts(turns, tokenizer), block_size)
        for dialogue, encoded in encode_dialogues(dialogues, tokenizer, report)
        for turns in split_to_fit(dialogue, encoded, block_size, report)
    )
    if dialogues and not len(examples):
        raise UserError(f"no dialogue can be used: all user messages fill the context of {block_size:,} tokens, or "
                        "have no character that the tokenizer knows. Use a larger --model.block_size, or another "
                        "tokenizer")
    return examples


def encode_dialogues(dialogues: list[Dialogue], tokenizer: Tokenizer,
                     report: DataReport) -> Iterator[tuple[Dialogue, list[list[int]]]]:
    """Yield each dialogue with the token ids of each of its messages."""
    for start in trange(0, len(dialogues), BATCH, desc="tokenizing", unit_scale=BATCH, delay=2):
        batch, texts = dialogues[start : start + BATCH], []
        for dialogue in batch:
            cleaned = [tokenizer.without_unknown(text)[0] for text in dialogue]
            if cleaned != dialogue:
                report.change("removed characters that the tokenizer lacks", quote(dialogue))
            texts += cleaned
        encoded = iter(tokenizer.encode_batch(texts))
        for dialogue in batch:
            yield dialogue, [next(encoded) for _ in dialogue]


def split_to_fit(dialogue: Dialogue, encoded: list[list[int]], block_size: int,
                 report: DataReport) -> list[list[list[int]]]:
    """Return the examples that a dialogue is split into to fit the context, each as the token ids of its messages."""
    split, left_out, length = [], [], block_size
    for user, reply in zip(encoded[::2], encoded[1::2], strict=True):
        turn = len(user) + len(reply) + 4  # with the markers
        if not user or not reply:
            left_out.append("a message has no character that the tokenizer knows")
            length = block_size  # the next turn does not follow on the one before
        elif len(user) + 3 > block_size:
            left_out.append(f"a user message fills the context of {block_size:,} tokens")
            length = block_size
        elif length + turn > block_size + 1:  # the last token is only a target
            split.append([user, reply])
            length = turn
        else:
            split[-1] += [user, reply]
            length += turn
        if length > block_size + 1:
            report.change(f"cut a reply at {block_size:,} tokens, without an end marker", quote(dialogue))
    if not split:
        report.skip(left_out[0], quote(dialogue))
        return []
    if len(split) > 1:
        report.change(f"split at whole turns to fit {block_size:,} tokens", quote(dialogue))
    for reason in left_out:
        report.change(f"left out a turn: {reason}", quote(dialogue))
    return split


def quote(dialogue: Dialogue) -> str:
    """Return the start of a dialogue, by which it can be found."""
    return one_line(repr(dialogue[0]), 40)
