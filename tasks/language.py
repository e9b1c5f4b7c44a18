"""Language modeling: the model continues text."""

import hashlib

import numpy as np

from data.prepare import open_tokens
from data.windows import ConsecutiveWindows, WindowBatches, check_length, make_windows, reverse_some
from models.generate import generate_text
from tasks.task import Answers, Task
from utils.printable import one_line


class Completion(Answers):
    """A conversation with a language model: it continues each prompt, at most to the end of the text.

    The tokens that end a text are `entry["stop_tokens"]` of a model of another project, else that of the tokenizer.
    """

    hint = "Type a prompt: the model continues it. An empty line generates text without a prompt. Ctrl-C stops it."
    continues_text = True

    def answer(self, prompt, config):
        """Yield the pieces of a continuation, by ReplyConfig."""
        start, ids = self.tokenizer.text_start, self.tokenizer.encode(prompt)
        if start is not None:
            ids = [start, *ids]
        ids = ids or [self.tokenizer.start_id]
        stop_tokens = self.entry.get("stop_tokens") or {self.tokenizer.end_of_text}
        return generate_text(self.model, self.tokenizer, ids, config.max_tokens, config, stop_tokens=stop_tokens)


class Language(Task):
    """Training on windows of continuous text."""

    answers = Completion

    def __init__(self, settings, options, tokenizer, entry=None):
        """Open the text of Settings; `options` are its ReadOptions, `tokenizer` is as for `open_tokens`."""
        self.data = data = settings.data
        self.text = text = open_tokens(data.path, options, tokenizer, data.vocab_size, data.max_bytes, data.dtype,
                                       data.val_path)
        self.tokenizer = text.tokenizer
        print(one_line(f"text: {data.path} ({text.title}), {len(text.train):,} tokens for training and "
                       f"{len(text.val):,} for validation, {self.tokenizer.vocab_size:,} in the vocabulary"))

    def prepare(self, block_size):
        """Prepare examples for this context length. Raises UserError if there is none."""
        self.block_size = block_size
        check_length(self.text.val, block_size, f"the validation split of {self.data.path}")

    def train_batches(self, training):
        """A function from a step to its micro-batches, by TrainingSettings. Raises UserError."""
        windows = make_windows(self.text.train, self.data.windows, self.data.stride, self.block_size,
                               batch_size=training.batch_size, accumulation=training.accumulation, seed=training.seed)
        return WindowBatches(windows, training.accumulation, self.augment())

    def augment(self):
        """A function that varies a micro-batch, as for `WindowBatches`, or None."""
        dropout, both_directions = self.make_dropout(), self.data.both_directions
        if not dropout and not both_directions:
            return None

        def augment(x, y, random):
            if dropout:
                x, y = dropout.split_windows(x, y, random)
            return reverse_some(x, y, random) if both_directions else (x, y)

        return augment

    def val_batches(self, batch_size):
        return ConsecutiveWindows(self.text.val, self.block_size, batch_size)

    def digest(self):
        """A fingerprint of the validation data, by which a resumed run recognizes its text."""
        return hashlib.sha256(np.ascontiguousarray(self.text.val)).hexdigest()

    def samples(self, model, config):
        """Yield lines that show what the model has learned so far."""
        yield "".join(Completion(model, self.tokenizer, self.info, print).answer("", config))
