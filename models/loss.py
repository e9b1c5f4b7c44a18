"""Cross-entropy with bounded memory."""

import torch
import torch.nn.functional as F

from models.lora import LoRALinear
from utils.forecast.plan import LOGITS_CHUNK


def cross_entropy(h, heads, y):
    """Mean cross-entropy of the predictions of `heads`, each an nn.Linear, from h (B, T, C), for targets y (B, T).

    Targets of -100 are ignored; without any others, the loss is 0. Each other target belongs to one head, whose outputs
    are numbered after those of the heads before it.
    """
    if len(heads) == 1:
        return head_loss(h, heads[0], y)
    loss, first, n_targets = 0.0, 0, (y != -100).sum().clamp(min=1)
    for head in heads:
        own = (y >= first) & (y < first + head.out_features)
        loss = loss + head_loss(h, head, torch.where(own, y - first, -100)) * own.sum() / n_targets
        first += head.out_features
    return loss


def head_loss(h, head, y):
    """Mean cross-entropy of the predictions of one head, as `cross_entropy`.

    For a large vocabulary, the logits of all tokens would be the largest tensor of a training step: this computes those
    of one chunk of tokens at a time.
    """
    weight = head.merged_weight() if isinstance(head, LoRALinear) else head.weight
    inputs = h.flatten(0, 1), weight, head.bias
    needed = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    return ChunkedCrossEntropy.apply(*inputs, y.flatten(), *needed)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits h weight^T + bias, for h (M, C), weight (V, C), bias (V) or None, targets (M).

    Its gradient with respect to the logits is softmax(logits) minus 1 at the target, which needs no later result. So
    the forward pass also computes the gradients of those of its inputs that need one, chunk by chunk; the backward pass
    only scales them.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, targets, h_needs_grad, weight_needs_grad, bias_needs_grad):
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        with torch.autocast(device, enabled=False):
            x, w = h.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            total = torch.zeros((), device=h.device)
            h_grad = torch.empty_like(x) if h_needs_grad else None
            weight_grad = torch.zeros_like(weight) if weight_needs_grad else None
            bias_grad = torch.zeros_like(bias) if bias_needs_grad else None
            size = max(1, LOGITS_CHUNK // len(weight))
            for start in range(0, len(h), size):
                chunk = slice(start, start + size)
                logits = F.linear(x[chunk], w, b).float()  # (M', V)
                total += F.cross_entropy(logits, targets[chunk], ignore_index=-100, reduction="sum")
                if h_needs_grad or weight_needs_grad or bias_needs_grad:
                    logits_grad = gradient(logits, targets[chunk])
                    del logits  # here and below: what is not needed must not be alive beside the next large tensor
                    if bias_needs_grad:
                        bias_grad += logits_grad.sum(0)
                    logits_grad = logits_grad.to(dtype)
                    if h_needs_grad:
                        h_grad[chunk] = logits_grad @ w
                    if weight_needs_grad:
                        weight_grad += logits_grad.T @ x[chunk]
                    del logits_grad
            n = (targets != -100).sum().clamp(min=1)
            ctx.gradients = h_grad, weight_grad, bias_grad, n
            return total / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad):
        *gradients, n = ctx.gradients
        del ctx.gradients
        scale = loss_grad / n
        h_grad, weight_grad, bias_grad = (None if grad is None else grad.mul_(scale) for grad in gradients)
        return h_grad, weight_grad, bias_grad, None, None, None, None


def gradient(logits, targets):
    """Gradient (M, V) of the summed cross-entropy with respect to logits (M, V), for targets (M)."""
    gradient = logits.softmax(dim=-1)
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets.clamp(min=0)] -= 1
    gradient *= (targets != -100)[:, None]
    return gradient
