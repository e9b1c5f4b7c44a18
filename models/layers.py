"""The parts of a block. Shapes: B batch, T time, C n_embd, nh heads, nkv key-value heads, hs head size."""

import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F


def make_norm(config, size, learned=True):
    """The norm that the configuration names, over `size` channels; `learned`: with weights."""
    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return norms[config.norm](size, eps=config.norm_eps, elementwise_affine=learned)


# ---- Positions -------------------------------------------------------------------------------------------------------


class NoPosition(nn.Module):
    """No position embedding, for models that rotate queries and keys instead."""

    def forward(self, positions):
        return torch.zeros((), device=positions.device)


class NoRotation(nn.Module):
    """No rotation, for models with learned position embeddings."""

    def forward(self, positions):
        return None


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021, section 3.2), in the half-split layout of Llama.

    Channels i and i + hs / 2 of a head are a point in the plane, which is rotated by position / theta^(2 i / hs). The
    product of a query and a key then depends on their positions only through the distance between them.
    """

    def __init__(self, config):
        super().__init__()
        hs = config.head_size
        speed = config.rope_theta ** (-torch.arange(0, hs, 2) / hs)  # (hs / 2)
        angles = torch.outer(torch.arange(config.block_size), speed)  # (block_size, hs / 2)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, positions):
        """Cosines and sines for `rotate` at positions (T): (T, 1, hs) each."""
        return self.cos[positions, None], self.sin[positions, None]


def rotate(x, rotation):
    """Rotate queries or keys x (B, T, nh, hs) by the output of Rotary or NoRotation."""
    if rotation is None:
        return x
    cos, sin = (table.to(x.dtype) for table in rotation)  # (T, 1, hs) each
    swapped = x.roll(x.size(-1) // 2, dims=-1)  # exchanges the two halves
    return torch.addcmul(x * cos, swapped, sin)


# ---- Attention -------------------------------------------------------------------------------------------------------


def reference_attention(q, k, v):
    """Causal attention as in the paper: q, k, v and the result are (B, nh, T, hs)."""
    later = torch.full((q.size(2), q.size(2)), -math.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    scores = (q * q.size(3) ** -0.5) @ k.transpose(2, 3) + later  # (B, nh, T, T)
    return F.softmax(scores, dim=-1) @ v


class Attention(nn.Module):
    """Causal attention (Vaswani et al., 2017, section 3.2) with grouped queries (Ainslie et al., 2023).

    Each of the nkv heads of keys and values is shared by nh / nkv heads of queries; nkv = nh is multi-head attention.

    Queries, keys and values come from one fused matrix: generation is about 10% faster than with three, and under
    autocast one copy of the input is kept for the backward pass instead of three. `parts` has the rows of each in it.
    Checkpoint files have three matrices: see models/weights.py.
    """

    def __init__(self, config):
        super().__init__()
        C, hs = config.n_embd, config.head_size
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.parts = {"query": config.num_heads * hs, "key": config.kv_heads * hs, "value": config.kv_heads * hs}
        self.qkv = nn.Linear(C, sum(self.parts.values()), bias=config.has_qkv_bias)
        self.out = nn.Linear(config.num_heads * hs, C, bias=config.bias)
        self.qk_norm = make_norm(config, hs, learned=False) if config.qk_norm else nn.Identity()

    def forward(self, x, rotation, cache=None):
        """x and the result are (B, T, C). `rotation` belongs to the positions; with a cache, x continues its tokens."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.num_heads + 2 * self.kv_heads, -1)  # (B, T, nh + 2 nkv, hs)
        qk, v = heads.split((self.num_heads + self.kv_heads, self.kv_heads), dim=2)
        qk = rotate(self.qk_norm(qk).to(v.dtype), rotation)  # CUDA's autocast computes norms in float32
        q, k = qk.split((self.num_heads, self.kv_heads), dim=2)  # (B, T, nh, hs), (B, T, nkv, hs)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh, T, hs), (B, nkv, T, hs) twice
        mask = None
        if cache is not None:
            k, v, mask = cache.append(k, v)  # (B, nkv, S, hs), S: all tokens so far, or the whole cache with a mask
        groups = self.num_heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, nh, S, hs)
        if T > 1 and k.dtype == torch.bfloat16 and k.device.type == "cpu":
            y = reference_attention(q, k, v)  # half the time of scaled_dot_product_attention there
        else:  # several tokens start with an empty cache; a single one attends to all before
            y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask, is_causal=T > 1).to(q.dtype)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)


# ---- Feed-forward ----------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Two linear layers with an activation in between, applied to each position independently."""

    def __init__(self, config, activation):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)
        self.down = nn.Linear(config.hidden_size, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.down(self.activation(self.up(x)))  # (B, T, C) -> (B, T, hidden) -> (B, T, C)


class GatedFeedForward(FeedForward):
    """SwiGLU (Shazeer, 2020): the hidden layer is multiplied by the activation of a second linear layer, the gate."""

    def __init__(self, config, activation):
        super().__init__(config, activation)
        self.gate = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def squared_relu(x):
    """Squared ReLU (So et al., 2021)."""
    x = F.relu(x)
    return x * x


def make_feed_forward(config):
    """The feed-forward that the configuration names."""
    if config.feed_forward == "swiglu":
        return GatedFeedForward(config, F.silu)
    activations = {"relu": F.relu, "relu2": squared_relu, "gelu": partial(F.gelu, approximate="tanh"),
                   "gelu_exact": F.gelu}
    return FeedForward(config, activations[config.feed_forward])


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and inside a residual connection (Xiong et al., 2020)."""

    def __init__(self, config):
        super().__init__()
        self.attention_norm = make_norm(config, config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config, config.n_embd)
        self.feed_forward = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rotation, cache=None):
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, C)
