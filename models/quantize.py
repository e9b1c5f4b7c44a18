"""Int8 weights, for inference: a quarter of the size in float32.

Every matrix is quantized: the weights of linear layers and the embedding tables, learned positions included. Norms and
biases stay in float, and so do activations.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.lora import children
from utils.forecast.parameters import weight_bytes
from utils.forecast.units import format_bytes

KERNEL_COLUMNS = 16  # the kernel reads rows in pieces of this length, and beyond the end of rows of other lengths


class Int8Matrix(nn.Module):
    """A matrix (rows, columns) of 8-bit integers with one scale per row, symmetric:

        scale[i] = max_j |weight[i, j]| / 127            rounded to bfloat16, so that it is the same in float32
        int8[i, j] = round(weight[i, j] / scale[i])      from -127 to 127
        weight[i, j] = scale[i] int8[i, j]               within scale[i] / 2
    """

    def __init__(self, weight):
        """`weight` is a float tensor (rows, columns), on any device."""
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127  # (rows, 1)
        scale = scale.clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16().float()  # > 0, for rows of zeros
        self.register_buffer("int8", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def dequantize(self):
        """The matrix (rows, columns) in the dtype of the model."""
        return self.int8 * self.scale


class Int8Linear(nn.Module):
    """An nn.Linear whose weight is an Int8Matrix (out, in)."""

    def __init__(self, matrix, bias):
        super().__init__()
        self.matrix, self.bias = matrix, bias
        self.out_features, self.in_features = matrix.int8.shape

    @property
    def weight(self):
        """The weight (out, in) in the dtype of the model: a new tensor each time."""
        return self.matrix.dequantize()

    def forward(self, x):
        """x (..., in) -> (..., out)"""
        if not self.has_kernel(x):
            return F.linear(x, self.weight, self.bias)
        y = torch._weight_int8pack_mm(x.reshape(1, -1), self.matrix.int8, self.matrix.scale.view(-1))  # (1, out)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def has_kernel(self, x):
        """Whether to use PyTorch's kernel for int8 weights, which needs no copy of them in the dtype of x: for a single
        token on a CPU in bfloat16. There, reading the weights takes most of the time."""
        return (x.device.type == "cpu" and x.dtype == self.matrix.scale.dtype == torch.bfloat16
                and x.numel() == self.in_features and self.in_features % KERNEL_COLUMNS == 0)


class Int8Embedding(nn.Module):
    """An nn.Embedding whose weight is an Int8Matrix (V, C)."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, ids):
        """ids (...) -> (..., C)"""
        return self.matrix.int8[ids] * self.matrix.scale[ids]


def quantize_int8(model):
    """Quantize all matrices of a GPT to int8, in place. A tied head and token embedding stay one matrix.

    The model can then no longer be trained or saved.
    """
    for parent, name, embedding in children(model, nn.Embedding):
        setattr(parent, name, Int8Embedding(Int8Matrix(embedding.weight)))
    for parent, name, linear in children(model, nn.Linear):
        tied = linear is model.head and model.config.tied_head
        matrix = model.token_embedding.matrix if tied else Int8Matrix(linear.weight)
        setattr(parent, name, Int8Linear(matrix, linear.bias))


def int8_summary(config):
    """A line with the sizes of the weights of a model, for its ModelConfig."""
    before, after = weight_bytes(config, "float32"), weight_bytes(config, "int8")
    return f"int8 weights: {format_bytes(after)}, {after / before:.3f} times the {format_bytes(before)} of float32"
