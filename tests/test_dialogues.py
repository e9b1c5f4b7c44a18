"""records/dialogues.py: formats and their policies, what is supervised, splitting to the context, and chat history."""

import json
import time
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reading.options import ReadOptions
from records.dialogues import (
    dialogue_examples,
    dialogue_parts,
    parse_messages,
    poem_dialogues,
    prompt_ids,
    read_dialogues,
    split_dialogues,
    to_dialogue,
)
from records.examples import IGNORED, next_token_example
from records.poems import GENERAL_REQUESTS
from records.report import DataReport
from tasks.dialogue import fit_history
from tokenization.base import SPECIAL_TOKENS
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from tokenization.load import load_tokenizer, train_tokenizer
from utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
CHITCHAT = SHARED / "dialogues" / "chitchat.txt"
GPT2 = SHARED / "gpt2-bpe"
needs_chitchat = pytest.mark.skipif(not CHITCHAT.is_file(), reason=f"the dialogues are not in {CHITCHAT}")
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"GPT-2's files are not in {GPT2}")

LETTERS = CharTokenizer("ABCDEFGHIJ", special=True)
SYMBOLS = {LETTERS.message_start: "<", LETTERS.message_end: ">", IGNORED: "."}  # one character per token
BPE = BPETokenizer.train(["The cat saw the dog.\n\nThe dog saw the cat.\n"] * 5, 300)


def dialogue_tokenizer(dialogues, kind, **options):
    """As the dialogue task creates it."""
    return train_tokenizer(chain.from_iterable(dialogues), kind, **options).with_special_tokens()


def read(path, **options):
    """(dialogues, report) of a file."""
    report = DataReport(path, "dialogues")
    return read_dialogues(path, ReadOptions(**options), report), report


def error_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def record(*texts):
    """A record with a message for each text, whose first letter is its role."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return {"messages": [{"role": roles[text[0]], "content": text[1:]} for text in texts]}


def symbols(ids):
    return "".join(SYMBOLS.get(i) or LETTERS.tokens[i].decode() for i in ids)


def examples_of(dialogues, block_size):
    """([(tokens, targets)] as symbols, report) of dialogues of letters."""
    report = DataReport("data", "dialogues", n_records=len(dialogues))
    examples = dialogue_examples(dialogues, LETTERS, block_size, report)
    return [tuple(map(symbols, examples[i])) for i in range(len(examples))], report


# ---- Text files ------------------------------------------------------------------------------------------------------

TEXT = "你好\n你好呀\n\n \t\n去哪？\n回家\u3000\n好\n嗯，再见\n \n\n\n吃了吗\n吃了\n好\n"
DIALOGUES = [["你好", "你好呀"], ["去哪？", "回家", "好", "嗯，再见"], ["吃了吗", "吃了"]]


@pytest.mark.parametrize("content, line", [
    (TEXT.encode(), 12), (TEXT.encode("utf-8-sig"), 12), (TEXT.encode("gb18030"), 12), (TEXT.encode("utf-16"), 12),
    (TEXT.replace("\n", "\r\n").encode(), 12), (TEXT.replace("\n", "\r").encode(), 12),
    (TEXT.rstrip("\n").encode(), 12), (f"\n\n{TEXT}\n\n".encode(), 14), (TEXT.encode() + b"\x1a", 12),
])  # fmt: skip
def test_a_text_file_has_a_message_per_line_and_a_blank_line_between_dialogues(tmp_path, content, line):
    (tmp_path / "a.txt").write_bytes(content)
    dialogues, report = read(tmp_path / "a.txt")
    assert dialogues == DIALOGUES and report.skipped == {}
    assert report.changed == {"dropped messages after the last assistant message": (1, f"line {line}")}


def test_a_dialogue_of_one_message_is_skipped_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_text("A\nB\n\nalone\n\nC\nD\n\nalone too\n")
    dialogues, report = read(tmp_path / "a.txt")
    assert dialogues == [["A", "B"], ["C", "D"]]
    assert report.skipped == {"a single message": (2, "line 4")} and report.changed == {}


def test_a_file_of_another_extension_is_text_and_a_table_is_refused(tmp_path):
    (tmp_path / "a.dialogues").write_text("A\nB\n")
    assert read(tmp_path / "a.dialogues")[0] == [["A", "B"]]
    (tmp_path / "a.csv").write_text("A\nB\n")
    assert "a.csv is a table" in error_of(read, tmp_path / "a.csv")


def test_folders_and_lists_of_files_are_read_in_order_and_places_name_the_file(tmp_path):
    (tmp_path / "b.txt").write_text("A\nB\n\nalone\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(record("uC", "aD")) + "\n" + json.dumps(record("uE")))
    (tmp_path / "c.json").write_text(json.dumps([record("uF", "aG")]))
    (tmp_path / "d.csv").write_text("not read")
    dialogues, report = read(tmp_path)
    assert dialogues == [["C", "D"], ["A", "B"], ["F", "G"]]
    assert report.skipped == {"a single message": (2, f"{tmp_path / 'a.jsonl'}, line 2")}
    dialogues, report = read([str(tmp_path / "b.txt"), str(tmp_path / "a.jsonl")])
    assert dialogues == [["A", "B"], ["C", "D"]]
    assert report.skipped == {"a single message": (2, f"{tmp_path / 'b.txt'}, line 4")}


@needs_chitchat
def test_chitchat_has_15300_dialogues_of_which_810_have_an_odd_number_of_messages():
    dialogues, report = read(CHITCHAT)
    assert len(dialogues) == 15_300 and all(len(dialogue) % 2 == 0 and all(dialogue) for dialogue in dialogues)
    assert report.skipped == {}
    assert report.changed == {"dropped messages after the last assistant message": (810, "line 1025")}
    assert sum(map(len, dialogues)) == 65_096 - 810


# ---- Records in JSON -------------------------------------------------------------------------------------------------

PUT = "put the system message before the user message"
JOINED = "joined consecutive messages of one role"
GREETING = "dropped assistant messages before the first user message"
REST = "dropped messages after the last assistant message"


@pytest.mark.parametrize("given, dialogue, changes", [
    (record("uA", "aB"), ["A", "B"], []),
    (record("uA", "aB", "uC", "aD"), ["A", "B", "C", "D"], []),
    (record("sS", "uA", "aB"), ["S\n\nA", "B"], [PUT]),
    (record("sS", "sT", "uA", "aB"), ["S\n\nT\n\nA", "B"], [PUT]),
    (record("uA", "sS", "aB", "uC", "aD"), ["A", "B", "S\n\nC", "D"], [PUT]),
    (record("uA", "uB", "aC"), ["A\nB", "C"], [JOINED]),
    (record("uA", "aB", "aC", "aD"), ["A", "B\nC\nD"], [JOINED]),
    (record("uA", "sS", "uB", "aC"), ["A\nS\n\nB", "C"], [PUT, JOINED]),
    (record("aA", "uB", "aC"), ["B", "C"], [GREETING]),
    (record("aA", "aB", "uC", "aD"), ["C", "D"], [GREETING]),
    (record("sS", "aA", "uB", "aC"), ["S\n\nB", "C"], [GREETING, PUT]),
    (record("uA", "aB", "uC"), ["A", "B"], [REST]),
    (record("uA", "aB", "uC", "uD"), ["A", "B"], [JOINED, REST]),
    (record("uA", "aB", "sS"), ["A", "B"], [REST]),
    ({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "A"},
                        {"from": "gpt", "value": "B"}], "id": 7}, ["S\n\nA", "B"], [PUT]),
    (record("u A\r\n ", "a\ud800"), [" A\n ", "\ufffd"], []),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_roles_of_a_record(tmp_path, given, dialogue, changes, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([record("uX", "aY"), given]), encoding="utf-8-sig")
    else:
        path.write_text(f"{json.dumps(record('uX', 'aY'))}\n\n{json.dumps(given)}\n")
    dialogues, report = read(path)
    assert dialogues == [["X", "Y"], dialogue] and report.skipped == {}
    place = "item 2" if suffix == ".json" else "line 3"
    assert report.changed == dict.fromkeys(changes, (1, place))


BAD = [
    ({}, "no messages or conversations"), ({"instruction": "A", "output": "B"}, "no messages or conversations"),
    ({"messages": []}, "no message"), ({"messages": "hi"}, "messages is text, not a list"),
    ({"conversations": None}, "conversations is null, not a list"), (record("uA"), "a single message"),
    (record("aA"), "a single message"), (record("uA", "uB"), "no assistant message follows a user message"),
    (record("aA", "uB"), "no assistant message follows a user message"),
    (record("sA", "aB"), "no assistant message follows a user message"),
    (record("uA", "a"), "a message is empty"), (record("u \n", "aB"), "a message is empty"),
    (record("s ", "uA", "aB"), "a message is empty"), (record("uA", "aB", "u"), "a message is empty"),
    (record("uA", "tB"), "a message has a role other than system, user, human, assistant, gpt"),
    ({"messages": ["A", "B"]}, "a message is text, not an object"),
    ({"messages": [{"content": "A"}, {"role": "assistant", "content": "B"}]}, "a message has no role"),
    ({"messages": [{"role": "user", "text": "A"}, {"role": "assistant", "content": "B"}]}, "a message has no content"),
    ({"messages": [{"role": "user", "content": None}]}, "a message has a content that is null, not text"),
    ({"messages": [{"role": "user", "content": ["A"]}]}, "a message has a content that is a list, not text"),
    ({"messages": [{"role": ["user"], "content": "A"}]}, "a message has a role that is a list, not text"),
    ({"conversations": [{"from": "human", "value": 3}]}, "a message has a value that is a number, not text"),
]


@pytest.mark.parametrize("bad, reason", BAD)
def test_an_unusable_record_is_skipped_with_the_reason_and_the_line(tmp_path, bad, reason):
    rows = [record("uA", "aB"), bad, record("uC", "aD"), bad]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for suffix, place in ((".jsonl", "line 2"), (".json", "item 2")):
        dialogues, report = read(tmp_path / f"a{suffix}")
        assert dialogues == [["A", "B"], ["C", "D"]]
        assert report.skipped == {reason: (2, place)} and report.changed == {}


@settings(deadline=None, database=None, max_examples=300)
@given(st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=8))
def test_whatever_the_order_of_roles_users_and_assistants_keep_their_texts(roles):
    numbered = [(role, f"{role}{i}") for i, role in enumerate(roles)]
    in_order = [role for role in roles if role != "system"]
    usable = "user" in in_order and "assistant" in in_order[in_order.index("user") :]
    try:
        dialogue, _ = to_dialogue(numbered)
    except UserError:
        assert not usable
        return
    assert usable and len(dialogue) % 2 == 0
    found = [text.split() for text in dialogue]
    assert all(text.startswith(("user", "system")) for texts in found[::2] for text in texts)
    assert all(text.startswith("assistant") for texts in found[1::2] for text in texts)
    first, last = roles.index("user"), len(roles) - roles[::-1].index("assistant")  # what is outside may be dropped
    kept = {text for texts in found for text in texts}
    assert {text for role, text in numbered[first:last] if role != "system"} <= kept
    order = [text for texts in found for text in texts if not text.startswith("system")]
    assert order == [text for _, text in numbered if text in order]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", " ", "user", "gpt", "\ud800", "A"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "conversations", "role", "content", "from", "value"]), values, max_size=3))


@settings(deadline=None, database=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(["messages", "conversations", "role"]), json_values, max_size=3))
def test_any_json_object_is_a_dialogue_or_has_a_reason(value):
    try:
        dialogue, _ = to_dialogue(parse_messages(value))
    except UserError as reason:
        assert str(reason) and "\n" not in str(reason)
    else:
        assert len(dialogue) % 2 == 0 and all(text.strip() for text in dialogue)


@pytest.mark.parametrize("name, content, quoted", [
    ("a.jsonl", '{"messages": []}\n{"messages": \n', ["a.jsonl, line 2", "not valid JSON"]),
    ("a.jsonl", '{"messages": []}\n[1]\n', ["a.jsonl, line 2", "line 2 is a list, not an object"]),
    ("a.json", '[{"messages": []},\n', ["a.json", "not valid JSON", "line 2"]),
    ("a.json", '{"messages": []}', ["a.json is an object, not a list"]),
    ("a.jsonl", '{"messages": []}\n{}', ["a.jsonl contains no dialogues: line 1: no message"]),
    ("a.json", "[1]", ["a.json contains no dialogues: item 1: it is a number, not an object"]),
    ("a.json", "[]", ["a.json contains no dialogues: it is empty"]),
    ("a.txt", "\n \nalone\n", ["a.txt contains no dialogues: line 3: a single message"]),
    ("a.txt", " \n", ["a.txt contains no dialogues: it is empty"]),
])  # fmt: skip
def test_a_file_without_dialogues_is_one_line(tmp_path, name, content, quoted):
    (tmp_path / name).write_text(content)
    message = error_of(read, tmp_path / name)
    assert all(part in message for part in quoted)


# ---- Poems -----------------------------------------------------------------------------------------------------------


def test_a_poem_is_a_request_and_its_lines(tmp_path):
    poems = [{"title": f"诗{i}", "para": [f"第{i}首", "", "月亮"], "author": ""} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps([{"title": "t"}, *poems]))
    report = DataReport(tmp_path / "a.json", "poems")
    dialogues = poem_dialogues(str(tmp_path / "a.json"), ReadOptions(), report)
    assert report.skipped == {"no author, para": (1, "item 1")}
    assert sorted(poem for _, poem in dialogues) == sorted(f"第{i}首\n\n月亮" for i in range(20))
    general = [request for request, _ in dialogues if request in GENERAL_REQUESTS]
    by_title = [(request, poem) for request, poem in dialogues if request not in GENERAL_REQUESTS]
    assert len(general) == 2 and all(poem == f"第{request[1:]}首\n\n月亮" for request, poem in by_title)


# ---- Splits and tokenizers -------------------------------------------------------------------------------------------


def test_every_tenth_distinct_dialogue_is_for_validation_and_equal_ones_are_on_one_side():
    distinct = [[f"question {i}", f"answer {i}"] for i in range(30)]
    copies = [[" question 11\n", "answer 11"], ["question 2", "answer 2 "], ["question 11", "answer 11"]]
    train, val = split_dialogues(distinct + copies)
    assert val == [distinct[1], distinct[11], distinct[21], copies[0], copies[2]]
    assert train == [dialogue for dialogue in distinct if dialogue not in val] + [copies[1]]
    assert split_dialogues(distinct[:2]) == ([distinct[0]], [distinct[1]])


@needs_chitchat
def test_no_dialogue_is_in_both_splits():
    train, val = split_dialogues(read(CHITCHAT)[0])
    keys = [{"\n".join(map(str.strip, dialogue)) for dialogue in split} for split in (train, val)]
    assert not keys[0] & keys[1] and 1400 < len(val) < 1600 and len(train) + len(val) == 15_300


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_tokenizer_of_dialogues_has_all_their_characters_and_the_markers(kind):
    tokenizer = dialogue_tokenizer(DIALOGUES, kind, vocab_size=300)
    assert None not in [getattr(tokenizer, name) for name in SPECIAL_TOKENS]
    for text in sum(DIALOGUES, []):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if kind == "char":
        assert tokenizer.vocab == "".join(sorted(set("".join(sum(DIALOGUES, [])))))


# ---- Targets ---------------------------------------------------------------------------------------------------------


def test_every_assistant_message_and_its_end_marker_is_supervised_and_nothing_else():
    assert examples_of([["AB", "CD"], ["A", "BC", "D", "E"]], block_size=20)[0] == [
        ("<AB><CD",
         "....CD>"),
        ("<A><BC><D><E",
         "...BC>....E>"),
    ]  # fmt: skip


def test_the_loss_is_the_sum_over_response_and_end_marker():
    """Prompt AB, response CD: the targets are C, D and the end marker, each predicted by the token before it."""
    example = next_token_example(dialogue_parts(["AB", "CD"], LETTERS), block_size=20)
    logits = torch.randn(len(example.tokens), LETTERS.vocab_size, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(example.targets), reduction="sum")
    C, D, end = 2, 3, LETTERS.message_end
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)  # rows: < A B > < C D
    by_hand = -(probabilities[4, C].log() + probabilities[5, D].log() + probabilities[6, end].log())
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_each_reply_supervises_one_end_marker_alone_and_in_a_padded_batch():
    report = DataReport("data", "dialogues")
    examples = dialogue_examples([["A", "B"], ["A", "BCDEF"]], LETTERS, 20, report)
    x, y = examples.batch([0, 1])
    assert (y == LETTERS.message_end).sum(1).tolist() == [1, 1]
    for i, length in enumerate(examples.lengths):
        alone = examples.batch([i])
        assert (alone[1] == LETTERS.message_end).sum() == 1
        assert torch.equal(x[i, :length], alone[0][0, :length]) and torch.equal(y[i, :length], alone[1][0, :length])
        assert (y[i, length:] == IGNORED).all()


@pytest.mark.parametrize("tokenizer", [BPE, dialogue_tokenizer([["The\n catdog.", ":"]], "char")])
@pytest.mark.parametrize("dialogue", [["The cat", " the dog"], ["The\n", "\nthe\n\n", "\n\n", "dog.:"]])
def test_the_prompt_in_chat_is_the_prefix_in_training(dialogue, tokenizer):
    tokens = [i for ids, _ in dialogue_parts(dialogue, tokenizer) for i in ids]
    end = 0
    for i in range(1, len(dialogue), 2):
        prompt = prompt_ids(dialogue[:i], tokenizer)
        assert prompt == tokens[: len(prompt)] and prompt[-1] == tokenizer.message_start
        reply = tokenizer.encode(dialogue[i])
        end = len(prompt) + len(reply) + 1
        assert tokens[len(prompt) : end] == [*reply, tokenizer.message_end]
    assert end == len(tokens)


@needs_gpt2
def test_no_token_spans_the_boundary_of_messages():
    tokenizer = load_tokenizer(GPT2).with_special_tokens()
    assert tokenizer.encode(":\n\n\nHi") == [25, 628, 198, 17250]  # as one text
    dialogue = ["Name:\n", "\n\nHi"]
    assert dialogue_parts(dialogue, tokenizer) == [
        ([50258], False), ([5376, 25, 198, 50259], False), ([50258], False), ([198, 198, 17250, 50259], True)]
    assert prompt_ids(dialogue[:1], tokenizer) == [50258, 5376, 25, 198, 50259, 50258]


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS.values(), "[SEP]", "### Response:", "{0}", "%s"])
def test_control_tokens_in_a_message_stay_text(text):
    for tokenizer in (BPE, dialogue_tokenizer([[text, text]], "char")):
        markers = {tokenizer.message_start, tokenizer.message_end}
        for ids, _ in dialogue_parts([text, text], tokenizer)[1::2]:
            assert not set(ids[:-1]) & tokenizer.special_ids and tokenizer.decode(ids[:-1]) == text
        assert [i for i in prompt_ids([text], tokenizer) if i in tokenizer.special_ids] == [
            tokenizer.message_start, tokenizer.message_end, tokenizer.message_start]
        assert markers <= tokenizer.special_ids


@needs_gpt2
def test_end_of_text_in_a_message_is_seven_tokens_of_gpt2():
    tokenizer = load_tokenizer(GPT2).with_special_tokens()
    assert prompt_ids(["<|endoftext|>"], tokenizer) == [50258, 27, 91, 437, 1659, 5239, 91, 29, 50259, 50258]


# ---- The context -----------------------------------------------------------------------------------------------------

SPLIT = "split at whole turns to fit {} tokens"
CUT = "cut a reply at {} tokens, without an end marker"
LEFT_OUT = "left out a turn: a user message fills the context of {} tokens"


@pytest.mark.parametrize("dialogue, block_size, expected, changes", [
    # <A><B><C><D> needs a context of 11 tokens: the last of the 12 is only a target.
    (["A", "B", "C", "D"], 11, [("<A><B><C><D", "...B>....D>")], []),
    (["A", "B", "C", "D"], 10, [("<A><B", "...B>"), ("<C><D", "...D>")], [SPLIT]),
    (["A", "B", "C", "D", "E", "F"], 11, [("<A><B><C><D", "...B>....D>"), ("<E><F", "...F>")], [SPLIT]),
    (["A", "BCD"], 7, [("<A><BCD", "...BCD>")], []),
    (["A", "BCD"], 6, [("<A><BC", "...BCD")], [CUT]),
    (["A", "BCD"], 4, [("<A><", "...B")], [CUT]),
    (["A", "B", "C", "DEFGH", "I", "J"], 8, [("<A><B", "...B>"), ("<C><DEFG", "...DEFGH"), ("<I><J", "...J>")],
     [CUT, SPLIT]),
    (["A", "B", "ABCDEFGHIJ", "H", "I", "J"], 12, [("<A><B", "...B>"), ("<I><J", "...J>")], [SPLIT, LEFT_OUT]),
])  # fmt: skip
def test_a_dialogue_longer_than_the_context_is_split_at_user_messages(dialogue, block_size, expected, changes):
    examples, report = examples_of([dialogue], block_size)
    assert examples == expected
    assert report.kept == 1 and report.skipped == {}
    assert report.changed == {change.format(block_size): (1, f"'{dialogue[0]}'") for change in changes}


@settings(deadline=None, database=None, max_examples=100)
@given(st.lists(st.text("ABC", min_size=1, max_size=12), min_size=2, max_size=12), st.integers(4, 40))
def test_examples_fit_the_context_and_have_a_target_each_and_no_reply_is_in_two(texts, block_size):
    dialogue = texts[: len(texts) // 2 * 2]
    try:
        examples, _ = examples_of([dialogue], block_size)
    except UserError:
        examples = []
    replies = []
    for tokens, targets in examples:
        assert len(tokens) == len(targets) <= block_size and tokens.startswith("<") and targets.strip(".")
        replies += targets.replace(">", "").replace(".", " ").split()
    kept = [(user, reply) for user, reply in zip(dialogue[::2], dialogue[1::2], strict=True)
            if len(user) + 3 <= block_size]
    assert replies == [reply[: block_size - len(user) - 2] for user, reply in kept]


def test_a_dialogue_whose_messages_fill_the_context_is_skipped_counted_and_named():
    dialogues = [["A", "B"], ["ABCDEFGHIJ", "A"], ["BCDEFGHIJA", "A", "CDEFGHIJAB", "B"], ["C", "D"]]
    examples, report = examples_of(dialogues, 8)
    assert examples == [("<A><B", "...B>"), ("<C><D", "...D>")]
    assert report.kept == 2 and report.changed == {}
    assert report.skipped == {"a user message fills the context of 8 tokens": (2, "'ABCDEFGHIJ'")}
    message = error_of(examples_of, dialogues[1:3], 8)
    assert "no dialogue can be used" in message and "--model.block_size" in message
    assert examples_of([], 8)[0] == []


def test_characters_that_the_tokenizer_lacks_are_removed_and_counted():
    examples, report = examples_of([["A😀", "Bé"], ["A", "B"], ["C?", "D"], ["A", "😀", "E", "F"], ["é", "A"]], 20)
    assert examples == [("<A><B", "...B>"), ("<A><B", "...B>"), ("<C><D", "...D>"), ("<E><F", "...F>")]
    assert report.kept == 4
    assert report.changed == {"removed characters that the tokenizer lacks": (4, "'A😀'"),
                              "left out a turn: a message has no character that the tokenizer knows": (1, "'A'")}
    assert report.skipped == {"a message has no character that the tokenizer knows": (1, "'é'")}


@needs_chitchat
def test_a_million_characters_become_examples_in_seconds():
    dialogues = read(CHITCHAT)[0]
    tokenizer = dialogue_tokenizer(dialogues, "char")
    report = DataReport(CHITCHAT, "dialogues", n_records=len(dialogues))
    start = time.process_time()
    examples = dialogue_examples(dialogues, tokenizer, 256, report)
    assert time.process_time() - start < 3
    assert report.kept == 15_300 and report.skipped == {} and examples.lengths.max() == 256
    n_replies = sum(map(len, dialogues)) // 2
    [cuts] = [count for change, (count, _) in report.changed.items() if change.startswith("cut a reply")]
    assert (examples.targets == tokenizer.message_end).sum() == n_replies - cuts


# ---- Chat history ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room, dropped", [(100, 0), (20, 0), (19, 2), (13, 2), (12, 4), (6, 4)])
def test_the_oldest_turns_are_dropped_whole(room, dropped):
    """The messages take 3 + 4, 4 + 3 and 5 tokens with their markers, and the reply's start marker one."""
    history = ["A", "BC", "DE", "F", "GHI"]
    assert len(prompt_ids(history, LETTERS)) == 20
    prompt, n_dropped = fit_history(history, partial(prompt_ids, tokenizer=LETTERS), room)
    assert (prompt, n_dropped) == (prompt_ids(history[dropped:], LETTERS), dropped) and len(history) == 5
    assert len(prompt) <= room


def test_a_message_that_does_not_fit_alone_is_one_line_with_its_length_and_the_room():
    make_prompt = partial(prompt_ids, tokenizer=LETTERS)
    assert fit_history(["ABC"], make_prompt, 6) == (prompt_ids(["ABC"], LETTERS), 0)
    for history in (["ABC"], ["A", "B", "ABC"]):
        message = error_of(fit_history, history, make_prompt, 5)
        assert "takes 6 tokens" in message and "room for 5" in message
