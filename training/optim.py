"""Optimizers and the course of their learning rates."""

import math

import torch


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each step goes equally far in all directions of a matrix (Jordan et al., 2024).

    The steps are those of `torch.optim.Muon`, which always multiplies in bfloat16, though: on a CPU that has no
    instructions for it, that takes fifty times as long as float32. `dtype` is what it multiplies in here. A group may
    say how many `rows` belong together, where several matrices are kept as one: each is orthogonalised by itself.
    """

    def __init__(self, params, lr, weight_decay, momentum, dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "rows": None})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight not in self.state:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum"]
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(momentum, group["momentum"]).to(self.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                sizes = group["rows"] or [len(weight)]
                for matrix, its_update in zip(weight.split(sizes), update.split(sizes), strict=True):
                    rows, columns = matrix.shape
                    matrix.add_(orthogonal(its_update), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrix):
    """Bring all singular values of a matrix near 1, by five Newton-Schulz iterations: nothing but products."""
    x = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)  # -4.7750 a + 2.0315 a a
        x = torch.addmm(x, b, x, beta=3.4445)  # 3.4445 x + b x
    return x.T if matrix.size(0) > matrix.size(1) else x


def make_optimizers(model, s, dtype):
    """The optimizers for a GPT by OptimSettings. Weight decay is for the matrices in its blocks alone.

    The others are few and not products of one another: embeddings, norms, biases and the head.
    """
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    if s.name == "adamw":
        groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, s.adamw_lr, betas=s.betas, fused=True)]
    joined = [block.attention.qkv.weight for block in model.blocks]
    single = [weight for weight in matrices if not any(weight is other for other in joined)]
    groups = [{"params": joined, "rows": [*model.blocks[0].attention.parts.values()]}, {"params": single}]
    return [Muon(groups, s.muon_lr, s.weight_decay, s.momentum, dtype),
            torch.optim.AdamW(others, s.adamw_lr, betas=s.betas, weight_decay=0.0, fused=True)]


def lr_factor(step, s, max_iters):
    """The share of the highest learning rate that step number `step`, from 0, of `max_iters` takes."""
    if step < s.warmup_iters:
        return (step + 1) / (s.warmup_iters + 1)
    left = 1 - (step - s.warmup_iters) / max(1, max_iters - s.warmup_iters)  # of the time after the warm-up: 1 to 0
    fall = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "wsd": min(1.0, 5 * left)}[s.schedule]
    return s.final_lr + (1 - s.final_lr) * fall
