"""Programs on several ranks, for tests: processes that call functions in this file together."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
LIMIT = 300  # seconds


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(n, command, folder, last=()):
    """Start a Python program on n ranks in a working directory; `last` are more arguments, for the last rank alone.

    Returns their processes.
    """
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    common = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    ranks = [common | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]
    commands = [[sys.executable, *command]] * (n - 1) + [[sys.executable, *command, *last]]
    return [subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True) for arguments, environment in zip(commands, ranks, strict=True)]


def on_ranks(n, calls, folder):
    """Call functions in this file on n ranks in a working directory.

    Each call is a list: the name of the function, and its arguments after the World.
    """
    processes = start_ranks(n, [HERE / "ranks.py", json.dumps(calls)], folder)
    outputs = [process.communicate(timeout=LIMIT) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors


def train_all(world, runs):
    """Train runs, each given as a command line, one after the other; torch.compile compiles to Python."""
    import training.record
    from training.arguments import parse_settings
    from training.run import train_in

    training.record.plot_losses = lambda metrics, path, title, name: path.write_text(title)
    torch.compile = partial(torch.compile, backend="eager")
    for arguments in runs:
        settings = parse_settings(arguments)
        folder = Path(settings.output.folder) / settings.run
        folder.mkdir(parents=True, exist_ok=True)
        train_in(folder, settings, world)


def stop_in_evaluation(world, arguments):
    """Train a run in which the last rank gets SIGTERM during the evaluation at step 2."""
    from training.record import Record

    def evaluate(self, progress, train_loss):
        if progress.step == 2 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_and_save(self, progress, train_loss)

    evaluate_and_save = Record.evaluate_and_save
    Record.evaluate_and_save = evaluate
    train_all(world, [arguments])
    Record.evaluate_and_save = evaluate_and_save


def count_exchanges(world, micro_batches):
    """Train a replicated model for one step of some micro-batches; rank 0 saves how often gradients are exchanged."""
    from small_models import small_model
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from training.parallel import replicate
    from training.shares import Share

    def hook(group, bucket):
        calls.append(bucket)
        return allreduce_hook(group, bucket)

    calls = []
    forward = replicate(small_model("BardGPT"))
    forward.register_comm_hook(None, hook)
    x, y = torch.randint(11, (2, 2, 12))
    plain_step(forward, world)(0, Share([(x, y)] * micro_batches, 0, 24 * micro_batches * world.size, 0), 1.0)
    if world.is_first:
        torch.save(len(calls), f"exchanges{micro_batches}.pt")


def plain_step(forward, world):
    """Return a TrainStep with gradient descent, in float32, without effective gradient clipping."""
    from training.step import TrainStep

    sgd = torch.optim.SGD(forward.parameters(), lr=torch.tensor(0.1))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainStep(forward, [sgd], grad_clip=1e9, dtype=torch.float32, scaler=scaler, world=world)


def uneven_targets(world, strategy):
    """Train two steps with 3 targets on rank 0 and 97, then none, on rank 1; rank 0 saves weights and losses."""
    from small_models import small_model

    from training.parallel import gather_whole, replicate, shard
    from training.shares import Shares

    model = small_model("BardGPT", block_size=100)
    forward = model
    if strategy == "fsdp":
        shard(model, "cpu")
    elif world.size > 1:
        forward = replicate(model)
    step, losses = plain_step(forward, world), []
    for few, many in ((3, 97), (3, 0)):
        torch.manual_seed(0)
        x, y = torch.randint(11, (2, 2, 100))
        y[0, few:], y[1, many:] = -100, -100
        share = Shares(lambda _, x=x, y=y: list(zip(x.split(1), y.split(1), strict=True)), world=world)(0)
        losses.append(world.mean(step(0, share, 1.0)))
    weights = gather_whole(dict(model.state_dict()))
    if world.is_first:
        torch.save({"weights": weights, "losses": losses}, f"{strategy}{world.size}.pt")


def measure_memory(world, rows):
    """Measure the highest peak of all ranks in training, for rows of a ModelConfig and a Plan; rank 0 saves them."""
    sys.path.insert(0, str(HERE.parent / "benchmarks"))
    import memory

    from models.zoo import ZOO
    from utils.forecast.plan import Plan

    memory.count_all_threads()
    peaks = []
    for config, plan in rows:
        peak = memory.peak_bytes(lambda c=config: ZOO["TransformerModel"](**c),
                                 lambda model, p=plan: memory.train(model, Plan(**p), world), "cpu")
        peaks.append(max(world.gather(peak)))
    if world.is_first:
        Path("peaks.json").write_text(json.dumps(peaks))


if __name__ == "__main__":
    from training.distributed import open_world

    with open_world() as the_world:
        for name, *arguments in json.loads(sys.argv[1]):
            globals()[name](the_world, *arguments)
