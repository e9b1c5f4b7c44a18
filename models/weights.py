"""The weights of a model under their names in a checkpoint file.

They differ from those of a state_dict in one way: a file holds queries, keys and values as three matrices `query`,
`key` and `value`, as transformer_4d.py does, where the model has one fused matrix `qkv`.
"""

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

ADAPTERS = ("lora_a", "lora_b")  # weights of LoRA


def file_weights(model, weights=None):
    """The weights of a GPT by their names in a checkpoint file, without adapters of LoRA.

    `weights` is a state_dict of the model; by default the current one, and the result shares memory with the model.
    """
    weights = model.state_dict() if weights is None else weights
    weights = {name: weight for name, weight in weights.items() if not name.endswith(ADAPTERS)}
    for name, parts in fused_weights(model):
        views = weights.pop(name).split([*parts.values()])
        weights.update(zip(parts, views, strict=True))
    return weights


def load_file_weights(model, weights):
    """Copy weights, an iterable of (name in a checkpoint file, tensor), into a GPT.

    Raises RuntimeError unless every weight is there exactly once, with its shape.
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


def fused_weights(model):
    """Yield the name of every fused tensor in a GPT's state_dict, and {name in a file: number of rows} of its parts."""
    for i, block in enumerate(model.blocks):
        prefix = f"blocks.{i}.attention"
        for kind in ("weight", "bias") if model.config.has_qkv_bias else ("weight",):
            yield f"{prefix}.qkv.{kind}", {f"{prefix}.{part}.{kind}": n for part, n in block.attention.qkv_rows.items()}


def is_finite(weight):
    """Whether all values of a tensor are finite."""
    low, high = torch.aminmax(weight)  # unlike isfinite, without a copy; NaN propagates to both
    return bool(low.isfinite() and high.isfinite())


class SkipInitialization(TorchFunctionMode):
    """Context in which new models keep uninitialized weights, for models whose weights are loaded next."""

    SKIPPED = {nn.init.normal_, nn.init.kaiming_uniform_, torch.Tensor.normal_, torch.Tensor.zero_}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.SKIPPED:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
