"""Fine-tuning through train.py, for all tasks: starting from a checkpoint, LoRA, frozen blocks, resuming, bad input."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_models import small_model
from small_runs import ROOT, assert_same_run, interrupt, losses
from small_tasks import CONTEXT, DIALOGUES, FILES, RECORDS, REVIEWS, error_of, task_settings
from small_tasks import data as data  # a fixture

from models.weights import file_weights
from terminal_demo import chat
from training.arguments import parse_settings
from training.checkpoint import load_checkpoint, load_model, load_start
from training.run import train as run
from utils.errors import UserError

LORA = ["--lora.rank=2", "--lora.targets=[qkv, down]"]
TASKS = ["dialogue", "instruction", "classification"]


def make_base(kind, name="base", *more):
    """Train a model to start from. Returns the setting that starts from it."""
    run(task_settings(kind, name, "--training.max_iters=2", *more))
    return f"--init=checkpoints/{name}"


def read(name, file="last.pt"):
    return torch.load(f"checkpoints/{name}/{file}", weights_only=True)


def files_of(name):
    return {path.name: path.read_bytes() for path in Path("checkpoints", name).iterdir()}


def logits(path, ids):
    return load_model(path)[0](ids)[0]


# ---- Starting from a checkpoint --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["language", "dialogue"])
def test_a_classifier_starts_from_a_language_model_with_a_new_head(data, monkeypatch, kind):
    init = make_base(kind)
    interrupt(task_settings("classification", "reviews", init), monkeypatch, after=1)
    before, after = read("base", "best.pt")["weights"], read("reviews")["weights"]
    n = len(before["token_embedding.weight"])
    assert after.keys() == before.keys() and after["head.weight"].shape == (2, 16)
    assert torch.equal(after["token_embedding.weight"][:n], before["token_embedding.weight"])
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("blocks", "final_norm")))
    assert after["head.weight"].count_nonzero() == 0  # as in a new classifier


def test_instruction_tuning_from_a_language_model_adds_the_special_tokens_it_lacks(data, monkeypatch):
    init = make_base("language", "base", f"--model.block_size={CONTEXT['instruction']}")
    interrupt(task_settings("instruction", "tuned", init), monkeypatch, after=1)
    tokenizer, before, after = load_model("checkpoints/base")[1], read("base", "best.pt"), read("tuned")
    n = tokenizer.vocab_size
    assert after["config"] == before["config"] | {"vocab_size": n + 4}
    assert after["tokenizer"] == before["tokenizer"] | {"special": True}
    for name in ("token_embedding.weight", "head.weight"):
        old, new = before["weights"][name], after["weights"][name]
        assert torch.equal(new[:n], old)
        torch.testing.assert_close(new[n:], old.mean(0).expand(4, -1))


@pytest.mark.parametrize("changes", [{}, {"auxiliary_lm": True}, {"head_bias": True}])
def test_every_weight_of_an_uninitialized_classifier_is_set(changes):
    before = small_model("RainbowGPT")
    model = small_model("RainbowGPT", n_labels=2, **changes)
    for weight in model.state_dict().values():
        weight.fill_(torch.nan)
    load_start(model, {"config": vars(before.config), "weights": file_weights(before).items()})
    heads = {name: weight for name, weight in model.state_dict().items() if name.startswith("head.")}
    assert heads and not any(weight.count_nonzero() for weight in heads.values())
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_a_classifier_starts_from_a_classifier_with_its_head_and_the_order_of_its_labels(data, monkeypatch):
    init = make_base("classification")
    saved = read("base", "best.pt")
    saved["task"]["labels"] = ["2", "1"]
    torch.save(saved, "checkpoints/base/best.pt")
    interrupt(task_settings("classification", "more", init), monkeypatch, after=1)
    assert read("more")["task"]["labels"] == ["2", "1"]
    assert torch.equal(read("more")["weights"]["head.weight"], saved["weights"]["head.weight"])
    (data / "reviews.csv").write_text(REVIEWS.replace("\n1,", "\ngood,"), encoding="utf-8")
    with pytest.raises(UserError, match=r"line \d+ has the label good, but the model knows only 2, 1"):
        run(task_settings("classification", "other", init))


@pytest.mark.parametrize("before, after", [(0, 0.2), (0.2, 0), (0.2, 0.2)])
def test_a_classifier_starts_from_one_with_or_without_an_auxiliary_language_model(data, monkeypatch, before, after):
    init = make_base("classification", "base", f"--data.auxiliary_lm={before}", "--data.tokenizer=char")
    interrupt(task_settings("classification", "more", init, f"--data.auxiliary_lm={after}"), monkeypatch, after=1)
    old, new = read("base", "best.pt")["weights"], read("more")["weights"]
    assert ("token_head.weight" in new) == (after > 0)
    if after and not before:
        assert new.pop("token_head.weight").count_nonzero() == 0  # as in a new classifier
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_the_second_head_of_a_classifier_is_that_of_the_language_model_it_starts_from(data, monkeypatch):
    init = make_base("language")
    interrupt(task_settings("classification", "reviews", init, "--data.auxiliary_lm=0.2"), monkeypatch, after=1)
    before, after = read("base", "best.pt")["weights"]["head.weight"], read("reviews")["weights"]
    assert torch.equal(after["token_head.weight"][: len(before)], before)
    assert after["head.weight"].count_nonzero() == 0


@pytest.mark.parametrize("kind", ["language", "dialogue", "instruction"])
def test_a_classifier_does_not_become_a_model_that_generates(data, capsys, monkeypatch, kind):
    init = make_base("classification")
    message = error_of(capsys, monkeypatch, init, "--run=new", f"--task={kind}", f"--data.path={FILES[kind]}",
                       "--output.folder=checkpoints")
    assert "checkpoints/base/best.pt is a classifier, and its head predicts labels" in message
    assert not Path("checkpoints/new").exists()


# ---- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_merged_weights_are_those_of_the_base_plus_the_scaled_product_of_the_adapters(data, kind):
    init = make_base(kind)
    run(task_settings(kind, "tuned", init, *LORA, "--lora.alpha=6"))
    base, last, best = read("base", "best.pt")["weights"], read("tuned"), read("tuned", "best.pt")
    lines = losses(Path("checkpoints/tuned"))
    assert lines[-1][2] == min(line[2] for line in lines)  # best.pt and last.pt are of the same step
    adapters, merged = last["adapters"], best["weights"]
    expected = dict(base)
    for i in range(2):
        parts = [f"blocks.{i}.attention.{part}.weight" for part in ("query", "key", "value")]
        qkv = torch.cat([base[part] for part in parts])
        adapted = {f"blocks.{i}.attention.qkv": qkv,
                   f"blocks.{i}.feed_forward.down": base[f"blocks.{i}.feed_forward.down.weight"]}
        for name, weight in adapted.items():
            a, b = (adapters.pop(f"{name}.{letter}") for letter in ("lora_a", "lora_b"))
            assert a.shape[0] == 2 and b.abs().max() > 0
            adapted[name] = weight + 6 / 2 * b @ a
        expected |= zip(parts, adapted[f"blocks.{i}.attention.qkv"].chunk(3), strict=True)
        expected[f"blocks.{i}.feed_forward.down.weight"] = adapted[f"blocks.{i}.feed_forward.down"]
    heads = {name: adapters.pop(name) for name in list(adapters) if name == "head.weight"}
    assert not adapters and len(heads) == (kind == "classification")  # its head is trained as well
    torch.testing.assert_close(merged, expected | heads)
    n_changed = sum(not torch.equal(merged[name], base[name]) for name in base)
    assert n_changed == 2 * 4 + len(heads)  # query, key, value and down of two blocks


@pytest.mark.parametrize("kind, half", [("dialogue", "false"), ("classification", "false"), ("instruction", "true")])
def test_an_adapter_checkpoint_with_its_base_equals_the_trained_model(data, kind, half):
    init, more = make_base(kind), ["--model.dropout=0.01", "--training.max_iters=20", "--optim.adamw_lr=0.005"]
    more.append(f"--data.val_path={FILES[kind]}")  # its loss improves, so best.pt is not from step 0
    for name, merge in (("merged", "true"), ("apart", "false")):
        run(task_settings(kind, name, init, *LORA, f"--lora.merge={merge}", *more))
    run(task_settings(kind, "small", init, *LORA, "--lora.merge=false", f"--output.half={half}", *more))
    saved = read("small", "best.pt")
    assert saved["weights"] == {} and saved["lora"]["weights"].keys() == read("small")["adapters"].keys()
    ids = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    expected = logits("checkpoints/merged", ids)
    assert torch.equal(logits("checkpoints/apart", ids), expected)
    torch.testing.assert_close(logits("checkpoints/small", ids), expected, atol=1e-3, rtol=1e-2)
    assert not torch.allclose(logits("checkpoints/base", ids), expected, atol=1e-4)
    assert load_checkpoint("checkpoints/apart")[2:] == load_checkpoint("checkpoints/merged")[2:]


def test_an_adapter_checkpoint_needs_its_base(data, capsys, monkeypatch):
    init = make_base("dialogue")
    make_base("dialogue", "other", "--training.seed=1")
    make_base("dialogue", "wider", "--model.n_embd=32")
    (data / "other.txt").write_text(DIALOGUES + "\n\nxyz\nvwz\n", encoding="utf-8")
    make_base("dialogue", "more_tokens", "--data.path=other.txt")
    make_base("classification", "classifier", f"--model.block_size={CONTEXT['dialogue']}")
    run(task_settings("dialogue", "tuned", init, *LORA, "--lora.merge=false"))
    message = error_of(capsys, monkeypatch, "--init=checkpoints/tuned", "--run=next", "--task=dialogue",
                       "--data.path=chat.txt")
    assert "checkpoints/tuned/best.pt has only the weights that LoRA trained: start from a complete model" in message
    for name in ("other", "wider", "more_tokens", "classifier"):
        Path("checkpoints/base").rename("checkpoints/kept")
        Path(f"checkpoints/{name}").rename("checkpoints/base")
        with pytest.raises(UserError, match="checkpoints/base is not the model that they belong to"):
            chat("hello a", checkpoint="checkpoints/tuned")
        Path("checkpoints/base").rename(f"checkpoints/{name}")
        with pytest.raises(UserError, match="that they belong to cannot be loaded .there is no .*checkpoints/base"):
            chat("hello a", checkpoint="checkpoints/tuned")
        Path("checkpoints/kept").rename("checkpoints/base")
    chat("hello a", checkpoint="checkpoints/tuned", max_tokens=2)


@pytest.mark.parametrize("init", ["checkpoints/base", "checkpoints/base/best.pt", "{here}/checkpoints/base"])
def test_an_adapter_checkpoint_finds_its_base_from_any_folder_and_after_a_move(data, monkeypatch, init):
    make_base("dialogue")
    run(task_settings("dialogue", "tuned", f"--init={init.format(here=data)}", *LORA, "--lora.merge=false"))
    ids = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    expected = logits("checkpoints/tuned", ids)

    (data / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert torch.equal(logits("../checkpoints/tuned", ids), expected)
    (data / "checkpoints").rename("moved")
    assert torch.equal(logits("moved/tuned/best.pt", ids), expected)
    monkeypatch.chdir("moved/tuned")
    assert torch.equal(logits("best.pt", ids), expected)
    assert torch.equal(logits(".", ids), expected)

    Path("../base").rename("../renamed")
    with pytest.raises(UserError, match="cannot be loaded .there is no .*base"):
        load_model("best.pt")
    Path("../renamed").rename("../base")
    (data / "checkpoints").mkdir()
    Path("../base").rename(data / "checkpoints" / "base")  # only the fine-tuned model has moved
    assert torch.equal(logits("best.pt", ids), expected)


def test_the_base_of_an_adapter_checkpoint_is_validated(data):
    init = make_base("dialogue")
    run(task_settings("dialogue", "tuned", init, *LORA, "--lora.merge=false"))
    ids = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    expected, saved = logits("checkpoints/tuned", ids), read("tuned", "best.pt")
    saved["lora"]["base"] = "checkpoints/base"  # as in older files, from the working directory
    torch.save(saved, "old.pt")
    assert torch.equal(logits("old.pt", ids), expected)
    for base in ([], [5], 5, None, "", "a\0b", ["a\0b"], ["a" * 5000]):
        saved["lora"]["base"] = base
        torch.save(saved, "damaged.pt")
        with pytest.raises(UserError, match="damaged.pt"):
            load_model("damaged.pt")


@pytest.mark.parametrize("more, words", [
    (["--lora.rank=2"], "--lora.rank needs --init"),
    (["--init=checkpoints/base", "--lora.rank=2", "--lora.targets=[wings]"], "choose from qkv, out, up, down, head"),
    (["--init=checkpoints/base", "--lora.rank=0"], "lora.rank cannot be 0"),
    (["--init=checkpoints/base", "--lora.rank=2", "--lora.targets=[]"], "at least one target"),
    (["--init=checkpoints/base", "--lora.rank=2", "--training.trainable_blocks=1"], "exclude each other"),
    (["--init=checkpoints/base", "--training.trainable_blocks=3"], "trainable_blocks"),
    (["--init=checkpoints/none"], "there is no checkpoints/none"),
])  # fmt: skip
def test_an_invalid_setting_of_lora_or_freezing_is_a_one_line_error(data, capsys, monkeypatch, more, words):
    if "--init=checkpoints/base" in more:
        make_base("dialogue")
    message = error_of(capsys, monkeypatch, "--run=new", "--task=dialogue", "--data.path=chat.txt",
                       "--output.folder=checkpoints", *more)
    assert words in message and not Path("checkpoints/new").exists()


# ---- Resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [
    [], ["--init"], ["--init", *LORA], ["--init", *LORA, "--lora.merge=false"],
    ["--init", "--training.trainable_blocks=1", "--optim.ema=0.9"],
], ids=["from scratch", "init", "lora", "lora apart", "frozen"])  # fmt: skip
@pytest.mark.parametrize("kind", ["instruction", "classification"])
def test_an_interrupted_run_resumes_exactly(data, monkeypatch, kind, more):
    check_resume(data, monkeypatch, kind, more)


@pytest.mark.parametrize("kind, more", [
    ("classification", ["--data.both_directions=true", "--data.auxiliary_lm=0.2"]),
    ("classification", ["--data.bpe_dropout=0.3", "--data.tokenizer=bpe", "--data.vocab_size=300"]),
    ("dialogue", ["--data.bpe_dropout=0.3", "--data.tokenizer=bpe", "--data.vocab_size=300"]),
])  # fmt: skip
def test_random_augmentation_is_the_same_after_an_interruption(data, monkeypatch, kind, more):
    check_resume(data, monkeypatch, kind, more)


@pytest.mark.parametrize("more, in_yaml", [([], None), (LORA, None), (["--lora.merge=false", *LORA], "checkpoints/no")],
                         ids=["init", "lora", "lora apart, with another init in the YAML file"])
def test_a_run_resumes_with_its_yaml_file_and_without_its_init(data, monkeypatch, more, in_yaml):
    init = make_base("dialogue")
    settings = dataclasses.asdict(task_settings("dialogue", "parts", init, *more)) | {"init": in_yaml}
    settings["output"]["folder"] = str(data / "checkpoints")
    settings["data"]["path"] = str(data / "chat.txt")
    del settings["run"], settings["resume"]
    Path("parts.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run(parse_settings(["parts.yaml", "--run=whole", init]))
    interrupt(parse_settings(["parts.yaml", init]), monkeypatch, after=2)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run(parse_settings(["../parts.yaml", "--resume", "--training.max_iters=4"]))
    assert_same_run(data, "whole", "parts")
    parse_settings(["../parts.yaml", "--resume", "--init=../checkpoints/base/best.pt"])  # no error: it is the same
    ids = torch.arange(12)[None]
    monkeypatch.chdir(data)
    assert torch.equal(logits("checkpoints/parts", ids), logits("checkpoints/whole", ids))


def test_an_adapter_checkpoint_finds_its_base_after_a_move_and_a_resume(data, monkeypatch):
    settings = ["--init=checkpoints/base", *LORA, "--lora.merge=false"]
    make_base("dialogue")
    run(task_settings("dialogue", "whole", *settings))
    ids, expected = torch.arange(12)[None], logits("checkpoints/whole", torch.arange(12)[None])
    interrupt(task_settings("dialogue", "tuned", *settings), monkeypatch, after=1)
    for folder in ("once", "twice"):  # the second resume reads what the first one wrote
        Path("checkpoints").rename(folder)
        run(parse_settings([f"--output.folder={folder}", "--run=tuned", "--resume"]))
        assert torch.equal(logits(f"{folder}/tuned", ids), expected)
        Path(folder).rename("checkpoints")


@pytest.mark.parametrize("base", [[5], "checkpoints/base"])
def test_the_base_in_the_state_of_a_run_is_validated(data, monkeypatch, base):
    make_base("dialogue")
    interrupt(task_settings("dialogue", "tuned", "--init=checkpoints/base", *LORA), monkeypatch, after=1)
    saved = read("tuned")
    saved["run_config"]["base"] = base
    torch.save(saved, "checkpoints/tuned/last.pt")
    with pytest.raises(UserError, match="last.pt is damaged: run_config has an invalid base"):
        run(task_settings("dialogue", "tuned", "--init=checkpoints/base", *LORA, "--resume=true"))


@pytest.mark.parametrize("yaml_file", [True, False])
@pytest.mark.parametrize("init, resumed, words", [
    (["--init=checkpoints/base"], "--init=checkpoints/other", "from {0}/checkpoints/base, not checkpoints/other"),
    (["--init=checkpoints/base"], "--init=none", "started from {0}/checkpoints/base, not new weights"),
    ([], "--init=checkpoints/base", "started from new weights, not checkpoints/base"),
])  # fmt: skip
def test_a_run_does_not_resume_from_another_checkpoint(data, capsys, monkeypatch, init, resumed, words, yaml_file):
    make_base("dialogue")
    interrupt(task_settings("dialogue", "tuned", *init), monkeypatch, after=1)
    before, arguments = files_of("tuned"), ["--output.folder=checkpoints", "--run=tuned", "--resume", resumed]
    if yaml_file:
        arguments.insert(0, shutil.copy("checkpoints/tuned/settings.yaml", "tuned.yaml"))
    message = error_of(capsys, monkeypatch, *arguments)
    assert words.format(data) in message and "leave out --init" in message
    assert files_of("tuned") == before


def check_resume(data, monkeypatch, kind, more):
    """Check that a run with these settings is the same with and without an interruption."""
    if "--init" in more:
        more = [make_base(kind, "base", "--model.dropout=0.1"), *more[1:]]
    else:
        more = ["--model.dropout=0.1", *more]
    more += ["--training.accumulation=2", "--training.batch_size=2"]
    run(task_settings(kind, "whole", *more))
    interrupt(task_settings(kind, "parts", *more), monkeypatch, after=2)
    run(parse_settings(["--output.folder=checkpoints", "--run=parts", "--resume"]))  # all else is in settings.yaml
    assert_same_run(data, "whole", "parts")
    torch.testing.assert_close(read("parts").get("adapters"), read("whole").get("adapters"), atol=0, rtol=0)
    one, other = (load_checkpoint(f"checkpoints/{name}") for name in ("whole", "parts"))
    ids = torch.arange(12)[None]
    assert torch.equal(one.model(ids)[0], other.model(ids)[0]) and one[2:] == other[2:]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_frozen_weights_are_bit_identical_after_sigkill_and_resume(data):
    init = make_base("instruction")
    more = [init, "--training.trainable_blocks=1", "--training.max_iters=20", "--optim.weight_decay=0.3"]
    run(task_settings("instruction", "whole", *more))
    settings = Path("checkpoints/whole/settings.yaml").rename("again.yaml")
    out = Path("checkpoints/parts")
    process = subprocess.Popen([sys.executable, ROOT / "train.py", settings, "--run=parts"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not (out / "metrics.jsonl").exists() or len(losses(out)) < 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, stderr
    assert 2 <= len(losses(out)) < 11
    run(task_settings("instruction", "parts", *more, "--resume"))
    assert_same_run(data, "whole", "parts")
    base, last = read("base", "best.pt")["weights"], read("parts")["weights"]
    changed = {name for name in base if not torch.equal(base[name], last[name])}
    assert changed == {name for name in base if name.startswith(("blocks.1.", "final_norm.", "head."))}


@pytest.mark.parametrize("more, change, words", [
    ([], ["--task=poem"], "has the task dialogue, not poem"),
    ([], ["--task=language", "--data.path=text.txt"], "has the task dialogue, not language"),
    (LORA, ["--lora.rank=4"], "has lora [2, 16.0, 'qkv', 'down'], not [4, 16.0, 'qkv', 'down']"),
    (LORA, ["--lora.alpha=4"], "has lora"), (LORA, ["--lora.targets=[qkv]"], "has lora"),
    (LORA, ["--lora.rank=none"], "has lora [2, 16.0, 'qkv', 'down'], not None"),
    ([], LORA, "has lora None, not"),
    (["--training.trainable_blocks=1"], ["--training.trainable_blocks=none"], "has trainable_blocks 1, not None"),
    ([], ["--training.trainable_blocks=1"], "has trainable_blocks None, not 1"),
    ([], ["--data.path=other.txt"], "was trained on another text, chat.txt"),
])  # fmt: skip
def test_a_resumed_run_keeps_its_task_and_its_trainable_weights(data, capsys, monkeypatch, more, change, words):
    (data / "other.txt").write_text(DIALOGUES.replace("fine", "hello"), encoding="utf-8")
    init = make_base("dialogue")
    interrupt(task_settings("dialogue", "tuned", init, *more), monkeypatch, after=2)
    before = files_of("tuned")
    message = error_of(capsys, monkeypatch, "--output.folder=checkpoints", "--run=tuned", "--resume", *change)
    assert words in message and "--run NAME" in message
    assert files_of("tuned") == before
    run(task_settings("dialogue", "tuned", init, *more, "--resume"))


@pytest.mark.parametrize("replaced, change, words", [
    (("\n1,", "\n3,"), [], "has the label 3, but the model knows only 1, 2"),
    (("clean", "nice"), [], "was trained on another text, reviews.csv"),
    (("", ""), ["--data.mask_padding=false"], "has mask_padding True, not False"),
    (("", ""), ["--data.both_directions=true"], "has both_directions False, not True"),
    (("", ""), ["--data.auxiliary_lm=0.5"], "has auxiliary_lm False, not True"),
    (("", ""), ["--data.split_seed=1"], "was trained on another text, reviews.csv"),
])  # fmt: skip
def test_a_resumed_classifier_keeps_its_labels_and_reviews(data, capsys, monkeypatch, replaced, change, words):
    interrupt(task_settings("classification", "reviews"), monkeypatch, after=2)
    (data / "reviews.csv").write_text(REVIEWS.replace(*replaced), encoding="utf-8")
    before = files_of("reviews")
    message = error_of(capsys, monkeypatch, "--output.folder=checkpoints", "--run=reviews", "--resume", *change)
    assert words in message and files_of("reviews") == before


@pytest.mark.parametrize("kind, more", [("classification", ["--data.mask_padding=false"]), ("instruction", LORA)])
def test_the_settings_of_a_run_start_it_again(data, kind, more):
    if more == LORA:
        more = [make_base(kind), *LORA]
    run(task_settings(kind, "first", *more))
    run(parse_settings(["checkpoints/first/settings.yaml", "--run=second"]))
    assert_same_run(data, "first", "second")
    assert read("first")["task"] == read("second")["task"] and read("first")["sampling"] == read("second")["sampling"]


# ---- Records without a target ----------------------------------------------------------------------------------------


def write_with_long_prompt(kind, path, long):
    """Write the data of a task, and a record whose prompt fills the context if it is `long`."""
    if kind == "dialogue":
        path.write_text(f"{'hello ' * 20}\nfine\n\n" * long + DIALOGUES, encoding="utf-8")
    else:
        extra = [{"instruction": "Greet a." * 60, "output": "Hi, a!"}] * long
        path.write_text(json.dumps(extra + RECORDS), encoding="utf-8")


@pytest.mark.parametrize("kind", ["dialogue", "instruction"])
def test_a_record_whose_prompt_fills_the_context_is_reported_and_changes_no_weight(data, capsys, kind):
    for name, long in (("without", False), ("with", True)):
        path = data / f"{name}{'.txt' if kind == 'dialogue' else '.json'}"
        write_with_long_prompt(kind, path, long)
        run(task_settings(kind, name, f"--data.path={path}", f"--data.val_path={path}"))
    assert_same_run(data, "without", "with")
    out = capsys.readouterr().out
    assert "fills the context" in out.partition("with.")[2] and "0 skipped" in out.partition("with.")[0]


@pytest.mark.parametrize("kind, path", [("dialogue", "long.txt"), ("instruction", "long.json")])
@pytest.mark.parametrize("split", ["path", "val_path"])
def test_no_example_left_in_a_split_is_an_error_before_the_first_step(data, capsys, monkeypatch, kind, path, split):
    if kind == "dialogue":
        (data / path).write_text(f"{'hello ' * 20}\nfine\n", encoding="utf-8")
    else:
        (data / path).write_text(json.dumps([{"instruction": "Greet a." * 60, "output": "Hi!"}] * 3), encoding="utf-8")
    settings = {"path": {"dialogue": "chat.txt", "instruction": "records.json"}[kind], "val_path": "chat.txt"}
    settings["val_path"] = settings["path"]
    settings[split] = path
    message = error_of(capsys, monkeypatch, f"--task={kind}", "--output.folder=checkpoints", "--training.device=cpu",
                       f"--model.block_size={CONTEXT[kind]}", *(f"--data.{key}={value}" for key, value in
                                                                settings.items()))
    assert "fill" in message and "the context" in message and "--model.block_size" in message
    assert not Path("checkpoints/run").exists()


# ---- Bad input -------------------------------------------------------------------------------------------------------


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))


@pytest.mark.parametrize("task, name, content, words", [
    ("instruction", "a.json", {"instruction": "Hi.", "output": "Ho."}, "a.json"),
    ("instruction", "a.json", [], "contains no records: it is empty"),
    ("instruction", "a.json", [{"instruction": "Hi."}], "item 1: its output is missing or empty"),
    ("instruction", "a.json", [{"instruction": " ", "output": "Ho."}], "item 1: its instruction is missing or empty"),
    ("instruction", "a.json", [{"instruction": ["Hi."], "output": "Ho."}], "its instruction is a list, not text"),
    ("instruction", "a.json", [{"instruction": "Hi.", "input": 3, "output": "Ho."}], "item 1: its input is a number"),
    ("instruction", "a.json", ["Hi."], "item 1: it is text, not an object"),
    ("instruction", "a.json", [{"instruction": "Hi.", "output": "Ho."}], "at least two different instructions"),
    ("instruction", "a.json", b'[{"instruction": "Hi.", "output"', "a.json"),
    ("instruction", "a.jsonl", b'{"instruction": "Hi."\n', "line 1"),
    ("instruction", "a.txt", b"Hi.\n", "a.txt"), ("instruction", "a.json", b"", "a.json"),
    ("instruction", "a.json", PNG, "a.json"), ("instruction", "none.json", None, "none.json"),
    ("dialogue", "a.txt", b"hello\n", "line 1: a single message"),
    ("dialogue", "a.txt", b"hello\n\nhi\n", "line 1: a single message"),
    ("dialogue", "a.txt", b"hello\nhi\n", "a.txt"),  # nothing is left for validation
    ("dialogue", "a.csv", b"label,text\n1,good\n", "a.csv is a table: dialogues are read from .txt, .jsonl and .json"),
    ("dialogue", "a.txt", b"", "a.txt"), ("dialogue", "a.txt", PNG, "a.txt"), ("dialogue", "a.png", PNG, "a.png"),
    ("dialogue", "a.jsonl", [{"messages": "hello"}], "line 1: messages is text, not a list"),
    ("classification", "a.csv", b"label,text\n1,good\n1,fine\n", "all reviews have the label 1"),
    ("classification", "a.csv", b"label,text\n1,good\n2,bad\n", "too few reviews"),
    ("classification", "a.csv", b"stars,text\n1,good\n2,bad\n", "no column label"),
    ("classification", "a.csv", b"", "a.csv"), ("classification", "a.csv", PNG, "a.csv"),
    ("classification", "a.png", PNG, "a.png"), ("classification", "a.txt", b"good\n", "a.txt"),
    ("poem", "a.json", [{"title": "a"}], "a.json"), ("poem", "a.txt", b"moon\n", "a.txt"),
    ("sentiment", "a.csv", b"label,text\n1,good\n", "--task cannot be sentiment"),
])  # fmt: skip
def test_bad_input_is_a_one_line_error_and_starts_no_run(data, capsys, monkeypatch, task, name, content, words):
    if isinstance(content, list | dict):
        lines = [content] if name.endswith(".json") else content
        content = "\n".join(map(json.dumps, lines)).encode()
    if content is not None:
        (data / name).write_bytes(content)
    message = error_of(capsys, monkeypatch, f"--task={task}", f"--data.path={name}", "--output.folder=checkpoints",
                       "--training.device=cpu")
    assert words in message
    assert not Path("checkpoints/run").exists()


@pytest.mark.parametrize("kind", ["language", "instruction", "classification", "poem"])
def test_chat_names_the_command_that_trains_the_right_kind_of_checkpoint(data, kind):
    make_base(kind, f"a_{kind}_model")
    with pytest.raises(UserError, match=f"for the task {kind}: .*python train.py config/chat_small.yaml"):
        chat("hello a", checkpoint=f"checkpoints/a_{kind}_model")


@pytest.mark.parametrize("kind", ["dialogue", "poem", "instruction"])
def test_default_settings_of_sampling_suit_a_short_context(data, kind):
    run(task_settings(kind, "short", "--output.sample_tokens=200", "--sampling.max_tokens=500",
                      "--training.max_iters=1"))
    assert len(losses(Path("checkpoints/short"))) == 2
