"""tokenization/llama2c.py: llama2.c's tokenizer.bin, against llama2.c's own algorithm."""

import random
import struct

import pytest
from small_tokenizers import SP_MERGES, SP_TEXTS, SP_VOCAB, SPECIAL_NAMES, sp_vocab_and_merges

import tokenization.llama2c
from tokenization.llama2c import read_tokenizer_bin
from tokenization.load import load_tokenizer
from tokenization.sentencepiece_bpe import SentencePieceTokenizer
from utils.errors import UserError


def entries_of(vocab):
    """The tokens as llama2.c writes them, with their scores: a merged token the higher the earlier it was learned."""
    tokens = [token.replace("▁", " ") for token in vocab]
    tokens[1:3] = "\n<s>\n", "\n</s>\n"
    return [(token.encode(), 0.0 if i < 259 else -float(i - 259)) for i, token in enumerate(tokens)]


def packed(entries, longest=None):
    if longest is None:
        longest = max(len(token) for token, _ in entries)
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", score, len(token)) + token
                                                 for token, score in entries)


ENTRIES = entries_of(SP_VOCAB)
CONTENT = packed(ENTRIES)
TOKENIZER = read_tokenizer_bin(CONTENT, "tokenizer.bin")


def llama2c_encode(text, entries):
    """`encode` of llama2.c's run.c: characters or bytes, of which it joins the pair with the best score, repeatedly."""
    id_of = {token: i for i, (token, _) in enumerate(entries)}
    ids = [id_of[b" "]] if text else []
    for character in text:
        found = id_of.get(character.encode())
        ids += [byte + 3 for byte in character.encode()] if found is None else [found]
    while True:
        best_score, best_id, best_index = -1e10, None, None
        for i in range(len(ids) - 1):
            joined = id_of.get(entries[ids[i]][0] + entries[ids[i + 1]][0])
            if joined is not None and entries[joined][1] > best_score:
                best_score, best_id, best_index = entries[joined][1], joined, i
        if best_id is None:
            return ids
        ids[best_index : best_index + 2] = [best_id]


def draw_text(draw, characters):
    return "".join(draw.choice(characters) for _ in range(draw.randrange(50)))


@pytest.mark.parametrize("characters", ["thefoxsaw sea  ", "ab ", "The fox saw 小猫🙂\n\0é<s>", "床前明月光疑是"])
def test_texts_are_encoded_as_by_llama2c(characters):
    draw = random.Random(0)
    for text in [*SP_TEXTS, *(draw_text(draw, characters) for _ in range(300))]:
        assert TOKENIZER.encode(text) == llama2c_encode(text, ENTRIES)


@pytest.mark.parametrize("characters, n", [("a", 80), ("ab", 300), ("ab ", 300)])
def test_a_vocabulary_of_repetitions_is_merged_as_by_llama2c(characters, n):
    """Here many tokens can be merged from several pairs."""
    draw = random.Random(0)
    vocab, _ = sp_vocab_and_merges([draw_text(draw, characters) + "a▁" for _ in range(60)], n)
    entries = entries_of(vocab)
    tokenizer = read_tokenizer_bin(packed(entries), "tokenizer.bin")
    for _ in range(300):
        text = draw_text(draw, characters)
        ids = llama2c_encode(text, entries)
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == text


def test_the_merges_include_those_that_were_learned():
    assert set(SP_MERGES) <= {tuple(merge) for merge in tokenization.llama2c.find_merges(
        [*SP_VOCAB][259:], [score for _, score in ENTRIES[259:]])}


def test_it_is_a_sentencepiece_tokenizer_with_the_same_ids(tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(CONTENT)
    for path in (tmp_path, tmp_path / "tokenizer.bin"):
        loaded = load_tokenizer(path)
        assert type(loaded) is SentencePieceTokenizer and loaded.to_dict() == TOKENIZER.to_dict()
    assert TOKENIZER.special_tokens == {name: i for i, name in enumerate(SPECIAL_NAMES)} and TOKENIZER.text_start == 1
    assert TOKENIZER.end_of_text == 2 and TOKENIZER.vocab_size == len(SP_VOCAB)
    assert TOKENIZER.tokens[3:259] == [bytes([byte]) for byte in range(256)]
    assert TOKENIZER.tokens[259:] == [token for token, _ in ENTRIES[259:]]
    assert {0, 1, 2}.isdisjoint(TOKENIZER.encode("\n<s>\n</s><unk>"))


def replaced(i, token, score=-1.0):
    return packed([*ENTRIES[:i], (token, score), *ENTRIES[i + 1 :]])


def length_of_first(length):
    return CONTENT[:8] + struct.pack("<i", length) + CONTENT[12:]


@pytest.mark.parametrize("content", [
    b"", b"\0", CONTENT[:4], CONTENT[:-1], CONTENT[:-4], CONTENT[:-9], CONTENT + b"\0", CONTENT + b"\0" * 7,
    b"[" * 5000, length_of_first(-1), length_of_first(-(2**31)), length_of_first(2**31 - 1), length_of_first(6),
    packed(ENTRIES, 3), packed(ENTRIES, -1), packed(ENTRIES, 2**31 - 1), packed([*ENTRIES, (b"a" * 2000, -1.0)]),
    replaced(300, b"\xff"), replaced(300, b"zz", float("nan")), replaced(300, b"zz", float("inf")),
    replaced(300, ENTRIES[301][0]), replaced(300, b"<s>"), replaced(300, b"<0x00>"), replaced(5, b"zz"),
    packed([entry for entry in ENTRIES if entry[0] != b" "]), packed(ENTRIES[:259]),
])  # fmt: skip
def test_a_file_that_is_damaged_or_lies_about_its_sizes_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.bin").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.bin") as error:
        load_tokenizer(tmp_path / "tokenizer.bin")
    assert "\n" not in str(error.value)


def test_a_large_file_is_refused_before_work_is_done_on_it():
    with pytest.raises(UserError, match="x.bin"):
        read_tokenizer_bin(packed(ENTRIES) + bytes(tokenization.llama2c.MAX_FILE_BYTES), "x.bin")
