"""GPT: token and position embeddings, blocks, final norm, head.

Shapes: B batch, T time, C n_embd, V vocabulary.
"""

import dataclasses
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig
from models.kv_cache import KVCache
from models.layers import Block, NoPosition, NoRotation, Rotary, make_norm
from models.loss import cross_entropy


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al., 2018, section 3.1).

    The named models of models/zoo.py are its subclasses, each with a `config`; keyword arguments override its fields:
    `GPT2(n_blocks=6)`. Raises UserError for values that do not fit together, TypeError for an unknown field.

    With `n_labels`, it is a classifier: the head has one output per class, at every position. The targets are -100
    except where a class is predicted, usually at the last token of a text. With `auxiliary_lm`, a second head predicts
    the next token: its target for token i is n_labels + i.
    """

    config: ModelConfig

    def __init__(self, **changes: Any):
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
    def heads(self) -> list[nn.Linear]:
        """All heads; the first one makes the predictions."""
        return [self.head, self.token_head] if self.config.auxiliary_lm else [self.head]

    @property
    def device(self) -> torch.device:
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations, and of all weights that are not quantized."""
        return self.final_norm.weight.dtype

    def reset_parameters(self) -> None:
        """Initialize embeddings with std 0.02, the head and the last matrix of each residual branch with zeros.

        This is stable at initialization: every block starts as the identity, and every token is equally likely. A tied
        head is the token embedding, which is not zero: behind identities, each token would predict itself. With it, the
        last matrices have std 0.02 / sqrt(2 n_blocks), as in GPT-2 (Radford et al., 2019, section 2.3).
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
        branch_std = 0.02 * (2 * self.config.n_blocks) ** -0.5 if self.config.tied_head else 0.0
        for block in self.blocks:
            nn.init.normal_(block.attention.out.weight, std=branch_std)
            nn.init.normal_(block.feed_forward.down.weight, std=branch_std)

    def features(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the input of the head, (B, T, C), for token ids x (B, T).

        With a cache, x continues its tokens: any number of new tokens if it is empty, otherwise one.
        """
        T = x.size(1)
        positions = torch.arange(T, device=x.device) if cache is None else cache.next_positions(T)  # (T)
        h = self.dropout(self.token_embedding(x) + self.position_embedding(positions))  # (B, T) -> (B, T, C)
        rotation = self.rotary(positions)  # (T, 1, hs) twice, or None
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                h = checkpoint(block, h, rotation, use_reentrant=False)
            else:
                h = block(h, rotation, None if cache is None else cache.layers[i])  # (B, T, C)
        return self.final_norm(h)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return (logits, None) for token ids x (B, T), or (None, loss) with targets y (B, T).

        Logits are (B, T, V) in float32; in a classifier, with one per class in place of V. The loss is the mean
        cross-entropy; targets of -100 are ignored. With targets, logits are computed in chunks, and never exist as a
        whole: models/loss.py.
        """
        h = self.features(x)
        if y is None:
            return self.head(h).float(), None  # (B, T, C) -> (B, T, V)
        return None, cross_entropy(h, self.heads, y)
