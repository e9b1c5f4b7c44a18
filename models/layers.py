"""The parts of a block. In the shapes, B is batch, T time, C n_embd, nh heads, hs head size (C / nh)."""

import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F


def make_norm(config, size, learned=True):
    """The norm that the configuration names, over so many channels; `learned`: with weights of its own."""
    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return norms[config.norm](size, eps=config.norm_eps, elementwise_affine=learned)


# ---- Positions -------------------------------------------------------------------------------------------------------


class NoPosition(nn.Module):
    """Adds nothing to the embeddings, where the positions are in the attention."""

    def forward(self, positions):
        return torch.zeros((), device=positions.device)


class NoRotation(nn.Module):
    """Nothing for `rotate` to turn by, where the positions are in the embeddings."""

    def forward(self, positions):
        return None


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021, section 3.2), in the half-split layout of Llama.

    A head's channels i and i + hs / 2 are a point in the plane, turned by position / theta^(2 i / hs): the product of a
    query and a key then depends on how far apart they are, and on nothing else of where they stand.
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
        """What `rotate` turns by at positions (T): cosines and sines, (T, 1, hs) each."""
        return self.cos[positions, None], self.sin[positions, None]


def rotate(x, rotation):
    """Queries or keys x (B, T, nh, hs), turned by what Rotary or NoRotation gave."""
    if rotation is None:
        return x
    cos, sin = (table.to(x.dtype) for table in rotation)  # (T, 1, hs) each
    swapped = x.roll(x.size(-1) // 2, dims=-1)  # the two halves
    return torch.addcmul(x * cos, swapped, sin)


# ---- Attention -------------------------------------------------------------------------------------------------------


def textbook_attention(q, k, v):
    """Causal `scaled_dot_product_attention`, in the words of the textbook: (B, nh, T, hs) each, in and out."""
    later = torch.full((q.size(2), q.size(2)), -math.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    scores = (q * q.size(3) ** -0.5) @ k.transpose(2, 3) + later  # (B, nh, T, T)
    return F.softmax(scores, dim=-1) @ v


class Attention(nn.Module):
    """Causal attention (Vaswani et al., 2017, section 3.2) with grouped queries (Ainslie et al., 2023).

    Each of the nkv heads of keys and values serves nh / nkv heads of queries. Multi-head attention is nkv = nh.

    Queries, keys and values come from one matrix: it writes some 10% faster than three, and under autocast one copy of
    its input is kept for the gradient instead of three. A state_dict holds three, `query`, `key` and `value`, as in
    transformer_4d.py.
    """

    def __init__(self, config):
        super().__init__()
        C, hs = config.n_embd, config.head_size
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.parts = {"query": config.num_heads * hs, "key": config.kv_heads * hs, "value": config.kv_heads * hs}
        self.qkv = nn.Linear(C, sum(self.parts.values()), bias=config.bias)
        self.out = nn.Linear(config.num_heads * hs, C, bias=config.bias)
        self.qk_norm = make_norm(config, hs, learned=False) if config.qk_norm else nn.Identity()
        self.register_state_dict_post_hook(split_qkv)
        self.register_load_state_dict_pre_hook(join_qkv)

    def forward(self, x, rotation, cache=None):
        """(B, T, C) in and out. `rotation` is that of the positions; with a `cache`, x continues what is in there."""
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, self.num_heads + 2 * self.kv_heads, -1)  # (B, T, nh + 2 nkv, hs)
        qk, v = heads.split((self.num_heads + self.kv_heads, self.kv_heads), dim=2)
        qk = rotate(self.qk_norm(qk).to(v.dtype), rotation)  # autocast on CUDA norms in float32
        q, k = qk.split((self.num_heads, self.kv_heads), dim=2)  # (B, T, nh, hs), (B, T, nkv, hs)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh, T, hs), (B, nkv, T, hs) twice
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nkv, S, hs), S = all tokens so far
        groups = self.num_heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, nh, S, hs)
        if T > 1 and k.dtype == torch.bfloat16 and k.device.type == "cpu":
            y = textbook_attention(q, k, v)  # there the fast way takes twice as long
        else:  # a single token may look at everything; more than one start with an empty cache
            y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, is_causal=T > 1).to(q.dtype)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, C))  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)


def split_qkv(attention, weights, prefix, _):
    """Give what `Attention` puts into a state_dict three names."""
    for kind in dict(attention.qkv.named_parameters()):
        joined = weights.pop(f"{prefix}qkv.{kind}")
        parts = zip(attention.parts, joined.split([*attention.parts.values()]), strict=True)
        weights.update({f"{prefix}{part}.{kind}": rows for part, rows in parts})


def join_qkv(attention, weights, prefix, *_):
    """The other way round, for what it takes from a state_dict."""
    for kind in dict(attention.qkv.named_parameters()):
        names = [f"{prefix}{part}.{kind}" for part in attention.parts]
        if all(name in weights for name in names):
            weights[f"{prefix}qkv.{kind}"] = torch.cat([weights.pop(name) for name in names])


# ---- Feed-forward ----------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Each token by itself: wider, an activation, and back. (B, T, C) in and out."""

    def __init__(self, config, activation):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)
        self.down = nn.Linear(config.hidden_size, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.down(self.activation(self.up(x)))  # (B, T, C) -> (B, T, hidden) -> (B, T, C)


class GatedFeedForward(FeedForward):
    """SwiGLU (Shazeer, 2020): what passes is decided by a second, gating matrix."""

    def __init__(self, config, activation):
        super().__init__(config, activation)
        self.gate = nn.Linear(config.n_embd, config.hidden_size, bias=config.bias)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def squared_relu(x):
    """ReLU, squared (So et al., 2021)."""
    x = F.relu(x)
    return x * x


def make_feed_forward(config):
    """The feed-forward that the configuration names."""
    if config.feed_forward == "swiglu":
        return GatedFeedForward(config, F.silu)
    activations = {"relu": F.relu, "relu2": squared_relu, "gelu": partial(F.gelu, approximate="tanh")}
    return FeedForward(config, activations[config.feed_forward])


class Block(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to what came in (Xiong et al., 2020)."""

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
