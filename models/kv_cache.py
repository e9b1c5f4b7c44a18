"""Key-value caches: the keys and values of the tokens so far, which attention reads instead of computing them again.

Shapes: T new tokens, S all tokens, nkv key-value heads, hs head size. A cache holds one sequence: the batch is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.gpt import GPT


class KVCache:
    """The caches of all layers, for one sequence of up to block_size tokens.

    On a CPU, its dtype is float32: attention over keys in bfloat16 takes three to six times as long there.
    """

    def __init__(self, model: GPT):
        config, self.device = model.config, model.device
        self.shape = (1, config.kv_heads, config.block_size, config.head_size)
        self.dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        self.layers = [self.make_layer() for _ in model.blocks]

    def make_layer(self) -> LayerCache:
        return LayerCache(self.shape, self.dtype, self.device)

    def next_positions(self, n: int) -> Tensor:
        """Return the positions (n) of the next n tokens."""
        length = self.layers[0].length
        return torch.arange(length, length + n, device=self.device)

    def clear(self) -> None:
        for layer in self.layers:
            layer.length = 0


class LayerCache:
    """Keys and values of one layer, (1, nkv, block_size, hs) each, filled from the left."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        self.keys, self.values = torch.zeros(2, *shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store k and v (1, nkv, T, hs); return all keys and values so far, (1, nkv, S, hs) each, and no mask."""
        end = self.length + k.size(2)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end], None


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------


class StaticKVCache(KVCache):
    """A KVCache for CUDA graphs: several tokens may follow only an empty cache; a single one goes to `position`."""

    def __init__(self, model: GPT):
        self.position = torch.zeros(1, dtype=torch.long, device=model.device)
        super().__init__(model)

    def make_layer(self) -> StaticLayerCache:
        return StaticLayerCache(self.shape, self.dtype, self.device, self.position)

    def next_positions(self, n: int) -> Tensor:
        return self.position if n == 1 else super().next_positions(n)

    def clear(self) -> None:
        super().clear()
        self.position.zero_()


class StaticLayerCache(LayerCache):
    """A LayerCache for CUDA graphs: a single token is stored at `position`, a tensor (1), and shapes never change."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, position: Tensor):
        super().__init__(shape, dtype, device)
        self.position, self.positions = position, torch.arange(shape[2], device=device)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store k and v; for a single token, return the whole cache and a mask (1, S) of its valid positions."""
        if k.size(2) > 1:
            return super().append(k, v)
        self.keys.index_copy_(2, self.position, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.position, v.to(self.values.dtype))
        return self.keys, self.values, (self.positions <= self.position)[None]
