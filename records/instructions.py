"""Instructions in the Alpaca format: records with `instruction`, `input` and `output`, as prompts with answers."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reading.options import ReadOptions
from reading.tables import clean_text, json_kind, read_rows
from records.examples import Examples, Parts, next_token_example
from records.parsing import parse_records
from records.report import DataReport
from tokenization.base import Tokenizer
from utils.errors import UserError
from utils.files import replacing

HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
HEADER_WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further "
                     "context. Write a response that appropriately completes the request.")
VALIDATION = 10  # one record of this many is for validation


class Instruction(NamedTuple):
    """A record: what to do, on which input, and the answer."""

    instruction: str
    input: str
    """Empty if there is none."""
    output: str
    place: str
    """Where the record is, such as `line 12` or `more.json, item 12`."""


# ---- Files -----------------------------------------------------------------------------------------------------------


def read_instructions(path: Path, options: ReadOptions, report: DataReport) -> list[Instruction]:
    """Return the Instructions in a table or a .json list.

    A record without a valid instruction or output is skipped and counted. Raises UserError if no record is left.
    """
    return parse_records([path], partial(read_rows, options=options), as_instruction, report)


def as_instruction(record: dict, place: str) -> Instruction:
    """Return the Instruction of a record in a file. Raises UserError, which says what is wrong with it."""
    values = {}
    for name in ("instruction", "input", "output"):
        value = record.get(name)
        if not isinstance(value, str | None):
            raise UserError(f"its {name} is {json_kind(value)}, not text")
        if value is None or not value.strip():
            if name != "input":
                raise UserError(f"its {name} is missing or empty")
            value = ""
        values[name] = clean_text(value)
    return Instruction(**values, place=place)


def write_answers(path: Path, records: list[Instruction], answers: list[str]) -> None:
    """Write a JSON list of the records, each with the answer that a model gave. Raises UserError."""
    rows = [{"instruction": record.instruction, "input": record.input, "output": record.output, "answer": answer}
            for record, answer in zip(records, answers, strict=True)]
    with replacing(path) as file:
        file.write(json.dumps(rows, ensure_ascii=False, indent=2).encode())


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def instruction_examples(records: list[Instruction], tokenizer: Tokenizer, block_size: int,
                         report: DataReport) -> Examples:
    """Return the Examples of the Instructions that fit the context.

    An answer that exceeds the context is cut off there and has no end-of-text token; a record whose prompt fills the
    context is skipped. Both are counted, and so are characters that the vocabulary lacks, which are removed. Raises
    UserError if the tokenizer has no end-of-text token.
    """
    examples = []
    for record in records:
        parts = instruction_parts(record, tokenizer)
        (prompt, _), (answer, _) = parts
        if len(answer) == 1:
            report.skip("its output has no character of the vocabulary", record.place)
            continue
        if len(prompt) > block_size:
            report.skip(f"its prompt fills the context of {block_size} tokens", record.place)
            continue
        if len(prompt) + len(answer) - 1 > block_size:
            report.change(f"answer cut off at the context of {block_size} tokens, without an end-of-text token",
                          record.place)
        if tokenizer.unknown(prompt_text(record.instruction, record.input) + record.output):
            report.change("removed characters that the tokenizer lacks", record.place)
        examples.append(next_token_example(parts, block_size))
    return Examples(examples)


def instruction_parts(record: Instruction, tokenizer: Tokenizer) -> Parts:
    """Return the parts of a record: the prompt, and the supervised output with an end-of-text token.

    Raises UserError if the tokenizer has no such token.
    """
    if tokenizer.end_of_text is None:
        raise UserError("the tokenizer has no end-of-text token, which ends an answer: use one that has, such as gpt2")
    answer = [*encode_known(record.output, tokenizer), tokenizer.end_of_text]
    return [(prompt_ids(record.instruction, record.input, tokenizer), False), (answer, True)]


def prompt_ids(instruction: str, input: str | None, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt, without the characters that the tokenizer lacks.

    The answer is encoded on its own, so these are the same in training and in use.
    """
    return encode_known(prompt_text(instruction, input), tokenizer)


def encode_known(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(tokenizer.without_unknown(text)[0])


def prompt_text(instruction: str, input: str | None = None) -> str:
    r"""Return the prompt of the Alpaca format; a blank `input` is the same as none.

    >>> prompt_text("Add.", "1 and 2").partition("request.")[2]
    '\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n'
    """
    if input is None or not input.strip():
        return f"{HEADER}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return f"{HEADER_WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


def instruction_texts(records: list[Instruction]) -> Iterator[str]:
    """Yield the prompt and the output of each record: all text of a model that is trained on them."""
    for record in records:
        yield prompt_text(record.instruction, record.input)
        yield record.output


# ---- Split -----------------------------------------------------------------------------------------------------------


def split_instructions(records: list[Instruction]) -> tuple[list[Instruction], list[Instruction]]:
    """Split records into two lists: for training, and about a tenth for validation.

    Records with equal instruction and input are on one side. The split depends on these alone, not on the order of
    the records. Raises UserError if there are fewer than two groups.
    """
    groups = Counter(map(group_of, records))
    if len(groups) < 2:
        raise UserError("at least two different instructions are needed, one of them for validation: add some")
    size = max(len(records) // VALIDATION, min(groups.values()))
    chosen, n_chosen = set(), 0
    for group in sorted(groups, key=lambda group: hashlib.sha256(json.dumps(group).encode()).digest()):
        if n_chosen + groups[group] <= size:
            chosen.add(group)
            n_chosen += groups[group]
    train = [record for record in records if group_of(record) not in chosen]
    val = [record for record in records if group_of(record) in chosen]
    return train, val


def group_of(record: Instruction) -> tuple[str, str]:
    """Return what records must have in common to be on one side of the split."""
    return record.instruction.strip(), record.input.strip()
