"""The weights of a model by their names in a checkpoint file.

Names and tensors are as in the state_dict, with one exception: where the model has one fused matrix `qkv`, a file has
three, `query`, `key` and `value`, as in transformer_4d.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from models.gpt import GPT

ADAPTERS = ("lora_a", "lora_b")  # how the names of LoRA's weights end


def file_weights(model: GPT, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a GPT by their names in a checkpoint file, without LoRA adapters.

    `weights` is a state_dict of the model; by default the current one, and the result shares memory with the model.
    """
    weights = model.state_dict() if weights is None else weights
    weights = {name: weight for name, weight in weights.items() if not name.endswith(ADAPTERS)}
    for name, parts in fused_weights(model):
        views = weights.pop(name).split([*parts.values()])
        weights.update(zip(parts, views, strict=True))
    return weights


def load_file_weights(model: GPT, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights, pairs of a name in a checkpoint file and a tensor, into a GPT.

    Raises RuntimeError unless every weight is there exactly once, with the right shape.
    """
    own, loaded = file_weights(model), set()
    for name, weight in weights:
        if name not in own or name in loaded:
            raise RuntimeError(f"Unexpected weight {name}")
        if weight.shape != own[name].shape:
            raise RuntimeError(f"{name} has shape {tuple(weight.shape)}, not {tuple(own[name].shape)}")
        own[name].copy_(weight)  # in place: tied weights stay one tensor, and the dtype is that of the model
        loaded.add(name)
    if loaded < own.keys():
        raise RuntimeError(f"Missing weights: {', '.join(own.keys() - loaded)}")


def fused_weights(model: GPT) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the name of every fused tensor in a GPT's state_dict, and {name in a file: number of rows} of its parts."""
    kinds = ("weight", "bias") if model.config.has_qkv_bias else ("weight",)
    for i, block in enumerate(model.blocks):
        prefix = f"blocks.{i}.attention"
        for kind in kinds:
            yield f"{prefix}.qkv.{kind}", {f"{prefix}.{part}.{kind}": n for part, n in block.attention.qkv_rows.items()}


def is_finite(weight: Tensor) -> bool:
    """Return whether all values of a tensor are finite."""
    low, high = torch.aminmax(weight)  # unlike isfinite, without a copy; NaN propagates to both
    return bool(low.isfinite() and high.isfinite())


class SkipInitialization(TorchFunctionMode):
    """Context in which new models keep uninitialized weights, for weights that are loaded next."""

    SKIPPED = {nn.init.normal_, nn.init.kaiming_uniform_, torch.Tensor.normal_, torch.Tensor.zero_}

    def __torch_function__(self, function: Callable, types: Iterable[type], args: tuple = (),
                           kwargs: dict[str, Any] | None = None):
        kwargs = kwargs or {}
        if function in self.SKIPPED:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
