"""Language modeling: the model continues text."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from data.prepare import open_tokens
from data.windows import ConsecutiveWindows, WindowBatches, check_length, make_windows, reverse_some
from models.config import ReplyConfig
from models.generate import generate_text
from reading.options import ReadOptions
from tasks.task import Answers, Task
from tokenization.base import Tokenizer
from utils.printable import one_line


class Completion(Answers):
    """A language model, which continues each prompt, at most to the end of the text.

    A text ends at `entry["stop_tokens"]` for a model of another project, else at the tokenizer's end-of-text token.
    """

    hint = "Type a prompt: the model continues it. Enter alone generates text without a prompt, until Ctrl-C."
    continues_text = True

    def answer(self, prompt: str, config: ReplyConfig) -> Iterator[str]:
        """Return an iterator over the pieces of a continuation."""
        start, ids = self.tokenizer.text_start, self.tokenizer.encode(prompt)
        if start is not None:
            ids = [start, *ids]
        ids = ids or [self.tokenizer.start_id]
        stop_tokens = self.entry.get("stop_tokens") or {self.tokenizer.end_of_text}
        return generate_text(self.model, self.tokenizer, ids, config.max_tokens, config, stop_tokens=stop_tokens)


class Language(Task):
    """Training on sequences from a continuous text."""

    answers = Completion

    def __init__(self, settings: Any, options: ReadOptions, tokenizer: Tokenizer | str, entry: dict | None = None):
        """Open the text of a `training.settings.Settings`; `tokenizer` is as in `open_tokens`."""
        self.data = data = settings.data
        self.text = text = open_tokens(data.path, options, tokenizer, data.vocab_size, data.max_bytes, data.dtype,
                                       data.val_path)
        self.tokenizer = text.tokenizer
        print(one_line(f"text: {data.path} ({text.title}), {len(text.train):,} tokens for training and "
                       f"{len(text.val):,} for validation, {self.tokenizer.vocab_size:,} in the vocabulary"))

    def prepare(self, block_size: int) -> None:
        """Set the context length. Raises UserError if the validation text is shorter."""
        self.block_size = block_size
        check_length(self.text.val, block_size, f"the validation split of {self.data.path}")

    def train_batches(self, training: Any) -> WindowBatches:
        """Return a function from a step number to its micro-batches, by a `training.settings.TrainingSettings`.

        Raises UserError if the text is too short for a batch.
        """
        windows = make_windows(self.text.train, self.data.windows, self.data.stride, self.block_size,
                               batch_size=training.batch_size, accumulation=training.accumulation, seed=training.seed)
        return WindowBatches(windows, training.accumulation, self.augment())

    def augment(self) -> Callable | None:
        """Return a function that augments a micro-batch, as `WindowBatches` takes it, or None."""
        dropout, both_directions = self.make_dropout(), self.data.both_directions
        if not dropout and not both_directions:
            return None

        def augment_batch(x: Tensor, y: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
            if dropout:
                x, y = dropout.split_windows(x, y, random)
            return reverse_some(x, y, random) if both_directions else (x, y)

        return augment_batch

    def val_batches(self, batch_size: int) -> ConsecutiveWindows:
        """Return the batches of the validation text."""
        return ConsecutiveWindows(self.text.val, self.block_size, batch_size)

    def digest(self) -> str:
        """Return a fingerprint of the validation text, by which a resumed run recognizes its text."""
        return hashlib.sha256(np.ascontiguousarray(self.text.val)).hexdigest()

    def samples(self, model: nn.Module, config: ReplyConfig) -> Iterator[str]:
        """Yield a text that the model generates without a prompt."""
        yield "".join(Completion(model, self.tokenizer, self.info, print).answer("", config))
