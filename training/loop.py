"""The training loop. It knows no text and no model: it is handed both."""

import contextlib
import math
import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from training.precision import autocast
from utils.errors import UserError


@dataclass
class Progress:
    """How far a run has come: what it needs, besides weights and optimizers, to go on as if it had never stopped."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0


@contextlib.contextmanager
def ctrl_c_as_flag():
    """Within it, the first Ctrl-C sets the event that is given and a second one leaves at once."""
    pressed = threading.Event()

    def handler(*_):
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def fit(model, optimizers, lr_factor, batch, evaluated, s, progress, dtype, scaler):
    """Train `model` from `progress.step` to `s.max_iters` (TrainingSettings), or until `evaluated` says stop.

    - `lr_factor(step)`: the share of the optimizers' learning rates that this step takes.
    - `batch(step, i)`: x and y, (B, T) each, of micro-batch i.
    - `evaluated(progress, train_loss)`: called before the first step, every `s.eval_interval` steps and at the end,
      with the mean loss since the last time (None at the start); it measures, saves, shows; True from it means stop.
    - `dtype` is what matrices are multiplied in, `scaler` the GradScaler (disabled unless that is float16).

    All that is random in a step follows from the seed and the number of the step, so a run that goes on from saved
    weights gives the numbers of an unbroken one. Raises UserError when the loss is not finite.
    """
    device = next(model.parameters()).device
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first, losses, started = progress.step, [], time.perf_counter() - progress.seconds
    weights = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    with ctrl_c_as_flag() as ctrl_c, tqdm(unit=" tokens", unit_scale=True, smoothing=0.05) as bar:
        for step in range(first, s.max_iters + 1):
            last = ctrl_c.is_set() or step == s.max_iters
            if last or step % s.eval_interval == 0:
                if step > first or progress.best_loss == math.inf:  # a run that goes on was evaluated where it starts
                    if ctrl_c.is_set():
                        tqdm.write("Ctrl-C: one last evaluation (a second Ctrl-C leaves at once)")
                    progress.step, progress.seconds = step, time.perf_counter() - started
                    train_loss = check_finite(torch.stack(losses).mean(), step) if losses else None
                    last |= evaluated(progress, train_loss)
                    losses = []
                if last:
                    return

            torch.manual_seed(int(np.random.SeedSequence((s.seed, step)).generate_state(1)[0]))
            for optimizer, lrs in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = peak * lr_factor(step)
            batches = [batch(step, i) for i in range(s.accumulation)]
            targets = sum((y != -100).sum() for _, y in batches)
            step_loss = torch.zeros((), device=device)
            for x, y in batches:  # means, weighed by their targets, add up to the mean of one large batch
                with autocast(device.type, dtype):
                    loss = model(x.to(device), y.to(device))[1]  # no name for the logits: they go before backward
                loss = loss * ((y != -100).sum() / targets).to(device)
                scaler.scale(loss).backward()
                step_loss += loss.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, s.grad_clip)
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()

            losses.append(step_loss)
            tokens = sum(x.numel() for x, _ in batches)
            if bar.total is None:
                bar.reset(total=(s.max_iters - first) * tokens)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{check_finite(step_loss, step):.3f}", refresh=False)
            bar.update(tokens)


def check_finite(loss, step):
    """The loss, a float or a tensor of one number, as a float. Raises UserError if it is not finite."""
    loss = float(loss)
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}, so training stops; what was saved is as it was. "
                        "Try lower learning rates or a longer warm-up")
    return loss
