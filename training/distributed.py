"""Ranks: processes that train one model together, each on a GPU or on a share of a CPU.

torchrun starts them. A program that it did not start is the only rank of its world, and communicates nothing. What
ranks have to agree on is exchanged between CPUs (gloo). Gradients are averaged between devices (CUDA: NCCL), which
training/parallel.py sets up.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from training.precision import pick_device
from utils.errors import UserError, first_line
from utils.quantities import quantity

CONNECT = timedelta(minutes=2)  # for ranks to find each other
TIMEOUT = timedelta(hours=1)  # after that: one rank prepares data, saves and samples while the others wait
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed",
        "remote process exited")  # the last one is from NCCL


@dataclass(frozen=True)
class World:
    """The ranks of a run, seen from one of them. Its methods are called by all ranks, in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the ranks of the same machine."""
    local_size: int = 1
    store: dist.Store | None = None
    """Keys and values of torchrun, which outlive the ranks if it restarts them."""

    @property
    def is_first(self) -> bool:
        """Whether this rank prints, draws and writes files."""
        return self.rank == 0

    def gather(self, value: Any) -> list:
        """Return the values of all ranks, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, value: float | Tensor) -> float:
        """Return the mean of a number, or of a 0-dim tensor: the same float on all ranks."""
        values = self.gather(float(value))
        return sum(values) / len(values)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Context that ends all ranks if UserError is raised in it on any: the first such rank reports its error."""
        error = None
        try:
            yield
        except UserError as raised:
            error = raised
        failures = self.gather(error is not None)
        if any(failures):
            if failures.index(True) == self.rank:
                raise error
            sys.exit(2)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Context like `together`, but the first rank of each machine goes first: it writes files for the others."""
        if self.local_rank > 0:
            self.wait()
        with self.together():
            yield
        if self.local_rank == 0:
            self.wait()

    def wait(self) -> None:
        """Wait for all ranks, or end with them if one fails in `together`."""
        with self.together():
            pass

    def decide(self, function: Callable, *arguments: Any) -> Any:
        """Return on all ranks what a function returns on the first, the only one that calls it.

        If it raises UserError, all ranks end.
        """
        result = None
        with self.together():
            if self.is_first:
                result = function(*arguments)
        return self.gather(result)[0]

    def mark_started(self) -> None:
        """Note that these ranks have started or resumed their run."""
        if self.store is not None:
            self.store.set("started", "")

    def is_restart(self) -> bool:
        """Return whether torchrun has started these ranks in place of others that had called `mark_started`."""
        return self.store is not None and restart_count() > 0 and self.store.check(["started"])


ALONE = World()


# ---- Start and end ---------------------------------------------------------------------------------------------------


def uses_torchrun() -> bool:
    """Return whether this process is one of several ranks, or may be."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restart_count() -> int:
    """Return how often torchrun has restarted all ranks because one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextlib.contextmanager
def open_world() -> Iterator[World]:
    """Context with the World of this process. Only its first rank prints.

    Raises UserError if variables of torchrun are missing, if the ranks cannot reach each other, or if one of them ends.
    """
    if not uses_torchrun():
        yield ALONE
        return
    world = read_environment()
    check_host_name(world)
    try:
        world = replace(world, store=connect(world))
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"rank {world.rank} cannot reach all others through {address} ({first_line(error)}): see "
                        "docs/many-gpus.md") from None
    dist.distributed_c10d._set_pg_timeout(TIMEOUT)
    # Destroying a group waits until NCCL has finished its operations, which never happens if another rank has failed.
    leave = dist.distributed_c10d._abort_process_group
    try:
        with contextlib.nullcontext() if world.is_first else silence():
            yield world
        leave = dist.destroy_process_group
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun: this process ends by itself, and says why
        raise UserError(f"rank {world.rank} stops, because another rank has ended: the report of torchrun names it. "
                        "Saved files are unchanged") from None
    finally:
        gc.collect()  # a group must not outlive its models, whose threads would abort the process when it exits
        leave()


def read_environment() -> World:
    """Return the World that torchrun describes in environment variables. Raises UserError if one is missing."""
    names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    try:
        return World(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError):
        raise UserError(f"the environment variables {', '.join(names)} must all be numbers: start ranks with torchrun, "
                        "which sets them, or unset them to train in one process") from None


def check_host_name(world: World) -> None:
    """Raise UserError if other machines would be told a loopback address of this one."""
    several_machines = world.local_size < world.size
    if not several_machines or "GLOO_SOCKET_IFNAME" in os.environ or is_loopback(os.environ.get("MASTER_ADDR", "")):
        return
    if is_loopback(socket.gethostname()):
        raise UserError(f"the name of this machine, {socket.gethostname()}, resolves to a loopback address, which "
                        "other machines cannot reach: set GLOO_SOCKET_IFNAME to the network interface that they can "
                        "reach, such as eth0")


def is_loopback(name: str) -> bool:
    """Return whether a host name resolves to a loopback address."""
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return False


def connect(world: World) -> dist.Store:
    """Create the process group of all ranks, and return their store.

    Raises RuntimeError if they cannot reach each other.
    """
    store, *_ = next(rendezvous("env://", timeout=CONNECT))
    own = dist.PrefixStore(f"start {restart_count()}", store)  # it still has the addresses of ended processes
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=CONNECT, store=own, rank=world.rank, world_size=world.size)
    return store


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Context in which nothing is printed."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def check_ranks_agree(values: dict[str, Any], world: World) -> None:
    """Raise UserError unless all ranks have the same values; their names are in the message."""
    first, *others = world.gather(values)
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(f"the {name} of rank {rank} differs from that of rank 0: all machines need the same "
                                "files and settings, in a shared folder or copied")


def pick_rank_device(name: str, world: World) -> str:
    """Return the device of this rank, as `pick_device` does for `name`, and make its GPU the current one.

    Raises UserError if the device is not available, or if several ranks cannot use it.
    """
    device = pick_device(name)
    if device == "mps" and world.size > 1:
        raise UserError("several ranks cannot share an MPS device: use --training.device cpu, or one rank")
    n_gpus = torch.cuda.device_count()
    if device == "cuda" and n_gpus < world.local_size:
        raise UserError(f"this machine has {quantity(n_gpus, 'GPUs')} for {world.local_size} ranks: use "
                        f"--nproc_per_node={n_gpus}")
    if device == "cuda" and world.size > 1:
        torch.cuda.set_device(world.local_rank)
    return device
