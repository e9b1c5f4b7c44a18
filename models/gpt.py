"""GPT: embeddings, blocks, norm, head."""

import dataclasses

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig
from models.layers import Block, NoPosition, NoRotation, Rotary, make_norm
from models.loss import cross_entropy


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al., 2018). The named models of `models.zoo` are its subclasses.

    A subclass has a `config`; keyword arguments change its fields: `GPT2(n_blocks=6)`. Fields that do not fit together
    raise UserError, and a name that is not a field raises TypeError.

    With `n_labels`, it is a classifier: the head has one output per class, at every position. The targets are then -100
    except where a class is predicted, which is usually the last token of a text. With `auxiliary_lm`, too, it has a
    second head for the next token: the target n_labels + i there is token i.
    """

    config: ModelConfig

    def __init__(self, **changes):
        super().__init__()
        self.config = config = dataclasses.replace(type(self).config, **changes)
        self.block_size = config.block_size
        self.activation_checkpointing = False  # True: recompute activations in the backward pass, to save memory
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        learned = config.position == "learned"
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if learned else NoPosition()
        self.rotary = NoRotation() if learned else Rotary(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.final_norm = make_norm(config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.n_outputs, bias=config.head_bias)
        if config.auxiliary_lm:
            self.token_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.reset_parameters()
        if config.tied_head:
            self.head.weight = self.token_embedding.weight

    @property
    def heads(self):
        """All heads, of which the first makes the predictions."""
        return [self.head, self.token_head] if self.config.auxiliary_lm else [self.head]

    @property
    def device(self):
        return self.final_norm.weight.device

    @property
    def dtype(self):
        """The dtype of activations, and of all weights that are not quantized."""
        return self.final_norm.weight.dtype

    def reset_parameters(self):
        """Embeddings with std 0.02. Zeros at the end of each block and in the head: stable at initialization, as every
        block starts as the identity and every token is equally likely.

        With a tied head, each token would then predict itself with high confidence. There, a block ends with std
        0.02 / sqrt(2 n_blocks), as in GPT-2.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.heads:
            nn.init.zeros_(head.weight)
        end_std = 0.02 * (2 * self.config.n_blocks) ** -0.5 if self.config.tied_head else 0.0
        for block in self.blocks:
            nn.init.normal_(block.attention.out.weight, std=end_std)
            nn.init.normal_(block.feed_forward.down.weight, std=end_std)

    def features(self, x, cache=None):
        """The input of the head, (B, T, C), for token ids x (B, T).

        With a `KVCache`, x continues the tokens in it: any number of tokens if it is empty, otherwise one.
        """
        T = x.size(1)
        positions = torch.arange(T, device=x.device) if cache is None else cache.next_positions(T)  # (T)
        h = self.dropout(self.token_embedding(x) + self.position_embedding(positions))  # (B, T) -> (B, T, C)
        rotation = self.rotary(positions)
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                h = checkpoint(block, h, rotation, use_reentrant=False)
            else:
                h = block(h, rotation, None if cache is None else cache.layers[i])
        return self.final_norm(h)

    def forward(self, x, y=None):
        """For token ids x (B, T), return logits (B, T, n_outputs) in float32, and no loss.

        With targets y (B, T), return no logits, and the mean cross-entropy. Targets of -100 are ignored.
        """
        h = self.features(x)
        if y is None:
            return self.head(h).float(), None
        return None, cross_entropy(h, self.heads, y)
