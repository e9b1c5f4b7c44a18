"""An interrupted run resumes as if it had never stopped, or says why it cannot."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import HERE, ROOT, TINY, assert_same_run, command, interrupt, losses, tiny_settings
from small_text import TEXT

import training.record
from data.windows import RandomWindows
from training import preflight
from training.arguments import parse_settings
from training.record import Record
from training.resume import print_changes
from training.run import train as run
from utils.errors import UserError
from utils.files import lock_run

LONG = [*HERE, *(f"--model.{name}={value}" for name, value in TINY.items()), "--model.dropout=0.3",
        "--training.max_iters=30", "--training.eval_interval=5", "--training.batch_size=4", "--training.accumulation=2",
        "--training.device=cpu", "--training.dtype=bfloat16", "--output.sample_tokens=5"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the losses of an uninterrupted run, and its last.pt."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    done = command("train.py", *LONG, "--run=long", cwd=folder)
    assert done.returncode == 0, done.stderr
    out = folder / "checkpoints" / "long"
    return losses(out), torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("how, after", [("SIGKILL", 1), ("SIGKILL", 3), ("SIGINT", 3), ("SIGTERM", 2)])
def test_an_interrupted_run_resumes_bit_for_bit(folder, uninterrupted, how, after):
    if sys.platform == "win32":
        pytest.skip("Windows has no such signals")
    out = folder / "checkpoints" / "long"
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *LONG, "--run=long"], cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not (out / "metrics.jsonl").exists() or len(losses(out)) < after):
        time.sleep(0.01)
    process.send_signal(signal.Signals[how])
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == {"SIGKILL": -9}.get(how, 0), stderr
    assert after <= len(losses(out)) < 7
    done = command("train.py", *LONG, "--run=long", "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    expected, last = uninterrupted
    scheduled = [line for line in losses(out) if line[0] % 5 == 0]
    if how != "SIGKILL":  # one more evaluation splits the mean of the training loss
        assert [(step, loss) for step, _, loss in scheduled] == [(step, loss) for step, _, loss in expected]
    else:
        assert scheduled == expected
    weights = torch.load(out / "last.pt", weights_only=True)["weights"]
    assert all(torch.equal(weights[name], weight) for name, weight in last["weights"].items())


# ---- In one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("more", [
    [], ["--optim.name=adamw", "--optim.adamw_lr=0.001"], ["--training.dtype=float16"], ["--data.windows=sliding"],
    ["--data.windows=shuffled", "--optim.ema=0.9"],
], ids=lambda more: "".join(more[:1]) or "default")
def test_last_pt_alone_is_enough_to_resume(folder, monkeypatch, more, after):
    run(tiny_settings("--run=uninterrupted", "--model.dropout=0.2", *more))
    interrupt(tiny_settings("--model.dropout=0.2", *more), monkeypatch, after)
    for path in (folder / "checkpoints" / "tiny").iterdir():
        if path.name != "last.pt":
            path.unlink()
    run(tiny_settings("--model.dropout=0.2", "--resume", *more))
    assert_same_run(folder, "tiny", "uninterrupted")


def test_a_resumed_run_keeps_what_auto_was_resolved_to(folder, monkeypatch):
    auto = ["--training.batch_size=auto", "--training.dtype=auto"]
    run(tiny_settings("--run=uninterrupted", *auto))
    interrupt(tiny_settings(*auto), monkeypatch, after=2)
    monkeypatch.setattr(preflight, "fitting_plan", lambda *_: pytest.fail("the batch size was chosen again"))
    monkeypatch.setattr("training.run.pick_dtype", lambda device, name: getattr(torch, name))  # fails for auto
    run(tiny_settings("--resume", *auto))
    assert_same_run(folder, "tiny", "uninterrupted")


def test_a_run_resumes_in_another_dtype(folder, monkeypatch):
    interrupt(tiny_settings(), monkeypatch, after=2)
    run(tiny_settings("--resume", "--training.dtype=float16"))
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 2, 4, 6]


@pytest.mark.parametrize("change, message", [
    ("--model.num_heads=2", "num_heads 4, not 2"),
    ("--model.block_size=10", "block_size 12, not 10"),
    ("--model.name=DevModel", "model BardGPT, not DevModel"),
    ("--optim.name=adamw", "optimizer muon, not adamw"),
])
def test_another_model_or_optimizer_is_refused_and_changes_no_file(folder, monkeypatch, change, message):
    interrupt(tiny_settings(), monkeypatch, after=2)
    before = {path: path.read_bytes() for path in (folder / "checkpoints" / "tiny").iterdir()}
    with pytest.raises(UserError, match=message):
        run(tiny_settings("--resume", change))
    assert before == {path: path.read_bytes() for path in (folder / "checkpoints" / "tiny").iterdir()}
    run(tiny_settings("--resume", "--model.dropout=0.4", "--optim.muon_lr=0.01", "--training.batch_size=3"))


def test_another_text_is_refused_and_the_right_one_is_named(folder, monkeypatch):
    interrupt(tiny_settings(), monkeypatch, after=2)
    (folder / "data" / "other.txt").write_text(TEXT.replace("fox", "dog") + "The end.\n", encoding="utf-8")
    with pytest.raises(UserError, match="not in the vocabulary|trained on another text, data/input.txt"):
        run(tiny_settings("--resume", "--data.path=data/other.txt"))
    (folder / "data" / "other.txt").write_text("".join(sorted(TEXT)), encoding="utf-8")  # the same characters
    with pytest.raises(UserError, match="trained on another text, data/input.txt"):
        run(tiny_settings("--resume", "--data.path=data/other.txt"))


def test_a_run_cannot_resume_from_weights_alone(folder):
    run(tiny_settings())
    out = folder / "checkpoints" / "tiny"
    (out / "last.pt").write_bytes((out / "best.pt").read_bytes())
    with pytest.raises(UserError, match="last.pt does not contain the full training state that --resume needs"):
        run(tiny_settings("--resume"))


def test_an_evaluation_after_ctrl_c_does_not_count_for_patience(folder, monkeypatch):
    still = ["--training.patience=3", "--training.max_iters=100", "--optim.muon_lr=1e-30", "--optim.adamw_lr=1e-30"]
    batch = RandomWindows.batch

    def ctrl_c_in_step_2(windows, step, i):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return batch(windows, step, i)

    with monkeypatch.context() as patch:
        patch.setattr(RandomWindows, "batch", ctrl_c_in_step_2)
        run(tiny_settings(*still))
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 2, 3]
    run(tiny_settings("--resume", *still))
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 2, 3, 4, 6]


@pytest.mark.parametrize("during", [0, 4])
def test_ctrl_c_during_an_evaluation_is_answered_at_once_and_ends_the_run_after_it(folder, during, monkeypatch, capfd):
    evaluate_and_save = Record.evaluate_and_save

    def ctrl_c(record, progress, train_loss):
        if progress.step == during:
            signal.raise_signal(signal.SIGINT)
            assert capfd.readouterr().err.count("interrupted: the run evaluates, saves and ends") == 1
        return evaluate_and_save(record, progress, train_loss)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "evaluate_and_save", ctrl_c)
        run(tiny_settings())
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == list(range(0, during + 1, 2))
    run(tiny_settings("--resume"))
    run(tiny_settings("--run=uninterrupted"))
    assert_same_run(folder, "tiny", "uninterrupted")


def test_the_settings_of_a_resumed_run_start_a_new_one(folder, monkeypatch):
    interrupt(tiny_settings(), monkeypatch, after=2)
    run(tiny_settings("--resume"))
    done = command("train.py", "checkpoints/tiny/settings.yaml", "--run=again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, "again", "tiny")


# ---- What exists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saves", [0, 2, 3], ids=["at the start", "in the middle", "at the end"])
def test_a_kill_between_last_pt_and_best_pt_loses_nothing(folder, monkeypatch, saves):
    run(tiny_settings("--run=uninterrupted"))  # each of its four evaluations is the best so far
    save_best, saved = training.record.save_best, []

    def killed_before_best(path, *rest, **more):
        if len(saved) == saves:
            raise KeyboardInterrupt
        saved.append(path)
        save_best(path, *rest, **more)

    out = folder / "checkpoints" / "tiny"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.record, "save_best", killed_before_best)
        run(tiny_settings())
    with pytest.raises(UserError, match="already contains a run: add --resume"):
        run(tiny_settings())
    run(tiny_settings("--resume"))
    assert_same_run(folder, "tiny", "uninterrupted")
    best, expected = (torch.load(path / "best.pt", weights_only=True)["weights"]
                      for path in (out, folder / "checkpoints" / "uninterrupted"))
    assert all(torch.equal(best[name], expected[name]) for name in expected)


def test_a_folder_with_a_model_but_no_run_is_left_alone(folder):
    run(tiny_settings())
    (folder / "checkpoints" / "tiny" / "last.pt").unlink()
    for arguments in ([], ["--resume"]):
        with pytest.raises(UserError, match="a model, but no last.pt to resume from: pick another --run NAME"):
            run(tiny_settings(*arguments))


def test_a_run_in_use_by_another_process_is_refused(folder):
    with lock_run(folder / "checkpoints" / "tiny"), pytest.raises(UserError, match="another process is using the run"):
        run(tiny_settings())
    run(tiny_settings())


# ---- What may change -------------------------------------------------------------------------------------------------


def test_tokens_are_counted_as_they_were_trained_and_changed_settings_are_listed(folder, monkeypatch, capsys):
    interrupt(tiny_settings(), monkeypatch, after=3)  # 4 steps of 4 x 12 tokens
    run(tiny_settings("--resume", "--training.batch_size=2", "--training.max_iters=8", "--optim.betas=[0.9, 0.9]"))
    lines = (folder / "checkpoints" / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [0, 96, 192, 240, 288]
    out = capsys.readouterr().out
    assert "optim.betas [0.9, 0.95] -> [0.9, 0.9]" in out and "training.max_iters 6 -> 8" in out
    assert "training.batch_size 4 -> 2" in out and "training.seed" not in out


def test_a_default_that_settings_yaml_leaves_blank_is_no_change(tmp_path, capsys):
    settings = parse_settings(["--run=a", "--optim.betas=[0.8, 0.9]"])  # with the default text and folder
    record = SimpleNamespace(settings=settings, write=lambda name, text: (tmp_path / name).write_text(text))
    Record.write_settings(record)
    print_changes(tmp_path / "settings.yaml", settings)
    assert capsys.readouterr().out == ""
    print_changes(tmp_path / "settings.yaml", parse_settings(["--run=a", "--training.seed=3"]))
    assert capsys.readouterr().out == ("changed settings: optim.betas [0.8, 0.9] -> [0.9, 0.95], "
                                       "training.seed 1337 -> 3\n")


def test_a_run_of_an_older_version_resumes(folder, monkeypatch):
    run(tiny_settings("--run=uninterrupted"))
    interrupt(tiny_settings(), monkeypatch, after=2)
    path = folder / "checkpoints" / "tiny" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["settled"] = saved.pop("run_config")
    del saved["settled"]["compile"], saved["progress"]["tokens"], saved["average"]
    torch.save(saved, path)
    run(tiny_settings("--resume"))
    assert_same_run(folder, "tiny", "uninterrupted")


def test_an_average_that_starts_late_starts_from_the_weights(folder, monkeypatch):
    interrupt(tiny_settings(), monkeypatch, after=2)
    run(tiny_settings("--resume", "--optim.ema=0.9"))
    line = json.loads((folder / "checkpoints" / "tiny" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["ema_val_loss"] == pytest.approx(line["val_loss"], abs=0.5)


@pytest.mark.parametrize("change", [
    lambda averages: averages.pop("head.weight"),
    lambda averages: averages.update({"head.weight": torch.ones(2)}),
    lambda averages: averages["head.weight"].fill_(float("nan")),
], ids=["missing", "misshapen", "not finite"])  # fmt: skip
def test_damaged_averages_are_a_user_error(folder, monkeypatch, change):
    interrupt(tiny_settings("--optim.ema=0.9"), monkeypatch, after=2)
    path = folder / "checkpoints" / "tiny" / "last.pt"
    saved = torch.load(path, weights_only=True)
    change(saved["average"])
    torch.save(saved, path)
    with pytest.raises(UserError, match="last.pt is damaged: the averaged weight"):
        run(tiny_settings("--resume", "--optim.ema=0.9"))


# ---- Starting from a checkpoint --------------------------------------------------------------------------------------


def test_init_starts_a_run_from_the_weights_of_a_checkpoint(folder, monkeypatch):
    run(tiny_settings("--run=first", "--training.max_iters=4"))
    (folder / "data" / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    settings = parse_settings([
        "--output.folder=checkpoints", "--init=checkpoints/first", "--run=second", "--data.path=data/other.txt",
        "--training.max_iters=1", "--training.eval_interval=1", "--training.device=cpu", "--training.batch_size=4",
        "--training.dtype=float32", "--optim.muon_lr=1e-30", "--optim.adamw_lr=1e-30", "--optim.weight_decay=0",
        "--output.sample_tokens=5"])
    run(settings)
    first, second = (torch.load(folder / "checkpoints" / name / "best.pt", weights_only=True)
                     for name in ("first", "second"))
    assert second["config"] == first["config"] and second["tokenizer"] == first["tokenizer"]
    torch.testing.assert_close(second["weights"], first["weights"])


@pytest.mark.parametrize("change, message", [
    ("--model.n_embd=32", "--init has n_embd 16, not 32"), ("--model.name=GPT2", "--init has a BardGPT, not a GPT2"),
    ("--data.path=data/foreign.txt", "not in the vocabulary"), ("--init=none.pt", "none.pt"),
])
def test_an_init_that_does_not_match_is_a_user_error(folder, change, message):
    run(tiny_settings("--run=first", "--training.max_iters=1"))
    (folder / "data" / "foreign.txt").write_text("诗" * 1000, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(tiny_settings("--init=checkpoints/first/best.pt", change))
    assert not (folder / "checkpoints" / "tiny").exists()


def test_a_run_takes_the_tokenizer_of_a_checkpoint_and_a_separate_validation_text(folder):
    run(tiny_settings("--run=first", "--training.max_iters=1"))
    (folder / "data" / "val.txt").write_text(TEXT[:400], encoding="utf-8")
    (folder / "data" / "train.txt").write_text(TEXT[500:1500], encoding="utf-8")
    for tokenizer in ("checkpoints/first", "checkpoints/first/last.pt"):
        run(tiny_settings(f"--run={len(tokenizer)}", f"--data.tokenizer={tokenizer}", "--data.path=data/train.txt",
                          "--data.val_path=data/val.txt", "--training.max_iters=1"))
        saved = torch.load(folder / "checkpoints" / str(len(tokenizer)) / "last.pt", weights_only=True)
        assert saved["tokenizer"]["vocab"] == "".join(sorted(set(TEXT)))
        ids = [saved["tokenizer"]["vocab"].index(character) for character in TEXT[:400]]
        assert saved["run_config"]["text"] == hashlib.sha256(np.array(ids, np.uint16)).hexdigest()
