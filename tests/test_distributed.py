"""Training on several ranks (gloo, on a CPU) against the same training in one process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from filelock import FileLock
from ranks import free_port, on_ranks, start_ranks, uneven_targets
from small_runs import ROOT, TINY, losses
from small_tasks import CONTEXT, FILES, write_data
from small_text import TEXT
from torch.distributed.run import get_args_parser

from training.arguments import ALIASES, all_settings, parse_settings
from training.distributed import ALONE, World, check_host_name, open_world
from training.loop import interrupt_as_flag
from training.run import train as run
from utils.errors import UserError

SIZES = [f"--model.{name}={value}" for name, value in (TINY | {"dropout": 0}).items()]
BASE = ["--output.folder=checkpoints", "--training.max_iters=6", "--training.eval_interval=2", "--training.device=cpu",
        "--training.batch_size=4", "--training.dtype=float32", "--output.sample_tokens=0"]
TEXTS = [*BASE, *SIZES, "--data.path=data/input.txt"]
FSDP = "--training.parallel=fsdp"
GROUPED = ["--model.name=EasyGPT", "--model.num_kv_heads=2", "--model.n_hidden=24"]


def of_task(task, *more):
    """Return the command line of a run for a task."""
    sizes = [size for size in SIZES if "block_size" not in size] + [f"--model.block_size={CONTEXT[task]}"]
    return [*BASE, *sizes, f"--task={task}", f"--data.path={FILES[task]}", *more]


LORA = ["--task=dialogue", f"--data.path={FILES['dialogue']}", "--init=checkpoints/base", "--lora.rank=2",
        "--lora.targets=[qkv, down]", "--lora.merge=false"]
ON_TWO = {
    "ddp": TEXTS,
    "accumulation": [*TEXTS, "--training.accumulation=3"],
    "epochs": [*TEXTS, "--data.windows=shuffled", "--training.batch_size=6"],
    "auto": [*TEXTS, "--training.batch_size=auto"],
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
    "frozen": [*TEXTS, "--training.trainable_blocks=1", "--training.accumulation=3"],
    "lora": [*BASE, *LORA, "--training.accumulation=3"],
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
    """Train a run in this process, given the command line of a run on several ranks."""
    run(parse_settings([argument for argument in arguments if argument not in (FSDP, "--training.compile=yes")]))


def checkpoint(folder, name, file="last.pt"):
    return torch.load(folder / "checkpoints" / name / file, weights_only=True)


def assert_equal(found, expected):
    """Assert that numbers and tensors in nested dictionaries and lists are equal up to rounding."""
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


HALF = [*TEXTS, "--optim.ema=0.9", "--training.accumulation=4", "--model.dropout=0.2", "--training.max_iters=4"]
RESUMED = [*HALF, "--training.max_iters=6", "--resume"]
LONG = [*TEXTS, "--model.dropout=0.2", "--training.accumulation=2", "--training.max_iters=40",
        "--training.eval_interval=5"]
ENDLESS = [*TEXTS, "--training.max_iters=1000"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a working directory with runs on four ranks, then on two. The workers of pytest -n share it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return train_on_ranks(tmp_path_factory.mktemp("ranks"))
    folder = tmp_path_factory.getbasetemp().parent / "ranks"
    with FileLock(f"{folder}.lock"):
        return folder if folder.exists() else train_on_ranks(folder)


def train_on_ranks(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    (folder / "data" / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("training.record.plot_losses", lambda *_: None)
        alone(of_task("dialogue", "--run=base"))
        alone([*HALF, "--run=one to two"])
    halves = {"four to one": HALF, "four to two": [*HALF, FSDP], "sharded to one": [*HALF, FSDP]}
    on_ranks(4, [["train_all", named(ON_FOUR | halves)]], folder)
    resumed = {"four to two": RESUMED, "one to two": [*RESUMED, FSDP]}
    on_ranks(2, [
        ["train_all", named(ON_TWO | resumed | {"long": LONG})],
        ["uneven_targets", "ddp"], ["uneven_targets", "fsdp"], ["count_exchanges", 1], ["count_exchanges", 3],
        *(["stop_in_evaluation", [*ENDLESS, f"--training.parallel={strategy}", f"--run=stopped {strategy}"]]
          for strategy in ("ddp", "fsdp")),
    ], folder)
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    """Return the directory of `trained` as working directory."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    return trained


@pytest.mark.parametrize("name", [*ON_TWO, *ON_FOUR])
def test_several_ranks_train_like_one_process(here, name):
    alone([*(ON_TWO | ON_FOUR)[name], f"--run={name} alone"])
    assert_same_run(here, name, f"{name} alone")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_plot_of_a_run_has_the_name_of_its_model(here, name):
    assert (here / "checkpoints" / name / "loss.png").read_text(encoding="utf-8") == f"{name}: BardGPT"


def test_a_run_saved_on_four_ranks_resumes_on_two_and_on_one_and_back(here):
    alone([*HALF, "--training.max_iters=6", "--run=uninterrupted"])
    for name in ("four to one", "sharded to one"):
        alone([*RESUMED, f"--run={name}"])
    for name in ("four to one", "sharded to one", "four to two", "one to two"):
        assert_same_run(here, name, "uninterrupted")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_may_have_few_targets_or_none(here, strategy):
    uneven_targets(ALONE, "alone")
    expected, found = (torch.load(here / f"{name}.pt") for name in ("alone1", f"{strategy}2"))
    assert_equal(found, expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sigterm_to_one_rank_during_an_evaluation_stops_all_after_it(here, strategy):
    name = f"stopped {strategy}"
    assert [line[0] for line in losses(here / "checkpoints" / name)] == [0, 2]
    assert checkpoint(here, name)["progress"]["step"] == 2


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_are_exchanged_once_per_step(here, micro_batches):
    assert torch.load(here / f"exchanges{micro_batches}.pt") == 1


def test_a_user_error_is_one_line_on_any_number_of_ranks(here):
    processes = start_ranks(2, [ROOT / "train.py", *TEXTS, "--data.path=nowhere.txt", "--run_name=mistake"], here)
    errors = [process.communicate(timeout=90)[1] for process in processes]
    assert errors == ["error: cannot read nowhere.txt: No such file or directory. Check the path and its permissions\n",
                      ""]
    assert [process.returncode for process in processes] == [2, 2] and not (here / "checkpoints" / "mistake").exists()


@pytest.mark.parametrize("what, arguments, last", [
    ("setting training.max_iters", TEXTS, "--training.max_iters=8"),
    ("setting optim.muon_lr", TEXTS, "--optim.muon_lr=0.05"),
    ("training text", [*TEXTS, "--data.val_path=data/input.txt"], "--data.path=data/other.txt"),
    ("weights", [*BASE, *LORA[:3], FSDP], "--init=other"),
])
def test_ranks_that_differ_end_with_one_line_that_says_in_what(here, what, arguments, last):
    start = checkpoint(here, "base", "best.pt")
    start["weights"]["token_embedding.weight"] *= 2
    (here / "other").mkdir(exist_ok=True)
    torch.save(start, here / "other" / "best.pt")
    processes = start_ranks(2, [ROOT / "train.py", *arguments, f"--run_name=other {what}"], here, [last])
    errors = [re.findall("error: .*", process.communicate(timeout=90)[1]) for process in processes]
    assert errors == [[f"error: the {what} of rank 1 differs from that of rank 0: all machines need the same files and "
                       "settings, in a shared folder or copied"], []]
    assert [process.returncode for process in processes] == [2, 2]
    assert not (here / "checkpoints" / f"other {what}").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_file_that_rank_0_cannot_write_is_one_line_and_ends_all_ranks(here, tmp_path, strategy):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)  # written after last.pt and best.pt
    options = [f"--output.folder={tmp_path}", "--run_name=run", f"--training.parallel={strategy}"]
    processes = start_ranks(2, [ROOT / "train.py", *TEXTS, *options], here)
    errors = [re.findall("error: .*", process.communicate(timeout=90)[1]) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert len(errors[0]) == 1 and "metrics.jsonl" in errors[0][0] and errors[1] == []


FAILS_ON_RANK_1 = """
import time
import torch.distributed
from training.distributed import open_world
from utils.errors import UserError, command

torch.distributed.destroy_process_group = lambda: time.sleep(600)  # like NCCL, if other ranks do not answer

@command
def main():
    with open_world() as world:
        with world.together():
            if world.rank == 1:
                raise UserError("this rank lacks a file")
        print("all ranks have the file")

main()
"""


def test_variables_of_another_launcher_are_one_line(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LOCAL_RANK.* start ranks with torchrun"), open_world():
        pass


def test_a_host_name_that_other_machines_cannot_reach_is_one_line(monkeypatch):
    addresses = {"other": "10.0.0.1", "here": "127.0.1.1"}
    monkeypatch.setattr("socket.gethostbyname", addresses.get)
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    monkeypatch.setenv("MASTER_ADDR", "other")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    check_host_name(World(size=2, local_size=2))  # one machine
    with pytest.raises(UserError, match="name of this machine, here, .* set GLOO_SOCKET_IFNAME"):
        check_host_name(World(size=2, local_size=1))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("n", [1, 2])
def test_only_a_single_process_says_that_a_second_signal_ends_it(capfd, n):
    with interrupt_as_flag(World(size=n)) as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(10)
    assert ("second Ctrl-C" in capfd.readouterr().err) == (n == 1)


def outputs_of(processes):
    """Return (stdout, stderr) of each process, without the lines that gloo prints with torch 2.9."""
    outputs = [process.communicate(timeout=90) for process in processes]
    return [(re.sub(r"^\[Gloo\].*\n", "", printed, flags=re.M), errors) for printed, errors in outputs]


def test_a_user_error_on_one_rank_ends_all_of_them(tmp_path):
    processes = start_ranks(2, ["-c", FAILS_ON_RANK_1], tmp_path)
    outputs = outputs_of(processes)
    assert outputs == [("", ""), ("", "error: this rank lacks a file\n")]
    assert [process.returncode for process in processes] == [2, 2]


# ---- torchrun --------------------------------------------------------------------------------------------------------

def start_torchrun(folder, *arguments, options=("--nproc_per_node=2",)):
    """Start train.py on two ranks, as a user does. Returns the process of the launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, ROOT / "train.py", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def rank_processes(torchrun):
    """Return the process numbers of the ranks, in order."""
    children = psutil.Process(torchrun.pid).children()
    return [child.pid for child in sorted(children, key=lambda child: int(child.environ()["RANK"]))]


def wait_for_lines(folder, run, n):
    path = folder / "checkpoints" / run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or len(losses(path.parent)) < n):
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_after_a_rank_is_killed_torchrun_restarts_the_run_and_its_losses_are_those_of_an_uninterrupted_one(here):
    process = start_torchrun(here, *LONG, "--run_name=killed", options=("--nproc_per_node=2", "--max_restarts=1"))
    wait_for_lines(here, "killed", 3)
    os.kill(rank_processes(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "error: rank 0 stops, because another rank has ended" in errors
    assert losses(here / "checkpoints" / "killed") == losses(here / "checkpoints" / "long")
    found, expected = (checkpoint(here, name)["weights"] for name in ("killed", "long"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_torchrun_does_not_resume_a_run_that_it_has_not_started(here):
    """Its first attempt ends with an error, as the run is there; the second one must not take it for its own."""
    files = {path: path.read_bytes() for path in (here / "checkpoints" / "long").iterdir()}
    process = start_torchrun(here, *LONG, "--training.max_iters=50", "--run_name=long",
                             options=("--nproc_per_node=2", "--max_restarts=1"))
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1 and len(re.findall("error: .* already contains a run", errors)) == 2
    assert {path: path.read_bytes() for path in (here / "checkpoints" / "long").iterdir()} == files


def test_two_machines_train_like_one_process_and_the_first_alone_writes(here, tmp_path):
    """Two launchers, both on this machine, the second with a copy of the text."""
    (tmp_path / "data").mkdir()
    shutil.copy(here / "data" / "input.txt", tmp_path / "data")
    options = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    processes = [start_torchrun(folder, *TEXTS, "--run_name=machines", options=(*options, f"--node_rank={i}"))
                 for i, folder in enumerate((here, tmp_path))]
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "DDP on 2 ranks" in outputs[0][0] and outputs[1][0] == ""
    assert not (tmp_path / "checkpoints").exists()
    alone([*TEXTS, "--run=machines alone"])
    assert_same_run(here, "machines", "machines alone")


def test_no_option_of_train_is_an_abbreviation_of_one_of_torchrun():
    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    names = [*all_settings(), *ALIASES]
    taken = [name for name in names if any(option.startswith(f"--{name}") for option in theirs)]
    assert taken == ["run"] and ALIASES["run_name"] == "run"
