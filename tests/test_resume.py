"""A run that was interrupted goes on as if it had never stopped, or says why it can't."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import ROOT, TINY, command, losses, tiny_settings
from small_text import TEXT

from data.windows import RandomWindows
from training import preflight
from training.run import Record
from training.run import train as run
from utils.errors import UserError

LONG = [*(f"--model.{name}={value}" for name, value in TINY.items()), "--model.dropout=0.3", "--training.max_iters=60",
        "--training.eval_interval=5", "--training.batch_size=4", "--training.accumulation=2", "--training.device=cpu",
        "--training.dtype=bfloat16", "--output.sample_tokens=5"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The losses of a run that nothing interrupts, and the weights at its end."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    done = command("train.py", *LONG, "--run=long", cwd=folder)
    assert done.returncode == 0, done.stderr
    out = folder / "checkpoints" / "long"
    return losses(out), torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("how, after", [("SIGKILL", 1), ("SIGKILL", 3), ("SIGINT", 3)])
def test_an_interrupted_run_goes_on_bit_for_bit(folder, unbroken, how, after):
    if sys.platform == "win32":
        pytest.skip("Windows has no such signals")
    out = folder / "checkpoints" / "long"
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *LONG, "--run=long"], cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not (out / "last.pt").exists() or len(losses(out)) < after):
        time.sleep(0.01)
    process.send_signal(signal.Signals[how])
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == {"SIGKILL": -9, "SIGINT": 0}[how], stderr
    assert after <= len(losses(out)) < 13
    done = command("train.py", *LONG, "--run=long", "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    expected, last = unbroken
    scheduled = [line for line in losses(out) if line[0] % 5 == 0]
    if how == "SIGINT":  # an evaluation more splits the mean of the training loss
        assert [(step, loss) for step, _, loss in scheduled] == [(step, loss) for step, _, loss in expected]
    else:
        assert scheduled == expected
    weights = torch.load(out / "last.pt", weights_only=True)["weights"]
    assert all(torch.equal(weights[name], weight) for name, weight in last["weights"].items())


# ---- In one process --------------------------------------------------------------------------------------------------


def broken_off(settings, monkeypatch, after):
    """Do a run that ends, as by a kill, when it has saved for the last of so many times."""
    evaluated, seen = Record.evaluated, []

    def then_stop(*arguments):
        stop = evaluated(*arguments)
        seen.append(arguments)
        if len(seen) == after:
            raise KeyboardInterrupt
        return stop

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Record, "evaluated", then_stop)
        run(settings)


def weights_of(folder, name="tiny"):
    return torch.load(folder / "checkpoints" / name / "last.pt", weights_only=True)["weights"]


def assert_same_run(folder, one, other):
    assert losses(folder / "checkpoints" / one) == losses(folder / "checkpoints" / other)
    first, second = weights_of(folder, one), weights_of(folder, other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("more", [
    [], ["--optim.name=adamw", "--optim.adamw_lr=0.001"], ["--training.dtype=float16"], ["--data.windows=sliding"],
    ["--data.windows=shuffled", "--optim.ema=0.9"],
], ids=lambda more: "".join(more[:1]) or "default")
def test_last_pt_alone_is_enough_to_go_on(folder, monkeypatch, more, after):
    run(tiny_settings("--run=unbroken", "--model.dropout=0.2", *more))
    broken_off(tiny_settings("--model.dropout=0.2", *more), monkeypatch, after)
    for path in (folder / "checkpoints" / "tiny").iterdir():
        if path.name != "last.pt":
            path.unlink()
    run(tiny_settings("--model.dropout=0.2", "--resume", *more))
    assert_same_run(folder, "tiny", "unbroken")


def test_what_was_found_for_auto_stays_when_the_run_goes_on(folder, monkeypatch):
    auto = ["--training.batch_size=auto", "--training.dtype=auto"]
    run(tiny_settings("--run=unbroken", *auto))
    broken_off(tiny_settings(*auto), monkeypatch, after=2)
    monkeypatch.setattr(preflight, "fitting_plan", lambda *_: pytest.fail("the batch size was looked for again"))
    monkeypatch.setattr("training.run.pick_dtype", lambda device, name: getattr(torch, name))  # there is no torch.auto
    run(tiny_settings("--resume", *auto))
    assert_same_run(folder, "tiny", "unbroken")


def test_a_run_goes_on_in_another_precision(folder, monkeypatch):
    broken_off(tiny_settings(), monkeypatch, after=2)
    run(tiny_settings("--resume", "--training.dtype=float16"))
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 2, 4, 6]


@pytest.mark.parametrize("change, message", [
    ("--model.num_heads=2", "num_heads 4, not 2"),
    ("--model.block_size=10", "block_size 12, not 10"),
    ("--model.name=DevModel", "model BardGPT, not DevModel"),
    ("--optim.name=adamw", "optimizer muon, not adamw"),
])
def test_another_model_or_optimizer_is_refused_and_what_was_there_stays(folder, monkeypatch, change, message):
    broken_off(tiny_settings(), monkeypatch, after=2)
    before = {path: path.read_bytes() for path in (folder / "checkpoints" / "tiny").iterdir()}
    with pytest.raises(UserError, match=message):
        run(tiny_settings("--resume", change))
    assert before == {path: path.read_bytes() for path in (folder / "checkpoints" / "tiny").iterdir()}
    run(tiny_settings("--resume", "--model.dropout=0.4", "--optim.muon_lr=0.01", "--training.batch_size=3"))


def test_another_text_is_refused_and_the_one_it_was_is_named(folder, monkeypatch):
    broken_off(tiny_settings(), monkeypatch, after=2)
    (folder / "data" / "other.txt").write_text(TEXT.replace("fox", "dog") + "The end.\n", encoding="utf-8")
    with pytest.raises(UserError, match="not in the vocabulary|begun on another text, data/input.txt"):
        run(tiny_settings("--resume", "--data.path=data/other.txt"))
    (folder / "data" / "other.txt").write_text("".join(sorted(TEXT)), encoding="utf-8")  # the same characters
    with pytest.raises(UserError, match="begun on another text, data/input.txt"):
        run(tiny_settings("--resume", "--data.path=data/other.txt"))


def test_a_run_cannot_resume_from_weights_alone(folder):
    run(tiny_settings())
    out = folder / "checkpoints" / "tiny"
    (out / "last.pt").write_bytes((out / "best.pt").read_bytes())
    with pytest.raises(UserError, match="last.pt does not contain the full training state that --resume needs"):
        run(tiny_settings("--resume"))


def test_a_ctrl_c_takes_nothing_from_the_patience(folder, monkeypatch):
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


def test_the_settings_that_a_resumed_run_leaves_begin_a_new_one(folder, monkeypatch):
    broken_off(tiny_settings(), monkeypatch, after=2)
    run(tiny_settings("--resume"))
    done = command("train.py", "checkpoints/tiny/settings.yaml", "--run=again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, "again", "tiny")
