"""Instruction tuning: the model answers prompts in the Alpaca format."""

from itertools import islice

from tqdm import tqdm

from data.corpora import list_files
from data.instructions import (
    instruction_examples,
    instruction_texts,
    prompt_ids,
    read_instructions,
    split_instructions,
    write_answers,
)
from data.tables import JSON_FILES
from models.generate import generate_text
from tasks.examples import ExampleTask
from tasks.task import Answers
from utils.errors import UserError
from utils.printable import one_line

N_SAMPLES = 3  # held-out instructions that are answered after each evaluation


class Response(Answers):
    """A model that follows instructions, each on its own."""

    hint = "Type an instruction."

    def answer(self, instruction, config, input=None):
        """Yield the pieces of a response, by ReplyConfig. Raises UserError if the prompt fills the context."""
        ids = prompt_ids(instruction, input, self.tokenizer)
        if len(ids) >= self.model.block_size:
            raise UserError(f"with its prompt, the instruction has {len(ids)} tokens, and the context "
                            f"{self.model.block_size}: use a shorter one")
        return generate_text(self.model, self.tokenizer, ids, config.max_tokens, config,
                             stop_tokens=self.tokenizer.special_ids)


class Instruct(ExampleTask):
    """Training on the responses to instructions."""

    answers = Response

    def read(self, path):
        """Read the records. Raises UserError."""
        files = list_files(path, JSON_FILES)
        return [record for file in files for record in read_instructions(file, self.options, self.report)]

    def split(self, records):
        train, val = split_instructions(records)
        return {"train": train, "val": val}

    def tokenizer_texts(self):
        return instruction_texts(self.splits["train"] + self.splits["val"])

    def make_examples(self, records, block_size):
        return instruction_examples(records, self.tokenizer, block_size, self.report)

    def samples(self, model, config):
        """Yield lines that show what the model has learned so far: responses to held-out instructions."""
        for record, answer in islice(self.answer_records(model, self.splits["val"], config), N_SAMPLES):
            yield f"{record.instruction} {record.input} -> {answer}"

    def answer_records(self, model, records, config):
        """Yield each record with a response, except those whose prompts fill the context."""
        response = Response(model, self.tokenizer, self.info, print)
        for record in records:
            if len(prompt_ids(record.instruction, record.input, self.tokenizer)) < model.block_size:
                yield record, "".join(response.answer(record.instruction, config, record.input))

    def evaluate(self, model, records, config):
        """Print the responses, by ReplyConfig, to the first records, and their references."""
        print()
        for record, answer in islice(self.answer_records(model, records, config), N_SAMPLES):
            print(f"instruction: {one_line(f'{record.instruction} {record.input}')}")
            print(f"    answer:    {one_line(answer)}")
            print(f"    reference: {one_line(record.output)}")

    def write_answers(self, model, records, config, path):
        """Write the records with the model's responses, by ReplyConfig, as JSON. Raises UserError."""
        answered = list(tqdm(self.answer_records(model, records, config), "answers", len(records), unit="record"))
        write_answers(path, [record for record, _ in answered], [answer for _, answer in answered])
        print(f"{path}: {len(answered):,} answers; {len(records) - len(answered):,} prompts fill the context")
