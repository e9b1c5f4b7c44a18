"""Optimizers, learning rate schedules, and the moving average of the weights."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.distributed import ALONE, World
from training.parallel import is_sharded, local_part, local_rows, shard_like
from training.settings import OptimSettings
from utils.forecast.plan import MUON_STACK


def make_optimizers(model: nn.Module, settings: OptimSettings, dtype: torch.dtype,
                    world: World = ALONE) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a GPT's trainable weights. Only the matrices in its blocks have weight decay.

    Muon is for matrices that multiply activations. AdamW has the embeddings, norms, biases, head and LoRA adapters.
    """
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # AdamW outside a graph
    device = model.head.weight.device
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    linears = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    matrices = [linear.weight for linear in linears if linear.weight.requires_grad]
    rest = [weight for weight in trainable if not any(weight is matrix for matrix in matrices)]
    # For shards, the fused operation would allocate whole weights, gradients and states in the first step.
    sharded, on_cuda = is_sharded(model.head.weight), device.type == "cuda"
    adamw = {"lr": torch.tensor(settings.adamw_lr, device=device), "betas": settings.betas, "fused": not sharded,
             "foreach": sharded and on_cuda, "capturable": on_cuda}
    if settings.name == "adamw" and matrices:
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, **adamw)]
    optimizers = [torch.optim.AdamW(rest, weight_decay=0.0, **adamw)]
    if matrices:
        rows = {block.attention.qkv.weight: [*block.attention.qkv_rows.values()] for block in model.blocks
                if block.attention.qkv.weight.requires_grad}
        matrices = [*rows, *(weight for weight in matrices if weight not in rows)]
        muon = Muon(matrices, torch.tensor(settings.muon_lr, device=device), weight_decay=settings.weight_decay,
                    momentum=settings.momentum, dtype=dtype, rows=rows, world=world)
        optimizers.insert(0, muon)
    return optimizers


Stack = list[tuple[Tensor, slice]]  # matrices of equal shape: the weight that has each, and its rows there


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al., 2024): an update changes a matrix equally in all its directions.

    The updates are those of `torch.optim.Muon`, with two differences: matrices of equal shape are orthogonalized
    together, and `dtype` is the compute dtype. torch's is always bfloat16, which takes fifty times as long as float32
    on a CPU without instructions for it.

    `rows` lists the numbers of rows of the matrices that a weight consists of, such as queries, keys and values: each
    is orthogonalized separately. The learning rate is a 0-dim tensor, so that a CUDA graph reads its current value. The
    ranks of a `world` have the same gradients, or shards of them: each orthogonalizes a part of the matrices for all.
    """

    def __init__(self, params: list[Tensor], lr: Tensor | float, *, weight_decay: float, momentum: float,
                 dtype: torch.dtype, rows: dict[Tensor, list[int]] | None = None, world: World = ALONE):
        super().__init__(params, {"lr": torch.as_tensor(lr), "weight_decay": weight_decay, "momentum": momentum})
        self.dtype, self.rows, self.world = dtype, rows or {}, world

    @torch.no_grad()
    def step(self) -> None:
        """Update all weights with their gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight not in self.state:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            averages = [local_part(self.state[weight]["momentum"]) for weight in group["params"]]
            gradients = [local_part(weight.grad) for weight in group["params"]]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            for stacks in self.rounds(group["params"]):
                self.update(stacks, group)

    def rounds(self, weights: list[Tensor]) -> Iterator[list[Stack]]:
        """Yield lists of stacks of matrices of equal shape: a stack for each rank, or fewer stacks than ranks.

        A stack has at most an equal part of these matrices, and at most MUON_STACK elements, or a single matrix.
        """
        by_shape = {}
        for weight in weights:
            start = 0
            for size in self.rows.get(weight, [len(weight)]):
                by_shape.setdefault((size, weight.size(1)), []).append((weight, slice(start, start + size)))
                start += size
        for (rows, columns), matrices in by_shape.items():
            equal_parts = -(-len(matrices) // self.world.size)  # rounded up
            at_once = max(1, min(equal_parts, MUON_STACK // (rows * columns)))
            stacks = [matrices[first : first + at_once] for first in range(0, len(matrices), at_once)]
            for first in range(0, len(stacks), self.world.size):
                yield stacks[first : first + self.world.size]

    def update(self, stacks: list[Stack], group: dict[str, Any]) -> None:
        """Update the matrices in the stacks of a round."""
        own = self.orthogonalized(stacks, group["momentum"])
        for rank, stack in enumerate(stacks):
            updates = self.broadcast(own, stack, rank).float()
            updates *= group["lr"] * max(1, updates.size(1) / updates.size(2)) ** 0.5
            self.apply(stack, updates, 1 - group["lr"] * group["weight_decay"])
            del updates  # before the next stack needs its own

    def orthogonalized(self, stacks: list[Stack], momentum: float) -> Tensor | None:
        """Return the orthogonalized momentum of this rank's stack, (N, r, c), in the compute dtype.

        None if there are fewer stacks than ranks, and none is for this rank.
        """
        matrices = self.nesterov(stacks, momentum)
        if not matrices:
            return None
        updates = torch.stack(matrices)
        del matrices
        updates /= updates.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # float16 has no smaller numbers
        updates = updates.to(self.dtype)  # a separate statement, which frees the float32 tensor
        return orthogonalize(updates)

    def nesterov(self, stacks: list[Stack], momentum: float) -> list[Tensor]:
        """Return Nesterov's momentum of the matrices in this rank's stack, (r, c) each."""
        own = stacks[self.world.rank] if self.world.rank < len(stacks) else []
        if not is_sharded(stacks[0][0][0]):
            gradients = [weight.grad[rows] for weight, rows in own]
            averages = [self.state[weight]["momentum"][rows] for weight, rows in own]
            return torch._foreach_lerp(gradients, averages, momentum) if own else []
        matrices = []
        for weight in dict.fromkeys(weight for stack in stacks for weight, _ in stack):  # all ranks gather all of them
            whole = weight.grad.lerp(self.state[weight]["momentum"], momentum).full_tensor()
            matrices += [whole[rows].clone() for other, rows in own if other is weight]
        return matrices

    def broadcast(self, own: Tensor | None, stack: Stack, rank: int) -> Tensor:
        """Return the update of a stack, (N, r, c), which `rank` has as its `own`."""
        if self.world.size == 1:
            return own
        if rank == self.world.rank:
            updates = own.contiguous()  # a transposed one cannot be sent
        else:
            weight, rows = stack[0]
            shape = len(stack), rows.stop - rows.start, weight.size(1)
            updates = torch.empty(shape, dtype=self.dtype, device=weight.device)
        dist.broadcast(updates, src=rank)
        return updates

    def apply(self, stack: Stack, updates: Tensor, decay: float) -> None:
        """Multiply the matrices in a stack by `decay` and subtract updates (N, r, c), in the rows of this rank."""
        weights, parts = [], []
        for (weight, rows), update in zip(stack, updates, strict=True):
            first, end = local_rows(weight, self.world)
            start, stop = max(rows.start, first), min(rows.stop, end)
            if start < stop:
                weights.append(local_part(weight)[start - first : stop - first])
                parts.append(update[start - rows.start : stop - rows.start])
        if weights:
            torch._foreach_mul_(weights, decay)
            torch._foreach_sub_(weights, parts)


def orthogonalize(x: Tensor) -> Tensor:
    """Bring the singular values of matrices x (N, r, c), at most 1, close to 1, by five Newton-Schulz iterations."""
    if x.size(1) > x.size(2):
        return orthogonalize(x.mT).mT
    for _ in range(5):  # x <- 3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x


def lr_factor(step: int, settings: OptimSettings, max_iters: int) -> float:
    """Return the learning rate of a step, 0 to max_iters - 1, as a fraction of the peak learning rate."""
    if step < settings.warmup_iters:
        return (step + 1) / (settings.warmup_iters + 1)
    left = 1 - (step - settings.warmup_iters) / max(1, max_iters - settings.warmup_iters)  # 1 to 0 after the warmup
    decay = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "wsd": min(1.0, 5 * left)}
    return settings.final_lr + (1 - settings.final_lr) * decay[settings.schedule]


class WeightAverage:
    """Exponential moving average (EMA) of a model's trainable weights, whose loss is often lower.

    After step t, from 0, the average moves by the fraction max(1 - decay, 9 / (t + 10)) towards the weights: the first
    steps, which start from random weights, are forgotten sooner.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.decay = decay
        self.rate = torch.zeros((), device=model.head.weight.device)  # a tensor, for CUDA graphs

    def set_step(self, step: int) -> None:
        """Set the rate of the next `update` to that of a step."""
        self.rate.fill_(max(1 - self.decay, 9 / (step + 10)))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        for name, average in self.averages.items():
            average.lerp_(self.weights[name], self.rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their averages."""
        for name, average in self.averages.items():
            weight_before = self.weights[name].clone()
            self.weights[name].copy_(average)
            average.copy_(weight_before)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def load(self, averages: dict[str, Tensor]) -> None:
        """Continue from saved averages, by name."""
        for name, average in self.averages.items():
            average.copy_(shard_like(averages[name], average))
