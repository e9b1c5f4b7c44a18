"""estimate.py on models of every task with random weights, against values computed one by one."""

import csv
import dataclasses
import json
import math
import re

import pytest
import torch
from small_models import small_model
from small_runs import TINY
from small_text import TEXT

import estimate
from models.config import ReplyConfig
from models.generate import generate
from models.quantize import int8_summary
from models.zoo import DevModel
from records import instructions
from records.dialogues import prompt_ids, split_dialogues
from records.reviews import as_review, split_reviews
from tasks.classification import Classifier
from tasks.reply_metrics import distinct
from tokenization.characters import CharTokenizer
from training.checkpoint import save_checkpoint

DIALOGUES = [[f"how are you, {name}?", f"fine, {name}!", "good", f"bye, {name}."] for name in "abcdefghijkl"]
RECORDS = [{"instruction": f"Say {word}.", "input": "" if i % 2 else "Loudly.", "output": word * 2}
           for i, word in enumerate("abcdefghijkl")]
REVIEWS = [("差评" if i % 3 == 0 else "好评", f"第{i}次，{'房间' * (i % 9)}") for i in range(60)]
POEMS = [{"title": f"{title}歌", "author": "李白", "para": [f"{title}前明月光，", "疑是地上霜。"]}
         for title in "春夏秋冬天地日月"]
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with data and a model for each task."""
    folder = tmp_path_factory.mktemp("models")
    text = "\n\n".join("\n".join(dialogue) for dialogue in DIALOGUES)
    (folder / "dialogue.txt").write_text(text, encoding="utf-8")
    (folder / "instruction.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    (folder / "poem.json").write_text(json.dumps(POEMS), encoding="utf-8")
    with open(folder / "reviews.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "review"), *REVIEWS])
    prompts = instructions.prompt_text("", "x") + instructions.prompt_text("") + str(RECORDS)
    titles = f"《》写一请作来首诗{POEMS}"
    texts = {"dialogue": text, "instruction": prompts, "poem": titles, "classification": str(REVIEWS)}
    for kind, characters in texts.items():
        tokenizer = CharTokenizer.of_text(characters).with_special_tokens()
        n_labels, entry = None, {"kind": kind}
        if kind == "classification":
            n_labels, entry = 2, entry | {"labels": ["好评", "差评"], "mask_padding": True,
                                        "both_directions": False}
        block_size = 256 if kind == "instruction" else 28
        model = small_model("GPT2", vocab_size=tokenizer.vocab_size, block_size=block_size, n_labels=n_labels)
        save_checkpoint(folder / f"{kind}.pt", model, tokenizer, task=entry, sampling={"max_tokens": 8, "top_k": 5})
        (folder / kind).mkdir()
    language = small_model("GPT2", vocab_size=9)
    save_checkpoint(folder / "language.pt", language, CharTokenizer("abcdefgh\n"))
    return folder


def loaded(folder, kind):
    return estimate.load_checkpoint(folder / f"{kind}.pt")


def value(out, name):
    return float(re.search(rf"{re.escape(name)} +([\d.]+)", out)[1])


@pytest.mark.parametrize("loss, expected", [(0.0, 1.0), (1.5, math.exp(1.5)), (709.0, math.exp(709)), (710.0, math.inf),
                                            (1e9, math.inf)])
def test_the_perplexity_is_exp_of_the_loss_or_infinite(loss, expected):
    assert estimate.perplexity(loss) == expected


def test_a_loss_that_is_not_a_number_is_not_called_normal():
    assert estimate.verdict(math.nan, uniform=4.0, ngram=1.6).startswith("No better than the uniform baseline")


def test_a_model_that_is_certain_and_wrong_has_infinite_perplexity(folder, run_main):
    model, tokenizer = DevModel(**TINY, vocab_size=len(set(TEXT))), CharTokenizer.of_text(TEXT)
    torch.nn.init.constant_(model.head.bias[0], 1e4)
    save_checkpoint("wrong\x1b[31m.pt", model, tokenizer)
    out = run_main(estimate.main, "wrong\x1b[31m.pt", "--data", "data/input.txt", "--device", "cpu")
    assert float(re.search(r"loss +([\d.]+)", out)[1]) > 5000 and re.search(r"perplexity +inf\n", out)
    assert "No better than the uniform baseline" in out.splitlines()[-1]
    assert r"wrong\x1b[31m.pt: DevModel" in out and "\x1b" not in out


# ---- Int8 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, data", [("language", "abc.txt"), ("dialogue", "dialogue.txt"),
                                        ("classification", "reviews.csv")])
def test_the_loss_with_int8_weights_is_printed_beside_the_one_without(models, run_main, kind, data):
    (models / "abc.txt").write_text("abcdefgh\nhgfedcba\n" * 200, encoding="utf-8")
    arguments = models / f"{kind}.pt", "--data", models / data, *CPU
    plain = run_main(estimate.main, *arguments)
    out = run_main(estimate.main, *arguments, "--quantize", "int8")
    config = loaded(models, kind).model.config
    assert int8_summary(config) in out.splitlines() and "int8" not in plain
    loss, float_loss, change = map(float, re.search(
        r"^loss +([\d.]+) .*\n *not quantized: loss ([\d.]+), change ([+-][\d.]+)$", out, re.MULTILINE).groups())
    assert float_loss == value(plain, "loss") and change == pytest.approx(loss - float_loss, abs=1.1e-4) and change


# ---- Dialogue --------------------------------------------------------------------------------------------------------


def log_probability(model, prompt, reply):
    """Return the sum over the tokens of a reply, each computed from a sequence that ends before it."""
    total = 0.0
    for i, token in enumerate(reply):
        logits = model(torch.tensor([[*prompt, *reply[:i]]]))[0][0, -1]
        total += logits.log_softmax(-1)[token].item()
    return total


def test_the_loss_of_a_dialogue_model_is_that_of_the_held_out_replies_and_their_end_markers(models, run_main):
    out = run_main(estimate.main, models / "dialogue.pt", "--data", models / "dialogue.txt", *CPU)
    model, tokenizer = loaded(models, "dialogue")[:2]
    total, n = 0.0, 0
    for dialogue in split_dialogues(DIALOGUES)[1]:
        for question, answer in zip(dialogue[::2], dialogue[1::2], strict=True):  # two turns exceed the context
            reply = [*tokenizer.encode(answer), tokenizer.message_end]
            total, n = total + log_probability(model, prompt_ids([question], tokenizer), reply), n + len(reply)
    assert value(out, "loss") == pytest.approx(-total / n, abs=0.02)  # bfloat16, where that is fast
    assert value(out, "perplexity") == pytest.approx(math.exp(value(out, "loss")), rel=1e-3)
    assert f"{n} of them supervised" in out


def test_replies_to_held_out_messages_are_sampled_with_fixed_seeds_and_measured(models, run_main):
    arguments = models / "dialogue.pt", "--data", models / "dialogue.txt", "--split", "all", *CPU
    out = run_main(estimate.main, *arguments)
    model, tokenizer = loaded(models, "dialogue")[:2]
    replies = []
    for seed, (question, *_) in enumerate(DIALOGUES):
        config = ReplyConfig(top_k=5, seed=seed)
        ids = generate(model, prompt_ids([question], tokenizer), 8, config, tokenizer.special_ids)
        replies.append(tokenizer.decode(ids))
    shown = re.findall(r"^  (.+\?) -> (.*)$", out, re.MULTILINE)
    pairs = [(dialogue[0], reply) for dialogue, reply in zip(DIALOGUES, replies, strict=True)]
    assert shown == [pairs[i * 12 // 10] for i in range(10)]
    references = [reply for _, reply, *_ in DIALOGUES]
    for n in (1, 2):
        row = re.search(rf"distinct-{n} \(characters\) +([\d.]+) +([\d.]+)", out)
        expected = distinct(replies, n), distinct(references, n)
        assert tuple(map(float, row.groups())) == pytest.approx(expected, abs=6e-4)
    ended = sum(len(reply) < 8 for reply in replies) / 12
    assert value(out, "share that end with an end marker") == pytest.approx(ended, abs=6e-4)
    assert run_main(estimate.main, *arguments).partition("replies to")[2] == out.partition("replies to")[2]


def test_messages_that_leave_no_room_or_have_unknown_characters_are_left_out_or_cleaned(models, tmp_path, run_main):
    (tmp_path / "chat.txt").write_text("how 中are?\nfine\n\nhow are you, " + "a" * 9 + "\nfine\n\n中\nfine\n")
    out = run_main(estimate.main, models / "dialogue.pt", "--data", tmp_path / "chat.txt", "--split", "all", *CPU)
    assert "the first message of 1 dialogue (" in out and "\n  how are? -> " in out


def test_at_most_200_dialogues_spread_over_the_file_are_answered(models, tmp_path, run_main):
    text = "\n\n".join(f"{'abcdefghij'[i // 60]}\nfine" for i in range(600))
    (tmp_path / "chat.txt").write_text(text, encoding="utf-8")
    out = run_main(estimate.main, models / "dialogue.pt", "--data", tmp_path / "chat.txt", "--split", "all", *CPU)
    assert "the first message of 200 dialogues" in out
    assert re.findall("^  (.) -> ", out, re.MULTILINE) == [*"abcdefghij"]


def test_poems_are_evaluated_by_their_titles(models, run_main):
    out = run_main(estimate.main, models / "poem.pt", "--data", models / "poem.json", "--split", "all", *CPU)
    assert "8 poems kept" in out and "the first message of 8 poems" in out
    assert all(re.search(rf"^  .*({poem['title']}|诗) -> ", out, re.MULTILINE) for poem in POEMS[:1])


# ---- Instructions ----------------------------------------------------------------------------------------------------


def test_answers_are_written_next_to_the_references(models, tmp_path, run_main):
    path = tmp_path / "new" / "answers.json"
    out = run_main(estimate.main, models / "instruction.pt", "--data", models / "instruction.json", "--split", "all",
                   "--answers", path, *CPU)
    model, tokenizer, _, reply = loaded(models, "instruction")
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row, record in zip(rows, RECORDS, strict=True):
        ids = instructions.prompt_ids(record["instruction"], record["input"], tokenizer)
        answer = generate(model, ids, 8, dataclasses.replace(reply, seed=0), tokenizer.special_ids)
        assert row == record | {"answer": tokenizer.decode(answer)}
    assert "12 answers; skipped 0 prompts that" in out


def test_without_a_file_three_held_out_answers_are_printed(models, run_main):
    out = run_main(estimate.main, models / "instruction.pt", "--data", models / "instruction.json", "--split", "train",
                   *CPU)
    train, _ = instructions.split_instructions([instructions.as_instruction(record, "") for record in RECORDS])
    assert re.findall("instruction: (.+)", out) == [f"{each.instruction} {each.input}" for each in train[:3]]
    assert re.findall("reference: (.+)", out) == [each.output for each in train[:3]]


# ---- Classification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, number", [("train", 0), ("val", 1), ("test", 2), ("all", None)])
def test_a_classifier_is_scored_per_review(models, tmp_path, run_main, split, number):
    out = run_main(estimate.main, models / "classification.pt", "--data", models / "reviews.csv", "--split", split,
                   "--split_seed", 3, "--out", tmp_path / "out", *CPU)
    reviews = [as_review(label, text, "") for label, text in REVIEWS]
    reviews = reviews if number is None else split_reviews(reviews, 3)[number]
    classifier = Classifier(*loaded(models, "classification")[:3], print)
    predicted = ["".join(classifier.answer(review.text, None)).split()[0] for review in reviews]
    pairs = zip(reviews, predicted, strict=True)
    wrong = sorted((review.text, label) for review, label in pairs if label != review.label)
    assert f"accuracy {1 - len(wrong) / len(reviews):.2%} " in out and f"{len(reviews)} reviews in" in out
    with open(tmp_path / "out" / "errors.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["text"], row["predicted"]) for row in rows) == wrong
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_one_label_can_be_scored(models, tmp_path, run_main):
    (tmp_path / "good.csv").write_text("class,text\n好评,第1次\n好评,第2次\n", encoding="utf-8")
    out = run_main(estimate.main, models / "classification.pt", "--data", tmp_path / "good.csv", "--split", "all",
                   "--label_column", "class", *CPU)
    assert re.search("差评 +0 ", out) and "2 reviews in" in out


# ---- The data report -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, kept, cut", [("val", 2, "1: {} (first: 'b')"), ("train", 10, "2: {} (first: 'c')"),
                                              ("all", 12, "3: {} (first: 'b')")])
def test_the_report_tells_what_holds_for_the_file_from_what_holds_for_the_split(models, tmp_path, run_main, split, kept,
                                                                                cut):
    dialogues = [["alone"], *([name, "fine"] for name in "abcdefghijkl")]
    for i in (2, 3, 4):  # "b" is for validation, as is "l"; "c" and "d" are for training
        dialogues[i][1] = "how are you, " * 3
    path = tmp_path / "chat.txt"
    path.write_text("\n\n".join("\n".join(dialogue) for dialogue in dialogues), encoding="utf-8")
    out = run_main(estimate.main, models / "dialogue.pt", "--data", path, "--split", split, *CPU)
    *lines, evaluated = out.splitlines()[1:6]
    assert re.match(rf"    evaluated: {kept} examples, ", evaluated)
    assert lines == [
        f"data: {path}: 12 dialogues kept, 1 skipped", "    skipped 1: a single message (first: line 1)",
        f"data: split {split} of {path}: {kept} dialogues kept, 0 skipped",
        f"    changed {cut.format('cut a reply at 28 tokens, without an end marker')}"]


def test_the_report_on_reviews_counts_the_changes_in_the_split(models, tmp_path, run_main):
    path = tmp_path / "reviews.csv"
    rows = [("label", "review"), *((label, f"{text}é") for label, text in REVIEWS)]
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    out = run_main(estimate.main, models / "classification.pt", "--data", path, "--split", "test", *CPU)
    assert f"data: {path}: 60 reviews kept, 0 skipped\n" in out
    assert f"data: split test of {path}: 6 reviews kept, 0 skipped\n    changed 6: removed characters" in out


ONE_RECORD = {  # data with a single record in the split `val` or `test`
    "dialogue": ("chat.txt", "how are you\nfine\n\na\nb\n", "val"),
    "poem": ("poems.json", json.dumps(POEMS[:2]), "val"),
    "instruction": ("records.json", json.dumps(RECORDS[:2]), "val"),
    "classification": ("reviews.csv", "label,text\n好评,第1次\n", "all"),
}


@pytest.mark.parametrize("kind", ONE_RECORD)
def test_a_count_of_one_has_a_singular_noun(models, tmp_path, run_main, kind):
    name, content, split = ONE_RECORD[kind]
    (tmp_path / name).write_text(content, encoding="utf-8")
    more = ("--answers", tmp_path / "answers.json") if kind == "instruction" else ()
    out = run_main(estimate.main, models / f"{kind}.pt", "--data", tmp_path / name, "--split", split, *more, *CPU)
    assert re.search(r"\b1 (dialogue|poem|record|review) kept", out) and "1 example," in out
    assert not re.search(r"(?<![.,])\b1 [a-z]+s\b", out)


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, arguments, message", [
    ("language", "--answers a.json", "--answers is for the task instruction.* config/instruct.yaml"),
    ("dialogue", "--out folder", "--out is for the task classification.* config/sentiment.yaml"),
    ("instruction", "--split_seed 1", "--split_seed is for the task classification.* config/sentiment.yaml"),
    ("language", "--quantize int4", "--quantize: invalid choice: 'int4'"),
    ("poem", "--label_column a", "--label_column is for the task classification"),
    ("language", "--split test", "--split test is for the task classification"),
    ("dialogue", "", "task dialogue: pass its dialogues as --data"), ("poem", "", "pass its poems as --data"),
    ("instruction", "", "pass its records as --data"), ("classification", "", "pass its reviews as --data"),
    ("dialogue", "--data reviews.csv", "is a table"), ("dialogue", "--data instruction.json", "contains no dialogue"),
    ("dialogue", "--data none.txt", "none.txt"), ("dialogue", "--data language.pt", "language.pt"),
    ("dialogue", "--data one.txt", "one.txt has no example in the split val: use other data, or --split all"),
    ("poem", "--data instruction.json", "contains no poem"), ("poem", "--data dialogue.txt", "not a table"),
    ("instruction", "--data dialogue.txt", "not a table"),
    ("instruction", "--data reviews.csv", "line 2: its instruction is missing"),
    ("instruction", "--data poem.json", "contains no records"),
    ("classification", "--data dialogue.txt", "not a table"),
    ("classification", "--data poem.json", "poem.json contains poems"),
    ("classification", "--data other.csv --split all", "line 2 has the label other"),
    ("language", "--data dialogue.txt", "not in the vocabulary"),
])  # fmt: skip
def test_options_of_another_task_are_a_one_line_error(models, capsys, monkeypatch, run_main, kind, arguments, message):
    monkeypatch.chdir(models)
    (models / "one.txt").write_text("how are you\nfine\n", encoding="utf-8")
    (models / "other.csv").write_text("label,text\nother,第1次\n好评,第2次\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_main(estimate.main, f"{kind}.pt", *arguments.split(), *CPU)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.parametrize("kind, option, target", [
    ("instruction", "--answers", "file/answers.json"), ("instruction", "--answers", "folder"),
    ("instruction", "--answers", "/"),
    ("instruction", "--answers", f"{'long' * 99}.json"), ("classification", "--out", "file"),
    ("classification", "--out", "file/folder"), ("classification", "--out", "results"),
])  # fmt: skip
def test_an_unwritable_path_is_an_error_before_the_data_is_read(models, tmp_path, capsys, run_main, kind,
                                                                          option, target):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "results" / "confusion.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run_main(estimate.main, models / f"{kind}.pt", "--data", "none", option, tmp_path / target, *CPU)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert re.fullmatch(rf"error: cannot write {re.escape(str(tmp_path / target))}.*: .*\n", error)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("kind", ["dialogue", "instruction", "classification"])
def test_a_tokenizer_without_the_special_tokens_of_its_task_is_one_line(models, tmp_path, capsys, run_main, kind):
    model, tokenizer, entry, _ = loaded(models, kind)
    save_checkpoint(tmp_path / "plain.pt", model, CharTokenizer(tokenizer.vocab), task=entry)
    with pytest.raises(SystemExit):
        run_main(estimate.main, tmp_path / "plain.pt", "--data", "none", *CPU)
    assert re.fullmatch("error: .* has a tokenizer without the special tokens.*\n", capsys.readouterr().err)
