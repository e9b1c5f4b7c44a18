"""Dialogue: the model replies to messages. And poems, which are replies to their title."""

import dataclasses
from itertools import chain, cycle, islice

import torch
from tqdm import tqdm

from data.chat_template import chat_ids
from data.dialogues import (
    dialogue_examples,
    fit_history,
    poem_dialogues,
    prompt_ids,
    read_dialogues,
    split_dialogues,
)
from data.examples import Examples, next_token_example
from data.metrics import measure_replies
from data.tokenizer import without_unknown
from models.generate import generate, generate_text
from tasks.examples import ExampleTask
from tasks.task import Answers
from utils.errors import UserError
from utils.printable import one_line

N_SAMPLES = 3  # held-out messages that are answered after each evaluation
N_MEASURED, N_SHOWN = 200, 10  # messages that are answered to measure the replies, and of their replies to print


class Conversation(Answers):
    """A conversation with a dialogue model: `history` has the messages so far, from the user and the model in turns."""

    hint = "Type a message. flush forgets the conversation so far."
    has_history = True
    max_tokens = 100

    def __init__(self, model, tokenizer, entry, tell):
        super().__init__(model, tokenizer, entry, tell)
        self.history, self.stop_tokens = [], tokenizer.special_ids

    def prompt(self, messages):
        """The token ids of a history that ends with a user message, up to where the reply starts. Raises UserError."""
        return prompt_ids(messages, self.tokenizer)

    def answer(self, message, config):
        """Yield the pieces of a reply, by ReplyConfig. The history then has both, unless the reply was not read to its
        end. Raises UserError if the message is too long."""
        messages = [*self.history, message]
        prompt, dropped = fit_history(messages, self.prompt, room_for_prompt(self.model, config))
        messages = messages[dropped:]
        if dropped:
            self.tell(f"forgot the oldest {dropped} messages: with a reply of {config.max_tokens} tokens, the "
                      f"conversation would exceed the context of {self.model.block_size}")
        if config.candidates == 1:
            pieces = generate_text(self.model, self.tokenizer, prompt, config.max_tokens, config,
                                   stop_tokens=self.stop_tokens)
        else:  # they are complete before one is chosen
            pieces = [self.tokenizer.decode(reply_ids(self.model, self.tokenizer, messages, config))]
        reply = []
        for piece in pieces:
            reply.append(piece)
            yield piece
        self.history[:] = [*messages, "".join(reply)]

    def flush(self):
        """Forget the conversation so far."""
        self.history.clear()


class TemplateConversation(Conversation):
    """A conversation with a chat model of another project, by its chat template, `entry["template"]`. Tokens that
    end a reply are `entry["stop_tokens"]`, by default all special tokens."""

    max_tokens = Answers.max_tokens

    def __init__(self, model, tokenizer, entry, tell):
        super().__init__(model, tokenizer, entry, tell)
        self.template, self.stop_tokens = entry["template"], entry["stop_tokens"] or tokenizer.special_ids

    def prompt(self, messages):
        roles = cycle(("user", "assistant"))
        messages = [{"role": role, "content": content} for role, content in zip(roles, messages, strict=False)]
        return chat_ids(self.template, messages, self.tokenizer)

    def answer(self, message, config):
        """As in Conversation. Raises UserError for several candidates, too: they are for models trained here."""
        if config.candidates > 1:
            raise UserError("candidates must be 1 for a model of another project: /candidates 1")
        return super().answer(message, config)


def room_for_prompt(model, config):
    """Number of tokens of the context that remain beside the longest reply. Raises UserError if there are none."""
    room = model.block_size - config.max_tokens
    if room < 1:
        raise UserError(f"max_tokens is {config.max_tokens}, but the context has only {model.block_size} tokens: use a "
                        "smaller max_tokens")
    return room


class Dialogue(ExampleTask):
    """Training on the replies of dialogues."""

    answers = Conversation
    noun = "dialogues"

    def read(self, path):
        """Read the dialogues. Raises UserError."""
        return read_dialogues(path, self.options, self.report)

    def split(self, dialogues):
        train, val = split_dialogues(dialogues)
        return {"train": train, "val": val}

    def tokenizer_texts(self):
        return chain.from_iterable(self.splits["train"] + self.splits["val"])

    def make_examples(self, dialogues, block_size):
        return dialogue_examples(dialogues, self.tokenizer, block_size, self.report)

    def samples(self, model, config):
        """Yield lines that show what the model has learned so far: replies to held-out messages."""
        config = limit_reply(config, model)
        for message, _ in islice(self.questions(self.splits["val"], model, config), N_SAMPLES):
            reply = "".join(self.answers(model, self.tokenizer, self.info, print).answer(message, config))
            yield f"{message} -> {reply}"

    def questions(self, dialogues, model, config):
        """Yield the first message and the first reply of each dialogue whose message leaves room for the longest reply.

        Characters that the tokenizer lacks are removed from the message.
        """
        room = room_for_prompt(model, config)
        for message, reply, *_ in dialogues:
            message, _ = without_unknown(message, self.tokenizer)
            if message.strip() and len(prompt_ids([message], self.tokenizer)) <= room:
                yield message, reply

    def evaluate(self, model, dialogues, config):
        """Print measures of the replies to the first messages of at most 200 dialogues, and ten of the replies.

        They are sampled by ReplyConfig, with fixed seeds. Raises UserError if there is no reply.
        """
        config = limit_reply(config, model)
        pairs = evenly_spaced(list(self.questions(dialogues, model, config)), N_MEASURED)
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
        print(f"\nreplies to the first messages of {len(questions)} {self.noun} ({settings}):")
        print(format_measures(questions, replies, references, n_ended))
        print("\nevenly spaced among them:")
        for question, reply in evenly_spaced(list(zip(questions, replies, strict=True)), N_SHOWN):
            print(f"  {one_line(question)} -> {one_line(reply)}")


def evenly_spaced(items, n):
    """At most n items of a list, from its start to its end: neighbors in a file are often alike.

    >>> evenly_spaced([0, 1, 2, 3, 4, 5], 4)
    [0, 1, 3, 4]
    """
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def limit_reply(config, model):
    """A ReplyConfig whose longest reply leaves half of the context to the messages."""
    return dataclasses.replace(config, max_tokens=max(1, min(config.max_tokens, model.block_size // 2)))


def reply_ids(model, tokenizer, messages, config):
    """The token ids of a reply to a history that ends with a user message, by ReplyConfig, without its end marker.

    Of several candidates, it is the one with the largest mean of log p(token | history) - log p(token | empty message),
    its mutual information with the history (Li et al., 2016, https://arxiv.org/abs/1510.03055): a dull or repetitive
    reply is as likely after any other message.
    """
    prompt, empty = prompt_ids(messages, tokenizer), prompt_ids([""], tokenizer)
    special = tokenizer.special_ids
    candidates = []
    for i in range(config.candidates):
        sampling = config if config.seed is None else dataclasses.replace(config, seed=config.seed + i)
        ids = generate(model, prompt, config.max_tokens, sampling, special, vocab_size=tokenizer.vocab_size,
                       exempt_ids=special)
        candidates.append(list(ids))

    def mutual_information(ids):
        reply = ids if len(ids) == config.max_tokens else [*ids, tokenizer.message_end]
        return mean_log_probability(model, prompt, reply) - mean_log_probability(model, empty, reply)

    return candidates[0] if len(candidates) == 1 else max(candidates, key=mutual_information)


@torch.inference_mode()
def mean_log_probability(model, prompt, reply):
    """Mean log-probability of the tokens of a reply, a list of ids, after those of a prompt."""
    x, y = Examples([next_token_example([(prompt, False), (reply, True)], model.block_size)]).batch([0])
    device = model.device
    return -model(x.to(device), y.to(device))[1].item()


def format_measures(questions, replies, references, n_ended):
    """A table of the measures of a model's replies, beside those of the replies in the data."""
    ours, theirs = measure_replies(questions, replies), measure_replies(questions, references)
    lines = [f"{'':45}  model   data"]
    lines += [f"{name:45} {ours[name]:6.3f} {theirs[name]:6.3f}" for name in ours]
    lines.append(f"{'share that end with an end marker':45} {n_ended / len(replies):6.3f}")
    return "\n".join(lines)


class PoemReply(Conversation):
    """A model that answers a title with a poem, whatever was asked before."""

    hint = "Type the title of a poem, 写一首诗, or 李白《静夜思》."
    has_history = False
    max_tokens = Answers.max_tokens

    def answer(self, title, config):
        self.flush()
        return super().answer(title, config)


class Poem(Dialogue):
    """Training on poems, as replies to their titles."""

    answers = PoemReply
    noun = "poems"

    def read(self, path):
        """Read the poems. Raises UserError."""
        return poem_dialogues(path, self.options, self.report)
