"""Character tokenizers as the tokenizer.json of the `tokenizers` library."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from data.library_tokenizer import SPECIAL_TOKENS


def to_library(characters, special):
    """The library's tokenizer for the characters of a string, in the order of their ids, and if `special` for
    SPECIAL_TOKENS behind them. It raises an exception for any other character."""
    ids = {character: i for i, character in enumerate(characters)}
    library = Tokenizer(models.WordLevel(ids, unk_token="<|unknown|>"))  # which the vocabulary lacks
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # every character is a word
    library.decoder = decoders.Fuse()  # without it, words are joined with spaces
    if special:
        library.add_special_tokens([*SPECIAL_TOKENS.values()])
    return library


def characters_in(description):
    """(characters, special) of the content of a tokenizer.json, as given to `to_library`; None if it is of another kind
    of tokenizer."""
    try:
        if description["model"]["type"] != "WordLevel":
            return None
        ids = description["model"]["vocab"]
        characters = sorted(ids, key=ids.get)
        if [ids[word] for word in characters] != list(range(len(ids))) or any(len(word) != 1 for word in characters):
            return None
        for special in (False, True):
            written = json.loads(to_library("".join(characters), special).to_str())
            if all(description.get(key) == written[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")):
                return "".join(characters), special
    except (TypeError, LookupError, AttributeError, UnicodeError):
        pass
    return None
