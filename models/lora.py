"""LoRA: fine-tuning that adds a trained low-rank matrix to frozen ones (Hu et al., 2021, section 4.1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.weights import ADAPTERS, file_weights
from utils.errors import UserError
from utils.forecast.parameters import check_lora

if TYPE_CHECKING:
    from models.gpt import GPT


class LoRALinear(nn.Linear):
    """A frozen linear layer plus a trained low-rank one: y = x W^T + b + alpha / rank (x A^T) B^T.

    `lora_a` is A (rank, in) and `lora_b` is B (out, rank). B starts at zero, so that training starts from the frozen
    layer. W and b are the weight and bias of `linear`, and keep their names.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.scale = alpha / rank
        options = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **options))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **options))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear does

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_a) * self.scale, self.lora_b)  # (..., in) -> (..., rank) -> (..., out)
        return super().forward(x) + change

    def merged_weight(self) -> Tensor:
        """Return W + alpha / rank B A (out, in), computed in float32, even under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            change = self.lora_b.float() @ (self.lora_a.float() * self.scale)
            return (self.weight.float() + change).to(self.weight.dtype)


def add_lora(model: GPT, rank: int, alpha: float, targets: Collection[str]) -> None:
    """Add adapters to the matrices that `targets` names: qkv, out, up, down, gate (in every block of a GPT), head.

    All weights but the adapters and the head of a classifier are frozen. Raises UserError for a target that the model
    does not have, or that cannot have an adapter.
    """
    check_lora(model.config, rank, targets)
    if not alpha > 0:
        raise UserError(f"LoRA's alpha cannot be {alpha}: it must be > 0")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise UserError("the model has LoRA adapters already: merge them first")
    model.requires_grad_(False)
    for parent, name, linear in find_modules(model, nn.Linear):
        if name in targets:
            setattr(parent, name, LoRALinear(linear, rank, alpha))
    if model.config.n_labels is not None:
        model.head.requires_grad_(True)


def merge_lora(model: GPT) -> None:
    """Replace every LoRALinear by an nn.Linear with its `merged_weight`, and make all weights trainable."""
    for parent, name, lora in find_modules(model, LoRALinear):
        linear = nn.Linear(lora.in_features, lora.out_features, bias=lora.bias is not None, device="meta")
        with torch.no_grad():
            linear.weight, linear.bias = nn.Parameter(lora.merged_weight()), lora.bias
        setattr(parent, name, linear)
    model.requires_grad_(True)


def merged_weights(model: GPT) -> dict[str, Tensor]:
    """Return the weights of a model by their names in a checkpoint file, with any adapters merged into them."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            weights[f"{name}.weight"] = module.merged_weight().detach()
    return file_weights(model, weights)


def find_modules(model: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return (parent, name in the parent, module) of every module of a class in a model."""
    return [(parent, name, module) for parent in model.modules() for name, module in parent.named_children()
            if isinstance(module, kind)]


def lora_weights(model: GPT) -> dict[str, Tensor]:
    """Return the weights that LoRA trains, by name: the adapters, and the head of a classifier.

    They share memory with the model.
    """
    trained = ("head.",) if model.config.n_labels is not None else ()
    return {name: weight for name, weight in model.state_dict().items()
            if name.endswith(ADAPTERS) or name.startswith(trained)}


def load_lora_weights(model: GPT, weights: dict[str, object]) -> None:
    """Load the result of `lora_weights` into a model after `add_lora`.

    Raises UserError, which names the tensor, unless names and shapes match exactly; the model is then unchanged.
    """
    expected = lora_weights(model)
    for name in weights:
        if name not in expected:
            raise UserError(f"the LoRA weights have {name}, which matches no adapter: use the rank, targets and base "
                            "model they were trained with")
    for name, weight in expected.items():
        if name not in weights:
            raise UserError(f"the LoRA weights are missing {name}: use the targets and base model they were trained "
                            "with")
        if not isinstance(weights[name], torch.Tensor) or weights[name].shape != weight.shape:
            raise UserError(f"in the LoRA weights, {name} does not have the shape {tuple(weight.shape)}: use the rank "
                            "and base model they were trained with")
    for name, weight in expected.items():
        weight.copy_(weights[name])


def base_weights(model: GPT) -> dict[str, Tensor]:
    """Return the weights that LoRA does not train, by their names in a checkpoint file.

    They share memory with the model.
    """
    trained = lora_weights(model)
    return {name: weight for name, weight in file_weights(model).items() if name not in trained}


def fingerprint(model: GPT) -> str:
    """Return the SHA-256 of the `base_weights`, which identifies the model that adapters were trained for."""
    sha = hashlib.sha256()
    for name, weight in sorted(base_weights(model).items()):
        sha.update(name.encode())
        sha.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()
