"""One training step: forward and backward passes of its micro-batches, then one update of the weights."""

import contextlib
import time

import numpy as np
import torch
from torch import Tensor, nn

from training.distributed import ALONE, World
from training.optim import WeightAverage
from training.parallel import is_sharded
from training.precision import autocast, avoid_attention_plans
from training.shares import Share, Shares
from utils.cuda_graph import cuda_graph, lease_stream
from utils.errors import first_line

COMPILE_SECONDS = 30  # what torch.compile takes, as measured on an H100: 26 to 38 s


class TrainStep:
    """A training step as a function: `train_step(step, share, lr_factor)`.

    - `forward`: the model, or its DistributedDataParallel: a function of x and y, (B, T) each, that returns
      (logits, loss).
    - `optimizers`: their learning rates are 0-dim tensors, whose values at this point are the peak learning rates.
    - `grad_clip`: maximum gradient norm.
    - `dtype`: compute dtype of the matrix products.
    - `scaler`: enabled only if `dtype` is float16.
    - `average`: updated in every step, unless it is None.
    - `seed`: dropout depends only on it, the step number, and the number of the micro-batch within the step.

    After `capture`, a step is two CUDA graphs, and nothing in it waits for the device.
    """

    def __init__(self, forward: nn.Module, optimizers: list[torch.optim.Optimizer], *, grad_clip: float,
                 dtype: torch.dtype, scaler: torch.amp.GradScaler, average: WeightAverage | None = None, seed: int = 0,
                 world: World = ALONE):
        self.forward, self.optimizers, self.grad_clip = forward, optimizers, grad_clip
        self.dtype, self.scaler, self.average = dtype, scaler, average
        self.seed, self.world = seed, world
        self.replicated = isinstance(forward, nn.parallel.DistributedDataParallel)
        self.no_sync = forward.no_sync if self.replicated else contextlib.nullcontext
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.weights = [weight for group in groups for weight in group["params"]]
        self.device = self.weights[0].device
        self.learning_rates = [(group["lr"], float(group["lr"])) for group in groups]  # (current, peak)
        self.x = self.y = None  # the current micro-batch, (B, T) each
        self.loss_weight = torch.zeros((), device=self.device)  # of the current micro-batch
        self.loss = torch.zeros((), device=self.device)
        self.captured, self.stream = False, None
        self.run_micro_step, self.run_update = self.micro_step, self.update

    def __call__(self, step: int, share: Share, lr_factor: float) -> Tensor:
        """Train on a share in host memory; targets of -100 are ignored.

        Returns the loss, a 0-dim tensor that the next call overwrites: its mean over all ranks is the mean per target.
        """
        for lr, peak in self.learning_rates:
            lr.fill_(peak * lr_factor)
        if self.average:
            self.average.set_step(step)
        self.loss.zero_()
        for i, (x, y) in enumerate(share.batches):
            seed_micro_batch(self.seed, step, share.first + i)
            # Each micro-batch counts by its part of the step's targets, so that losses and gradients are means over the
            # step. DDP and FSDP divide gradients by the number of ranks, hence the factor.
            self.loss_weight.fill_(self.world.size * int((y != -100).sum()) / share.n_targets)
            self.load(x, y)
            last = i == len(share.batches) - 1
            with contextlib.nullcontext() if last else self.no_sync():  # ranks exchange gradients once per step
                self.run_micro_step()
        self.run_update()
        return self.loss

    def load(self, x: Tensor, y: Tensor) -> None:
        """Make x and y, (B, T) each, the current micro-batch."""
        if self.captured:  # the graph reads these tensors; from pinned memory, the copy does not block
            self.x.copy_(x.contiguous().pin_memory(), non_blocking=True)
            self.y.copy_(y.contiguous().pin_memory(), non_blocking=True)
        else:
            self.x, self.y = x.to(self.device), y.to(self.device)

    def micro_step(self) -> None:
        """Add the loss and the gradients of the current micro-batch."""
        with autocast(self.device.type, self.dtype):
            _, loss = self.forward(self.x, self.y)
        loss = loss * self.loss_weight
        self.scaler.scale(loss).backward()
        self.loss += loss.detach()

    def update(self) -> None:
        """Update the weights, and their average, with the gradients; clear these."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.weights, self.grad_clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.clear_gradients()
        self.scaler.update()
        if self.average:
            self.average.update()

    def clear_gradients(self) -> None:
        """Free the gradients, or set them to zero if CUDA graphs write to them or DDP has them in its buckets."""
        keep = self.captured or self.replicated
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not keep)

    def capture(self, x: Tensor, y: Tensor) -> None:
        """From now on, run a step as two CUDA graphs, for micro-batches of the shape of x and y (B, T).

        Leaves weights, optimizer states and averages as they are. Not for a GradScaler, which waits for the device.
        """
        self.captured = True
        self.x, self.y = x.to(self.device), y.to(self.device)
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        for lr, _ in self.learning_rates:
            lr.zero_()  # the warmup must not change the weights
        if self.average:
            self.average.rate.zero_()
        before = {key: tensor.to("cpu", copy=True) for key, tensor in optimizer_tensors(self.optimizers).items()}
        self.stream = self.stream or lease_stream(self)
        pool = torch.cuda.graph_pool_handle()  # shared: the two graphs never run at the same time
        self.run_micro_step = cuda_graph(self.micro_step, self.stream, pool)
        torch._foreach_zero_([weight.grad for weight in self.weights])
        self.run_update = cuda_graph(self.update, self.stream, pool)
        for key, tensor in optimizer_tensors(self.optimizers).items():
            if key in before:
                tensor.copy_(before[key])
            else:
                tensor.zero_()  # a state that the warmup created: all of them start at zero

    def release(self) -> None:
        """Free the CUDA graphs and their memory; steps are eager from now on."""
        self.captured = False
        self.run_micro_step, self.run_update = self.micro_step, self.update
        self.x = self.y = None
        for weight in self.weights:
            weight.grad = None
        torch.cuda.empty_cache()


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed the random generators of all devices for micro-batch `number` of a step."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1)[0]))


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[tuple[int, int, str], Tensor]:
    """Return the tensors in the states of optimizers, by number of the optimizer, id of the weight, and name."""
    tensors = {}
    for i, optimizer in enumerate(optimizers):
        for weight, state in optimizer.state.items():
            for name, tensor in state.items():
                tensors[i, id(weight), name] = tensor
    return tensors


def accelerate(train_step: TrainStep, shares: Shares, compile: str, micro_steps: int) -> bool:
    """Use torch.compile and CUDA graphs where they pay; print one line that says what was chosen and why.

    `compile` is auto (on CUDA, if the run is long enough), yes or no; `micro_steps` is the number of micro-batches left
    to train on. Returns whether the model is compiled.
    """
    on_cuda, world = train_step.device.type == "cuda", train_step.world
    batch = shares(0).batches[0]
    obstacle = obstacle_to_capture(train_step) if shares.same_shape else "batches differ in length"
    can_capture = on_cuda and obstacle is None
    if on_cuda and not shares.same_shape:
        avoid_attention_plans()
    why = f"by --training.compile {compile}"
    if compile == "auto" and not shares.same_shape:
        compile, why = "no", "it would compile for each length"
    if compile == "auto" and on_cuda:
        if can_capture:
            train_step.capture(*batch)
        seconds = micro_steps * world.mean(time_micro_step(train_step, batch))
        compile = "yes" if seconds > 10 * COMPILE_SECONDS else "no"
        why = f"about {seconds / 60:.1f} minutes of training remain, and compiling takes {COMPILE_SECONDS} s"
    compiled = False
    if compile == "yes":
        if train_step.captured:
            train_step.release()  # compiling needs the memory of its graphs
        compiled = compile_forward(train_step, batch)
    if can_capture and not train_step.captured:
        train_step.capture(*batch)
    if on_cuda:
        graphs = "captured as CUDA graphs" if can_capture else f"not captured as CUDA graphs: {obstacle}"
        print(f"training step: {graphs}; {'compiled' if compiled else 'not compiled'} ({why})")
    return compiled


def obstacle_to_capture(train_step: TrainStep) -> str | None:
    """Return why a step cannot be a CUDA graph, or None."""
    if train_step.scaler.is_enabled():
        return "the gradient scaler of float16 waits for the device"
    if train_step.world.size > 1 or is_sharded(train_step.forward):
        return "ranks exchange gradients in it"
    if getattr(train_step.forward, "activation_checkpointing", False):
        return "activation checkpointing reads the state of the random generator"
    return None


def time_micro_step(train_step: TrainStep, batch: tuple[Tensor, Tensor]) -> float:
    """Return the seconds that forward and backward pass of a micro-batch take on CUDA; leaves no gradients behind."""
    train_step.load(*batch)
    train_step.run_micro_step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        train_step.run_micro_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / 5
    train_step.clear_gradients()
    return seconds


def compile_forward(train_step: TrainStep, batch: tuple[Tensor, Tensor]) -> bool:
    """Compile the model of a step if all ranks can, else print one line. Returns whether it is compiled."""
    plain = train_step.forward
    try:
        train_step.forward = torch.compile(plain, dynamic=False)
        train_step.x, train_step.y = (ids.to(train_step.device) for ids in batch)
        with train_step.no_sync():
            train_step.micro_step()
        failure = None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, no Triton, or any bug in them: the plain model works
        failure = first_line(error)
    train_step.clear_gradients()
    failures = [reason for reason in train_step.world.gather(failure) if reason]
    if failures:
        print(f"torch.compile is not available on this machine ({failures[0]}): training continues without it")
        train_step.forward = plain
    return not failures
