"""GPT: embeddings, blocks, norm, head."""

import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig
from models.layers import Block, NoPosition, NoRotation, Rotary, make_norm


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al., 2018). The named models of `models.zoo` are its subclasses.

    A subclass has a `config`; keyword arguments change fields of it: `GPT2(n_blocks=6)`. What does not fit together
    raises UserError, and a name that is not a field TypeError.
    """

    config: ModelConfig

    def __init__(self, **changes):
        super().__init__()
        self.config = config = dataclasses.replace(type(self).config, **changes)
        self.block_size = config.block_size
        self.activation_checkpointing = False  # True: recompute a block's activations for its gradient, to save memory
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        learned = config.position == "learned"
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if learned else NoPosition()
        self.rotary = NoRotation() if learned else Rotary(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.final_norm = make_norm(config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.reset_parameters()
        if config.tied:
            self.head.weight = self.token_embedding.weight

    def reset_parameters(self):
        """Embeddings of std 0.02. Zeros where a block or the head ends: a block adds nothing at first, a calm start.

        With a tied head each token would then guess itself, and be sure of it. There a block ends as in GPT-2, with std
        0.02 / sqrt(2 n_blocks).
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)
        end_std = 0.02 * (2 * self.config.n_blocks) ** -0.5 if self.config.tied else 0.0
        for block in self.blocks:
            nn.init.normal_(block.attention.out.weight, std=end_std)
            nn.init.normal_(block.feed_forward.down.weight, std=end_std)

    def features(self, x, cache=None):
        """What the head reads, (B, T, C), for token ids x (B, T).

        With a `KVCache`, x continues the tokens that are in there: any number of them if it is empty, else one.
        """
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + x.size(1), device=x.device)  # (T)
        h = self.dropout(self.token_embedding(x) + self.position_embedding(positions))  # (B, T) -> (B, T, C)
        rotation = self.rotary(positions)
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                h = checkpoint(block, h, rotation, use_reentrant=False)
            else:
                h = block(h, rotation, None if cache is None else cache.layers[i])
        return self.final_norm(h)

    def forward(self, x, y=None):
        """Logits (B, T, V) in float32 for token ids x (B, T), and the mean loss where there are targets y (B, T).

        Targets of -100 do not count.
        """
        logits = self.head(self.features(x)).float()  # (B, T, V)
        loss = None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100)
        return logits, loss


class LayerCache:
    """Keys and values of one layer, (B, nkv, block_size, hs) each, filled from the left."""

    def __init__(self, shape, dtype, device):
        self.keys, self.values = torch.empty(2, *shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, k, v):
        """Take in k and v (B, nkv, T, hs); return all so far, (B, nkv, S, hs) each."""
        end = self.length + k.size(2)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """What the attention of all layers needs to remember of one text's tokens so far: up to block_size of them.

    A CPU's is in float32: there a query meets keys in bfloat16 three to six times as slowly.
    """

    def __init__(self, model):
        config, weight = model.config, model.head.weight
        shape = (1, config.kv_heads, config.block_size, config.head_size)
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        self.layers = [LayerCache(shape, dtype, weight.device) for _ in model.blocks]

    @property
    def length(self):
        return self.layers[0].length

    def clear(self):
        for layer in self.layers:
            layer.length = 0
