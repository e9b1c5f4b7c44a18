"""What each op of a block keeps for its gradient, and what its gradient makes, in bytes.

This follows models/layers.py line by line. M is the tokens of a micro-batch, B times T; the other letters are those of
`utils.parameters.symbols`. In the functions c is a configuration, s its `Sizes` and p a `utils.memory.Plan`.
"""

from dataclasses import dataclass

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Op:
    """An op of the forward pass and what its gradient takes, in bytes, besides the gradient of its weights."""

    keeps: int = 0
    """Activations that it keeps for its gradient. What two ops keep together is counted at the earlier one, where the
    backward pass arrives last."""
    makes: int = 0
    """What its gradient allocates while all that it keeps is still there."""
    passes: int = 0
    """Gradients under way when it is done, besides the one along the residual path."""
    weights: int = 0
    """Weights that it has, without biases: how many numbers."""
    casts: bool = False
    """Autocast multiplies in half precision here, and the gradient needs the copy of the weights."""


class Sizes:
    """Bytes of the tensors of a step."""

    def __init__(self, c, p):
        a, M = BYTES[p.dtype], p.batch_size * c.block_size
        K = c.kv_heads * c.head_size
        self.stream = 4 * M * c.n_embd  # (B, T, C) of the residual path, which autocast leaves in float32
        self.wide = a * M * c.n_embd  # (B, T, C) as it is multiplied
        self.keys = a * M * K  # keys or values, (B, nkv, T, hs)
        self.shared_keys = self.wide if c.num_heads > c.kv_heads else self.keys  # repeated for each head of queries
        self.hidden = a * M * c.hidden_size  # (B, T, H)
        self.scores = a * p.batch_size * c.num_heads * c.block_size**2  # (B, nh, T, T)
        self.per_head = 4 * M * c.num_heads  # one float32 number per query
        self.per_token = 4 * M
        self.ids = 8 * M * (3 if p.device == "cuda" else 1)  # on the GPU x and y, (B, T), and y in one row; else that
        self.logits = 4 * M * c.vocab_size  # (B, T, V) in float32
        self.half_logits = a * M * c.vocab_size
        # The gradient at the input of a linear layer: autocast makes it in half precision, then the cast to float32 has
        # both for a moment, and float32 stays.
        self.input_grad = self.wide + (self.stream if p.autocast else 0)
        # Each cast of an activation makes a copy of its own: under autocast SwiGLU's two ways up keep two of the same
        # input. In float32 they keep the one that is there.
        self.extra_input = self.wide if p.autocast else 0
        native = p.device == "cuda"
        self.mask = M * c.n_embd * (1 if native else a)  # CUDA keeps dropout's mask as booleans, the CPU as factors
        self.embedding_mask = M * c.n_embd * (1 if native else 4)


def norm_op(c, s, p):
    """LayerNorm and RMSNorm keep their input. On a CPU, RMSNorm is made of small ops and keeps its result before the
    weight as well; the gradients of its square and its mean then stand beside one another."""
    if c.norm == "layer":
        return Op(keeps=s.stream + 2 * s.per_token, makes=s.stream, weights=2 * c.n_embd)
    if p.device == "cuda":
        return Op(keeps=s.stream + s.per_token, makes=s.stream, weights=c.n_embd)
    return Op(keeps=2 * s.stream + s.per_token, makes=2 * s.stream, weights=c.n_embd)


def join_op(c, s, p):
    """Where a branch ends: dropout keeps its mask, and the gradient of the residual path enters the branch, under
    autocast as a copy in half precision."""
    dropped = c.dropout > 0
    makes = (s.wide if p.autocast else 0) + (s.wide if dropped else 0)
    return Op(keeps=s.mask if dropped else 0, makes=makes, passes=s.wide if p.autocast or dropped else 0)


def attention_ops(c, s, p):
    """The ops of attention in the order of the forward pass, norm and residual path included."""
    K, C = c.kv_heads * c.head_size, c.n_embd
    qk, qkv = s.wide + s.keys, s.wide + 2 * s.keys  # queries and keys; with values, (B, T, nh + 2 nkv, hs)
    textbook = p.device == "cpu" and p.dtype == "bfloat16"
    repeats, turns = c.num_heads > c.kv_heads, c.position == "rotary"
    copies = c.qk_norm and p.autocast and not (p.device == "cpu" and c.norm == "layer")  # their norm, to float32
    # All are parts of one tensor, which stays as long as one of them is kept: by the norm, or as they are by attention.
    kept_whole = c.qk_norm and not copies or not textbook and not (repeats and (turns or c.qk_norm))
    ops = [
        norm_op(c, s, p),
        Op(keeps=s.wide, makes=s.input_grad, passes=s.stream, weights=(C + 2 * K) * C, casts=True),
        Op(keeps=qkv if kept_whole else 0, makes=qkv, passes=qkv),  # the gradients of the parts are joined
    ]
    if c.qk_norm and c.norm == "layer" and p.device == "cpu":  # keeps a mean and a spread per head
        ops.append(Op(keeps=2 * s.per_head, makes=2 * qk, passes=qkv))
    elif c.qk_norm:  # RMSNorm on a CPU makes five in float32, passing on one
        kept = 4 * p.batch_size * c.block_size * (C + K) if copies else 0
        makes = s.stream if p.device == "cuda" else 4 * s.stream
        ops.append(Op(keeps=kept + s.per_head, makes=makes, passes=qkv))
    if turns:  # keeps cos and sin only, which the model has; the gradients of two products meet
        ops.append(Op(makes=2 * qk, passes=qkv))
    ops.append(Op(makes=qk, passes=qkv))  # the gradients of queries and keys are joined
    if textbook:
        # keeps queries and keys, the softmax its result, and the product with the values keeps those
        ops.append(Op(keeps=s.wide + s.shared_keys, makes=s.wide + s.shared_keys, passes=qkv))
        ops.append(Op(keeps=s.scores, makes=s.scores, passes=s.scores + s.shared_keys))
        ops.append(Op(keeps=s.shared_keys, makes=s.shared_keys + s.scores, passes=s.scores + s.shared_keys))
        # and the projection keeps the heads' results side by side, a copy
        side_by_side = s.wide
    else:  # fused: keeps queries, keys, values, its result and the logarithm of each query's sum, never (T, T)
        makes = s.wide + 2 * s.shared_keys + s.per_head
        if p.device == "cuda" and p.autocast:  # FlashAttention-2 adds up the queries' gradient in float32
            makes += s.stream
        keeps = s.wide + s.per_head + (qk if turns or c.qk_norm else 0) + (2 * s.shared_keys if repeats else 0)
        ops.append(Op(keeps=keeps, makes=makes, passes=qkv))
        side_by_side = 0  # as its result is already
    ops.append(Op(keeps=side_by_side, makes=s.wide, passes=s.wide, weights=C * C, casts=True))  # the projection
    return [*ops, join_op(c, s, p)]


def feed_forward_ops(c, s, p):
    """The ops of the feed-forward in the order of the forward pass, norm and residual path included."""
    h, weights = s.hidden, c.hidden_size * c.n_embd
    up = Op(keeps=s.wide, makes=s.input_grad, passes=s.stream, weights=weights, casts=True)
    inside = {
        "relu": [up, Op(keeps=h, makes=h, passes=h)],  # ReLU keeps its result, which the way down keeps as well
        "gelu": [up, Op(keeps=h, makes=h, passes=h)],  # GELU keeps its input
        "relu2": [up, Op(keeps=h, makes=h, passes=h), Op(makes=2 * h, passes=h)],  # x x: a gradient for either factor
        "swiglu": [
            up,  # the gate
            Op(keeps=h, makes=h, passes=h + s.stream),  # SiLU keeps its input
            Op(keeps=s.extra_input, makes=s.input_grad, passes=h + s.stream, weights=weights, casts=True),
            Op(keeps=2 * h, makes=2 * h, passes=2 * h),  # a product keeps both factors
        ],
    }[c.feed_forward]
    down = Op(keeps=0 if c.feed_forward == "relu" else h, makes=h, passes=h, weights=weights, casts=True)
    return [norm_op(c, s, p), *inside, down, join_op(c, s, p)]
