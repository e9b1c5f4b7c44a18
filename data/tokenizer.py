"""Text to token ids and back."""

from utils.errors import UserError


class CharTokenizer:
    """One token per character.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab")
    [2, 0, 1]
    >>> tokenizer.decode([2, 0, 1])
    'cab'
    """

    def __init__(self, vocab):
        self.vocab = vocab
        self.ids = {character: i for i, character in enumerate(vocab)}

    @classmethod
    def of_text(cls, text):
        """The tokenizer of all characters of a text, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self):
        return len(self.vocab)

    @property
    def start_id(self):
        """What stands before a text that begins with nothing: the end of a line, where there is one."""
        return self.ids.get("\n", 0)

    def unknown(self, text):
        """The characters of a text that the vocabulary lacks, each once, in order."""
        return [character for character in dict.fromkeys(text) if character not in self.ids]

    def encode(self, text):
        """A list of token ids. Raises UserError if the vocabulary lacks a character of the text."""
        try:
            return [self.ids[character] for character in text]
        except KeyError:
            unknown = self.unknown(text)
            names = ", ".join(f"{character!r}" for character in unknown[:10]) + ", ..." * (len(unknown) > 10)
            raise UserError(f"{len(unknown)} characters of the text are not in the vocabulary: {names}") from None

    def decode(self, ids):
        return "".join(self.vocab[i] for i in ids)

    def stream(self):
        """A function from each next token id to the text that it completes."""
        return self.vocab.__getitem__

    def to_dict(self):
        return {"kind": "char", "vocab": self.vocab}


def tokenizer_from_dict(saved):
    """The tokenizer of a checkpoint, from what its `to_dict` gave. Raises UserError for a kind that is not known."""
    if saved.get("kind") != "char":
        raise UserError(f"the tokenizer is of kind {saved.get('kind')!r}, which this version does not know: update it")
    return CharTokenizer(saved["vocab"])
