"""meta.pkl, in which nanoGPT keeps the characters of a vocabulary, read without running code from it."""

import pickle
import pickletools

OPCODES = {  # those that build dictionaries, strings and integers, in protocols 0 to 5
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "MEMOIZE", "PUT", "BINPUT",
    "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "INT", "BININT", "BININT1", "BININT2", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE",
}  # fmt: skip


def characters_in_meta(content: bytes) -> str:
    """Return the vocabulary in a meta.pkl: a string of the characters of id 0, 1 and so on. Raises ValueError."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in OPCODES:
                raise ValueError(f"pickle opcode {opcode.name}")
            if "PUT" in opcode.name and argument > len(content):  # the unpickler allocates as many memo entries
                raise ValueError(f"memo index {argument}")
        character_of = pickle.loads(content)["itos"]
        characters = [character_of[i] for i in range(len(character_of))]
        if all(len(character) == 1 for character in characters):
            return "".join(characters)
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    raise ValueError("a token that is not one character")
