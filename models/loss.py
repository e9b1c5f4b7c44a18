"""Cross-entropy with bounded memory."""

import torch
import torch.nn.functional as F

from utils.memory import LOGITS_CHUNK


def cross_entropy(h, head, y):
    """Mean cross-entropy of the predictions of `head`, an nn.Linear, from h (B, T, C), for targets y (B, T).

    Targets of -100 are ignored; without any others, the loss is 0. For a large vocabulary, the logits of all tokens
    would be the largest tensor of a training step: this computes those of one chunk of tokens at a time.
    """
    with_gradients = torch.is_grad_enabled()
    return ChunkedCrossEntropy.apply(h.flatten(0, 1), head.weight, head.bias, y.flatten(), with_gradients)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits h weight^T + bias, for h (M, C), weight (V, C), bias (V) or None, targets (M).

    Its gradient with respect to the logits is softmax(logits) minus 1 at the target, which needs no later result. So
    the forward pass computes the gradients of its inputs, too, chunk by chunk; the backward pass only scales them.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, targets, with_gradients):
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        with torch.autocast(device, enabled=False):
            x, w = h.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            total = torch.zeros((), device=h.device)
            if with_gradients:
                h_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
                bias_grad = None if bias is None else torch.zeros_like(bias)
            size = max(1, LOGITS_CHUNK // len(weight))
            for start in range(0, len(h), size):
                chunk = slice(start, start + size)
                logits = F.linear(x[chunk], w, b).float()  # (M', V)
                total += F.cross_entropy(logits, targets[chunk], ignore_index=-100, reduction="sum")
                if with_gradients:
                    logits_grad = gradient(logits, targets[chunk])
                    del logits  # here and below: what is not needed must not be alive beside the next large tensor
                    if bias is not None:
                        bias_grad += logits_grad.sum(0)
                    logits_grad = logits_grad.to(dtype)
                    h_grad[chunk] = logits_grad @ w
                    weight_grad += logits_grad.T @ x[chunk]
                    del logits_grad
            n = (targets != -100).sum().clamp(min=1)
            if with_gradients:
                ctx.gradients = h_grad, weight_grad, bias_grad, n
            return total / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad):
        h_grad, weight_grad, bias_grad, n = ctx.gradients
        del ctx.gradients
        scale = loss_grad / n
        if bias_grad is not None:
            bias_grad = bias_grad.mul_(scale)
        return h_grad.mul_(scale), weight_grad.mul_(scale), bias_grad, None, None


def gradient(logits, targets):
    """Gradient (M, V) of the summed cross-entropy with respect to logits (M, V), for targets (M)."""
    gradient = logits.softmax(dim=-1)
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets.clamp(min=0)] -= 1
    gradient *= (targets != -100)[:, None]
    return gradient
