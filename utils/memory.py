"""What training and writing take of memory, in bytes, before anything is built.

Nothing is measured or allocated here. A training step is played through op by op, as models/layers.py, training/loop.py
and training/optim.py do it, and each op says what it keeps for its gradient and what its gradient makes. The most that
is alive at once is the answer, with what it consists of. In the comments and names, M is the tokens of a micro-batch,
B times T; other letters are those of `utils.parameters.letters`.

benchmarks/memory.py holds this against what PyTorch really hands out. On a CPU that was done; what is said of CUDA
follows from reading its kernels and has not been measured yet. `torch.compile`, which fuses ops, takes less.
"""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from utils.errors import UserError, check_numbers
from utils.parameters import count_parameters, matrices_in_blocks, parameter_table

KIB, MIB, GIB = 2**10, 2**20, 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Beyond what tensors take: the code and tables of Python and PyTorch. CPU: the resident memory of a process that has
# imported torch and matplotlib (0.25 GiB on Linux). CUDA: the context with its kernels, which lies on the card but not
# in torch's own count; 0.3 to 0.6 GiB as commonly seen, by card and driver.
CONTEXT = {"cpu": 256 * MIB, "cuda": 512 * MIB}
# What PyTorch's allocator for CUDA reserves and cannot hand out, as a share of what it hands out: an assumption.
CUDA_SLACK = 0.05

PARTS = ("weights", "gradients", "optimizer state", "autocast copies", "activations", "logits and loss",
         "backward buffers", "other GPUs", "workspaces", "context and allocator")


def cublas_workspace(major):
    """Bytes of one workspace of cuBLAS on a card of compute capability `major`.x: PyTorch's getChosenWorkspaceSize."""
    return 32 * MIB if major >= 9 else 8320 * KIB


def readable(size):
    """Bytes, for reading.

    >>> readable(3 * 2**29)
    '1.50 GiB'
    """
    unit, name = next(((unit, name) for unit, name in ((GIB, "GiB"), (MIB, "MiB")) if size >= unit), (KIB, "KiB"))
    return f"{size / unit:,.2f} {name}"


@dataclass(frozen=True)
class Plan:
    """How a model is trained, as far as memory minds. Values that make no sense raise UserError."""

    batch_size: int = 16
    """Windows in one micro-batch, per GPU (B)."""
    accumulation: int = 1
    """Micro-batches in one step."""
    dtype: str = "float32"
    """What matrices are multiplied in: float32, bfloat16 or float16. Weights are always kept in float32."""
    optimizer: str = "muon"
    """muon: Muon for the blocks' matrices and AdamW for all else; adamw: AdamW for everything."""
    activation_checkpointing: bool = False
    """Keep a block's input only, and compute the rest again for its gradient."""
    device: str = "cpu"
    """cpu or cuda."""
    gpus: int = 1
    """How many share the work."""
    workspace: int = cublas_workspace(8)
    """CUDA: bytes of a workspace of cuBLAS, by the card (`cublas_workspace`)."""
    strategy: str = "ddp"
    """With more than one GPU, ddp: each has everything; fsdp: each has its share of weights and optimizer."""

    def __post_init__(self):
        check_numbers(self, positive=("batch_size", "accumulation", "gpus"))
        choices = {"dtype": BYTES, "optimizer": ("muon", "adamw"), "device": CONTEXT, "strategy": ("ddp", "fsdp")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} cannot be {getattr(self, name)}: give one of {', '.join(known)}")

    @property
    def autocast(self):
        return self.dtype != "float32"


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment when most is alive, and the most in each phase of a step."""

    parts: dict
    phases: dict

    @property
    def allocated(self):
        """What PyTorch's allocator hands out: `torch.cuda.max_memory_allocated`, or the same on a CPU."""
        return self.total - self.parts.get("context and allocator", 0)

    @property
    def total(self):
        """What the machine must have."""
        return sum(self.parts.values())


class Ledger:
    """The bytes that are alive, by part, while a step is played through, and when they were most."""

    def __init__(self):
        self.live, self.total = Counter(), 0
        self.phase, self.phases = None, Counter()
        self.peak, self.parts = 0, {}

    def add(self, part, size):
        self.live[part] += size
        self.total += size
        self.phases[self.phase] = max(self.phases[self.phase], self.total)
        if self.total > self.peak:
            self.peak, self.parts = self.total, dict(self.live)

    def drop(self, part, size):
        self.live[part] -= size
        self.total -= size


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
        self.c, self.p = c, p
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
        self.logits = 4 * M * c.vocab_size  # (B, T, V) in float32
        self.half_logits = a * M * c.vocab_size
        # The gradient at the input of a linear layer: autocast makes it in half precision, then the cast to float32 has
        # both for a moment, and float32 stays.
        self.input_grad = self.wide + (self.stream if p.autocast else 0)
        # Each cast of an activation makes a copy of its own: under autocast query, key and value keep three of the same
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
    qkv = s.wide + 2 * s.keys  # gradients of queries, keys and values
    ops = [
        norm_op(c, s, p),
        Op(keeps=s.wide, makes=s.input_grad, passes=s.stream, weights=C * C, casts=True),  # queries
        Op(keeps=s.extra_input, makes=s.input_grad, passes=s.wide + s.stream, weights=K * C, casts=True),  # keys
        Op(keeps=s.extra_input, makes=s.input_grad, passes=s.wide + s.keys + s.stream, weights=K * C, casts=True),
    ]
    if c.qk_norm:  # kept in float32, which is a copy under autocast; makes five tensors of which one is passed on
        kept = 4 * p.batch_size * c.block_size * (C + K)
        makes = s.stream if p.device == "cuda" else 4 * s.stream
        ops.append(Op(keeps=kept + s.per_head, makes=makes, passes=qkv))
    if c.position == "rotary":  # keeps cos and sin only, which the model has; halves of the gradient meet again
        ops.append(Op(makes=2 * s.wide, passes=qkv))
    if p.device == "cpu" and p.dtype == "bfloat16":  # textbook_attention
        # keeps queries and keys, the softmax its result, and the product with the values keeps those
        ops.append(Op(keeps=s.wide + s.shared_keys, makes=s.wide + s.shared_keys, passes=qkv))
        ops.append(Op(keeps=s.scores, makes=s.scores, passes=s.scores + s.shared_keys))
        ops.append(Op(keeps=s.shared_keys, makes=s.shared_keys + s.scores, passes=s.scores + s.shared_keys))
        own_layout = True
    else:  # fused: keeps queries, keys, values, its result and the logarithm of each query's sum, never (T, T)
        makes = s.wide + 2 * s.shared_keys + s.per_head
        if p.device == "cuda" and p.autocast:  # FlashAttention-2 adds up the queries' gradient in float32
            makes += s.stream
        ops.append(Op(keeps=2 * s.wide + 2 * s.shared_keys + s.per_head, makes=makes, passes=qkv))
        own_layout = c.qk_norm or c.position == "rotary"  # its result lies as the queries do, which these lay anew
    # The projection keeps the heads' results side by side: a copy where they lie otherwise.
    ops.append(Op(keeps=s.wide if own_layout else 0, makes=s.wide, passes=s.wide, weights=C * C, casts=True))
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


def muon_buffers(c, p):
    """What Muon's step allocates for the largest matrix, of w numbers on its shorter side r.

    Four of its size: the matrix, x, the next x, and the update of the matrix before, whose name is not given up until
    this one's is there; and a and b of r x r.
    """
    shape = max(matrices_in_blocks(c), key=prod)
    return BYTES[p.dtype] * (4 * prod(shape) + 2 * min(shape) ** 2)


def shared_by_gpus(c, p):
    """What working together takes on each GPU besides its share.

    DDP copies all gradients into buckets to send them. FSDP has whole for a moment, in float32, the weights and
    gradients of the block at work, the weights of the next, and those outside the blocks. Both as PyTorch does it by
    default; not measured.
    """
    n = count_parameters(c)
    in_blocks = sum(row.count for row in parameter_table(c) if row.blocks)
    return 4 * n if p.strategy == "ddp" else 4 * (3 * in_blocks // c.n_blocks + n - in_blocks)


def training_memory(c, plan):
    """The `Memory` that training takes at its peak, per GPU, for a model of configuration c by a `Plan`."""
    p, s, ledger = plan, Sizes(c, plan), Ledger()
    n, shards = count_parameters(c), plan.gpus if plan.strategy == "fsdp" else 1
    half = 2 if p.autocast else 0  # bytes of an autocast copy
    in_blocks = c.n_blocks * sum(map(prod, matrices_in_blocks(c)))
    head = c.vocab_size * c.n_embd
    block = [*attention_ops(c, s, p), *feed_forward_ops(c, s, p)]
    biases = sum(row.count for row in parameter_table(c) if row.blocks) // c.n_blocks - sum(op.weights for op in block)
    block_keeps, block_copies = (sum(sizes) for sizes in zip(*(
        (op.keeps, half * op.weights if op.casts else 0) for op in block), strict=True))

    def gradient(count):
        """The gradient of so many weights, in float32; the earlier micro-batches' are there when a later one's come."""
        ledger.add("gradients", 4 * count // shards)
        if p.accumulation > 1:
            ledger.drop("gradients", 4 * count // shards)

    def backward(op, under_way):
        """Play the gradient of an op; `under_way` are the bytes of gradients that reach it."""
        ledger.add("backward buffers", op.makes)
        grad_of_weights = BYTES[p.dtype] * op.weights if op.casts and p.autocast else 0
        ledger.add("backward buffers", grad_of_weights)
        if not grad_of_weights:
            gradient(op.weights)
        ledger.drop("activations", op.keeps)
        ledger.drop("backward buffers", under_way + op.makes - op.passes)
        if op.casts:
            ledger.drop("autocast copies", half * op.weights)
        if grad_of_weights:  # in half precision until here
            gradient(op.weights)
            ledger.drop("backward buffers", grad_of_weights)
        return op.passes

    # What stays from step to step. Rotary positions keep a table of cos and sin in each block.
    tables = 4 * c.n_blocks * c.block_size * c.head_size if c.position == "rotary" else 0
    muon = in_blocks if p.optimizer == "muon" else 0
    ledger.phase = "forward"
    ledger.add("weights", 4 * n // shards + tables)
    ledger.add("optimizer state", (4 * muon + 8 * (n - muon)) // shards)  # Muon: momentum; AdamW: two averages
    if p.gpus > 1:
        ledger.add("other GPUs", shared_by_gpus(c, p))
    if p.device == "cuda":
        ledger.add("workspaces", 2 * p.workspace)  # the threads of the forward and the backward pass have one each
    if p.accumulation > 1:
        ledger.add("gradients", 4 * n // shards)

    # Forward. The logits of the micro-batch before are alive until those of this one are there to take their name.
    ledger.add("logits and loss", s.logits)
    ids = 8 * p.batch_size * c.block_size * (1 if p.device == "cpu" else 3)  # x and y on the GPU; y in one row
    ledger.add("activations", ids + (s.embedding_mask if c.dropout else 0))
    ledger.add("activations", c.n_blocks * (s.stream if p.activation_checkpointing else block_keeps))
    ledger.add("autocast copies", half * (in_blocks + head))  # each made once, and alive until the forward pass ends
    final_norm = norm_op(c, s, p)
    ledger.add("activations", final_norm.keeps + s.wide)  # the head keeps its input, too
    ledger.add("logits and loss", s.half_logits if p.autocast else 0)
    ledger.add("logits and loss", s.logits)
    ledger.drop("logits and loss", s.half_logits if p.autocast else 0)
    ledger.add("logits and loss", s.logits)  # log_softmax keeps its result; so does the loss, the same
    ledger.drop("logits and loss", s.logits)  # of the micro-batch before
    if p.activation_checkpointing:  # the blocks' copies end with autocast: nothing kept them
        ledger.drop("autocast copies", half * in_blocks)

    # Backward: first through the loss and log_softmax, a tensor of logits each, then the cast, then the head.
    ledger.phase = "backward"
    ledger.add("logits and loss", 2 * s.logits)
    ledger.drop("logits and loss", 2 * s.logits)
    if p.autocast:
        ledger.add("logits and loss", s.half_logits)
        ledger.drop("logits and loss", s.logits)
    under_way = backward(Op(keeps=s.wide, makes=s.input_grad, passes=s.stream, weights=head, casts=True), 0)
    ledger.drop("logits and loss", s.half_logits)
    gradient(c.vocab_size if c.head_bias else 0)
    if c.tied and p.accumulation > 1:  # waits for the embedding's gradient, beside that of earlier micro-batches
        ledger.add("gradients", 4 * head // shards)
    backward(replace(final_norm, makes=final_norm.makes + (s.stream if c.norm == "rms" and p.device == "cpu" else 0),
                     passes=s.stream), under_way)  # what is passed on is from now on the residual path's
    for _ in range(c.n_blocks):
        if p.activation_checkpointing:
            ledger.add("activations", block_keeps - s.stream)
            ledger.add("autocast copies", block_copies)
        under_way = 0
        for op in reversed(block):
            under_way = backward(op, under_way)
        gradient(biases)
    if c.dropout:
        ledger.add("backward buffers", s.stream)
        ledger.drop("backward buffers", s.stream)
        ledger.drop("activations", s.embedding_mask)
    if c.position == "learned":
        gradient(c.block_size * c.n_embd)
    if c.tied:  # the sum with the head's gradient, in place only where that came from a cast
        ledger.add("backward buffers", 4 * head * (1 if p.autocast else 2))
        ledger.drop("backward buffers", 4 * head * (1 if p.autocast else 2))
        if p.accumulation > 1:
            ledger.drop("gradients", 4 * head // shards)
    else:
        gradient(head)
    ledger.drop("backward buffers", s.stream)
    ledger.drop("activations", ids)

    ledger.phase = "optimizer step"
    if p.optimizer == "muon":
        ledger.add("backward buffers", muon_buffers(c, p))
    allocated = sum(ledger.parts.values())
    slack = int(CUDA_SLACK * allocated) if p.device == "cuda" else 0
    parts = {**ledger.parts, "context and allocator": CONTEXT[p.device] + slack}
    return Memory({part: parts[part] for part in PARTS if parts.get(part)}, dict(ledger.phases))


def largest_batch(c, plan, memory):
    """The most windows per micro-batch that fit in so many bytes, with all else by the plan; 0 if not even one does."""

    def fits(batch_size):
        return training_memory(c, replace(plan, batch_size=batch_size)).total <= memory

    if not fits(1):
        return 0
    most = 1
    while fits(2 * most):
        most *= 2
    too_many = 2 * most
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most


def fitting_plan(c, plan, memory):
    """The plan that fits in so many bytes with the same windows in a step, in the fewest micro-batches; else None."""
    windows = plan.batch_size * plan.accumulation
    for batch_size in range(windows, 0, -1):
        if windows % batch_size == 0:
            smaller = replace(plan, batch_size=batch_size, accumulation=windows // batch_size)
            if training_memory(c, smaller).total <= memory:
                return smaller
    return None


def advice(c, plan, memory):
    """What to give train.py so that a step of as many windows fits in so many bytes, in words."""
    fitting = fitting_plan(c, plan, memory)
    if fitting:
        return (f"--training.batch_size {fitting.batch_size} --training.accumulation {fitting.accumulation} takes "
                f"{readable(training_memory(c, fitting).total)} for as many tokens a step")
    if not plan.activation_checkpointing:
        return "not even a batch of 1 fits: try --training.activation_checkpointing true or a smaller model"
    return "not even a batch of 1 fits: take a smaller model or a shorter context"


def weight_bytes(c, dtype):
    """The weights in float32, bfloat16, float16 or int8: there, matrices have a byte a number and a float32 a row."""
    if dtype != "int8":
        return BYTES[dtype] * count_parameters(c)
    rows = parameter_table(c)
    return sum(row.count + 4 * row.count // row.shape[-1] if len(row.shape) == 2 else 4 * row.count for row in rows)


def cache_bytes(c, tokens, dtype, batch_size=1):
    """Keys and values of so many tokens in all blocks."""
    return 2 * c.n_blocks * batch_size * tokens * c.kv_heads * c.head_size * BYTES[dtype]


def inference_memory(c, prompt_tokens, dtype="float32", device="cpu"):
    """The `Memory` that writing takes at its peak, one text at a time: when it has just read so many tokens at once.

    As models/generate.py does it. The cache is allocated whole, for block_size tokens. With int8 weights all else is
    bfloat16.
    """
    weights, dtype = weight_bytes(c, dtype), "bfloat16" if dtype == "int8" else dtype
    a, S = BYTES[dtype], min(prompt_tokens, c.block_size)
    wide, keys, hidden = (a * S * width for width in (c.n_embd, c.kv_heads * c.head_size, c.hidden_size))
    shared_keys = 2 * wide if c.num_heads > c.kv_heads else 0
    # At the feed-forward: what came into the block, the same after attention, its norm; and the way up with what the
    # activation makes of it, since Python keeps an argument until the call is over.
    feed_forward = 3 * wide + {"relu": 2, "gelu": 2, "relu2": 3, "swiglu": 3}[c.feed_forward] * hidden
    attention = 5 * wide + shared_keys  # what came in, its norm, queries, the heads' results, and these side by side
    if device == "cpu" and dtype == "bfloat16" and S > 1:
        attention += wide + 2 * a * c.num_heads * S * S  # scaled queries; scores and softmax
    if c.qk_norm or c.position == "rotary":  # queries and keys before and after, and what is made on the way
        attention = max(attention, 7 * wide + 2 * keys)
    tables = 4 * c.n_blocks * c.block_size * c.head_size if c.position == "rotary" else 0
    parts = {
        "weights": weights + tables,
        "KV cache": cache_bytes(c, c.block_size, dtype),
        "activations": max(attention, feed_forward),
        "workspaces": cublas_workspace(8) if device == "cuda" else 0,
        "context and allocator": CONTEXT[device],
    }
    return Memory({part: size for part, size in parts.items() if size}, {})
