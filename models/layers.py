"""The layers of a GPT, from the leaves to the block.

Shapes: B batch, T time, S time including the cached tokens, C n_embd, H n_hidden, nh query heads, nkv key-value heads,
hs head size.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.kv_cache import LayerCache

Rotation = tuple[Tensor, Tensor] | None  # cosines and sines, (T, 1, hs) each; None with learned positions


def make_norm(config: ModelConfig, size: int, learned: bool = True) -> nn.Module:
    """Return the configured norm over `size` channels, with learned weights or without.

    LayerNorm (Ba et al., 2016, section 3) gives mean 0 and variance 1; RMSNorm (Zhang and Sennrich, 2019, section 4)
    gives mean square 1, and has no bias.
    """
    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return norms[config.norm](size, eps=config.norm_eps, elementwise_affine=learned)


# ---- Positions -------------------------------------------------------------------------------------------------------


class NoPosition(nn.Module):
    """No position embedding, for models with rotary positions."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


class NoRotation(nn.Module):
    """No rotation, for models with learned position embeddings."""

    def forward(self, positions: Tensor) -> Rotation:
        return None


class Rotary(nn.Module):
    """Rotary position embedding, RoPE (Su et al., 2021, section 3.2), in the half-split layout of Llama.

    Channels i and i + hs / 2 of a head are a point in the plane, rotated by the angle position / theta^(2i / hs). The
    product of a query and a key then depends on their positions only through the distance between them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        hs = config.head_size
        frequencies = config.rope_theta ** (-torch.arange(0, hs, 2) / hs)  # (hs / 2)
        angles = torch.outer(torch.arange(config.block_size), frequencies)  # (block_size, hs / 2)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)  # (block_size, hs)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)  # (block_size, hs)

    def forward(self, positions: Tensor) -> Rotation:
        """Return the cosines and sines of positions (T), (T, 1, hs) each, for `rotate`."""
        return self.cos[positions, None], self.sin[positions, None]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys x (B, T, nh, hs) by the output of Rotary or NoRotation."""
    if rotation is None:
        return x
    cos, sin = (table.to(x.dtype) for table in rotation)  # (T, 1, hs) each
    swapped = x.roll(x.size(-1) // 2, dims=-1)  # (a, b) -> (b, a); result: (a cos - b sin, b cos + a sin)
    return torch.addcmul(x * cos, swapped, sin)


# ---- Attention -------------------------------------------------------------------------------------------------------


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled dot-product attention (Vaswani et al., 2017, section 3.2.1), causal, as in the paper.

    q, k, v and the result are (B, nh, T, hs).
    """
    mask = torch.full((q.size(2), q.size(2)), -math.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    scores = (q * q.size(3) ** -0.5) @ k.transpose(2, 3) + mask  # (B, nh, T, T)
    return F.softmax(scores, dim=-1) @ v  # (B, nh, T, hs)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., 2017, section 3.2.2).

    With nkv < nh, each head of keys and values is shared by nh / nkv heads of queries: grouped-query attention (Ainslie
    et al., 2023, section 2.2). With `qk_norm`, queries and keys are normalized, which bounds the scores (Dehghani et
    al., 2023, section 2).

    Queries, keys and values come from one fused matrix; `qkv_rows` says how many of its rows belong to each. Generation
    is about 10% faster than with three matrices, and under autocast one copy of the input is kept for the backward pass
    instead of three. Checkpoint files have three matrices: see models/weights.py.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, hs = config.n_embd, config.head_size
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.qkv_rows = {"query": config.num_heads * hs, "key": config.kv_heads * hs, "value": config.kv_heads * hs}
        self.qkv = nn.Linear(C, sum(self.qkv_rows.values()), bias=config.has_qkv_bias)
        self.out = nn.Linear(config.num_heads * hs, C, bias=config.bias)
        self.qk_norm = make_norm(config, hs, learned=False) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation, cache: LayerCache | None = None) -> Tensor:
        """Return (B, T, C) for x (B, T, C) and the rotation of its positions; with a cache, x continues its tokens."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.num_heads + 2 * self.kv_heads, -1)  # (B, T, C) -> (B, T, nh + 2 nkv, hs)
        qk, v = heads.split((self.num_heads + self.kv_heads, self.kv_heads), dim=2)  # (B, T, nh + nkv | nkv, hs)
        qk = rotate(self.qk_norm(qk).to(v.dtype), rotation)  # CUDA's autocast computes norms in float32
        q, k = qk.split((self.num_heads, self.kv_heads), dim=2)  # (B, T, nh, hs), (B, T, nkv, hs)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh, T, hs), (B, nkv, T, hs) twice
        mask = None
        if cache is not None:
            k, v, mask = cache.append(k, v)  # (B, nkv, S, hs) each; S: all tokens so far, or the whole cache and a mask
        group_size = self.num_heads // self.kv_heads
        if group_size > 1:
            k, v = k.repeat_interleave(group_size, dim=1), v.repeat_interleave(group_size, dim=1)  # (B, nh, S, hs)
        if T > 1 and k.dtype == torch.bfloat16 and k.device.type == "cpu":
            y = plain_attention(q, k, v)  # on a CPU in bfloat16, faster than scaled_dot_product_attention
        else:  # several tokens only follow an empty cache; a single token may attend to all before it
            y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask, is_causal=T > 1).to(q.dtype)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, nh, T, hs) -> (B, T, nh hs) -> (B, T, C)


# ---- Feed-forward ----------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Two linear layers with an activation in between, applied at each position (Vaswani et al., 2017, section 3.3)."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)
        self.down = nn.Linear(config.hidden_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # (B, T, C) -> (B, T, H) -> (B, T, C)


class GatedFeedForward(FeedForward):
    """Gated linear unit; with SiLU as the activation, SwiGLU (Shazeer, 2020, section 2).

    The hidden layer is multiplied by the activation of a second linear layer, the gate.
    """

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]):
        super().__init__(config, activation)
        self.gate = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))  # (B, T, C) -> (B, T, H) twice -> (B, T, C)


def squared_relu(x: Tensor) -> Tensor:
    """Return the squared ReLU of x (So et al., 2021)."""
    x = F.relu(x)
    return x * x


def make_feed_forward(config: ModelConfig) -> FeedForward:
    """Return the configured feed-forward network."""
    if config.feed_forward == "swiglu":
        return GatedFeedForward(config, F.silu)
    activations = {"relu": F.relu, "relu2": squared_relu, "gelu": partial(F.gelu, approximate="tanh"),
                   "gelu_exact": F.gelu}
    return FeedForward(config, activations[config.feed_forward])


# ---- Block -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and inside a residual connection (Xiong et al., 2020)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = make_norm(config, config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config, config.n_embd)
        self.feed_forward = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, cache: LayerCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, cache))  # (B, T, C)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, C)
