"""llama2.c's tokenizer.bin (https://github.com/karpathy/llama2.c): the tokens of a SentencePiece model, and scores."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from tokenization.sentencepiece_bpe import BYTE_TOKENS, SPACE, SPECIAL, SentencePieceTokenizer, from_vocab_and_merges
from utils.errors import UserError

MAX_FILE_BYTES = 5_000_000  # Llama 2's has 434 kB
MAX_TOKEN_BYTES = 256  # Llama 2's longest token has 48; the work grows with the square of the length
HEADER = struct.Struct("<i")  # the length of the longest token in bytes
ENTRY = struct.Struct("<fi")  # score, length in bytes; the token itself follows


def read_tokenizer_bin(content: bytes, where: str | Path) -> SentencePieceTokenizer:
    """Return the tokenizer of a file's bytes. Raises UserError, which names `where`.

    llama2.c joins, again and again, the pair of neighboring tokens whose union is the token with the highest score.
    The pairs, from the highest score to the lowest, are the merges of the tokenizer.
    """
    tokens, scores = [], []
    try:
        for token, score in entries(content):
            tokens.append(token.decode().replace(" ", SPACE))
            scores.append(score)
    except (struct.error, ValueError):
        raise UserError(f"{where} is damaged or not a tokenizer.bin of llama2.c: download it again") from None
    tokens[: len(SPECIAL)] = SPECIAL  # the file has line feeds around two of them
    n_fixed = len(SPECIAL) + len(BYTE_TOKENS)
    ids = {token: i for i, token in enumerate(tokens)}
    if tokens[len(SPECIAL) : n_fixed] != [*BYTE_TOKENS] or SPACE not in ids:
        raise UserError(f"{where} lacks the tokens for bytes and for a space that llama2.c needs: use another one")
    if len(ids) < len(tokens):
        raise UserError(f"{where} has a token twice: use another one")
    return from_vocab_and_merges(ids, find_merges(tokens[n_fixed:], scores[n_fixed:]), where)


def entries(content: bytes) -> Iterator[tuple[bytes, float]]:
    """Yield (token, score) of a tokenizer.bin. Raises ValueError or struct.error if its sizes are wrong."""
    [longest] = HEADER.unpack_from(content)
    if len(content) > MAX_FILE_BYTES or longest > MAX_TOKEN_BYTES:
        raise ValueError("too large")
    position = HEADER.size
    while position < len(content):
        score, length = ENTRY.unpack_from(content, position)
        position += ENTRY.size
        token = content[position : position + length] if 0 <= length <= longest else b""
        if len(token) != length or not math.isfinite(score):
            raise ValueError("wrong size or score")
        yield token, score
        position += length


def find_merges(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Return all pairs of tokens whose union is a token, those with the highest score first.

    >>> find_merges(["ab", "abc", "a", "b", "c"], [-1, -2, -3, -4, -5])
    [('a', 'b'), ('ab', 'c')]
    """
    known, merges = set(tokens), []
    for _, token in sorted(zip(scores, tokens, strict=True), key=lambda entry: entry[0], reverse=True):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [split for split in splits if known.issuperset(split)]
    return merges
