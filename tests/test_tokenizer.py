"""tokenization/load.py and tokenization/bpe.py: tokens, exact round trips, and files of every kind."""

import json
import os
import re
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import tiktoken.load
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import mutations
from tiktoken_ext.openai_public import r50k_pat_str

import data.tokenizer
import tokenization.base
import tokenization.bpe
import tokenization.characters
import tokenization.load
from tokenization.bpe import BYTE_OF, BPETokenizer, sample
from tokenization.characters import CharTokenizer
from tokenization.library import BYTES_IN_UTF_8
from tokenization.load import load_tokenizer, tokenizer_from_dict
from utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
GPT2 = SHARED / "gpt2-bpe"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"GPT-2's files are not in {GPT2}")

TEXTS = [f"The {a} saw {b}: {c}\r\n" for a in ("fox", "小猫", "owl") for b in ("the sea", "月亮", "a star", "🌊🌊")
         for c in ("it isn't far.", "床前明月光，疑是地上霜。", "naïve café", "12 345 678", "\tyes  \n  no")]
VOCAB_SIZE = 350
TOKENIZER = BPETokenizer.train(TEXTS, VOCAB_SIZE)
SPECIAL = {"padding": "<|pad|>", "message_start": "<|im_start|>", "message_end": "<|im_end|>",
           "end_of_text": "<|endoftext|>"}

# Text of any characters, and of those that are easily broken.
CHARACTERS = ["a", " ", "  ", "\n", "\r\n", "\r", "\t", "\0", "\u0301", "e\u0301", "é", "\u200d", "👩‍👩‍👧", "🇨🇳", "月",
              "明月光", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "𠮷", "ﬁ", "Å", "\u3000", "\xad", "'s", "12", "Ġ",
              *SPECIAL.values()]
any_text = st.text() | st.lists(st.sampled_from(CHARACTERS)).map("".join)
any_ids = st.lists(st.integers(0, TOKENIZER.vocab_size - 1))
quietly = settings(deadline=None, database=None, max_examples=150)


def pieces(tokenizer, text):
    return [tokenizer.tokens[i] for i in tokenizer.encode(text)]


def description(tokenizer=TOKENIZER):
    return json.loads(tokenizer.to_dict()["tokenizer.json"])


def learned(tokenizer):
    """The merges, the first one first, as two pieces of text each."""
    merges = description(tokenizer)["model"]["merges"]
    return [tuple(BPETokenizer.bytes_of(token).decode() for token in merge) for merge in merges]


# ---- Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_merges, cut", [
    (1, "aa a b d aa a b a c"), (2, "aa ab d aa ab a c"), (3, "aaab d aaab a c"),
])  # fmt: skip
def test_the_example_of_wikipedia(n_merges, cut):
    """https://en.wikipedia.org/wiki/Byte-pair_encoding: Z = aa, then Y = ab, then X = ZY."""
    tokenizer = BPETokenizer.train(["aaabdaaabac"], vocab_size=4 + 256 + n_merges)
    assert pieces(tokenizer, "aaabdaaabac") == cut.encode().split()


def test_the_example_of_the_paper():
    """Sennrich et al. 2016, figure 1: from these words, r ·, l o, lo w and er · are learned; `lower` is low and er.

    Here no mark · ends a word, so that r · is not learned and er · is e r.
    """
    tokenizer = BPETokenizer.train(["low", "lowest", "newer", "wider"], vocab_size=4 + 256 + 3)
    assert sorted(learned(tokenizer)) == [("e", "r"), ("l", "o"), ("lo", "w")]
    assert pieces(tokenizer, "lower") == [b"low", b"er"]


def test_each_merge_joins_a_most_frequent_pair():
    text = " ".join(f"{a}{b}{c}{a}" for a in "abc" for b in ("a", "ab", "bca") for c in ("c", "ca", "bb", "")) * 2
    tokenizer = BPETokenizer.train([text], vocab_size=4 + 256 + 40)
    words = [list(word) for word in re.findall(" ?[a-c]+", text)]
    merges = learned(tokenizer)
    assert len(merges) == 40
    for merge in merges:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        assert pairs[merge] == max(pairs.values()) >= 2
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == merge:
                    word[i : i + 2] = ["".join(merge)]
                i += 1
    assert pieces(tokenizer, text) == [token.encode() for word in words for token in word]


def test_vocabulary_has_the_size_asked_for_unless_there_is_nothing_left_to_merge():
    assert TOKENIZER.vocab_size == VOCAB_SIZE
    assert BPETokenizer.train(["abcd"]).vocab_size == 260


def test_the_same_texts_give_the_same_tokenizer():
    assert BPETokenizer.train(iter(TEXTS), VOCAB_SIZE).to_dict() == TOKENIZER.to_dict()


def test_special_tokens_in_training_texts_are_learned_as_text():
    tokenizer = BPETokenizer.train(["<|im_end|>\n"] * 9, vocab_size=300)
    assert pieces(tokenizer, "<|im_end|>") == [b"<|", b"im", b"_", b"end", b"|>"]


def test_large_texts_are_sampled_uniformly():
    texts = [f"{i:04}" + "x" * (i % 7) for i in range(3000)]
    kept = [piece.decode() for piece in sample(iter(texts), 6000)]
    assert 6000 - 10 < sum(map(len, kept)) <= 6000 and set(kept) <= set(texts) and len(set(kept)) == len(kept)
    share = len(kept) / 3000
    for part in (range(1000), range(1000, 2000), range(2000, 3000), range(0, 3000, 2), range(0, 3000, 7)):
        n = sum(int(text[:4]) in part for text in kept)
        assert abs(n - share * len(part)) < 4 * (share * len(part)) ** 0.5  # four standard deviations
    assert sorted(kept) == sorted(piece.decode() for piece in sample(iter(texts), 6000))


def test_small_texts_are_used_completely():
    texts = ["é" * 10, "", "b"]
    assert sorted(sample(texts, 21)) == [b"b", ("é" * 10).encode()]
    long = "".join(chr(0x4E00 + i % 20000) for i in range(300_000))
    assert sum(map(len, sample([long], 900_000))) == 900_000 and 700_000 < sum(map(len, sample([long], 899_999)))


def test_memory_does_not_grow_with_the_texts():
    def peak(n):
        tracemalloc.start()
        sample((f"{i:08}" * 500 for i in range(n)), 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak(2000) < 1_200_000 and peak(8000) < 1_200_000  # 8 MB of text, and 32 MB


# ---- Round trips --------------------------------------------------------------------------------------------------


@quietly
@given(any_text)
@example("".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)])))
@example("e\u0301 é \u0301\r\n\0 👩‍👩‍👧 𠮷")
def test_every_text_is_reproduced(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@quietly
@given(any_ids)
def test_any_ids_decode_as_in_the_library(ids):
    assert TOKENIZER.decode(ids) == TOKENIZER.library.decode(ids, skip_special_tokens=False)


@quietly
@given(any_ids)
def test_a_stream_yields_what_decode_returns(ids):
    complete = TOKENIZER.stream()
    assert "".join(map(complete, ids)) + complete() == TOKENIZER.decode(ids)


@quietly
@given(any_text.map(lambda text: text.replace("\ufffd", "")))
def test_a_stream_yields_characters_as_soon_as_they_are_complete(text):
    complete, shown, received = TOKENIZER.stream(), "", b""
    for i in TOKENIZER.encode(text):
        shown += complete(i)
        received += TOKENIZER.tokens[i]
        assert shown == received.decode(errors="ignore")  # which leaves out the bytes at the end
    assert complete() == "" and shown == text


def test_an_incomplete_character_at_the_end_is_not_lost():
    ids = TOKENIZER.encode("a🜁")
    complete = TOKENIZER.stream()
    assert [complete(i) for i in ids[:3]] == ["a", "", ""] and complete() == "\ufffd"


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CharTokenizer.of_text("".join(TEXTS))])
def test_a_batch_is_encoded_as_its_texts(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode("") == []


def test_characters_stream_as_they_decode():
    tokenizer = CharTokenizer.of_text("héllo\n")
    complete = tokenizer.stream()
    assert [complete(i) for i in tokenizer.encode("héo")] == ["h", "é", "o"] and complete() == ""


# ---- Special tokens --------------------------------------------------------------------------------------------------


def test_special_tokens_have_distinct_ids():
    ids = {name: getattr(TOKENIZER, name) for name in SPECIAL}
    assert len(set(ids.values())) == 4
    for name, token in SPECIAL.items():
        assert TOKENIZER.decode([ids[name]]) == token
    assert TOKENIZER.start_id == TOKENIZER.end_of_text


@quietly
@given(st.lists(st.sampled_from([*SPECIAL.values(), "<|", "|>", "im_start", "a", " ", "\n"])).map("".join))
def test_no_text_is_encoded_as_a_special_token(text):
    for tokenizer in (TOKENIZER, CharTokenizer.of_text("".join([*SPECIAL.values(), "a \n"])).with_special_tokens()):
        ids = tokenizer.encode(text)
        assert not set(ids) & {getattr(tokenizer, name) for name in SPECIAL} and tokenizer.decode(ids) == text


def test_a_tokenizer_without_special_tokens_has_none():
    characters = CharTokenizer("\nab")
    assert [getattr(characters, name) for name in SPECIAL] == [None] * 4 and characters.start_id == 0
    assert characters.special_ids == frozenset() and characters.vocab_size == 3
    assert characters.to_dict() == {"kind": "char", "vocab": "\nab"}


def test_special_tokens_of_a_character_tokenizer_follow_the_characters():
    tokenizer = CharTokenizer("a\nb", special=True)
    assert [getattr(tokenizer, name) for name in SPECIAL] == [3, 4, 5, 6] and tokenizer.special_ids == {3, 4, 5, 6}
    assert tokenizer.vocab_size == 7 and tokenizer.start_id == 1
    assert tokenizer.decode([0, 3, 4, 5, 6, 2]) == "a<|pad|><|im_start|><|im_end|><|endoftext|>b"
    complete = tokenizer.stream()
    assert [complete(i) for i in (0, 5)] == ["a", "<|im_end|>"] and tokenizer.show(5) == "'<|im_end|>'"
    saved = tokenizer.to_dict()
    assert saved == {"kind": "char", "vocab": "a\nb", "special": True}
    loaded = tokenizer_from_dict(saved)
    assert loaded.to_dict() == saved and loaded.tokens == tokenizer.tokens and loaded.message_end == 5


def without_special_tokens(*names):
    """A BPE that lacks some of the special tokens, and has the others behind its 256 bytes."""
    vocab = {token: i for i, token in enumerate([*BYTE_OF, *(SPECIAL[name] for name in SPECIAL if name not in names)])}
    return BPETokenizer.from_vocab_and_merges(json.dumps(vocab).encode(), b"", "own")


@pytest.mark.parametrize("tokenizer, expected", [
    (CharTokenizer("\nab"), [3, 4, 5, 6]), (without_special_tokens(*SPECIAL), [256, 257, 258, 259]),
    (without_special_tokens("padding", "message_end"), [258, 256, 259, 257]),
])  # fmt: skip
def test_missing_special_tokens_are_added_behind_the_vocabulary(tokenizer, expected):
    before = tokenizer.to_dict()
    extended = tokenizer.with_special_tokens()
    assert [getattr(extended, name) for name in SPECIAL] == expected and extended.special_ids == set(expected)
    assert extended.tokens[: tokenizer.vocab_size] == tokenizer.tokens and extended.vocab_size == max(expected) + 1
    assert tokenizer.to_dict() == before and extended.with_special_tokens() is extended
    loaded = tokenizer_from_dict(extended.to_dict())
    assert loaded.tokens == extended.tokens and [getattr(loaded, name) for name in SPECIAL] == expected


@pytest.mark.parametrize("tokenizer, text, expected", [
    (CharTokenizer("ab", special=True), "a.b😀.<|>", ("ab", [".", "😀", "<", "|", ">"])),
    (CharTokenizer("ab"), "ab", ("ab", [])), (TOKENIZER, "a\ud800😀", ("a😀", ["\ud800"])),
])  # fmt: skip
def test_unknown_characters_are_removed_and_named(tokenizer, text, expected):
    assert tokenizer.without_unknown(text) == expected


# ---- GPT-2 -----------------------------------------------------------------------------------------------------------


def mixed_lines():
    """1,000 lines: prose, verse, Chinese, dialogue, code, and rare characters."""
    code = Path(tokenization.base.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    odd = ["I'll can't WE'VE it's'd 's", "1234567890 ٣٤ Ⅷ ½", "a\u0301e\u0308\u0301\u0301", "🙂👩‍👩‍👧🇨🇳 ©", "",
           "\r\n \r\r\n\t\t x  ", "\0\x01\x7f\xad\u200b\ufeff\ufffd", "Здравствуйте, мир! ", "  leading, trailing  ",
           "<|endoftext|>", "𠮷野家 𝔘𝔫𝔦", "שלום עולם مرحبا", "नमस्ते ไทย", "\u3000\u2003\xa0x\u2028y\x85z",
           "foo_bar=BAZ[3]->qux();//!?", "a" * 500]
    files = {"english/wikipedia_1MB.txt": 300, "tinyshakespeare/input.txt": 200, "poems/song_ci.json": 200,
             "dialogues/chitchat.txt": 150}
    lines = odd + code[: 150 - len(odd)]
    for name, n in files.items():
        found = re.findall(r".{1,200}\n?", (SHARED / name).read_text(encoding="utf-8"))
        lines += found[:: len(found) // n][:n]
    return lines


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(GPT2)


@needs_gpt2
def test_gpt2_encodes_as_tiktoken(gpt2, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(GPT2 / "vocab.bpe"), str(GPT2 / "encoder.json"))
    reference = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                                  special_tokens={"<|endoftext|>": 50256})
    lines = mixed_lines()
    assert len(lines) == 1000 and len(set(lines)) > 900
    assert gpt2.encode_batch(lines) == [reference.encode_ordinary(line) for line in lines]
    assert gpt2.tokens == [reference.decode_single_token_bytes(i) for i in range(50257)]
    assert gpt2.decode(gpt2.encode("".join(lines))) == "".join(lines)


@needs_gpt2
def test_gpt2_has_one_special_token(gpt2):
    assert [getattr(gpt2, name) for name in SPECIAL] == [None, None, None, 50256] and gpt2.start_id == 50256
    assert gpt2.decode([15496, 995, 50256]) == "Hello world<|endoftext|>" and gpt2.vocab_size == 50257


@needs_gpt2
def test_special_tokens_are_added_behind_those_of_gpt2(gpt2):
    extended = gpt2.with_special_tokens()
    assert [getattr(extended, name) for name in SPECIAL] == [50257, 50258, 50259, 50256]
    assert extended.vocab_size == 50260 and extended.tokens[:50257] == gpt2.tokens
    assert extended.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert extended.encode_batch(TEXTS) == gpt2.encode_batch(TEXTS)
    assert tokenizer_from_dict(extended.to_dict()).to_dict() == extended.to_dict()


@needs_gpt2
def test_half_a_character_is_held_back_until_it_is_complete(gpt2):
    complete = gpt2.stream()
    assert [complete(i) for i in (19526, 254, 47249, 222)] == ["", "你", "", "😀"] and complete() == ""


@needs_gpt2
def test_gpt2_from_two_files_equals_gpt2_from_a_tokenizer_json(gpt2, tmp_path):
    gpt2.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").to_dict() == gpt2.to_dict()


@pytest.mark.parametrize("vocab_name, merges_name", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_a_folder_with_a_vocabulary_and_merges_is_read(tmp_path, vocab_name, merges_name):
    vocab = [*BYTE_OF, "Ġa", "aa", "<|endoftext|>"]
    (tmp_path / vocab_name).write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
    (tmp_path / merges_name).write_text("#version: 0.2\nĠ a\na a\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert pieces(tokenizer, "aaa a<|endoftext|>")[:3] == [b"aa", b"a", b" a"] and tokenizer.end_of_text == 258


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_loads(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.to_dict() == TOKENIZER.to_dict() and loaded.tokens == TOKENIZER.tokens
    assert loaded.encode_batch([*TEXTS, "<|im_end|>"]) == TOKENIZER.encode_batch([*TEXTS, "<|im_end|>"])
    assert [getattr(loaded, name) for name in SPECIAL] == [getattr(TOKENIZER, name) for name in SPECIAL]


def test_character_tokenizers_and_to_dict_as_json_are_files_too(tmp_path):
    for tokenizer in (CharTokenizer("\nab中🙂"), CharTokenizer("中", special=True), TOKENIZER):
        (tmp_path / "own.json").write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8-sig")
        assert load_tokenizer(tmp_path / "own.json").to_dict() == tokenizer.to_dict()
        tokenizer.save(tmp_path / "own.json")
        assert load_tokenizer(str(tmp_path / "own.json")).to_dict() == tokenizer.to_dict()


def test_a_saved_tokenizer_is_a_file_of_the_library(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [library.encode(text).ids for text in TEXTS] == TOKENIZER.encode_batch(TEXTS)
    assert library.encode("a<|im_end|>").ids[-1] == TOKENIZER.message_end  # the library finds special tokens in a text


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CharTokenizer("\nab"), CharTokenizer("\nab", special=True)])
def test_a_checkpoint_carries_its_tokenizer(tmp_path, tokenizer):
    from small_models import small_model

    from training.checkpoint import load_model, save_checkpoint

    save_checkpoint(tmp_path / "model.pt", small_model("GPT2", vocab_size=tokenizer.vocab_size), tokenizer)
    _, loaded = load_model(tmp_path / "model.pt")
    assert type(loaded) is type(tokenizer) and loaded.to_dict() == tokenizer.to_dict()
    assert loaded.encode("ab\na") == tokenizer.encode("ab\na")


def test_truncation_and_padding_of_a_file_are_disabled():
    library = tokenizers.Tokenizer.from_str(json.dumps(description()))
    library.enable_truncation(3)
    library.enable_padding(length=5)
    texts = ["a", "a b c d e f"]
    assert BPETokenizer(library.to_str()).encode_batch(texts) == TOKENIZER.encode_batch(texts)


def test_words_that_a_file_adds_are_special_tokens():
    changed = description()
    for token in changed["added_tokens"]:
        token["special"] = False
    changed["added_tokens"].append(changed["added_tokens"][0] | {"id": VOCAB_SIZE, "content": "<é>"})
    tokenizer = BPETokenizer(json.dumps(changed))
    assert max(tokenizer.encode("<|im_end|> <é>")) < VOCAB_SIZE and tokenizer.decode([VOCAB_SIZE]) == "<é>"
    assert tokenizer.message_end not in tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize("word", ["cat", "猫", "  ", "\n\n"])
def test_words_and_white_space_that_a_file_adds_are_found_in_a_text_as_by_the_library(word):
    library = tokenizers.Tokenizer.from_str(TOKENIZER.to_dict()["tokenizer.json"])
    name = "<|no word|>"
    library.add_tokens([word, name])
    tokenizer = tokenizer_from_dict(BPETokenizer(library.to_str()).to_dict())
    text = f"The{word}saw  the sea.\n\n小猫{word}"
    assert tokenizer.encode(text) == library.encode(text).ids
    text += f"<|im_end|>{name}"
    assert VOCAB_SIZE in tokenizer.encode(text) and VOCAB_SIZE + 1 not in tokenizer.encode(text)
    assert VOCAB_SIZE not in tokenizer.special_ids and VOCAB_SIZE + 1 in tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_with_special_tokens(text, lambda part: part) == library.encode(text).ids


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(run_main):
    return partial(run_main, data.tokenizer.main)


def test_show_prints_how_a_text_is_tokenized(command, tmp_path):
    BPETokenizer.train(["the low moon the low moon", "月月"], vocab_size=276).save(tmp_path / "tokenizer.json")
    lines = command("show", tmp_path / "tokenizer.json", "the low\n月🜁<|pad|>").splitlines()
    cut = [line.split(maxsplit=1)[1] for line in lines[:-1]]
    assert cut == ["'the'", "' low'", r"'\n'", "'月'", "f0", "9f", "9c", "81", *map(repr, "<|pad|>")]
    assert lines[-1] == "17 characters in 15 tokens"


@needs_gpt2
def test_show_takes_the_names_and_files_that_train_takes(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization.load, "GPT2_FOLDER", GPT2)
    CharTokenizer("\nab").save(tmp_path / "char.json")
    assert command("show", "gpt2", "Hello world").splitlines() == ["  15496  'Hello'", "    995  ' world'",
                                                                  "11 characters in 2 tokens"]
    assert command("show", tmp_path / "char.json", "a\n").splitlines()[:2] == ["      1  'a'", r"      0  '\n'"]


def test_train_reads_files_with_the_options_of_train_py(command, tmp_path):
    (tmp_path / "a.csv").write_text("id~text\n1~the poem\n2~the other poem\n", encoding="utf-16")
    (tmp_path / "b.csv").write_text("id,poem\n1,the poem\n2,the other poem\n")
    for name, *options in (("a.csv", "--data.delimiter", "~", "--encoding", "utf-16"),
                           ("b.csv", "--data.column", "poem")):
        command("train", tmp_path / name, *options, "--vocab_size", 270, "--out", tmp_path / f"{name}.json")
    assert (tmp_path / "a.csv.json").read_bytes() == (tmp_path / "b.csv.json").read_bytes()


def test_train_trains_on_files(command, tmp_path):
    files = [tmp_path / "some.jsonl", tmp_path / "more.jsonl"]
    for file, texts in zip(files, (TEXTS[:30], TEXTS[30:]), strict=True):
        file.write_text("".join(json.dumps({"poem": text, "id": 7}) + "\n" for text in texts))
    out = command("train", *files, "--column", "poem", "--vocab_size", 300, "--out", tmp_path / "own.json")
    assert out == f"{tmp_path / 'own.json'}: 300 tokens\n"
    texts = [text.replace("\r\n", "\n") for text in TEXTS]  # as in every text that is read from a file
    assert load_tokenizer(tmp_path / "own.json").to_dict() == BPETokenizer.train(texts, 300).to_dict()


# ---- Bad input -------------------------------------------------------------------------------------------------------


def error_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text, place", [("a\ud83d", 1), ("\udc00", 0), ("\ud83d\ud83d b", 0)])
def test_a_lone_surrogate_is_named(text, place):
    for function, argument in ((TOKENIZER.encode, text), (TOKENIZER.encode_batch, ["a", text]),
                               (BPETokenizer.train, ["a", text])):
        assert f"{text[place]!r} at character {place}" in error_of(function, argument)
    assert TOKENIZER.unknown(text) == [text[place]] and TOKENIZER.unknown("a🙂\0") == []


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, 259])
def test_vocabulary_smaller_than_the_alphabet_is_refused(vocab_size):
    line = error_of(BPETokenizer.train, TEXTS, vocab_size)
    assert f"got {vocab_size}" in line and "260" in line


@pytest.mark.parametrize("texts, max_bytes", [([], 100), (["", ""], 100), (["text"], 3)])
def test_training_on_nothing_is_refused(texts, max_bytes):
    assert "is empty" in error_of(BPETokenizer.train, texts, 300, max_bytes)


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b"no JSON", b"\xff\xfe", b'{"model": {}}', b"[" * 100_000,
    json.dumps(description()).encode()[:5000],
    json.dumps(description() | {"model": description()["model"] | {"merges": [["a", "no token"]]}}).encode(),
    json.dumps(description() | {"model": description()["model"] | {"merges": 7}}).encode(),
    json.dumps(description() | {"model": {"vocab": {**description()["model"]["vocab"], "a": -1}}}).encode(),
])  # fmt: skip
def test_a_malformed_file_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_bytes(content)
    assert "broken.json is damaged" in error_of(load_tokenizer, tmp_path / "broken.json")


def renumbered(token, i):
    model = description()["model"]
    return {"model": model | {"vocab": model["vocab"] | {token: i}}}


def without(byte):
    """A tokenizer.json that lacks the token of a byte, and all merges so that no token misses it."""
    [token] = [token for token, value in BYTE_OF.items() if value == byte]
    names = [name for name in description()["model"]["vocab"] if len(name) == 1 and name != token]
    return {"model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
            "added_tokens": []}


SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def sequence(*parts):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts]}}


@pytest.mark.parametrize("change", [
    sequence(SPLIT, BYTE_LEVEL) | {"model": description()["model"] | {"ignore_merges": True}},  # Llama 3
    sequence(SPLIT, SPLIT, BYTE_LEVEL) | {"normalizer": {"type": "Sequence", "normalizers": []}},  # DeepSeek V3
    sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL),  # StarCoder
    sequence({"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL, SPLIT),  # Falcon
    {"model": {key: value for key, value in description()["model"].items() if key != "type"} | {
        "continuing_subword_prefix": "", "end_of_word_suffix": ""}},  # GPT-2 as converted in 2020
    {"post_processor": {"type": "RobertaProcessing", "sep": ["a", 5], "cls": ["b", 6], "trim_offsets": True,
                        "add_prefix_space": False}},  # RoBERTa
], ids=["llama3", "deepseek", "starcoder", "falcon", "old", "roberta"])  # fmt: skip
def test_byte_level_bpes_in_use_encode_as_in_the_library_and_reproduce_every_text(change):
    content = json.dumps(description() | change)
    tokenizer, library = BPETokenizer(content), tokenizers.Tokenizer.from_str(content)
    texts = [*TEXTS, "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000), 0x10FFFF])), "e\u0301 \r\n "]
    assert tokenizer.encode_batch(texts) == [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "CodeGenTokenizer", "RobertaTokenizer", "WhisperTokenizer"])
def test_folders_that_transformers_writes_are_read(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    model = description()["model"]
    theirs = getattr(transformers, name)(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("change, reason", [
    ({"normalizer": {"type": "NFC"}}, "the normalizer NFC"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "the normalizer Sequence"),
    ({"pre_tokenizer": None}, "no pre_tokenizer"),
    ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "without a prefix space"),
    ({"pre_tokenizer": SPLIT}, "not one pre_tokenizer ByteLevel"),
    (sequence(BYTE_LEVEL, BYTE_LEVEL), "not one pre_tokenizer ByteLevel"),
    (sequence(SPLIT | {"behavior": "Removed"}, BYTE_LEVEL), "the pre_tokenizer Split"),
    (sequence(sequence(BYTE_LEVEL)["pre_tokenizer"]), "the pre_tokenizer Sequence"),
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
     "the pre_tokenizer Metaspace"),
    ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}, "the model WordLevel"),
    ({"model": description()["model"] | {"dropout": 0.5}}, "dropout"),
    ({"model": description()["model"] | {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
    ({"model": description()["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
    (without(0), "no token for the byte 0x00"), (without(0xF4), "no token for the byte 0xf4"),
    (renumbered("a", 1_000_000), "ids are not 0 to"), (renumbered("a", 5), "ids are not 0 to"),
])  # fmt: skip
def test_a_tokenizer_that_is_not_plain_byte_level_bpe_is_refused(change, reason):
    line = error_of(BPETokenizer, json.dumps(description() | change), "other.json")
    assert line.startswith("other.json") and reason in line


@pytest.mark.parametrize("i", [3, VOCAB_SIZE + 5, 2**32 - 1, 2**32, 10**12, -1, "3", None])
def test_special_tokens_with_impossible_ids_are_refused(i):
    token = description()["added_tokens"][0]
    changed = description() | {"added_tokens": [*description()["added_tokens"], token | {"id": i, "content": "<é>"}]}
    assert error_of(BPETokenizer, json.dumps(changed), "other.json").startswith("other.json")


def test_replacements_that_multiply_the_text_are_refused_before_the_library_sees_them():
    """With these the library aborts the process, as it runs out of memory."""
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}
    changed = description() | {"normalizer": {"type": "Sequence", "normalizers": [grow] * 4}}
    assert "the normalizer Sequence" in error_of(BPETokenizer, json.dumps(changed))


def test_a_split_that_backtracks_without_end_is_one_line():
    tokenizer = BPETokenizer(json.dumps(description() | sequence(
        SPLIT | {"pattern": {"Regex": "(a+)+b"}}, BYTE_LEVEL)))
    for function, argument in ((tokenizer.encode, "a" * 40), (tokenizer.encode_batch, ["b", "a" * 40])):
        assert "failed on the text" in error_of(function, argument)


def test_mutated_files_load_as_a_tokenizer_that_reproduces_text_or_are_one_line(tmp_path, fuzz):
    path, loaded = tmp_path / "tokenizer.json", 0
    content = json.dumps(description(), ensure_ascii=False).encode()
    for mutated in mutations(content, 300 * fuzz, settings=1000):
        path.write_bytes(mutated)
        try:
            tokenizer = load_tokenizer(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            loaded += 1
            assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(TEXTS)] == TEXTS
    assert loaded > 3


def test_bytes_in_utf_8_are_those_that_characters_are_encoded_with():
    assert BYTES_IN_UTF_8 == set("".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode())


@pytest.mark.parametrize("name", ["none.json", "char", "bpe", "a\0b.json", "n" * 300, "."])
def test_missing_tokenizers_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert name in error_of(load_tokenizer, name)


@pytest.mark.parametrize("folder", ["x", "."])
def test_folders_without_a_tokenizer_say_what_one_contains(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "encoder.json").write_text("{}")
    line = error_of(load_tokenizer, folder)
    assert all(name in line for name in ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"))


def test_a_checkpoint_is_called_one(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"PK")
    assert "is a checkpoint" in error_of(load_tokenizer, tmp_path / "best.pt")


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_json_of_characters_is_read(tmp_path, special):
    tokenizer = CharTokenizer("ba\n 'é😀", special=special)
    path = tmp_path / "tokenizer.json"
    tokenizer.library.save(str(path))
    assert load_tokenizer(path).to_dict() == tokenizer.to_dict()
    assert tokenizer.library.encode("a 'b\n😀").ids == tokenizer.encode("a 'b\n😀")


@pytest.mark.parametrize("key, value", [
    ("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"}),
    ("model", {"type": "WordLevel", "vocab": {"a": 0, "bc": 1}, "unk_token": "a"}),
    ("model", {"type": "WordLevel", "vocab": {"a": 0, "b": 2}, "unk_token": "a"}),
    ("model", {"type": "WordLevel", "vocab": ["a", "b"], "unk_token": "a"}),
    ("added_tokens", [{"id": 2, "content": "<s>", "special": True}]),
])
def test_a_tokenizer_json_of_words_that_are_not_all_characters_is_refused(tmp_path, key, value):
    saved = json.loads(CharTokenizer("ab").library.to_str())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved | {key: value}))
    with pytest.raises(UserError, match="WordLevel|damaged"):
        load_tokenizer(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_not_a_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    assert "pipe.json" in error_of(load_tokenizer, tmp_path / "pipe.json")
    assert "/dev/zero" in error_of(load_tokenizer, "/dev/zero")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_huge_files_are_not_read(tmp_path, name):
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with open(tmp_path / name, "wb") as file:
        file.truncate(10**12)  # sparse
    assert "too many" in error_of(load_tokenizer, tmp_path)


@pytest.mark.parametrize("encoder, merges", [("no JSON", "#version: 0.2\n"), ("{}", "#version: 0.2\nq w\n"),
                                             ('{"a": 0}', "#version: 0.2\nqw\n"), ("[]", "\0")])
def test_malformed_files_of_gpt2_are_named(tmp_path, encoder, merges):
    (tmp_path / "encoder.json").write_text(encoder)
    (tmp_path / "vocab.bpe").write_text(merges)
    line = error_of(load_tokenizer, tmp_path)
    assert "encoder.json" in line and "vocab.bpe" in line


@pytest.mark.parametrize("saved, quoted", [
    ({"kind": ["char"]}, "['char']"), ({"kind": {}}, "{}"), ({"kind": "char", "vocab": ["a"]}, "vocab"),
    ({"kind": "char", "vocab": ""}, "empty vocabulary"), ({"kind": "char", "vocab": "aba"}, "twice"),
    ({"kind": "char", "vocab": "a\ud800"}, "surrogate"), ({"kind": "char", "vocab": "a", "special": 1}, "special"),
    ({"kind": "char", "vocab": "a", "special": None}, "special"),
    ({"kind": "unigram"}, "'unigram'"), ({}, "None"), ({"kind": "char"}, "vocab"), ({"kind": "bpe"}, "tokenizer.json"),
    ({"kind": "bpe", "tokenizer.json": 3}, "tokenizer.json"), ({"kind": "bpe", "tokenizer.json": "{}"}, "damaged"),
])  # fmt: skip
def test_malformed_tokenizer_of_a_checkpoint_is_one_line(saved, quoted):
    assert quoted in error_of(tokenizer_from_dict, saved)


def test_characters_outside_the_vocabulary_are_named_up_to_ten():
    assert "'x', 'é'." in error_of(CharTokenizer("ab").encode, "axbéx")
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    line = error_of(CharTokenizer("ab").encode, many * 2)
    assert "'一', '丁', " in line and "and 19,990 more" in line and len(line) < 300
    assert CharTokenizer("ab").unknown(many * 2) == list(many)


def test_an_empty_text_has_no_vocabulary():
    assert error_of(CharTokenizer.of_text, "").startswith("the text is empty")


@pytest.mark.parametrize("arguments, quoted", [
    (["show", "none.json", "a"], "none.json"), (["train", "none.txt"], "none.txt"),
    (["train", __file__, "--vocab_size", "200"], "got 200"),
    (["train", __file__, "--vocab_size", "99999999999999999999"], "2^31"),
    (["train", __file__, "--max_bytes", "-1"], "max_bytes must be > 0, got -1"), (["train"], "files"), ([], "command"),
])  # fmt: skip
def test_the_command_ends_with_one_line(command, capsys, tmp_path, monkeypatch, arguments, quoted):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command(*arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and re.fullmatch(r"error: .*\n", err) and quoted in err
    assert not any(tmp_path.iterdir())


def test_merges_may_have_line_endings_and_a_byte_order_mark_of_windows(tmp_path):
    saved = description()["model"]
    vocab = json.dumps(saved["vocab"]).encode()
    merges = "\n".join(["#version: 0.2", *map(" ".join, saved["merges"]), ""])
    for content in (merges.encode(), b"\xef\xbb\xbf" + merges.encode(), merges.replace("\n", "\r\n").encode()):
        tokenizer = BPETokenizer.from_vocab_and_merges(vocab, content, "own")
        assert tokenizer.encode("".join(TEXTS)) == TOKENIZER.encode("".join(TEXTS))


@pytest.mark.parametrize("name, kind", [("tokenizer.model", "SentencePiece"), ("vocab.txt", "WordPiece")])
def test_files_of_other_tokenizers_are_named(name, kind, tmp_path):
    (tmp_path / name).write_text("[UNK]\n", encoding="utf-8")
    assert f"contains no tokenizer (the {kind} file {name} is not read)" in error_of(load_tokenizer, tmp_path)
