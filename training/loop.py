"""The training loop. It imports neither texts nor models: it is handed both.

A step trains on one or more micro-batches. A rank is one of the processes that train together, often the only one; its
share of a step is the micro-batches that it computes. A target is a token to predict.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from training.distributed import ALONE, World
from training.shares import Share
from utils.errors import UserError

INTERRUPTED = b"\ninterrupted: the run evaluates, saves and ends"
AGAIN = b" (a second Ctrl-C ends it at once)"


@dataclass
class Progress:
    """How far a run has got: with the weights and the optimizer states, all that resuming needs."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on, each counted as often as it was seen."""
    seconds: float = 0.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0


@dataclass
class Trainer:
    """What `fit` needs."""

    train_step: Callable[[int, Share, float], Tensor]
    """(step, share, lr_factor) -> loss, a 0-dim tensor: a `training.step.TrainStep`."""
    shares: Callable[[int], Share]
    """step -> the `training.shares.Share` of this rank."""
    lr_factor: Callable[[int], float]
    """step -> learning rate as a fraction of the peak learning rate."""
    evaluate: Callable[[Progress, float | None], bool]
    """(progress, train_loss) -> whether to stop. Called before the first step, every `eval_interval` steps and at the
    end, with the mean training loss since the last call (None at the start); it evaluates, saves and reports."""
    max_iters: int
    eval_interval: int
    world: World = ALONE


def fit(trainer: Trainer, progress: Progress) -> None:
    """Train from `progress.step` until `max_iters`, until `evaluate` returns True, or until Ctrl-C or SIGTERM.

    Randomness depends only on the seed and the step number, so a resumed run reproduces an uninterrupted one: exactly
    on a CPU, and up to rounding on a GPU, where sums have no fixed order. Raises UserError if the loss is not finite.
    """
    world = trainer.world
    first, started = progress.step, time.perf_counter() - progress.seconds
    evaluated_at_start = progress.best_loss < math.inf  # a resumed run was evaluated at the step where it resumes
    loss_sum, n_losses = 0.0, 0
    with interrupt_as_flag(world) as signal_received, tqdm(unit=" tokens", unit_scale=True, smoothing=0.05) as bar:
        for step in range(first, trainer.max_iters + 1):
            interrupted = world.any(signal_received.is_set())
            last = interrupted or step == trainer.max_iters
            due = last or step % trainer.eval_interval == 0
            if due and not (step == first and evaluated_at_start):
                train_loss = mean_loss(loss_sum / n_losses, step, world) if n_losses else None
                progress.step, progress.seconds = step, time.perf_counter() - started
                last |= trainer.evaluate(progress, train_loss)
                last |= world.any(signal_received.is_set())  # this step has been saved: no need for another one
                loss_sum, n_losses = 0.0, 0
            if last:
                return

            share = trainer.shares(step)
            loss = trainer.train_step(step, share, trainer.lr_factor(step))
            loss_sum, n_losses = loss_sum + loss, n_losses + 1  # a tensor: reading its value would wait for the device
            progress.tokens += share.n_tokens
            if step % 10 == 0 or bar.total is None:  # steps may differ in size: the total is an estimate
                bar.total = round((bar.n + share.n_tokens) * (trainer.max_iters - first) / (step + 1 - first))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{mean_loss(loss, step, world):.3f}", refresh=False)
            bar.update(share.n_tokens)


@contextlib.contextmanager
def interrupt_as_flag(world: World) -> Iterator[threading.Event]:
    """Context in which the first Ctrl-C or SIGTERM sets the event that it yields, and a second one ends the process.

    With several ranks a second one has no effect: torchrun repeats the signal, and kills the process after 30 seconds.
    """
    interrupted = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def set_flag(*_: object) -> None:
        if world.is_first and not interrupted.is_set():
            with contextlib.suppress(OSError):  # print is not safe here: the signal may have interrupted another print
                os.write(2, INTERRUPTED + (AGAIN if world.size == 1 else b"") + b"\n")
        interrupted.set()
        if world.size == 1:
            restore()

    for number in before:
        signal.signal(number, set_flag)
    try:
        yield interrupted
    finally:
        restore()


def mean_loss(loss: Tensor, step: int, world: World) -> float:
    """Return the mean of a loss, a 0-dim tensor, over the ranks. Raises UserError if it is not finite."""
    mean = world.mean(loss)
    with world.together():
        check_finite(mean, step)
    return mean


def check_finite(loss: float, step: int) -> None:
    """Raise UserError if a loss is not finite."""
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: training stops, and saved files are unchanged. Use lower "
                        "learning rates or a longer warmup")
