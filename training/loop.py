"""The training loop. It imports neither texts nor models: it is handed both."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError


@dataclass
class Progress:
    """How far a run is: with weights and optimizer states, all that resuming needs."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on, each as often as it was seen."""
    seconds: float = 0.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0


@dataclass
class Trainer:
    """What `fit` needs."""

    train_step: Callable
    """(step, batches, lr_factor) -> mean loss, a 0-dim tensor: a `training.step.TrainStep`."""
    batches: Callable
    """step -> the micro-batches of a step, a list of x and y, int64, (B, T) each."""
    lr_factor: Callable
    """step -> learning rate as a fraction of the peak learning rate."""
    evaluate: Callable
    """(progress, train_loss) -> whether to stop. Called before the first step, every `eval_interval` steps and at the
    end, with the mean training loss since the last call (None at the start); it evaluates, saves and reports."""
    max_iters: int
    eval_interval: int
    seed: int


@contextlib.contextmanager
def interrupt_as_flag():
    """Context in which the first Ctrl-C or SIGTERM sets the event that it yields, and a second one ends the process."""
    interrupted = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def set_flag(*_):
        interrupted.set()
        restore()

    for number in before:
        signal.signal(number, set_flag)
    try:
        yield interrupted
    finally:
        restore()


def fit(trainer, progress):
    """Train from `progress.step` until `max_iters`, until `evaluate` returns True, or until Ctrl-C or SIGTERM.

    Randomness depends only on the seed and the step number, so a resumed run reproduces an uninterrupted one: exactly
    on a CPU, and up to rounding on a GPU, where sums have no fixed order.
    Raises UserError if the loss is not finite.
    """
    first, started = progress.step, time.perf_counter() - progress.seconds
    evaluated_at_start = progress.best_loss < math.inf  # a resumed run was evaluated at the step where it resumes
    loss_sum, n_losses = 0.0, 0
    with interrupt_as_flag() as interrupted, tqdm(unit=" tokens", unit_scale=True, smoothing=0.05) as bar:
        for step in range(first, trainer.max_iters + 1):
            last = interrupted.is_set() or step == trainer.max_iters
            due = last or step % trainer.eval_interval == 0
            if due and not (step == first and evaluated_at_start):
                if interrupted.is_set():
                    tqdm.write("interrupted: one last evaluation (a second Ctrl-C ends the run at once)")
                train_loss = check_finite(loss_sum / n_losses, step) if n_losses else None
                progress.step, progress.seconds = step, time.perf_counter() - started
                last |= trainer.evaluate(progress, train_loss)
                loss_sum, n_losses = 0.0, 0
            if last:
                return

            seed_step(trainer.seed, step)
            batches = trainer.batches(step)
            loss = trainer.train_step(step, batches, trainer.lr_factor(step))
            loss_sum, n_losses = loss_sum + loss, n_losses + 1  # a tensor: reading its value would wait for the device
            tokens = sum(x.numel() for x, _ in batches)
            progress.tokens += tokens
            if step % 10 == 0 or bar.total is None:  # steps may differ in size: the total is an estimate
                bar.total = round((bar.n + tokens) * (trainer.max_iters - first) / (step + 1 - first))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{check_finite(loss, step):.3f}", refresh=False)
            bar.update(tokens)


def seed_step(seed, step):
    """Seed the random generators of all devices for one step."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def check_finite(loss, step):
    """Convert a loss, a float or a 0-dim tensor, to a float. Raises UserError if it is not finite."""
    loss = float(loss)
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: training stops, and saved files are unchanged. Use lower "
                        "learning rates or a longer warmup")
    return loss
