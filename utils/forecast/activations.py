"""The bytes that each operation of a block saves for its backward pass, and that its backward pass allocates.

This follows models/layers.py line by line. M is the number of tokens in a micro-batch, B times T; the other letters are
those of `utils.forecast.parameters.symbols`. In the functions, c is a ModelConfig, s its `Sizes` and p a
`utils.forecast.memory.Plan`.
"""

from dataclasses import dataclass
from math import prod

from utils.forecast.parameters import linear_shapes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Op:
    """An operation of the forward pass and the memory its backward pass takes, in bytes, without weight gradients."""

    saved: int = 0
    """Activations saved for the backward pass. A tensor that two operations save is counted at the earlier one, which
    the backward pass reaches last."""
    buffers: int = 0
    """What the backward pass allocates while everything saved is still alive."""
    passed: int = 0
    """Gradients passed on to the operation before, not counting the one along the residual path."""
    weights: int = 0
    """Number of weights, without biases and adapters."""
    trained: int = 0
    """Number of weights that have a gradient, without biases."""
    casts: bool = False
    """Autocast computes this in half precision, and the backward pass needs the half-precision copy of the weights."""


class Sizes:
    """Bytes of the tensors of a training step."""

    def __init__(self, c, p):
        a, M = BYTES[p.dtype], p.batch_size * c.block_size
        Q, K = c.num_heads * c.head_size, c.kv_heads * c.head_size
        self.residual = 4 * M * c.n_embd  # (B, T, C) along the residual path, which autocast leaves in float32
        self.embd = a * M * c.n_embd  # (B, T, C) in the compute dtype
        self.queries = a * M * Q  # queries, and the result of attention, (B, nh, T, hs)
        self.float_queries = 4 * M * Q
        self.keys = a * M * K  # keys or values, (B, nkv, T, hs)
        self.repeated_keys = self.queries if c.num_heads > c.kv_heads else self.keys  # per query head, (B, nh, T, hs)
        self.hidden = a * M * c.hidden_size  # (B, T, H)
        self.scores = a * p.batch_size * c.num_heads * c.block_size**2  # (B, nh, T, T)
        self.per_head = 4 * M * c.num_heads  # one float32 number per query
        self.per_token = 4 * M
        self.low_rank = a * M * (p.lora_rank or 0)  # (B, T, rank)
        self.ids = 8 * M * (3 if p.device == "cuda" else 1)  # x and y, (B, T); on a GPU also y flattened
        # The gradient of a linear layer's input: under autocast it is computed in half precision and then cast to
        # float32, so that both are alive for a moment.
        self.input_grad = self.embd + (self.residual if p.autocast else 0)
        # Each cast of an activation makes a copy: under autocast the two up projections of SwiGLU save two copies of
        # the same input. In float32 they save the same tensor.
        self.extra_input = self.embd if p.autocast else 0
        native = p.device == "cuda"
        self.dropout_mask = M * c.n_embd * (1 if native else a)  # CUDA saves the mask as booleans, the CPU as factors
        self.embedding_mask = M * c.n_embd * (1 if native else 4)


def norm_op(c, s, p):
    """LayerNorm and RMSNorm save their input. On a CPU, RMSNorm consists of several operations and also saves its
    result before a trained weight; the gradients of its square and of its mean are alive at the same time."""
    weights = 2 * c.n_embd if c.norm == "layer" else c.n_embd
    trained = weights if p.lora_rank is None else 0
    if c.norm == "layer":
        return Op(saved=s.residual + 2 * s.per_token, buffers=s.residual, weights=weights, trained=trained)
    if p.device == "cuda":
        return Op(saved=s.residual + s.per_token, buffers=s.residual, weights=weights, trained=trained)
    saved = (2 if trained else 1) * s.residual + s.per_token
    return Op(saved=saved, buffers=2 * s.residual, weights=weights, trained=trained)


def linear_op(c, s, p, name, saved, buffers, passed):
    """A linear layer saves its input for the gradient of its weight; a frozen one does not.

    An adapter saves the input, too, and its product with A, (M, rank). The gradient of the input is then a sum.
    """
    shape = linear_shapes(c)[name]
    weights = prod(shape)
    if p.lora_rank is None:
        return Op(saved, buffers, passed, weights, trained=weights, casts=True)
    if name not in p.lora_targets:
        return Op(0, buffers, passed, weights, casts=True)
    input_grad = {"out": s.queries, "down": s.hidden}.get(name, s.residual)
    return Op(saved + s.low_rank, buffers + input_grad, passed, weights, trained=p.lora_rank * sum(shape), casts=True)


def join_op(c, s, p):
    """The end of a branch: dropout saves its mask, and the gradient of the residual path enters the branch, under
    autocast as a half-precision copy."""
    dropout = c.dropout > 0
    buffers = (s.embd if p.autocast else 0) + (s.embd if dropout else 0)
    return Op(saved=s.dropout_mask if dropout else 0, buffers=buffers, passed=s.embd if p.autocast or dropout else 0)


def attention_ops(c, s, p):
    """The operations of attention in the order of the forward pass, with its norm and the addition to the residual."""
    qk, qkv = s.queries + s.keys, s.queries + 2 * s.keys  # queries and keys; with values, (B, T, nh + 2 nkv, hs)
    unfused = p.device == "cpu" and p.dtype == "bfloat16"
    repeats, rotary = c.num_heads > c.kv_heads, c.position == "rotary"
    casts_qk = c.qk_norm and p.autocast and not (p.device == "cpu" and c.norm == "layer")  # QK norm in float32
    # Queries, keys and values are views of one tensor, which stays alive while the QK norm or attention saves a view.
    saves_qkv = c.qk_norm and not casts_qk or not unfused and not (repeats and (rotary or c.qk_norm))
    ops = [
        norm_op(c, s, p),
        linear_op(c, s, p, "qkv", saved=s.embd, buffers=s.input_grad, passed=s.residual),
        Op(saved=qkv if saves_qkv else 0, buffers=qkv, passed=qkv),  # the gradients of the views are concatenated
    ]
    if c.qk_norm and c.norm == "layer" and p.device == "cpu":  # saves a mean and a standard deviation per head
        ops.append(Op(saved=2 * s.per_head, buffers=2 * qk, passed=qkv))
    elif c.qk_norm:  # RMSNorm on a CPU allocates five buffers in float32, and one of them is passed on
        float_qk = 4 * qk // BYTES[p.dtype]
        saved = float_qk if casts_qk else 0
        buffers = s.float_queries if p.device == "cuda" else 4 * float_qk
        ops.append(Op(saved=saved + s.per_head, buffers=buffers, passed=qkv))
    if rotary:  # saves only cos and sin, which belong to the model; the gradients of two products are added
        ops.append(Op(buffers=2 * qk, passed=qkv))
    ops.append(Op(buffers=qk, passed=qkv))  # the gradients of queries and keys are concatenated
    if unfused:
        # The product saves queries and keys, the softmax its result, and the second product the values.
        ops.append(Op(saved=s.queries + s.repeated_keys, buffers=s.queries + s.repeated_keys, passed=qkv))
        ops.append(Op(saved=s.scores, buffers=s.scores, passed=s.scores + s.repeated_keys))
        ops.append(Op(saved=s.repeated_keys, buffers=s.repeated_keys + s.scores, passed=s.scores + s.repeated_keys))
        out_input = s.queries  # the output projection saves a contiguous copy of the result
    else:  # fused: saves queries, keys, values, its result and the log-sum-exp of each query, but never (T, T)
        buffers = s.queries + 2 * s.repeated_keys + s.per_head
        if p.device == "cuda" and p.autocast:  # FlashAttention-2 accumulates the gradient of the queries in float32
            buffers += s.float_queries
        saved = s.queries + s.per_head + (qk if rotary or c.qk_norm else 0) + (2 * s.repeated_keys if repeats else 0)
        ops.append(Op(saved=saved, buffers=buffers, passed=qkv))
        out_input = 0  # the result is contiguous, and already counted
    ops.append(linear_op(c, s, p, "out", saved=out_input, buffers=s.queries, passed=s.queries))
    return [*ops, join_op(c, s, p)]


def feed_forward_ops(c, s, p):
    """The operations of the feed-forward network in the order of the forward pass, with its norm and the addition to
    the residual."""
    h = s.hidden
    up = linear_op(c, s, p, "up", saved=s.embd, buffers=s.input_grad, passed=s.residual)
    activation = Op(saved=h, buffers=h, passed=h)  # saves its input; ReLU its result, which the down projection saves
    inside = [up, activation]
    if c.feed_forward == "relu2":
        inside.append(Op(buffers=2 * h, passed=h))  # x x: one gradient per factor
    if c.feed_forward == "swiglu":
        gate = linear_op(c, s, p, "gate", saved=s.embd, buffers=s.input_grad, passed=s.residual)
        up_input = s.extra_input if gate.saved else s.embd
        inside = [
            gate,
            Op(saved=h, buffers=h, passed=h + s.residual),  # SiLU saves its input
            linear_op(c, s, p, "up", saved=up_input, buffers=s.input_grad, passed=h + s.residual),
            Op(saved=2 * h, buffers=2 * h, passed=2 * h),  # a product saves both factors
        ]
    down = linear_op(c, s, p, "down", saved=0 if c.feed_forward == "relu" else h, buffers=h, passed=h)
    return [norm_op(c, s, p), *inside, down, join_op(c, s, p)]
