"""The classification task: labels, padding, probabilities, and the model in the demo."""

import csv
import importlib.util
import json
import random
import re

import numpy as np
import pytest
import torch
from small_models import small_model
from small_runs import ROOT, interrupt
from small_tasks import BAD, GOOD, REVIEWS, error_of, task_settings
from small_tasks import data as data  # a fixture

import terminal_demo
from records.examples import IGNORED, Example
from records.reviews import Review
from tasks.classification import add_next_token_targets, classify
from tokenization.characters import CharTokenizer
from training.checkpoint import load_checkpoint, load_model, save_checkpoint
from training.run import train as run
from utils.errors import UserError

LONG = "abc gh" * 83 + "ab"  # 500 characters


@pytest.fixture(scope="module")
def classifier():
    """Return a model of random weights, and its tokenizer."""
    tokenizer = CharTokenizer.of_text("abcdefgh ").with_special_tokens()
    model = small_model("BardGPT", vocab_size=tokenizer.vocab_size, block_size=64, n_labels=3)
    return model, tokenizer


def entry(mask_padding=True, both_directions=False, labels=("a", "b", "c")):
    return {"kind": "classification", "labels": list(labels), "mask_padding": mask_padding,
            "both_directions": both_directions}


def reviews(*texts):
    return [Review("a", text, "") for text in texts]


# ---- Padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [entry(), entry(both_directions=True), entry(mask_padding=False)],
                         ids=["mask", "both directions", "fixed length"])  # fmt: skip
def test_the_probabilities_of_a_review_do_not_depend_on_its_batch(classifier, task):
    texts = ["abc", "", "fed cab", LONG, "h"]
    together = torch.from_numpy(classify(*classifier, task, reviews(*texts)))
    alone = [torch.from_numpy(classify(*classifier, task, reviews(text))[0]) for text in texts]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=1e-5)
    assert together.std(0).min() > 1e-3  # the texts make a difference


def test_with_a_mask_the_label_is_predicted_at_the_last_token(classifier):
    model, tokenizer = classifier
    ids = torch.tensor([[tokenizer.start_id, *tokenizer.encode("fed cab")]])
    expected = model(ids)[0][0, -1].softmax(0).double()
    found = torch.from_numpy(classify(*classifier, entry(), reviews("fed cab", LONG))[0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_both_directions_give_the_mean_of_their_probabilities(classifier):
    model, tokenizer = classifier
    ids = tokenizer.encode("fed cab")
    both = [[tokenizer.start_id, *ids], [tokenizer.message_start, *reversed(ids)]]
    expected = model(torch.tensor(both))[0][:, -1].softmax(1).mean(0).double()
    found = torch.from_numpy(classify(*classifier, entry(both_directions=True), reviews("fed cab"))[0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("share, targets", [(0.0, [1, 1, 1, 1]), (1.0, [2 + 4, 2 + 5, 2 + 6, 1])])
def test_the_second_head_predicts_the_next_token_and_the_first_one_the_label_elsewhere(share, targets):
    example = Example([9, 4, 5, 6], [IGNORED, IGNORED, IGNORED, 1])
    found = add_next_token_targets(example, share, 2, np.random.default_rng(0))
    assert found.tokens == example.tokens and found.targets.tolist() == targets


@pytest.mark.parametrize("share, name", [(0, "training loss"), (0.5, "training loss, with language model")])
def test_the_training_loss_says_that_it_includes_next_tokens(data, monkeypatch, capsys, share, name):
    """With random weights and 2 labels, the loss of a label is ln 2, and that of a next token over three times that."""
    plotted = []
    monkeypatch.setattr("training.record.plot_losses", lambda *arguments: plotted.append(arguments[-1]))
    run(task_settings("classification", "reviews", f"--data.auxiliary_lm={share}", "--training.max_iters=1"))
    line = re.search(r"^step +1  (.*) ([\d.]+)  validation loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert line[1] == name and (float(line[2]) > 1.5 * float(line[3])) == (share > 0)
    assert plotted[-1] == name


def test_without_a_mask_every_text_is_padded_to_the_context_length(classifier):
    model, tokenizer = classifier
    shapes = []
    hook = model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    found = torch.from_numpy(classify(*classifier, entry(mask_padding=False), reviews("fed cab"))[0])
    classify(*classifier, entry(mask_padding=False), reviews("abc", LONG))
    hook.remove()
    assert shapes == [(1, 64), (9, 64)]  # 500 characters are 8 chunks
    ids = [tokenizer.start_id, *tokenizer.encode("fed cab")]
    ids += [tokenizer.start_id] * (64 - len(ids))
    torch.testing.assert_close(found, model(torch.tensor([ids]))[0][0, -1].softmax(0).double(), atol=1e-6, rtol=1e-5)


def test_a_long_review_gets_the_mean_probabilities_of_its_chunks(classifier):
    found = classify(*classifier, entry(), reviews(LONG))[0]
    parts = classify(*classifier, entry(), reviews(*(LONG[i : i + 63] for i in range(0, 500, 63))))
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(parts.mean(0)), atol=1e-6, rtol=1e-5)


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good, bad", [("1", "2"), ("2", "1"), ("positive", "negative"), ("好", "bad, very bad")])
def test_the_demo_prints_each_label_with_its_probability(data, run_main, capsys, good, bad):
    header, *rows = csv.reader(REVIEWS.splitlines())
    rows = [[good if label == "1" else bad, text] for label, text in rows]
    random.Random(0).shuffle(rows)
    with open(data / "reviews.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    run(task_settings("classification", "reviews", "--training.max_iters=40", "--training.eval_interval=40"))
    model, tokenizer, task, _ = load_checkpoint("checkpoints/reviews")
    assert task["labels"] == sorted([good, bad])
    capsys.readouterr()
    for text, label, other in ((f"Room 7 was {GOOD}.", good, bad), (f"Room 7 was {BAD}.", bad, good)):
        printed = run_main(terminal_demo.main, "checkpoints/reviews", "--device=cpu", "--prompt", text)
        ids = torch.tensor([[tokenizer.start_id, *tokenizer.encode(text)]])
        probabilities = dict(zip(task["labels"], model(ids)[0][0, -1].softmax(0).tolist(), strict=True))
        assert printed == f"{label} {probabilities[label]:.1%}, {other} {probabilities[other]:.1%}\n"
        assert probabilities[label] > 0.6


def test_the_tokenizer_of_another_classifier_does_not_bring_its_labels(data, monkeypatch):
    run(task_settings("classification", "first", "--training.max_iters=1"))
    (data / "reviews.csv").write_text(REVIEWS.replace("\n1,", "\ngood,").replace("\n2,", "\nbad,"), encoding="utf-8")
    interrupt(task_settings("classification", "second", "--data.tokenizer=checkpoints/first/best.pt"), monkeypatch,
              after=1)
    assert torch.load("checkpoints/second/last.pt", weights_only=True)["task"]["labels"] == ["bad", "good"]
    assert load_model("checkpoints/second")[1].to_dict() == load_model("checkpoints/first")[1].to_dict()


def test_the_accuracy_of_a_run_is_that_of_its_validation_reviews(data):
    rows = REVIEWS.splitlines()
    (data / "val.csv").write_text("\n".join([*rows[:1], *(row for row in rows[1:] if row[0] == "1"), rows[2]]),
                                  encoding="utf-8")
    run(task_settings("classification", "reviews", "--data.val_path=val.csv", "--training.max_iters=1"))
    model, tokenizer, task, _ = load_checkpoint("checkpoints/reviews")
    with open("val.csv", encoding="utf-8") as file:
        val = [Review(label, text, "") for label, text in list(csv.reader(file))[1:]]
    predicted = classify(model, tokenizer, task, val).argmax(1)
    correct = sum(task["labels"][i] == review.label for i, review in zip(predicted, val, strict=True))
    with open("checkpoints/reviews/metrics.jsonl", encoding="utf-8") as file:
        accuracies = [json.loads(line)["accuracy"] for line in file]
    assert correct / len(val) in accuracies


def test_a_checkpoint_with_invalid_labels_is_refused(data, classifier, capsys, monkeypatch):
    for labels in (["a"], "abc", [1, 2, 3], None):
        save_checkpoint(data / "bad.pt", *classifier, task=entry() | {"labels": labels})
        message = error_of(capsys, monkeypatch, "--init=bad.pt", "--task=classification", "--data.path=reviews.csv",
                           "--output.folder=checkpoints")
        assert "bad.pt is for a task that this version does not know" in message
    for task in (entry(labels="ab"), {"kind": "language"}):
        save_checkpoint(data / "bad.pt", *classifier, task=task)
        with pytest.raises(UserError, match="bad.pt is damaged: its model has 3 classes"):
            load_checkpoint(data / "bad.pt")


# ---- The baseline ----------------------------------------------------------------------------------------------------


def test_the_benchmark_compares_n_grams_and_checkpoints_on_the_test_reviews(data, run_main, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("sentiment", ROOT / "benchmarks" / "sentiment.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    tokenizer = CharTokenizer.of_text(REVIEWS).with_special_tokens()
    model = small_model("DevModel", vocab_size=tokenizer.vocab_size, block_size=64, n_labels=2)
    model.head.load_state_dict({"weight": torch.zeros(2, 32), "bias": torch.tensor([0.0, 1.0])})  # always the label 2
    save_checkpoint(data / "always_2.pt", model, tokenizer, task=entry(labels="12"))
    out = run_main(benchmark.main, "reviews.csv", "--checkpoints", *["always_2.pt"] * 6)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["split seed", "test reviews", "most frequent label", "n-grams", "C", "checkpoint"]
    assert [row[0] for row in rows[2:]] == ["0", "1", "2", "3", "4", "5", "mean"]
    for row in rows[2:8]:  # three reviews of each label
        assert row[1:4] == ["6", "50.00%", "100.00%"] and row[5] == "50.00%"
    assert rows[8] == ["mean", "", "50.00%", "100.00%", "", "50.00%"]
