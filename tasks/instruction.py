"""Instruction tuning: the model answers prompts in the Alpaca format."""

from data.corpora import list_files
from data.instructions import (
    instruction_examples,
    instruction_tokenizer,
    prompt_ids,
    read_instructions,
    split_instructions,
)
from tasks.examples import ExampleTask, reply_pieces
from utils.errors import UserError

N_SAMPLES = 3  # held-out instructions that are answered after each evaluation


class Response:
    """A model that follows instructions, each on its own."""

    hint = "Type an instruction."
    continues_text = has_history = False
    streams = True

    def __init__(self, model, tokenizer, entry, tell):
        self.model, self.tokenizer = model, tokenizer

    def answer(self, instruction, config, input=None):
        """Yield the pieces of a response, by ReplyConfig. Raises UserError if the prompt fills the context."""
        ids = prompt_ids(instruction, input, self.tokenizer)
        if len(ids) >= self.model.block_size:
            raise UserError(f"with its prompt, the instruction has {len(ids)} tokens, and the context "
                            f"{self.model.block_size}: use a shorter one")
        return reply_pieces(self.model, self.tokenizer, ids, config)


class Instruct(ExampleTask):
    """Training on the responses to instructions."""

    answers = Response

    def read(self, path, val_path):
        """Read the records. Raises UserError."""
        records = self.read_files(path)
        if val_path is None:
            self.records = split_instructions(records)
        else:
            self.records = records, self.read_files(val_path)

    def read_files(self, path):
        files = list_files(path, (".json", ".jsonl"))
        return [record for file in files for record in read_instructions(file, self.options, self.report)]

    def build_tokenizer(self, kind):
        train, val = self.records
        return instruction_tokenizer(train + val, kind, self.data.vocab_size, self.data.max_bytes)

    def make_examples(self, block_size):
        (train, _), (val, self.held_out) = (instruction_examples(records, self.tokenizer, block_size, self.report)
                                            for records in self.records)
        return train, val

    def samples(self, model, config):
        """Yield lines that show what the model has learned so far: responses to held-out instructions."""
        response = Response(model, self.tokenizer, {}, print)
        for record in self.held_out[:N_SAMPLES]:
            text = "".join(response.answer(record.instruction, config, record.input))
            yield f"{record.instruction} {record.input}-> {text}"
