"""Dialogue: the model replies to messages. And poems, which are replies to their title."""

from data.dialogues import (
    dialogue_examples,
    dialogue_tokenizer,
    fit_history,
    poem_dialogues,
    prompt_ids,
    read_dialogues,
    split_dialogues,
)
from tasks.examples import ExampleTask, reply_pieces
from utils.errors import UserError

N_SAMPLES = 3  # held-out messages that are answered after each evaluation


class Conversation:
    """A conversation with a dialogue model: `history` has the messages so far, from the user and the model in turns."""

    hint = "Type a message. flush forgets the conversation so far."
    continues_text = False
    streams = has_history = True

    def __init__(self, model, tokenizer, entry, tell):
        self.model, self.tokenizer, self.tell, self.history = model, tokenizer, tell, []

    def answer(self, message, config):
        """Yield the pieces of a reply, by ReplyConfig. The history then has both, unless the reply was not read to its
        end. Raises UserError if the message is too long."""
        room = self.model.block_size - config.max_tokens
        if room < 1:
            raise UserError(f"max_tokens is {config.max_tokens}, but the context has only {self.model.block_size} "
                            "tokens: use a smaller max_tokens")
        messages, dropped = fit_history([*self.history, message], self.tokenizer, room)
        if dropped:
            self.tell(f"forgot the oldest {dropped} messages: with a reply of {config.max_tokens} tokens, the "
                      f"conversation would exceed the context of {self.model.block_size}")
        reply = []
        for piece in reply_pieces(self.model, self.tokenizer, prompt_ids(messages, self.tokenizer), config):
            reply.append(piece)
            yield piece
        self.history[:] = [*messages, "".join(reply)]

    def flush(self):
        """Forget the conversation so far."""
        self.history.clear()


class Dialogue(ExampleTask):
    """Training on the replies of dialogues."""

    answers = Conversation
    noun = "dialogues"

    def read(self, path, val_path):
        """Read the dialogues. Raises UserError."""
        dialogues = self.read_file(path)
        if val_path is None:
            self.dialogues = split_dialogues(dialogues)
        else:
            self.dialogues = dialogues, self.read_file(val_path)

    def read_file(self, path):
        return read_dialogues(path, self.options, self.report)

    def build_tokenizer(self, kind):
        train, val = self.dialogues
        return dialogue_tokenizer(train + val, kind, self.data.vocab_size, self.data.max_bytes)

    def make_examples(self, block_size):
        return [dialogue_examples(dialogues, self.tokenizer, block_size, self.report) for dialogues in self.dialogues]

    def samples(self, model, config):
        """Yield lines that show what the model has learned so far: replies to held-out messages."""
        for dialogue in self.dialogues[1][:N_SAMPLES]:
            reply = "".join(self.answers(model, self.tokenizer, self.info, print).answer(dialogue[0], config))
            yield f"{dialogue[0]} -> {reply}"


class PoemReply(Conversation):
    """A model that answers a title with a poem, whatever was asked before."""

    hint = "Type the title of a poem, 写一首诗, or 李白《静夜思》."
    has_history = False

    def answer(self, title, config):
        self.flush()
        return super().answer(title, config)


class Poem(Dialogue):
    """Training on poems, as replies to their titles."""

    answers = PoemReply
    noun = "poems"

    def read_file(self, path):
        return poem_dialogues(path, self.options, self.report)
