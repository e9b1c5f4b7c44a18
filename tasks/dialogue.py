"""Dialogue: the model replies to messages. Poems are replies to their titles."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice

import torch
from torch import nn
from tqdm import tqdm

from models.config import ReplyConfig
from models.generate import generate, generate_text
from records.dialogues import (
    dialogue_examples,
    poem_dialogues,
    prompt_ids,
    read_dialogues,
    split_dialogues,
)
from records.examples import Examples, next_token_example
from tasks.example_task import ExampleTask
from tasks.reply_metrics import measure_replies
from tasks.task import Answers
from tokenization.base import Tokenizer
from tokenization.chat_template import chat_ids
from utils.errors import UserError
from utils.printable import one_line
from utils.quantities import quantity

N_SAMPLES = 3  # held-out messages that are answered after each evaluation
N_MEASURED = 200  # held-out messages that are answered to measure the replies
N_PRINTED = 10  # of those replies


class Conversation(Answers):
    """A conversation with a dialogue model. `history` has the messages so far, of the user and the model in turn."""

    hint = "Type a message. flush forgets the conversation so far."
    has_history = True
    max_tokens = 100

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, entry: dict, tell: Callable[[str], None]):
        super().__init__(model, tokenizer, entry, tell)
        self.history, self.stop_tokens = [], tokenizer.special_ids

    def prompt(self, messages: list[str]) -> list[int]:
        """Return the token ids of messages, the last of them from the user, up to the start of the reply.

        Raises UserError if a message cannot be encoded.
        """
        return prompt_ids(messages, self.tokenizer)

    def answer(self, message: str, config: ReplyConfig) -> Iterator[str]:
        """Yield the pieces of a reply, and add message and reply to the history after the last piece.

        Raises UserError if the message is too long.
        """
        messages = [*self.history, message]
        prompt, dropped = fit_history(messages, self.prompt, room_for_prompt(self.model, config))
        messages = messages[dropped:]
        if dropped:
            self.tell(f"forgot the oldest {dropped} messages: with a reply of {config.max_tokens} tokens, the "
                      f"conversation would exceed the context of {self.model.block_size}")
        if config.candidates == 1:
            pieces = generate_text(self.model, self.tokenizer, prompt, config.max_tokens, config,
                                   stop_tokens=self.stop_tokens)
        else:  # candidates are complete before one is chosen
            pieces = [self.tokenizer.decode(reply_ids(self.model, self.tokenizer, messages, config))]
        reply = []
        for piece in pieces:
            reply.append(piece)
            yield piece
        self.history[:] = [*messages, "".join(reply)]

    def flush(self) -> None:
        """Forget the conversation so far."""
        self.history.clear()


class TemplateConversation(Conversation):
    """A conversation with a chat model of another project, by its chat template, `entry["template"]`.

    The tokens that end a reply are `entry["stop_tokens"]`, by default all special tokens.
    """

    max_tokens = Answers.max_tokens

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, entry: dict, tell: Callable[[str], None]):
        super().__init__(model, tokenizer, entry, tell)
        self.template, self.stop_tokens = entry["template"], entry["stop_tokens"] or tokenizer.special_ids

    def prompt(self, messages: list[str]) -> list[int]:
        """Return the token ids of messages in the chat template, up to the start of the reply."""
        roles = cycle(("user", "assistant"))
        messages = [{"role": role, "content": content} for role, content in zip(roles, messages, strict=False)]
        return chat_ids(self.template, messages, self.tokenizer)

    def answer(self, message: str, config: ReplyConfig) -> Iterator[str]:
        """Yield the pieces of a reply. Raises UserError for several candidates, which need a model trained here."""
        if config.candidates > 1:
            raise UserError("candidates must be 1 for a model of another project: /candidates 1")
        return super().answer(message, config)


def fit_history(messages: list[str], make_prompt: Callable[[list[str]], list[int]],
                room: int) -> tuple[list[int], int]:
    """Return (prompt, number of messages dropped): what `make_prompt` returns for the last messages that fit.

    The prompt takes at most `room` tokens. The oldest messages are dropped in pairs, so that the history starts with
    the user. Raises UserError if the last message alone does not fit.
    """
    for n_dropped in range(0, len(messages), 2):
        prompt = make_prompt(messages[n_dropped:])
        if len(prompt) <= room:
            return prompt, n_dropped
    raise UserError(f"the message takes {len(prompt):,} tokens, but the context has room for {room:,}: shorten it, or "
                    "allow fewer tokens for the reply")


def room_for_prompt(model: nn.Module, config: ReplyConfig) -> int:
    """Return how many tokens of the context the longest reply leaves for the prompt. Raises UserError if none."""
    room = model.block_size - config.max_tokens
    if room < 1:
        raise UserError(f"max_tokens is {config.max_tokens}, but the context has only {model.block_size} tokens: use a "
                        "smaller max_tokens")
    return room


class Dialogue(ExampleTask):
    """Training on the replies of dialogues."""

    answers = Conversation
    noun = "dialogues"

    def read(self, path: str | list[str]) -> list[list[str]]:
        """Return the dialogues in files, lists of messages. Raises UserError if they cannot be read."""
        return read_dialogues(path, self.options, self.report)

    def split(self, dialogues: list[list[str]]) -> dict[str, list[list[str]]]:
        """Split dialogues into `train` and `val`."""
        train, val = split_dialogues(dialogues)
        return {"train": train, "val": val}

    def tokenizer_texts(self) -> Iterator[str]:
        """Return the texts that a tokenizer is trained on: all messages."""
        return chain.from_iterable(self.splits["train"] + self.splits["val"])

    def make_examples(self, dialogues: list[list[str]], block_size: int) -> Examples:
        """Return the Examples of dialogues."""
        return dialogue_examples(dialogues, self.tokenizer, block_size, self.report)

    def samples(self, model: nn.Module, config: ReplyConfig) -> Iterator[str]:
        """Yield lines with held-out messages and the model's replies."""
        config = limit_reply(config, model)
        for message, _ in islice(self.questions(self.splits["val"], model, config), N_SAMPLES):
            reply = "".join(self.answers(model, self.tokenizer, self.info, print).answer(message, config))
            yield f"{message} -> {reply}"

    def questions(self, dialogues: list[list[str]], model: nn.Module, config: ReplyConfig) -> Iterator[tuple[str, str]]:
        """Yield the first message and reply of each dialogue whose message leaves room for the longest reply.

        Characters that the tokenizer lacks are removed from the message.
        """
        room = room_for_prompt(model, config)
        for message, reply, *_ in dialogues:
            message, _ = self.tokenizer.without_unknown(message)
            if message.strip() and len(prompt_ids([message], self.tokenizer)) <= room:
                yield message, reply

    def evaluate(self, model: nn.Module, dialogues: list[list[str]], config: ReplyConfig) -> None:
        """Print measures of the replies to the first messages of at most N_MEASURED dialogues, and some of the replies.

        Replies are sampled with fixed seeds. Raises UserError if no message can be answered.
        """
        config = limit_reply(config, model)
        pairs = pick_evenly(list(self.questions(dialogues, model, config)), N_MEASURED)
        if not pairs:
            raise UserError("no first message fits the context, or has a character that the tokenizer knows: use other "
                            "data")
        questions, references = zip(*pairs, strict=True)
        replies, n_ended = [], 0
        for i, question in enumerate(tqdm(questions, "replies", leave=False, delay=2)):
            seeded = dataclasses.replace(config, seed=i * config.candidates)
            ids = reply_ids(model, self.tokenizer, [question], seeded)
            replies.append(self.tokenizer.decode(ids))
            n_ended += len(ids) < config.max_tokens
        settings = ", ".join(f"{name} {value}" for name, value in vars(config).items() if value is not None)
        print(f"\nreplies to the first message of {quantity(len(questions), self.noun)} ({settings}):")
        print(format_measures(questions, replies, references, n_ended))
        print("\nsome of them:")
        for question, reply in pick_evenly(list(zip(questions, replies, strict=True)), N_PRINTED):
            print(f"  {one_line(question)} -> {one_line(reply)}")


class PoemReply(Conversation):
    """A model that writes a poem for a title, without a memory of earlier ones."""

    hint = "Type the title of a poem, 写一首诗, or 李白《静夜思》."
    has_history = False
    max_tokens = Answers.max_tokens

    def answer(self, title: str, config: ReplyConfig) -> Iterator[str]:
        """Return an iterator over the pieces of a poem."""
        self.flush()
        return super().answer(title, config)


class Poem(Dialogue):
    """Training on poems, as replies to their titles."""

    answers = PoemReply
    noun = "poems"

    def read(self, path: str | list[str]) -> list[list[str]]:
        """Return the poems in files, as dialogues. Raises UserError if they cannot be read."""
        return poem_dialogues(path, self.options, self.report)


def pick_evenly(items: list, n: int) -> list:
    """Return at most n evenly spaced items of a list: neighbors in a file are often alike.

    >>> pick_evenly([0, 1, 2, 3, 4, 5], 4)
    [0, 1, 3, 4]
    """
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def limit_reply(config: ReplyConfig, model: nn.Module) -> ReplyConfig:
    """Return a ReplyConfig whose longest reply leaves half of the context for the messages."""
    return dataclasses.replace(config, max_tokens=max(1, min(config.max_tokens, model.block_size // 2)))


def reply_ids(model: nn.Module, tokenizer: Tokenizer, messages: list[str], config: ReplyConfig) -> list[int]:
    """Return the token ids of a reply to messages, the last of them from the user, without the end marker.

    Of several candidates, it is the one with the highest mean of log p(token | messages) - log p(token | empty
    message), its mutual information with the messages (Li et al., 2016, https://arxiv.org/abs/1510.03055): a dull or
    repetitive reply is as likely after any other message.
    """
    prompt, empty = prompt_ids(messages, tokenizer), prompt_ids([""], tokenizer)
    special = tokenizer.special_ids
    candidates = []
    for i in range(config.candidates):
        sampling = config if config.seed is None else dataclasses.replace(config, seed=config.seed + i)
        ids = generate(model, prompt, config.max_tokens, sampling, special, vocab_size=tokenizer.vocab_size,
                       exempt_ids=special)
        candidates.append(list(ids))

    def mutual_information(ids: list[int]) -> float:
        reply = ids if len(ids) == config.max_tokens else [*ids, tokenizer.message_end]
        return mean_log_probability(model, prompt, reply) - mean_log_probability(model, empty, reply)

    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=mutual_information)


@torch.inference_mode()
def mean_log_probability(model: nn.Module, prompt: list[int], reply: list[int]) -> float:
    """Return the mean log-probability of the token ids of a reply after those of a prompt."""
    example = next_token_example([(prompt, False), (reply, True)], model.block_size)
    x, y = Examples([example]).batch([0])
    _, loss = model(x.to(model.device), y.to(model.device))
    return -loss.item()


def format_measures(questions: Sequence[str], replies: list[str], references: Sequence[str], n_ended: int) -> str:
    """Return a table of the measures of a model's replies, beside those of the replies in the data."""
    ours, theirs = measure_replies(questions, replies), measure_replies(questions, references)
    lines = [f"{'':45}  model   data"]
    lines += [f"{name:45} {ours[name]:6.3f} {theirs[name]:6.3f}" for name in ours]
    lines.append(f"{'share that end with an end marker':45} {n_ended / len(replies):6.3f}")
    return "\n".join(lines)
