"""tokenization/sentencepiece_bpe.py: ids as in the library, round trips, special tokens, and files of every kind."""

import json
import time
import timeit

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import BYTES, SP_MERGES, SP_TEXTS, SP_VOCAB, SPECIAL_NAMES, mutations, sp_library

import tokenization.library
import tokenization.sentencepiece_bpe
from tasks.bpe_dropout import BPEDropout
from tokenization.bpe import BPETokenizer
from tokenization.load import load_tokenizer, tokenizer_from_dict
from tokenization.sentencepiece_bpe import SentencePieceTokenizer
from utils.errors import UserError

SCHEMES = ("normalizer", "first", "always", "never")
LIBRARIES = {scheme: sp_library(scheme) for scheme in SCHEMES}
TOKENIZERS = {scheme: SentencePieceTokenizer(library.to_str()) for scheme, library in LIBRARIES.items()}
LLAMA = TOKENIZERS["normalizer"]
BYTE_LEVEL = json.loads(BPETokenizer.train(SP_TEXTS, 300).to_dict()["tokenizer.json"])
ORDINARY = ["a", " ", "  ", "\n", "\r\n", "\t", "\0", "e\u0301", "👩‍👩‍👧", "月", "明月光", "The fox", " saw", "▁",
            "\ufeff", "𠮷", "<0x41>", "<", ">", "\U0010ffff"]
ordinary_text = st.text() | st.lists(st.sampled_from(ORDINARY)).map("".join)
any_text = ordinary_text | st.lists(st.sampled_from([*ORDINARY, *SPECIAL_NAMES])).map("".join)
any_ids = st.lists(st.integers(0, len(SP_VOCAB) - 1))
schemes = st.sampled_from(SCHEMES)
quietly = settings(deadline=None, database=None, max_examples=150)


def description(scheme="normalizer"):
    return json.loads(LIBRARIES[scheme].to_str())


def error_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def reproduced(text, scheme):
    """What an encoded text decodes to: "▁" becomes a space, and Metaspace takes a space at the start for its own."""
    text = text.replace("▁", " ")
    return text.removeprefix(" ") if scheme in ("first", "always") else text


# ---- Encoding and decoding -------------------------------------------------------------------------------------------


@quietly
@given(ordinary_text, schemes)
@example("".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)])), "normalizer")
def test_texts_are_encoded_as_in_the_library(text, scheme):
    tokenizer = TOKENIZERS[scheme]
    assert [tokenizer.text_start, *tokenizer.encode(text)] == LIBRARIES[scheme].encode(text).ids


@quietly
@given(any_text, schemes)
@example(" two  spaces ", "normalizer")
def test_texts_are_reproduced(text, scheme):
    tokenizer = TOKENIZERS[scheme]
    assert tokenizer.decode(tokenizer.encode(text)) == reproduced(text, scheme)


def test_a_text_starts_with_a_space_of_its_own():
    assert LLAMA.show(LLAMA.encode("The fox")[0]) == "' The'" and LLAMA.encode("The") == LLAMA.encode("The fox")[:1]
    assert LLAMA.encode("") == [] and TOKENIZERS["never"].encode(" The") == LLAMA.encode("The")


@quietly
@given(any_ids, schemes)
def test_ids_of_valid_utf_8_decode_as_in_the_library(ids, scheme):
    text = TOKENIZERS[scheme].decode(ids)
    if "\ufffd" not in text:
        assert text == LIBRARIES[scheme].decode(ids, skip_special_tokens=False)


def test_invalid_bytes_do_not_hide_the_characters_around_them():
    ids = [SP_VOCAB[f"<0x{byte:02X}>"] for byte in (*"你".encode(), 0xFF, *"好".encode(), 0xE5)]
    assert LLAMA.decode(ids) == "你\ufffd好\ufffd"


@quietly
@given(any_ids, schemes)
def test_a_stream_yields_what_decode_returns(ids, scheme):
    complete = TOKENIZERS[scheme].stream()
    assert "".join(map(complete, ids)) + complete() == TOKENIZERS[scheme].decode(ids)


@quietly
@given(st.text().map(lambda text: text.replace("\ufffd", "").replace("▁", "")))
def test_a_stream_yields_characters_as_soon_as_they_are_complete(text):
    complete, shown, received = LLAMA.stream(), "", b""
    for i in LLAMA.encode(text):
        shown += complete(i)
        received += LLAMA.tokens[i]
        assert shown == received.removeprefix(b" ").decode(errors="ignore")
    assert complete() == "" and shown == text


@pytest.mark.parametrize("before, expected", [
    ([], "The"), ([1], "The"), (LLAMA.encode("saw"), " The"), ([*LLAMA.encode("saw"), 2], "The"),
])  # fmt: skip
def test_a_stream_keeps_the_space_of_a_text_that_continues_another(before, expected):
    complete = LLAMA.stream(before)
    assert complete(LLAMA.encode("The")[0]) == expected


def test_a_continued_prompt_is_reproduced():
    from small_models import small_model

    from models.config import SamplingConfig
    from models.generate import generate, generate_text

    model = small_model("GPT2", vocab_size=LLAMA.vocab_size)
    prompt, sampling = LLAMA.encode("The fox"), SamplingConfig(temperature=0)
    ids = [*generate(model, prompt, 8, sampling)]
    assert "The fox" + "".join(generate_text(model, LLAMA, prompt, 8, sampling)) == LLAMA.decode([*prompt, *ids])


def test_a_batch_is_encoded_as_its_texts_and_a_lone_surrogate_is_named():
    assert LLAMA.encode_batch(SP_TEXTS) == [LLAMA.encode(text) for text in SP_TEXTS]
    assert r"'\ud83d' at character 1" in error_of(LLAMA.encode_batch, ["a", "a\ud83d"])
    assert LLAMA.unknown("a\ud83d月\0") == ["\ud83d"]


def test_a_long_text_takes_time_in_proportion_to_its_length():
    def seconds(text):
        return min(timeit.repeat(lambda: LLAMA.encode(text), timer=time.process_time, number=1, repeat=3))

    text = "The fox saw the sea: " * 2_000
    assert seconds(text * 8) < 40 * max(seconds(text), 0.005)  # quadratic: 64


def test_merged_tokens_are_split_by_bpe_dropout():
    ids = LLAMA.encode(SP_TEXTS[0])
    new, _ = BPEDropout(LLAMA, 1.0).split(ids, np.random.default_rng(0))
    assert len(new) > len(ids) and LLAMA.decode(new) == SP_TEXTS[0]


# ---- Special tokens --------------------------------------------------------------------------------------------------


def test_special_tokens():
    assert LLAMA.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2} and LLAMA.special_ids == {0, 1, 2}
    assert (LLAMA.text_start, LLAMA.start_id, LLAMA.end_of_text, LLAMA.message_end) == (1, 1, 2, None)
    assert LLAMA.decode([1, *LLAMA.encode("The"), 2]) == "<s> The</s>" and LLAMA.show(1) == "'<s>'"


def test_without_a_post_processor_texts_start_alone_and_the_context_of_the_first_token_is_the_start_token():
    tokenizer = SentencePieceTokenizer(json.dumps(description() | {"post_processor": None}))
    assert (tokenizer.text_start, tokenizer.start_id) == (None, 1)
    tokenizer = SentencePieceTokenizer(json.dumps(description() | {"post_processor": None, "added_tokens": []}))
    assert tokenizer.start_id == tokenizer.encode("\n")[0]


@quietly
@given(st.lists(st.sampled_from([*SPECIAL_NAMES, "<", "/", "s>", "<|im_end|>", " ", "a"])).map("".join), schemes)
def test_no_text_is_encoded_as_a_special_token(text, scheme):
    for tokenizer in (TOKENIZERS[scheme], TOKENIZERS[scheme].with_special_tokens()):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))


def test_merges_that_would_make_special_tokens_and_bytes_of_ordinary_text_are_left_out():
    parts = ["<", "/", "s", ">", "0", "x", "4", "1", "</", "s>", "<0", "x4", "1>", "x41>"]
    vocab = SP_VOCAB | {token: len(SP_VOCAB) + i for i, token in enumerate(set(parts) - SP_VOCAB.keys())}
    merges = ["< /", "s >", "</ s>", "< 0", "x 4", "1 >", "x4 1>", "<0 x41>"]
    for form in (merges, [merge.split() for merge in merges]):
        changed = description()
        changed["model"] |= {"vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "merges": form}
        tokenizer = SentencePieceTokenizer(json.dumps(changed))
        assert tokenizer.decode(tokenizer.encode("</s><0x41>")) == "</s><0x41>"
        assert {2, vocab["<0x41>"]}.isdisjoint(tokenizer.encode("</s><0x41>"))
        assert [tokenizer.show(i) for i in tokenizer.encode("</s>")][1:] == ["'</'", "'s>'"]


def test_missing_special_tokens_are_added_behind_the_vocabulary():
    extended = LLAMA.with_special_tokens()
    n = LLAMA.vocab_size
    assert [extended.padding, extended.message_start, extended.message_end] == [n, n + 1, n + 2]
    assert extended.end_of_text == 2 and extended.vocab_size == n + 3
    assert extended.tokens[:n] == LLAMA.tokens and extended.encode_batch(SP_TEXTS) == LLAMA.encode_batch(SP_TEXTS)
    assert extended.with_special_tokens() is extended and extended.text_start == 1


@quietly
@given(st.lists(st.sampled_from([*ORDINARY, *SPECIAL_NAMES])).map("".join), schemes)
@example("<s>The<s> fox </s>saw", "first")
def test_special_tokens_in_a_template_are_found_as_by_the_library(text, scheme):
    expected = LIBRARIES[scheme].encode(text, add_special_tokens=False).ids
    assert TOKENIZERS[scheme].encode_with_special_tokens(text, str) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("text", ["a <m> b", "<m>\n\na", "a  <m>", "<m><m> <mm>", " <m>the<s> <mm>\n fox"])
def test_special_tokens_absorb_white_space_as_in_the_library(scheme, text):
    both = tokenizers.AddedToken("<m>", lstrip=True, rstrip=True, normalized=False)
    library = sp_library(scheme, [both, tokenizers.AddedToken("<mm>", rstrip=True, normalized=False)])
    expected = library.encode(text, add_special_tokens=False).ids
    assert SentencePieceTokenizer(library.to_str()).encode_with_special_tokens(text, str) == expected


def test_white_space_without_end_is_searched_once():
    library = sp_library("normalizer", [tokenizers.AddedToken("<m>", lstrip=True, rstrip=True, normalized=False)])
    text = "<m>" + " " * 500_000 + "<" + " " * 500_000 + "<m>"  # a search that goes back takes hours
    assert SentencePieceTokenizer(library.to_str()).encode_with_special_tokens(text, str) == library.encode(
        text, add_special_tokens=False).ids


@pytest.mark.parametrize("post_processor, expected", [
    ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                               {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}, 1),
    ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                                               {"SpecialToken": {"id": "</s>", "type_id": 0}}],
      "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}}, None),
    ({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True,
      "add_prefix_space": False}, 1),
    ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, None),
])  # fmt: skip
def test_the_start_of_a_text_is_what_the_post_processor_adds(post_processor, expected):
    sequence = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, post_processor]}
    for base, tokenizer in ((description(), SentencePieceTokenizer), (BYTE_LEVEL, BPETokenizer)):
        for processor in (post_processor, sequence):
            content = json.dumps(base | {"post_processor": processor})
            library = tokenizers.Tokenizer.from_str(content)
            [first, *_] = library.encode("a", add_special_tokens=False).ids
            ids = library.encode("a").ids
            assert ids[: ids.index(first)] == ([] if expected is None else [expected])
            assert tokenizer(content).text_start == expected


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_are_read_and_saved_and_checkpoints_carry_them(tmp_path, scheme):
    LIBRARIES[scheme].save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    loaded.save(tmp_path / "saved.json")
    (tmp_path / "dict.json").write_text(json.dumps(loaded.to_dict()))
    for again in (loaded, load_tokenizer(tmp_path / "saved.json"), load_tokenizer(tmp_path / "dict.json"),
                  tokenizer_from_dict(loaded.to_dict())):
        assert type(again) is SentencePieceTokenizer and again.to_dict() == loaded.to_dict()
        assert again.encode_batch(SP_TEXTS) == TOKENIZERS[scheme].encode_batch(SP_TEXTS)
        assert again.tokens == TOKENIZERS[scheme].tokens and again.start_id == 1


@pytest.mark.parametrize("legacy", [True, False])
def test_folders_that_transformers_writes_are_read(tmp_path, legacy):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaTokenizer(vocab=SP_VOCAB, merges=SP_MERGES, legacy=legacy)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert type(ours) is SentencePieceTokenizer
    for text in SP_TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text


# ---- Bad input -------------------------------------------------------------------------------------------------------


def model_with(**changes):
    return {"model": description()["model"] | changes}


def vocab_without(token):
    return model_with(vocab={name: i for i, name in enumerate([name for name in SP_VOCAB if name != token])},
                      merges=[]) | {"added_tokens": [], "post_processor": None}


PREPEND, REPLACE = description()["normalizer"]["normalizers"]
METASPACE = description("first")["pre_tokenizer"]
GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}


@pytest.mark.parametrize("change, reason", [
    (model_with(dropout=0.1), "the option dropout"), (model_with(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (model_with(ignore_merges=True), "ignore_merges"), (vocab_without("<0x00>"), "no token for the byte 0x00"),
    (vocab_without("<0xF4>"), "no token for the byte 0xf4"), (vocab_without("▁"), 'no token "▁"'),
    ({"normalizer": None}, "no normalizer"), ({"normalizer": PREPEND}, "the normalizer Prepend"),
    ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE, {"type": "NFKC"}]}}, "normalizer Sequence"),
    ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, PREPEND, REPLACE]}}, "the normalizer Sequence"),
    ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE, *[GROW] * 4]}}, "the normalizer Sequence"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "the normalizer Precompiled"),
    ({"pre_tokenizer": METASPACE}, "the normalizer Sequence"),
    ({"normalizer": None, "pre_tokenizer": METASPACE | {"replacement": "_"}}, "the pre_tokenizer Metaspace"),
    ({"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}, "the pre_tokenizer Whitespace"),
    (model_with(vocab=SP_VOCAB | {"zz": 1_000_000}), "ids are not 0 to"),
    ({"added_tokens": [description()["added_tokens"][0] | {"id": 2**32}]}, "other.json"),
    ({"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 9_999], "trim_offsets": True,
                         "add_prefix_space": False}}, "the token 9999 before every text"),
    ({"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", "x"], "trim_offsets": True,
                         "add_prefix_space": False}}, "damaged"),
    ({"post_processor": 7}, "damaged"), ({"model": model_with()["model"] | {"merges": [["a"]]}}, "damaged"),
    ({"model": {"type": "WordPiece", "vocab": SP_VOCAB, "unk_token": "<unk>"}}, "the model WordPiece"),
    ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 0, "byte_fallback": True}},
     "the model Unigram"),
])  # fmt: skip
def test_other_tokenizers_are_refused_by_name(tmp_path, change, reason):
    (tmp_path / "other.json").write_text(json.dumps(description() | change))
    line = error_of(load_tokenizer, tmp_path / "other.json")
    assert "other.json" in line and reason in line


@pytest.mark.parametrize("single", [
    [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 100_000, [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000, [],
], ids=["start", "text", "nothing"])
def test_a_post_processor_that_repeats_or_drops_the_text_is_never_run(single):
    bomb = {"type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * 100_000, "tokens": ["<s>"] * 100_000}}}
    for base, tokenizer in ((description(), SentencePieceTokenizer), (BYTE_LEVEL, BPETokenizer)):
        without, bombed = (tokenizer(json.dumps(base | {"post_processor": post})) for post in (None, bomb))
        assert bombed.encode_batch(SP_TEXTS) == without.encode_batch(SP_TEXTS)


def test_a_saved_file_puts_the_same_token_before_every_text():
    saved = tokenizers.Tokenizer.from_str(LLAMA.to_dict()["tokenizer.json"])
    assert [saved.encode(text).ids for text in SP_TEXTS] == [[1, *ids] for ids in LLAMA.encode_batch(SP_TEXTS)]
    assert saved.decode(saved.encode(SP_TEXTS[0]).ids) == SP_TEXTS[0]


def test_mutated_files_load_as_a_tokenizer_that_reproduces_text_or_are_one_line(tmp_path, fuzz):
    path, loaded = tmp_path / "tokenizer.json", 0
    content = json.dumps(description(), ensure_ascii=False).encode()
    for mutated in mutations(content, 300 * fuzz, settings=2500):
        path.write_bytes(mutated)
        try:
            tokenizer = load_tokenizer(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            loaded += 1
            assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(SP_TEXTS)] == SP_TEXTS
            assert tokenizer.start_id < tokenizer.vocab_size
    assert loaded > 3


def test_bytes_are_written_as_in_the_library():
    assert [*tokenization.sentencepiece_bpe.BYTE_TOKENS] == BYTES
