"""Key-value caches: what attention needs to remember of the tokens so far."""

import torch


class LayerCache:
    """Keys and values of one layer, (B, nkv, block_size, hs) each, filled from the left."""

    def __init__(self, shape, dtype, device):
        self.keys, self.values = torch.zeros(2, *shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, k, v):
        """Store k and v (B, nkv, T, hs). Returns all keys and values so far, (B, nkv, S, hs) each, and no mask."""
        end = self.length + k.size(2)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end], None


class StaticLayerCache(LayerCache):
    """A LayerCache for CUDA graphs: a single token is stored at `position`, a tensor (1), and shapes never change."""

    def __init__(self, shape, dtype, device, position):
        super().__init__(shape, dtype, device)
        self.position, self.positions = position, torch.arange(shape[2], device=device)

    def append(self, k, v):
        """As in LayerCache; for a single token, returns the whole cache and a mask (1, S) of its valid positions."""
        if k.size(2) > 1:
            return super().append(k, v)
        self.keys.index_copy_(2, self.position, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.position, v.to(self.values.dtype))
        return self.keys, self.values, (self.positions <= self.position)[None]


class KVCache:
    """The caches of all layers, for one sequence of up to block_size tokens.

    On a CPU, its dtype is float32: attention over keys in bfloat16 takes three to six times as long there.
    """

    def __init__(self, model):
        config, self.device = model.config, model.device
        self.shape = (1, config.kv_heads, config.block_size, config.head_size)
        self.dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        self.layers = [self.make_layer() for _ in model.blocks]

    def make_layer(self):
        return LayerCache(self.shape, self.dtype, self.device)

    def next_positions(self, n):
        """The positions (n) of the next n tokens."""
        length = self.layers[0].length
        return torch.arange(length, length + n, device=self.device)

    def clear(self):
        for layer in self.layers:
            layer.length = 0


class StaticKVCache(KVCache):
    """A KVCache for CUDA graphs. Several tokens may follow only an empty cache; a single one goes to `position`."""

    def __init__(self, model):
        self.position = torch.zeros(1, dtype=torch.long, device=model.device)
        super().__init__(model)

    def make_layer(self):
        return StaticLayerCache(self.shape, self.dtype, self.device, self.position)

    def next_positions(self, n):
        return self.position if n == 1 else super().next_positions(n)

    def clear(self):
        super().clear()
        self.position.zero_()
