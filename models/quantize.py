"""Int8 weights, for inference: a quarter of the size in float32.

All matrices are quantized: linear layers and embeddings, including learned positions. Norms, biases and activations
stay in floating point.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.gpt import GPT
from models.lora import find_modules
from utils.forecast.parameters import weight_bytes
from utils.forecast.units import format_bytes

KERNEL_COLUMNS = 16  # the kernel reads rows in pieces of this length, beyond the end of rows of other lengths


class Int8Matrix(nn.Module):
    """A matrix (rows, columns) of 8-bit integers, with one scale per row (symmetric quantization).

        scale[i] = max_j |weight[i, j]| / 127            rounded to bfloat16, so that it is the same in float32
        int8[i, j] = round(weight[i, j] / scale[i])      from -127 to 127
        weight[i, j] = scale[i] int8[i, j]               within scale[i] / 2
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127  # (rows, 1)
        scale = scale.clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16().float()  # > 0, even for rows of zeros
        self.register_buffer("int8", (weight / scale).round().to(torch.int8))  # (rows, columns)
        self.register_buffer("scale", scale)

    def dequantize(self) -> Tensor:
        """Return the matrix (rows, columns) in the dtype of the model."""
        return self.int8 * self.scale


class Int8Linear(nn.Module):
    """An nn.Linear whose weight is an Int8Matrix (out, in)."""

    def __init__(self, matrix: Int8Matrix, bias: nn.Parameter | None):
        super().__init__()
        self.matrix, self.bias = matrix, bias
        self.out_features, self.in_features = matrix.int8.shape

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) in the dtype of the model; a new tensor each time."""
        return self.matrix.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        if not self.has_kernel(x):
            return F.linear(x, self.weight, self.bias)
        y = torch._weight_int8pack_mm(x.reshape(1, -1), self.matrix.int8, self.matrix.scale.view(-1))  # (1, out)
        y = y.view(*x.shape[:-1], -1)  # (..., out)
        return y if self.bias is None else y + self.bias

    def has_kernel(self, x: Tensor) -> bool:
        """Return whether PyTorch has a kernel for these int8 weights: for a single token on a CPU in bfloat16.

        It needs no copy of the weights in the dtype of x; reading them takes most of the time there.
        """
        return (x.device.type == "cpu" and x.dtype == self.matrix.scale.dtype == torch.bfloat16
                and x.numel() == self.in_features and self.in_features % KERNEL_COLUMNS == 0)


class Int8Embedding(nn.Module):
    """An nn.Embedding whose weight is an Int8Matrix (V, C)."""

    def __init__(self, matrix: Int8Matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., C) for token ids (...)."""
        return self.matrix.int8[ids] * self.matrix.scale[ids]


def quantize_int8(model: GPT) -> None:
    """Quantize all matrices of a GPT to int8, in place; it can then no longer be trained or saved.

    A tied head and the token embedding stay one matrix.
    """
    for parent, name, embedding in find_modules(model, nn.Embedding):
        setattr(parent, name, Int8Embedding(Int8Matrix(embedding.weight)))
    for parent, name, linear in find_modules(model, nn.Linear):
        is_tied = linear is model.head and model.config.tied_head
        matrix = model.token_embedding.matrix if is_tied else Int8Matrix(linear.weight)
        setattr(parent, name, Int8Linear(matrix, linear.bias))


def int8_summary(config: ModelConfig) -> str:
    """Return a line with the size of a model's weights in int8 and in float32."""
    before, after = weight_bytes(config, "float32"), weight_bytes(config, "int8")
    return f"int8 weights: {format_bytes(after)}, {after / before:.3f} times the {format_bytes(before)} of float32"
