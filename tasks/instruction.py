"""Instruction tuning: the model answers prompts in the Alpaca format."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import nn
from tqdm import tqdm

from models.config import ReplyConfig
from models.generate import generate_text
from reading.paths import list_files
from reading.tables import JSON_FILES
from records.examples import Examples
from records.instructions import (
    Instruction,
    instruction_examples,
    instruction_texts,
    prompt_ids,
    read_instructions,
    split_instructions,
    write_answers,
)
from tasks.example_task import ExampleTask
from tasks.task import Answers
from utils.errors import UserError
from utils.printable import one_line
from utils.quantities import quantity

N_SAMPLES = 3  # held-out instructions that are answered after each evaluation


class Response(Answers):
    """A model that follows instructions, each without the earlier ones."""

    hint = "Type an instruction."

    def answer(self, instruction: str, config: ReplyConfig, input: str | None = None) -> Iterator[str]:
        """Return an iterator over the pieces of a response. Raises UserError if the prompt fills the context."""
        ids = prompt_ids(instruction, input, self.tokenizer)
        if len(ids) >= self.model.block_size:
            raise UserError(f"with its prompt, the instruction has {len(ids)} tokens, and the context "
                            f"{self.model.block_size}: use a shorter one")
        return generate_text(self.model, self.tokenizer, ids, config.max_tokens, config,
                             stop_tokens=self.tokenizer.special_ids)


class Instruct(ExampleTask):
    """Training on the responses to instructions."""

    answers = Response

    def read(self, path: str | list[str]) -> list[Instruction]:
        """Return the records of files. Raises UserError if they cannot be read."""
        files = list_files(path, JSON_FILES)
        return [record for file in files for record in read_instructions(file, self.options, self.report)]

    def split(self, records: list[Instruction]) -> dict[str, list[Instruction]]:
        """Split records into `train` and `val`."""
        train, val = split_instructions(records)
        return {"train": train, "val": val}

    def tokenizer_texts(self) -> Iterator[str]:
        """Return the texts that a tokenizer is trained on."""
        return instruction_texts(self.splits["train"] + self.splits["val"])

    def make_examples(self, records: list[Instruction], block_size: int) -> Examples:
        """Return the Examples of records."""
        return instruction_examples(records, self.tokenizer, block_size, self.report)

    def samples(self, model: nn.Module, config: ReplyConfig) -> Iterator[str]:
        """Yield lines with held-out instructions and the model's responses."""
        for record, answer in islice(self.answer_records(model, self.splits["val"], config), N_SAMPLES):
            question = f"{record.instruction} {record.input}".rstrip()  # the input may be missing
            yield f"{question} -> {answer}"

    def answer_records(self, model: nn.Module, records: list[Instruction],
                       config: ReplyConfig) -> Iterator[tuple[Instruction, str]]:
        """Yield each record with a response, except those whose prompts fill the context."""
        response = Response(model, self.tokenizer, self.info, print)
        for record in records:
            if len(prompt_ids(record.instruction, record.input, self.tokenizer)) < model.block_size:
                yield record, "".join(response.answer(record.instruction, config, record.input))

    def evaluate(self, model: nn.Module, records: list[Instruction], config: ReplyConfig) -> None:
        """Print responses to the first records, and their references."""
        print()
        for record, answer in islice(self.answer_records(model, records, config), N_SAMPLES):
            print(f"instruction: {one_line(f'{record.instruction} {record.input}')}")
            print(f"    answer:    {one_line(answer)}")
            print(f"    reference: {one_line(record.output)}")

    def write_answers(self, model: nn.Module, records: list[Instruction], config: ReplyConfig, path: Path) -> None:
        """Write the records with the model's responses as JSON. Raises UserError if the file cannot be written."""
        answered = list(tqdm(self.answer_records(model, records, config), "answers", len(records), unit="record"))
        write_answers(path, [record for record, _ in answered], [answer for _, answer in answered])
        n_skipped = len(records) - len(answered)
        print(f"{path}: {quantity(len(answered), 'answers')}; skipped {quantity(n_skipped, 'prompts')} that would fill "
              "the context")
