"""Cross-entropy with bounded memory.

Shapes: B batch, T time, C n_embd, V logits per position; M is the number of positions, B times T.
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.lora import LoRALinear
from utils.forecast.plan import LOGITS_CHUNK


def cross_entropy(h: Tensor, heads: list[nn.Linear], y: Tensor) -> Tensor:
    """Return the mean cross-entropy of the predictions of `heads` from h (B, T, C), for targets y (B, T).

    Targets of -100 are ignored; if there are no others, the loss is 0. Each other target belongs to one head: the
    outputs of all heads are numbered consecutively.
    """
    if len(heads) == 1:
        return head_loss(h, heads[0], y)
    loss, first, n_targets = 0.0, 0, (y != -100).sum().clamp(min=1)
    for head in heads:
        of_head = (y >= first) & (y < first + head.out_features)  # (B, T)
        loss = loss + head_loss(h, head, torch.where(of_head, y - first, -100)) * of_head.sum() / n_targets
        first += head.out_features
    return loss


def head_loss(h: Tensor, head: nn.Linear, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of the predictions of one head from h (B, T, C), for targets y (B, T).

    With a large vocabulary, the logits of all positions would be the largest tensor of a training step, so they are
    computed for one chunk of positions at a time.
    """
    weight = head.merged_weight() if isinstance(head, LoRALinear) else head.weight
    inputs = h.flatten(0, 1), weight, head.bias  # (M, C), (V, C), (V)
    needs_grad = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    return ChunkedCrossEntropy.apply(*inputs, y.flatten(), *needs_grad)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits h weight^T + bias, for h (M, C), weight (V, C), bias (V) or None, targets (M).

    Its gradient with respect to the logits is softmax(logits) minus 1 at the target, which needs no later result. So
    the forward pass also computes the gradients of its inputs, chunk by chunk; the backward pass only scales them.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                h_needs_grad: bool, weight_needs_grad: bool, bias_needs_grad: bool) -> Tensor:
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        with torch.autocast(device, enabled=False):
            x, w = h.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            total = torch.zeros((), device=h.device)
            h_grad = torch.empty_like(x) if h_needs_grad else None
            weight_grad = torch.zeros_like(weight) if weight_needs_grad else None
            bias_grad = torch.zeros_like(bias) if bias_needs_grad else None
            chunk_size = max(1, LOGITS_CHUNK // len(weight))  # M', in positions
            for start in range(0, len(h), chunk_size):
                chunk = slice(start, start + chunk_size)
                logits = F.linear(x[chunk], w, b).float()  # (M', C) -> (M', V)
                total += F.cross_entropy(logits, targets[chunk], ignore_index=-100, reduction="sum")
                if h_needs_grad or weight_needs_grad or bias_needs_grad:
                    logits_grad = gradient_of_logits(logits, targets[chunk])  # (M', V)
                    del logits  # here and below: free each large tensor before the next one is allocated
                    if bias_needs_grad:
                        bias_grad += logits_grad.sum(0)  # (V)
                    logits_grad = logits_grad.to(dtype)
                    if h_needs_grad:
                        h_grad[chunk] = logits_grad @ w  # (M', C)
                    if weight_needs_grad:
                        weight_grad += logits_grad.T @ x[chunk]  # (V, C)
                    del logits_grad
            n_targets = (targets != -100).sum().clamp(min=1)
            ctx.save_for_backward(h_grad, weight_grad, bias_grad, n_targets)
            return total / n_targets

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, n_targets = ctx.saved_tensors
        scale = loss_grad / n_targets
        h_grad, weight_grad, bias_grad = (None if grad is None else grad.mul_(scale) for grad in gradients)
        return h_grad, weight_grad, bias_grad, None, None, None, None


def gradient_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient (M, V) of the summed cross-entropy with respect to logits (M, V), for targets (M)."""
    gradient = logits.softmax(dim=-1)
    if torch.compiler.is_compiling():  # fused with the softmax and the cast that follows: nothing is stored in float32
        ids = torch.arange(logits.size(1), device=targets.device)
        gradient = gradient - (ids == targets[:, None]).float()
    else:
        rows = torch.arange(len(targets), device=targets.device)
        gradient[rows, targets.clamp(min=0)] -= 1
    gradient *= (targets != -100)[:, None]
    return gradient
