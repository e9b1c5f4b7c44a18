"""Training on several ranks (gloo, on a CPU) against the same training in one process."""


import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from ranks import free_port, on_ranks
from small_runs import ROOT, TINY, losses
from small_tasks import CONTEXT, FILES, write_data
from small_text import TEXT
from torch.distributed.run import get_args_parser

from training.arguments import ALIASES, all_settings, parse_settings
from training.distributed import World
from training.run import train as run
from training.shares import EMPTY, Shares, divide
from utils.errors import UserError

SIZES = [f"--model.{name}={value}" for name, value in (TINY | {"dropout": 0}).items()]
BASE = ["--output.folder=checkpoints", "--training.max_iters=6", "--training.eval_interval=2", "--training.device=cpu",
        "--training.batch_size=4", "--training.dtype=float32", "--output.sample_tokens=0"]
TEXTS = [*BASE, *SIZES, "--data.path=data/input.txt"]
FSDP = "--training.parallel=fsdp"
GROUPED = ["--model.name=EasyGPT", "--model.num_kv_heads=2", "--model.n_hidden=24"]


def of_task(task, *more):
    """The command line of a run for a task."""
    sizes = [size for size in SIZES if "block_size" not in size] + [f"--model.block_size={CONTEXT[task]}"]
    return [*BASE, *sizes, f"--task={task}", f"--data.path={FILES[task]}", *more]


LORA = ["--task=dialogue", f"--data.path={FILES['dialogue']}", "--init=checkpoints/base", "--lora.rank=2",
        "--lora.targets=[qkv, down]", "--lora.merge=false"]
ON_TWO = {
    "ddp": TEXTS,
    "accumulation": [*TEXTS, "--training.accumulation=3"],
    "epochs": [*TEXTS, "--data.windows=shuffled", "--training.batch_size=6"],
    "average": [*TEXTS, "--optim.ema=0.9", "--optim.name=adamw", "--optim.adamw_lr=0.001"],
    "fsdp": [*TEXTS, FSDP, "--training.accumulation=3", "--optim.ema=0.9"],
    "grouped": [*TEXTS, *GROUPED],
    "grouped fsdp": [*TEXTS, *GROUPED, FSDP, "--training.activation_checkpointing=true"],
    "adamw fsdp": [*TEXTS, FSDP, "--optim.name=adamw", "--optim.adamw_lr=0.001"],
    "dialogue": of_task("dialogue", "--training.epochs=2"),
    "instruction": of_task("instruction", "--training.batch_size=2", FSDP),
    "classification": of_task("classification", "--data.auxiliary_lm=0.3"),
    "compiled": [*TEXTS, "--training.accumulation=3", "--training.compile=yes"],
    "compiled fsdp": [*TEXTS, "--training.compile=yes", FSDP],
    "frozen": [*TEXTS, "--training.trainable_blocks=1"],
    "lora": [*BASE, *LORA],
    "lora fsdp": [*BASE, *LORA, FSDP],
}
ON_FOUR = {
    "dropout": [*TEXTS, "--training.accumulation=4", "--model.dropout=0.2"],
    "dropout fsdp": [*TEXTS, "--training.accumulation=4", "--model.dropout=0.2", FSDP],
    "parts": [*TEXTS, "--training.accumulation=2"],
}


def named(runs):
    return [[*arguments, f"--run={name}"] for name, arguments in runs.items()]


def alone(arguments):
    """A run in this process, of the command line of a run on several ranks."""
    run(parse_settings([argument for argument in arguments if argument not in (FSDP, "--training.compile=yes")]))


def checkpoint(folder, name, file="last.pt"):
    return torch.load(folder / "checkpoints" / name / file, weights_only=True)


def assert_equal(found, expected):
    """Numbers and tensors in nested dictionaries and lists are equal up to rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def assert_same_run(folder, name, other):
    found, expected = (losses(folder / "checkpoints" / each) for each in (name, other))
    assert found[0][:2] == expected[0][:2] == (0, None)
    assert found[0][2] == pytest.approx(expected[0][2], rel=1e-5)
    for line, reference in zip(found[1:], expected[1:], strict=True):
        assert line == pytest.approx(reference, rel=1e-5)
    found, expected = checkpoint(folder, name), checkpoint(folder, other)
    for entry in ("weights", "optimizer_states", "adapters"):
        assert_equal(found[entry], expected[entry])
    assert (found["average"] is None) == (expected["average"] is None)
    if found["average"]:
        assert_equal(found["average"], expected["average"])
    for entry in found["run_config"].keys() - {"compile"}:
        assert found["run_config"][entry] == expected["run_config"][entry]
    ours, theirs = (checkpoint(folder, each, "best.pt") for each in (name, other))
    assert ours["weights"].keys() == theirs["weights"].keys() and ours["config"] == theirs["config"]
    assert_equal(ours["weights"], theirs["weights"])
    assert_equal(ours.get("lora", {}).get("weights", {}), theirs.get("lora", {}).get("weights", {}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory with the runs of ON_TWO and ON_FOUR, trained on two and four ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("training.record.plot_losses", lambda *_: None)
        alone(of_task("dialogue", "--run=base"))
    on_ranks(2, "train_all", folder, named(ON_TWO))
    on_ranks(4, "train_all", folder, named(ON_FOUR))
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    """The directory of `trained` as working directory."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    return trained


@pytest.mark.parametrize("name", [*ON_TWO, *ON_FOUR])
def test_several_ranks_train_as_one_process_does(here, name):
    alone([*(ON_TWO | ON_FOUR)[name], f"--run={name} alone"])
    assert_same_run(here, name, f"{name} alone")


def test_a_run_saved_on_four_ranks_resumes_on_two_and_on_one_and_back(here):
    common = [*TEXTS, "--optim.ema=0.9", "--training.accumulation=4", "--model.dropout=0.2"]
    alone([*common, "--run=uninterrupted"])
    half = [*common, "--training.max_iters=4"]
    on_ranks(4, "train_all", here, [[*half, f"--run={name}", *more] for name, more in (
        ("four to one", []), ("four to two", [FSDP]), ("sharded to one", [FSDP]))])
    for name in ("four to one", "sharded to one"):
        alone([*common, f"--run={name}", "--resume"])
    alone([*half, "--run=one to two"])
    on_ranks(2, "train_all", here, [[*common, f"--run={name}", "--resume", *more] for name, more in (
        ("four to two", []), ("one to two", [FSDP]))])
    for name in ("four to one", "sharded to one", "four to two", "one to two"):
        assert_same_run(here, name, "uninterrupted")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_may_have_few_targets_or_none(tmp_path, strategy):
    on_ranks(1, "uneven_targets", tmp_path, "ddp")
    on_ranks(2, "uneven_targets", tmp_path, strategy)
    expected, found = (torch.load(tmp_path / f"{name}.pt") for name in ("ddp1", f"{strategy}2"))
    assert_equal(found, expected)


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_sigterm_to_one_rank_during_an_evaluation_stops_all_at_the_next_step(here, strategy):
    name = f"stopped in evaluation {strategy}"
    arguments = [*TEXTS, "--training.max_iters=1000", f"--training.parallel={strategy}", f"--run={name}"]
    assert all("3" in output.splitlines() for output in on_ranks(2, "stop_in_evaluation", here, arguments))
    assert [line[0] for line in losses(here / "checkpoints" / name)] == [0, 2, 3]
    assert checkpoint(here, name)["progress"]["step"] == 3


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_travel_once_per_step(tmp_path, micro_batches):
    assert [output.splitlines()[-1] for output in on_ranks(2, "count_exchanges", tmp_path, micro_batches)] == ["1", "1"]


# ---- Shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, accumulation, ranks, sequences", [
    (4, 4, 4, [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]], [[12, 13, 14, 15]]]),
    (4, 1, 2, [[[0, 1]], [[2, 3]]]),
    (4, 3, 2, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]),
    (6, 2, 4, [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, 10, 11]]]),
    (2, 6, 3, [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]),
])
def test_every_sequence_of_a_step_belongs_to_one_rank_and_micro_batches_are_numbered_in_order(
        batch_size, accumulation, ranks, sequences):
    ids = torch.arange(batch_size * accumulation)[:, None]
    batches = [(part, part) for part in ids.split(batch_size)]
    parts = divide(batch_size, accumulation, ranks)
    shares = [Shares(lambda _: batches, parts, World(rank, ranks))(0) for rank in range(ranks)]
    assert [[x.flatten().tolist() for x, _ in share.batches] for share in shares] == sequences
    assert [share.first for share in shares] == [i * len(sequences[0]) for i in range(ranks)]
    assert {(share.n_targets, share.n_tokens) for share in shares} == {(len(ids), len(ids))}


def test_the_last_step_of_an_epoch_leaves_some_ranks_without_targets():
    batches = [(torch.zeros(3, 5, dtype=torch.long),) * 2]
    shares = [Shares(lambda _: batches, 4, World(rank, 4))(0) for rank in range(4)]
    assert [[x.shape for x, _ in share.batches] for share in shares] == [[(1, 5)]] * 3 + [[(1, 1)]]
    assert shares[3].batches == [EMPTY] and {share.n_targets for share in shares} == {15}


@pytest.mark.parametrize("batch_size, accumulation, ranks, advice", [
    (16, 1, 3, "start 2 "), (16, 1, 5, "start 4 "), (16, 2, 7, "start 8 "), (1, 1, 2, "start 1 "),
])
def test_a_number_of_ranks_that_does_not_divide_a_step_is_refused_with_the_nearest(
        batch_size, accumulation, ranks, advice):
    with pytest.raises(UserError, match=advice):
        divide(batch_size, accumulation, ranks)


# ---- torchrun --------------------------------------------------------------------------------------------------------

LONG = [*TEXTS, "--model.dropout=0.2", "--training.accumulation=2", "--training.max_iters=60",
        "--training.eval_interval=5"]


def start_torchrun(folder, *arguments, options=("--nproc_per_node=2",)):
    """A run of train.py on two ranks, as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, ROOT / "train.py", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def rank_processes(torchrun):
    """The process numbers of the ranks, in order."""
    children = psutil.Process(torchrun.pid).children()
    return [child.pid for child in sorted(children, key=lambda child: int(child.environ()["RANK"]))]


def wait_for_lines(folder, run, n):
    path = folder / "checkpoints" / run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or len(losses(path.parent)) < n):
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_after_a_rank_is_killed_torchrun_restarts_the_run_and_its_losses_are_those_of_an_uninterrupted_one(here):
    on_ranks(2, "train_all", here, [[*LONG, "--run=whole"]])
    process = start_torchrun(here, *LONG, "--run_name=killed", options=("--nproc_per_node=2", "--max_restarts=1"))
    wait_for_lines(here, "killed", 3)
    os.kill(rank_processes(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "error: rank 0 stops, because another rank has ended" in errors
    assert losses(here / "checkpoints" / "killed") == losses(here / "checkpoints" / "whole")
    found, expected = (checkpoint(here, name)["weights"] for name in ("killed", "whole"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_sigterm_to_one_rank_stops_all_of_them_at_one_step_with_a_last_save(here):
    process = start_torchrun(here, *LONG, "--training.max_iters=100000", "--run_name=stopped")
    wait_for_lines(here, "stopped", 2)
    os.kill(rank_processes(process)[1], signal.SIGTERM)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert output.count("interrupted: one last evaluation") == 1
    assert checkpoint(here, "stopped")["progress"]["step"] == losses(here / "checkpoints" / "stopped")[-1][0]


def test_two_machines_train_as_one_process_does(here):
    """Two launchers, both on this machine."""
    options = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    processes = [start_torchrun(here, *TEXTS, "--run_name=machines", options=(*options, f"--node_rank={i}"))
                 for i in range(2)]
    outputs = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "DDP on 2 ranks" in outputs[0][0] and outputs[1][0] == ""
    alone([*TEXTS, "--run=machines alone"])
    assert_same_run(here, "machines", "machines alone")


def test_a_mistake_is_one_line_whatever_the_number_of_ranks(here):
    process = start_torchrun(here, *LONG, "--data.path=nowhere.txt", "--run_name=mistake")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1 and not (here / "checkpoints" / "mistake").exists()
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
        "error: cannot read nowhere.txt: No such file or directory. Check the path and its permissions"]


def test_no_option_of_train_is_an_abbreviation_of_one_of_torchrun():
    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    names = [*all_settings(), *ALIASES]
    taken = [name for name in names if any(option.startswith(f"--{name}") for option in theirs)]
    assert taken == ["run"] and ALIASES["run_name"] == "run"
