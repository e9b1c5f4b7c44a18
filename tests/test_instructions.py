"""records/instructions.py: records in the Alpaca format, their prompts, examples and split."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from reading.options import DEFAULTS
from records.examples import IGNORED
from records.instructions import (
    Instruction,
    instruction_examples,
    instruction_parts,
    prompt_ids,
    prompt_text,
    read_instructions,
    split_instructions,
    write_answers,
)
from records.report import DataReport
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from tokenization.load import load_tokenizer
from utils.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SPECIAL = "<|endoftext|> [SEP] ### Response: {0} %s"


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([prompt_text("Name a bird.", "owl, hen")] * 3, 300)


def record(instruction="Say it.", input="", output="Hi.", place="item 1"):
    return Instruction(instruction, input, output, place)


def read(path, content):
    """(records, report) of a file with this content."""
    path.write_text(content, encoding="utf-8")
    report = DataReport(path)
    return read_instructions(path, DEFAULTS, report), report


def read_items(path, items):
    if path.suffix == ".jsonl":
        return read(path, "".join(json.dumps(item) + "\n" for item in items))
    return read(path, json.dumps(items))


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, place", [("a.json", "item"), ("a.jsonl", "line")])
def test_records_are_read_and_invalid_ones_are_skipped_with_reason_and_place(tmp_path, name, place):
    good = {"instruction": "Say it.", "output": "Hi."}
    items = [good, {**good, "input": None}, {**good, "input": ""}, {**good, "input": " \n"}, {**good, "input": "{0}"},
             {"instruction": "a"}, {"instruction": "", "output": "b"}, {"instruction": "a", "output": 7},
             {**good, "input": ["x"]}, {"output": "b"}, {"instruction": "a", "output": " "},
             {**good, "output": "a\r\nb \ud83d"}]
    records, report = read_items(tmp_path / name, items)
    assert [tuple(found) for found in records] == [
        *(("Say it.", "", "Hi.", f"{place} {i}") for i in (1, 2, 3, 4)), ("Say it.", "{0}", "Hi.", f"{place} 5"),
        ("Say it.", "", "a\nb \ufffd", f"{place} 12")]
    assert report.skipped == {
        "its output is missing or empty": (2, f"{place} 6"), "its instruction is missing or empty": (2, f"{place} 7"),
        "its output is a number, not text": (1, f"{place} 8"), "its input is a list, not text": (1, f"{place} 9")}


@pytest.mark.parametrize("name, content, words", [
    ("a.json", '{"instruction": "a", "output": "b"}', ["is an object, not a list"]),
    ("a.json", '[7, {"instruction": "a", "output": "b"}', ["not valid JSON"]),
    ("a.json", '[7, {"instruction": "a"}]', ["item 1: it is a number, not an object"]),
    ("a.json", "[]", ["no records", "empty"]), ("a.jsonl", "", ["no records", "empty"]),
    ("a.jsonl", '{"instruction": "a"}\n', ["line 1: its output is missing"]),
    ("a.jsonl", '\n[1]\n', ["line 2 is a list, not an object"]),
    ("a.txt", "instruction,output\na,b\n", ["not a table"])])
def test_bad_files_are_one_line(tmp_path, name, content, words):
    with pytest.raises(UserError) as error:
        read(tmp_path / name, content)
    assert all(word in str(error.value) for word in [name, *words]) and "\n" not in str(error.value)


def test_the_columns_of_a_table_are_instructions_too(tmp_path):
    records, report = read(tmp_path / "a.csv", "instruction,input,output\nSay it.,,Hi.\nAdd.,1 and 2,3\n,,no\n")
    assert [record[:3] for record in records] == [("Say it.", "", "Hi."), ("Add.", "1 and 2", "3")]
    assert report.skipped == {"its instruction is missing or empty": (1, "line 4")}


def test_answers_are_written_beside_the_references_or_not_at_all(tmp_path):
    path = tmp_path / "answers.json"
    records = [record("问", "", "答"), record("q", "i", "o")]
    write_answers(path, records, ["啊\n", "x"])
    expected = [{"instruction": "问", "input": "", "output": "答", "answer": "啊\n"},
                {"instruction": "q", "input": "i", "output": "o", "answer": "x"}]
    assert json.loads(path.read_bytes()) == expected and "问" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        write_answers(path, records, ["only one"])
    with pytest.raises(UnicodeEncodeError):
        write_answers(path, records, ["x", "\ud800"])
    assert json.loads(path.read_bytes()) == expected and list(tmp_path.iterdir()) == [path]


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_alpaca():
    assert prompt_text("Add.", "1 and 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response:\n")
    assert prompt_text("Sing.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSing.\n\n### Response:\n")
    assert prompt_text("Sing.") == prompt_text("Sing.", "") == prompt_text("Sing.", "  ")
    for prompt in (prompt_text(SPECIAL), prompt_text(SPECIAL, "x"), prompt_text("x", SPECIAL)):
        assert f"\n{SPECIAL}\n" in prompt


def test_prompt_and_answer_are_encoded_separately(bpe):
    both = record("a", SPECIAL, SPECIAL)
    (prompt, supervised), (answer, answer_supervised) = instruction_parts(both, bpe)
    assert (supervised, answer_supervised) == (False, True)
    assert prompt == bpe.encode(prompt_text("a", SPECIAL)) == prompt_ids("a", SPECIAL, bpe)
    assert answer == [*bpe.encode(SPECIAL), bpe.end_of_text]
    assert not bpe.special_ids & {*prompt, *answer[:-1]}


def test_no_token_of_gpt2_spans_the_boundary():
    if not (SHARED / "gpt2-bpe").exists():
        pytest.skip("GPT-2's tokenizer is not in ../shared/data/gpt2-bpe")
    gpt2 = load_tokenizer(SHARED / "gpt2-bpe")
    parts = instruction_parts(record(output="\n\nHi<|endoftext|>"), gpt2)
    (prompt, _), (answer, _) = parts
    assert prompt[-1] == 198 and answer == [198, 198, 17250, 27, 91, 437, 1659, 5239, 91, 29, 50256]
    joined = gpt2.encode(prompt_text("Say it.") + "\n\nHi")
    assert joined[: len(prompt)] != prompt  # encoded together, the line feeds are merged


def test_a_tokenizer_without_an_end_of_text_token_is_refused():
    with pytest.raises(UserError, match="end-of-text"):
        instruction_parts(record(), CharTokenizer.of_text(prompt_text("Say it.") + "Hi."))


# ---- Examples --------------------------------------------------------------------------------------------------------


def test_only_the_answer_and_one_end_token_are_supervised(bpe):
    records = [record(output="Hi."), record("b", "c", "A longer answer. " * 3)]
    report = DataReport("a.json", n_records=2)
    examples = instruction_examples(records, bpe, 512, report)
    assert len(examples) == 2 and (report.kept, report.skipped, report.changed) == (2, {}, {})
    for i, found in enumerate(records):
        tokens, targets = examples[i]
        n_prompt = len(bpe.encode(prompt_text(found.instruction, found.input)))
        whole = bpe.encode(prompt_text(found.instruction, found.input)) + bpe.encode(found.output) + [bpe.end_of_text]
        assert tokens.tolist() == whole[:-1]
        assert targets.tolist() == [IGNORED] * (n_prompt - 1) + whole[n_prompt:]


def test_the_context_cuts_answers_and_skips_prompts_that_fill_it(bpe):
    found = record(output="Hi there.")
    n_prompt, n_answer = len(bpe.encode(prompt_text("Say it."))), len(bpe.encode("Hi there."))
    assert n_answer > 2
    for extra, n_supervised, has_end in [(n_answer, n_answer + 1, True), (n_answer - 1, n_answer, False),
                                         (0, 1, False), (-1, 0, False)]:
        report = DataReport("a.json", n_records=1)
        examples = instruction_examples([found], bpe, n_prompt + extra, report)
        kept = n_supervised > 0
        assert examples.n_supervised == n_supervised and len(examples) == report.kept == kept
        assert (bpe.end_of_text in examples.targets) == has_end
        assert len(report.skipped) == (not kept) and len(report.changed) == (kept and not has_end)
        if not kept:
            assert report.first_skipped() == f"item 1: its prompt fills the context of {n_prompt - 1} tokens"


def test_skipping_a_record_leaves_the_others_as_they_are_without_it(bpe):
    records = [record(), record("x" * 500, place="item 2"), record("b", "c", "d", "item 3")]
    report = DataReport("a.json", n_records=3)
    examples = instruction_examples(records, bpe, 200, report)
    without = instruction_examples([records[0], records[2]], bpe, 200, DataReport("a.json"))
    assert report.kept == 2 and "item 2" in report.first_skipped()
    assert (examples.tokens.tolist(), examples.targets.tolist()) == (without.tokens.tolist(), without.targets.tolist())


def test_characters_that_the_vocabulary_lacks_are_removed_and_counted():
    tokenizer = CharTokenizer.of_text(prompt_text("Say it.") + "Hi.")
    tokenizer.end_of_text = tokenizer.vocab_size
    records = [record("Say é it.", "", "H界i."), record(place="item 2"), record("Say it.", "", "世界", "item 3")]
    report = DataReport("a.json")
    examples = instruction_examples(records, tokenizer, 512, report)
    assert len(examples) == 2
    assert examples[0].targets[-4:].tolist() == [*tokenizer.encode("Hi."), tokenizer.end_of_text]
    assert tokenizer.decode(examples[0].tokens) == prompt_text("Say  it.") + "Hi."
    assert report.changed == {"removed characters that the tokenizer lacks": (1, "item 1")}
    assert report.first_skipped() == "item 3: its output has no character of the vocabulary"


# ---- Split -----------------------------------------------------------------------------------------------------------


def keys(records):
    return {(found.instruction.strip(), found.input.strip()) for found in records}


def test_equal_prompts_are_on_one_side_whatever_the_order():
    records = [record(f"q{i % 40}", " x" * (i % 2), f"a{i}", f"item {i}") for i in range(90)]
    records += [record(f" q{i} ", "", "again", f"item {90 + i}") for i in range(0, 10, 2)]
    train, val = split_instructions(records)
    assert sorted(train + val, key=str) == sorted(records, key=str) and not keys(train) & keys(val)
    assert 7 <= len(val) <= 9
    random.Random(0).shuffle(records)
    assert {*split_instructions(records)[1]} == {*val}


@pytest.mark.parametrize("sizes", [(1, 1), (5, 4), (30, 1)])
def test_both_sides_of_a_split_have_records(sizes):
    records = [record(f"q{group}") for group, size in enumerate(sizes) for _ in range(size)]
    train, val = split_instructions(records)
    assert len(val) == min(sizes) and len(train) == max(sizes)
    with pytest.raises(UserError, match="two different instructions"):
        split_instructions(records[: sizes[0]])


@pytest.mark.parametrize("name, n_records, n_distinct, n_repeated", [
    ("instruction_en_1100.json", 1100, 1075, 20), ("alpaca_zh_1000.json", 1000, 992, 8)])
def test_repeated_prompts_of_real_files_are_on_one_side(name, n_records, n_distinct, n_repeated):
    path = SHARED / "alpaca" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    records = read_instructions(path, DEFAULTS, DataReport(path))
    train, val = split_instructions(records)
    counts = Counter((found.instruction.strip(), found.input.strip()) for found in records)
    assert (len(records), len(counts)) == (n_records, n_distinct)
    assert sum(count > 1 for count in counts.values()) == n_repeated
    assert not keys(train) & keys(val) and len(val) == n_records // 10
