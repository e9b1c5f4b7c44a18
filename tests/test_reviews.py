"""records/reviews.py and records/duplicates.py: labeled texts, their split, examples and scores."""

import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_corpora import needs_pyarrow, write_csv, write_jsonl, write_parquet

from reading.options import DEFAULTS, ReadOptions
from records.duplicates import BLOCK, group_key, groups_of
from records.examples import IGNORED
from records.report import DataReport
from records.reviews import SPLITS, Review, label_ids, labels_of, main, read_reviews, review_examples, split_reviews
from tasks.scores import combine, format_scores, scores, write_errors
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
HOTELS = ROOT.parent / "shared" / "data" / "chnsenticorp" / "ChnSentiCorp_htl_all.csv"
needs_hotels = pytest.mark.skipif(not HOTELS.exists(), reason=f"{HOTELS} is missing")
WRITE = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
KINDS = ["csv", "jsonl", pytest.param("parquet", marks=needs_pyarrow)]
FOOTER = "Register for free, site map, terms of service, about us, careers, contact. Copyright 1999-2008, all rights."


def read(path, content=None, label_column=None, **options):
    """(list of (label, text), report) of a table."""
    if content is not None:
        path.write_bytes(content.encode())
    report = DataReport(path)
    reviews = read_reviews(path, ReadOptions(**options), label_column, report)
    assert report.kept == len(reviews)
    return [(review.label, review.text) for review in reviews], report


def of(label, n, start=0):
    """n different reviews with one label."""
    return [Review(label, f"review {label}-{i}", f"line {i}") for i in range(start, start + n)]


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_texts_of_every_format(tmp_path, kind):
    rows = [("good", "null"), ("bad", "NA"), ("good", 'a, "b"\nc'), ("007", "  indented "), ("null", "")]
    for columns in [("label", "text"), ("label", "review"), ("label", "body")]:
        path = WRITE[kind](tmp_path / f"a.{kind}", [dict(zip(columns, row, strict=True)) for row in rows])
        found, report = read(path)
        assert found == rows and [count for count, _ in report.changed.values()] == [1]
    path = WRITE[kind](tmp_path / f"b.{kind}", [{"text": "a", "stars": "5", "body": "b"}])
    assert read(path, label_column="stars")[0] == [("5", "a")]
    assert read(path, label_column="stars", column="body")[0] == [("5", "b")]
    assert read(path, label_column="text", column="body")[0] == [("a", "b")]


@pytest.mark.parametrize("content, expected", [
    ('\ufefflabel,review\r\n1,"one\r\ntwo"\r\n0,null\r\n1,NA\r\n', [("1", "one\ntwo"), ("0", "null"), ("1", "NA")]),
    ("review;label\ngood, indeed;positive\n;negative\n", [("positive", "good, indeed"), ("negative", "")]),
    ("id,label,text\n1,1,a\n2,2,\" \n\"\n", [("1", "a"), ("2", "")])])
def test_unusual_csv_is_read(tmp_path, content, expected):
    assert read(tmp_path / "a.csv", content)[0] == expected


def test_values_that_are_not_strings(tmp_path):
    rows = [{"label": 1, "text": "a"}, {"label": True, "text": "b"}, {"label": 2.5, "text": None}, {"label": 0},
            {"label": None, "text": "c"}, {"text": "d"}, {"label": " ", "text": "e"}, {"label": [1], "text": "f"},
            {"label": 1, "text": 7}, {"label": 1, "text": "g\rh\r\n\ud83d"}]
    found, report = read(tmp_path / "a.json", json.dumps(rows))
    assert found == [("1", "a"), ("True", "b"), ("2.5", ""), ("0", ""), ("1", "g\nh\n\ufffd")]
    assert report.skipped == {"its label is missing": (3, "item 5"), "its text is a number, not text": (1, "item 9"),
                              "its label is a list, not text or a number": (1, "item 8")}
    assert list(report.changed.values()) == [(2, "item 3")]


@pytest.mark.parametrize("name, content, label_column, words", [
    ("a.csv", "stars,text\n1,a\n", None, ["no column label", "stars, text", "--data.label_column"]),
    ("a.csv", "stars,text\n1,a\n", "star", ["no column star:", "stars, text"]),
    ("a.jsonl", '{"stars": 1, "text": "a"}\n', None, ["no column label", "stars, text"]),
    ("a.csv", "label,a,b\n1,x,y\n", None, ["a, b", "--data.column"]), ("a.csv", "", None, ["no reviews", "empty"]),
    ("a.csv", "label,text\n,a\n", None, ["line 2: its label is missing"]),
    ("a.csv", "label,text\n", None, ["no review", "empty"]),
    ("a.csv", "label,text\n1,a\n1,b,c\n", None, ["line 3", "3 fields"]),
    ("a.csv", "label,text,label\n1,a,2\n", None, ["2 columns named label"]),
    ("a.txt", "label,text\n1,a\n", None, ["not a table", ".csv"])])
def test_bad_files_are_one_line(tmp_path, name, content, label_column, words):
    with pytest.raises(UserError) as error:
        read(tmp_path / name, content, label_column)
    assert all(word in str(error.value) for word in [name, *words]), error.value


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels, expected", [
    (["2", "1", "10", "1"], ["1", "2", "10"]), (["pos", "neg"], ["neg", "pos"]), (["10", "9", "x"], ["10", "9", "x"]),
    (["0.5", "-1", "1e1"], ["-1", "0.5", "1e1"]), (["nan", "2", "10"], ["10", "2", "nan"]),
    (["差", "好"], ["好", "差"]), (["1", "1.0", "0"], ["0", "1", "1.0"])])
def test_the_order_of_labels_depends_on_nothing_else(labels, expected):
    for seed in range(5):
        random.Random(seed).shuffle(labels)
        assert labels_of([Review(label, "a", "line 2") for label in labels]) == expected
    assert label_ids([Review(label, "", "") for label in expected], expected).tolist() == [*range(len(expected))]


def test_one_label_and_unknown_labels_are_errors():
    with pytest.raises(UserError, match="all reviews have the label good: "):
        labels_of(of("good", 3))
    with pytest.raises(UserError, match="line 7 has the label ok, but the model knows only bad, good: "):
        label_ids([Review("bad", "a", "line 6"), Review("ok", "a", "line 7")], ["bad", "good"])


# ---- Near-duplicates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, b", [
    ("Good hotel!", "good, HOTEL"), ("很好，不错。", " 很 好 不错"), ("ＡＢＣ１２３", "abc123"), ("a\n b", "ab"),
    ("", " \n"), ("！！！", "!!!"), ("x" * BLOCK, "before, " + "x" * BLOCK), (f"Fine. {FOOTER}", f"Terrible!{FOOTER}")])
def test_near_duplicates_are_one_group(a, b):
    assert groups_of(["other", a, "x", b])[1::2] == [min(group_key(a), group_key(b))] * 2
    assert groups_of([b, a, "other"])[0] == groups_of([a, b])[1]


@pytest.mark.parametrize("a, b", [("good", "not good"), ("", "a"), ("😀", "😡"), ("!", "?"),
                                  ("x" * (BLOCK - 1), "y" + "x" * (BLOCK - 1)), ("x" * BLOCK + "y", "x" * (BLOCK - 1))])
def test_different_texts_are_two_groups(a, b):
    assert groups_of([a, b]) == [group_key(a), group_key(b)]


def test_groups_are_transitive_and_blocks_do_not_span_texts():
    one, two = "a1" * BLOCK, "b2" * BLOCK
    assert groups_of([one, two, f"{one} and {two}", "c"]) == [group_key(one)] * 3 + ["c"]
    separate = ["xy" * 20, "zw" * 20, "c" + "xy" * 20, "zw" * 20 + "d"]  # joined, they contain the same 80 characters
    assert groups_of(separate) == separate
    assert groups_of([]) == []


# ---- Split -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(60, 40), (200, 3), (531, 244, 77)])
def test_the_split_is_stratified_within_one_review_per_class(sizes):
    reviews = [review for label, size in enumerate(sizes) for review in of(str(label), size)]
    splits = split_reviews(reviews, seed=0)
    assert sorted(review for part in splits for review in part) == sorted(reviews)
    for label, size in enumerate(sizes):
        counts = [sum(review.label == str(label) for review in part) for part in splits]
        assert min(counts) >= 1
        assert size < 10 or close_to_shares(splits, str(label), size)


def test_the_split_depends_on_the_seed_and_not_on_the_order_or_the_hash_seed():
    reviews = of("a", 60) + of("b", 50)
    reviews += [Review(label, f"Equal {mark}", "") for label in "ab" for mark in "!?.,;:"]
    splits = split_reviews(reviews, seed=0)
    random.Random(0).shuffle(reviews)
    assert split_reviews(reviews, seed=0) == splits != split_reviews(reviews, seed=1)
    reviews = of("a", 60) + of("b", 50)
    code = ("import sys; sys.path.insert(0, 'tests'); from test_reviews import of, split_reviews\n"
            "print([r.text for part in split_reviews(of('a', 60) + of('b', 50), 0) for r in part])")
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True)
    expected = [review.text for part in split_reviews(reviews, seed=0) for review in part]
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize("seed", range(10))
def test_near_duplicates_are_in_one_split_and_leave_the_shares_as_they_are(seed):
    reviews = of("a", 120) + of("b", 80)
    reviews += [Review("ab"[i % 2], f"footer {i} {FOOTER}", "line 1") for i in range(44)]
    reviews += [Review("a", f"Review A-{i}!!", "line 2") for i in range(40)]
    splits = split_reviews(reviews, seed)
    keys = [{group_key(review.text) for review in part} for part in splits]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(any(FOOTER in review.text for review in part) for part in splits) == 1
    assert close_to_shares(splits, "a", 182) and close_to_shares(splits, "b", 102)
    assert any("!!" in review.text for review in splits[2])


def close_to_shares(splits, label, n):
    counts = [sum(review.label == label for review in part) for part in splits]
    return all(abs(count - share * n) <= 1 for count, share in zip(counts, (0.85, 0.05, 0.1), strict=True))


def test_a_label_with_large_groups_does_not_disturb_the_others():
    repeated = [Review("b", "b" + "!" * i, "") for i in range(60)]
    splits = split_reviews(of("a", 1000) + repeated + of("b", 2), seed=0)
    assert close_to_shares(splits, "a", 1000) and all({"a", "b"} == {r.label for r in part} for part in splits)


@pytest.mark.parametrize("few", [
    of("few", 1), of("few", 2), [Review("few", f"text {FOOTER} {i}", "") for i in range(9)]])
def test_a_class_of_fewer_than_three_groups_is_an_error_that_names_it(few):
    with pytest.raises(UserError, match="label few has too few reviews"):
        split_reviews(of("many", 50) + few, seed=0)


@needs_hotels
def test_the_hotel_reviews():
    report = DataReport(HOTELS)
    reviews = read_reviews(HOTELS, DEFAULTS, None, report)
    assert Counter(review.label for review in reviews) == {"1": 5322, "0": 2444} and labels_of(reviews) == ["0", "1"]
    assert not report.skipped and list(report.changed.values()) == [(1, "line 6376")]
    splits = split_reviews(reviews, seed=0)
    assert [len(part) for part in splits] == [6602, 388, 776]
    groups = dict(zip((review.place for review in reviews), groups_of(review.text for review in reviews), strict=True))
    assert len({groups[review.place] for review in reviews}) < len(reviews) - 43
    with_footer = [[review.label for review in part if "ctrip.com.allrights" in review.text] for part in splits]
    assert [len(labels) for labels in with_footer if labels] == [42]
    in_split = [{groups[review.place] for review in part} for part in splits]
    assert sum(map(len, in_split)) == len({*groups.values()})
    shared = Counter(groups.values()).most_common(1)[0]
    assert shared[1] == 44 and {review.label for review in reviews if groups[review.place] == shared[0]} == {"0", "1"}


def test_the_split_command_writes_what_it_read(tmp_path, run_main):
    reviews = of("a", 30) + of("b", 30)
    odd = ['quote " and, comma', "two\nlines", "  spaces ", "null", "NA", "", "'; x\t|", '"', "sep=;", "\ufeffa", "1"]
    reviews += [Review("a", text, "line 1") for text in odd]
    path = write_jsonl(tmp_path / "a.jsonl", [{"label": review.label, "text": review.text} for review in reviews])
    out = run_main(main, "split", path, "--seed", "5", "--out", tmp_path / "new" / "folder")
    assert "71 reviews kept" in out and "a: 35, b: 25" in out
    expected = split_reviews(read_reviews(path, DEFAULTS, None, DataReport(path)), seed=5)
    for name, part in zip(SPLITS, expected, strict=True):
        file = tmp_path / "new" / "folder" / f"{name}.csv"
        assert read(file)[0] == [(review.label, review.text) for review in part]
        with open(file, encoding="utf-8", newline="") as content:
            assert [*csv.reader(content)][1:] == [[review.label, review.text] for review in part]


def test_a_failed_split_command_leaves_the_files_as_they_were(tmp_path, run_main, capsys):
    (tmp_path / "train.csv").write_text("mine")
    path = write_csv(tmp_path / "a.csv", [{"label": "a", "text": "x"}, {"label": "b", "text": "y"}])
    with pytest.raises(SystemExit) as stopped:
        run_main(main, "split", path, "--out", tmp_path)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: the label a has too few")
    assert (tmp_path / "train.csv").read_text() == "mine" and not (tmp_path / "val.csv").exists()


# ---- Examples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer():
    return CharTokenizer("\nabcdefgh")


def lists(examples):
    return [(examples[i].tokens.tolist(), examples[i].targets.tolist()) for i in range(len(examples))]


def test_the_label_is_the_target_at_the_last_token(tokenizer):
    reviews = [Review("no", "abc", "line 2"), Review("yes", "", "line 3"), Review("yes", "h", "line 4")]
    examples, review_of = review_examples(reviews, ["no", "yes"], tokenizer, block_size=4)
    assert lists(examples) == [([0, 1, 2, 3], [IGNORED] * 3 + [0]), ([0], [1]), ([0, 8], [IGNORED, 1])]
    examples, review_of = review_examples(reviews, ["no", "yes"], tokenizer, 4, fixed_length=True)
    assert lists(examples) == [([0, 1, 2, 3], [IGNORED] * 3 + [0]), ([0] * 4, [IGNORED] * 3 + [1]),
                               ([0, 8, 0, 0], [IGNORED] * 3 + [1])]
    assert review_of.tolist() == [0, 1, 2]


def test_long_reviews_are_split_into_chunks_of_equal_length(tokenizer):
    reviews = [Review("0", "abcdefgh", ""), Review("1", "a", ""), Review("1", "abcdefg", "")]
    examples, review_of = review_examples(reviews, ["0", "1"], tokenizer, block_size=4)
    parts = [tokenizer.decode(examples[i].tokens) for i in range(len(examples))]
    assert parts == ["\nabc", "\ndef", "\ngh", "\na", "\nabc", "\ndef", "\ng"]
    assert review_of.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert [examples[i].targets[-1] for i in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    for block_size in range(2, 12):
        examples, review_of = review_examples(reviews[:1], ["0", "1"], tokenizer, block_size)
        assert len(review_of) == -(-8 // (block_size - 1)) and examples.lengths.max() <= block_size
        text = "".join(tokenizer.decode(examples[i].tokens[1:]) for i in range(len(examples)))
        assert text == "abcdefgh" and set(examples.lengths[:-1]) <= {examples.lengths.max()}
    with pytest.raises(UserError, match="block_size"):
        review_examples(reviews, ["0", "1"], tokenizer, 1)


def test_unknown_characters_are_removed_and_counted_and_unknown_labels_refused(tokenizer):
    report = DataReport("a.csv")
    reviews = [Review("0", "aXb", "line 2"), Review("0", "XYZ", "line 3"), Review("1", "h", "line 4")]
    examples, _ = review_examples(reviews, ["0", "1"], tokenizer, 8, report=report)
    assert [tokens for tokens, _ in lists(examples)] == [[0, 1, 2], [0], [0, 8]]
    assert report.changed == {"removed characters that the tokenizer lacks": (2, "line 2")}
    with pytest.raises(UserError, match="line 4 has the label 1"):
        review_examples(reviews, ["0", "2"], tokenizer, 8)


def test_special_tokens_in_a_review_stay_text():
    bpe = BPETokenizer.train(["good <|endoftext|> bad"] * 3, 280)
    examples, _ = review_examples([Review("0", "<|endoftext|>", "")], ["0", "1"], bpe, 64)
    assert examples[0].tokens.tolist() == [bpe.end_of_text, *bpe.encode("<|endoftext|>")]
    assert bpe.end_of_text not in examples[0].tokens[1:]


# ---- Scores ----------------------------------------------------------------------------------------------------------


def test_chunks_are_combined_as_probabilities_per_review():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], np.float32)
    combined = combine(probabilities, np.array([0, 1, 0]))
    assert np.allclose(combined, [[0.65, 0.35], [0.2, 0.8]]) and combined.argmax(1).tolist() == [0, 1]


def test_scores_equal_hand_computed_ones():
    true = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 0, 0, 1, 1, 1, 0, 0])
    found = scores(["a", "b", "c"], true, np.eye(4)[predicted][:, :3])
    assert found.confusion.tolist() == [[3, 1, 0], [1, 2, 0], [1, 0, 0]]
    assert found.accuracy == 5 / 8 and found.majority_accuracy == 4 / 8
    assert np.allclose(found.precision, [3 / 5, 2 / 3, 0]) and np.allclose(found.recall, [3 / 4, 2 / 3, 0])
    assert np.allclose(found.f1, [2 / 3, 2 / 3, 0]) and np.isclose(found.macro_f1, 4 / 9)
    table = format_scores(found).splitlines()
    assert [line.split() for line in table[1:4]] == [
        ["a", "4", "0.600", "0.750", "0.667"], ["b", "3", "0.667", "0.667", "0.667"], ["c", "1"] + ["0.000"] * 3]
    assert len({len(line) for line in table[:4]}) == 1
    assert "62.50%" in table[4] and "50.00%" in table[4] and "0.444" in table[4]


def test_misclassified_reviews_are_written_with_the_probability_of_the_predicted_label(tmp_path):
    path = tmp_path / "errors.csv"
    reviews = [Review("b", "right", "line 2"), Review("a", '差，"了"\n', "line 3"), Review("a", "right", "line 4")]
    write_errors(path, reviews, ["a", "b"], np.array([[0.1, 0.9], [0.25, 0.75], [0.6, 0.4]]))
    with open(path, encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)] == [["place", "label", "predicted", "probability", "text"],
                                       ["line 3", "a", "b", "0.7500", '差，"了"\n']]
