"""The bytes that the operations of a block save for their backward pass, and allocate in it.

This follows models/layers.py line by line. M is the number of tokens in a micro-batch, B times T; the other letters are
those of `utils.forecast.parameters.symbols`.
"""

from dataclasses import dataclass
from math import prod

from utils.forecast.architecture import Architecture
from utils.forecast.parameters import linear_shapes
from utils.forecast.plan import Plan
from utils.forecast.units import BYTES


@dataclass(frozen=True)
class Op:
    """An operation of the forward pass and the memory its backward pass takes, in bytes, without weight gradients."""

    saved: int = 0
    """Activations saved for the backward pass. A tensor that two operations save is counted for the earlier operation,
    which the backward pass reaches last."""
    buffers: int = 0
    """Memory that the backward pass allocates before it frees the saved activations."""
    passed: int = 0
    """Gradients passed on to the previous operation, without the gradient along the residual path."""
    weights: int = 0
    """Number of weights, without biases and adapters."""
    trained: int = 0
    """Number of weights with a gradient, without biases."""
    casts: bool = False
    """Autocast computes this operation in half precision; its backward pass needs the copy of the weights."""


class Sizes:
    """Bytes of the tensors of a training step."""

    def __init__(self, config: Architecture, plan: Plan):
        element, M = BYTES[plan.dtype], plan.batch_size * config.block_size
        Q, K = config.num_heads * config.head_size, config.kv_heads * config.head_size
        self.residual = 4 * M * config.n_embd  # (B, T, C) along the residual path, in float32 even with autocast
        self.embd = element * M * config.n_embd  # (B, T, C) in the compute dtype
        self.queries = element * M * Q  # queries, or the result of attention, (B, nh, T, hs)
        self.float_queries = 4 * M * Q
        self.keys = element * M * K  # keys or values, (B, nkv, T, hs)
        repeats = config.num_heads > config.kv_heads
        self.repeated_keys = self.queries if repeats else self.keys  # per query head, (B, nh, T, hs)
        self.hidden = element * M * config.hidden_size  # (B, T, H)
        self.scores = element * plan.batch_size * config.num_heads * config.block_size**2  # (B, nh, T, T)
        self.per_head = 4 * M * config.num_heads  # one float32 number per query
        self.per_token = 4 * M
        self.low_rank = element * M * (plan.lora_rank or 0)  # (B, T, rank)
        self.ids = 8 * M * (3 if plan.device == "cuda" else 1)  # x and y, (B, T); on a GPU also y flattened
        # The gradient of a linear layer's input: autocast computes it in half precision, then casts it to float32, so
        # that both exist at the same time.
        self.input_grad = self.embd + (self.residual if plan.autocast else 0)
        # In float32, the gate and up projections of SwiGLU save the same input; autocast makes a copy for each.
        self.extra_input = self.embd if plan.autocast else 0
        on_cuda = plan.device == "cuda"  # saves dropout masks as booleans; a CPU saves factors in the input's dtype
        self.dropout_mask = M * config.n_embd * (1 if on_cuda else element)
        self.embedding_mask = M * config.n_embd * (1 if on_cuda else 4)


def attention_ops(config: Architecture, sizes: Sizes, plan: Plan) -> list[Op]:
    """Return the operations from the norm of attention to the residual addition, in forward order."""
    qk = sizes.queries + sizes.keys  # queries and keys
    qkv = sizes.queries + 2 * sizes.keys  # with values, (B, T, nh + 2 nkv, hs)
    keys = sizes.repeated_keys
    unfused = plan.device == "cpu" and plan.dtype == "bfloat16"
    repeats, rotary = config.num_heads > config.kv_heads, config.position == "rotary"
    layer_norm_on_cpu = plan.device == "cpu" and config.norm == "layer"
    casts_qk = config.qk_norm and plan.autocast and not layer_norm_on_cpu  # QK norm in float32
    # Queries, keys and values are views of one tensor, which stays alive while the QK norm or attention saves a view.
    saves_qkv = config.qk_norm and not casts_qk or not unfused and not (repeats and (rotary or config.qk_norm))
    ops = [
        norm_op(config, sizes, plan),
        linear_op(config, sizes, plan, "qkv", saved=sizes.embd, buffers=sizes.input_grad, passed=sizes.residual),
        Op(saved=qkv if saves_qkv else 0, buffers=qkv, passed=qkv),  # the gradients of the views are concatenated
    ]
    if config.qk_norm and layer_norm_on_cpu:  # saves a mean and a standard deviation per head
        ops.append(Op(saved=2 * sizes.per_head, buffers=2 * qk, passed=qkv))
    elif config.qk_norm:  # RMSNorm on a CPU allocates five buffers in float32, and one of them is passed on
        float_qk = 4 * qk // BYTES[plan.dtype]
        saved = float_qk if casts_qk else 0
        buffers = sizes.float_queries if plan.device == "cuda" else 4 * float_qk
        ops.append(Op(saved=saved + sizes.per_head, buffers=buffers, passed=qkv))
    if rotary:  # saves only cos and sin, which belong to the model; the gradients of two products are added
        ops.append(Op(buffers=2 * qk, passed=qkv))
    ops.append(Op(buffers=qk, passed=qkv))  # the gradients of queries and keys are concatenated
    if unfused:
        # The product saves queries and keys, the softmax its result, and the second product the values.
        ops.append(Op(saved=sizes.queries + keys, buffers=sizes.queries + keys, passed=qkv))
        ops.append(Op(saved=sizes.scores, buffers=sizes.scores, passed=sizes.scores + keys))
        ops.append(Op(saved=keys, buffers=keys + sizes.scores, passed=sizes.scores + keys))
        out_input = sizes.queries  # the output projection saves a contiguous copy of the result
    else:  # fused: saves queries, keys, values, its result and the log-sum-exp of each query, but never (T, T)
        saved = sizes.queries + sizes.per_head
        if rotary or config.qk_norm:
            saved += qk
        if repeats:
            saved += 2 * keys
        buffers = sizes.queries + 2 * keys + sizes.per_head
        if plan.device == "cuda" and plan.autocast:  # FlashAttention-2 accumulates the queries' gradient in float32
            buffers += sizes.float_queries
        ops.append(Op(saved=saved, buffers=buffers, passed=qkv))
        out_input = 0  # the result is contiguous, and already counted
    ops.append(linear_op(config, sizes, plan, "out", saved=out_input, buffers=sizes.queries, passed=sizes.queries))
    return [*ops, residual_op(config, sizes, plan)]


def feed_forward_ops(config: Architecture, sizes: Sizes, plan: Plan) -> list[Op]:
    """Return the operations from the norm of the feed-forward network to the residual addition, in forward order."""
    h = sizes.hidden
    up = linear_op(config, sizes, plan, "up", saved=sizes.embd, buffers=sizes.input_grad, passed=sizes.residual)
    activation = Op(saved=h, buffers=h, passed=h)  # saves its input; ReLU its result, which the down projection saves
    inside = [up, activation]
    if config.feed_forward == "relu2":
        inside.append(Op(buffers=2 * h, passed=h))  # x x: one gradient per factor
    if config.feed_forward == "swiglu":
        gate = linear_op(config, sizes, plan, "gate", saved=sizes.embd, buffers=sizes.input_grad, passed=sizes.residual)
        up_input = sizes.extra_input if gate.saved else sizes.embd
        inside = [
            gate,
            Op(saved=h, buffers=h, passed=h + sizes.residual),  # SiLU saves its input
            linear_op(config, sizes, plan, "up", saved=up_input, buffers=sizes.input_grad, passed=h + sizes.residual),
            Op(saved=2 * h, buffers=2 * h, passed=2 * h),  # a product saves both factors
        ]
    down = linear_op(config, sizes, plan, "down", saved=0 if config.feed_forward == "relu" else h, buffers=h, passed=h)
    return [norm_op(config, sizes, plan), *inside, down, residual_op(config, sizes, plan)]


def norm_op(config: Architecture, sizes: Sizes, plan: Plan) -> Op:
    """Return the operation of LayerNorm or RMSNorm, which save their input.

    On a CPU, RMSNorm consists of several operations: it also saves its result if its weight is trained, and the
    gradients of its square and its mean exist at the same time.
    """
    weights = 2 * config.n_embd if config.norm == "layer" else config.n_embd
    trained = weights if plan.lora_rank is None else 0
    if config.norm == "layer":
        return Op(saved=sizes.residual + 2 * sizes.per_token, buffers=sizes.residual, weights=weights, trained=trained)
    if plan.device == "cuda":
        return Op(saved=sizes.residual + sizes.per_token, buffers=sizes.residual, weights=weights, trained=trained)
    saved = (2 if trained else 1) * sizes.residual + sizes.per_token
    return Op(saved=saved, buffers=2 * sizes.residual, weights=weights, trained=trained)


def linear_op(config: Architecture, sizes: Sizes, plan: Plan, name: str, *, saved: int, buffers: int,
              passed: int) -> Op:
    """Return the operation of a linear layer.

    It saves its input for the gradient of its weight; a frozen layer saves nothing. A LoRA adapter also saves its input
    and the product with A, (M, rank). The gradient of the input is then a sum.
    """
    shape = linear_shapes(config)[name]
    weights = prod(shape)
    if plan.lora_rank is None:
        return Op(saved, buffers, passed, weights, trained=weights, casts=True)
    if name not in plan.lora_targets:
        return Op(0, buffers, passed, weights, casts=True)
    input_grad = {"out": sizes.queries, "down": sizes.hidden}.get(name, sizes.residual)
    trained = plan.lora_rank * sum(shape)
    return Op(saved + sizes.low_rank, buffers + input_grad, passed, weights, trained, casts=True)


def residual_op(config: Architecture, sizes: Sizes, plan: Plan) -> Op:
    """Return the operation that adds a branch to the residual path: dropout, which saves its mask, and the addition.

    In the backward pass, the gradient of the residual path enters the branch; autocast makes a half-precision copy.
    """
    cast = Op(buffers=sizes.embd, passed=sizes.embd) if plan.autocast else Op()
    if not config.dropout:
        return cast
    return Op(saved=sizes.dropout_mask, buffers=cast.buffers + sizes.embd, passed=sizes.embd)


def block_activations(config: Architecture, tokens: int, dtype: str, kv_dtype: str) -> int:
    """Return the bytes of a block's activations at the peak of its forward pass, if no backward pass follows.

    `kv_dtype` is the dtype of the KV cache; without a cache, give `dtype`.
    """
    per_token = BYTES[dtype] * tokens  # bytes of one element for each token
    embd, hidden = per_token * config.n_embd, per_token * config.hidden_size
    queries = per_token * config.num_heads * config.head_size
    keys = per_token * config.kv_heads * config.head_size
    # Feed-forward: the input of the block, the residual after attention, its norm; the up projection, and the result of
    # the activation function.
    feed_forward = 3 * embd + (3 if config.feed_forward == "swiglu" else 2) * hidden
    # Attention: the input, its norm, queries, keys and values, and new queries and keys if they are normalized or
    # rotated; then the result and its projection. If the KV cache has another dtype, queries and result in both dtypes.
    qk, attended = queries + keys, BYTES[kv_dtype] * queries // BYTES[dtype]
    new_qk = qk if config.qk_norm or config.position == "rotary" else 0
    inputs = 2 * embd + queries + 2 * keys
    attention = inputs + new_qk + embd + (2 * attended if kv_dtype != dtype else queries)
    if config.num_heads > config.kv_heads:  # repeated keys and values
        attention += 2 * attended
    if new_qk:  # while they are computed
        buffers = (3 if config.position == "rotary" else 1) + config.qk_norm
        attention = max(attention, inputs + buffers * qk)
    return max(attention, feed_forward)
