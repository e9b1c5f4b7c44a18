"""What training and writing take of memory, in bytes, before anything is built.

Nothing is measured or allocated here. A training step is played through op by op, as models/layers.py, training/loop.py
and training/optim.py do it, and each op says what it keeps for its gradient and what its gradient makes. The most that
is alive at once is the answer, with what it consists of. In the comments and names, M is the tokens of a micro-batch,
B times T; other letters are those of `utils.parameters.symbols`.

benchmarks/memory.py holds this against what PyTorch really hands out. On a CPU that was done; what is said of CUDA
follows from reading its kernels and has not been measured yet. `torch.compile`, which fuses ops, takes less.
"""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from utils.activations import BYTES, Op, Sizes, attention_ops, feed_forward_ops, norm_op
from utils.errors import UserError, check_numbers
from utils.parameters import count_parameters, matrices_in_blocks, parameter_table

KIB, MIB, GIB = 2**10, 2**20, 2**30

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
        if self.gpus > 1 and self.device != "cuda":
            raise UserError(f"{self.gpus} GPUs are not a {self.device}: give device cuda, or gpus 1")

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


def muon_buffers(c, p):
    """What Muon's step allocates for the largest matrix, of w numbers and r on its shorter side.

    Three of its size, the update, x and the next x, with a and b of r x r. Before that, where it multiplies in half
    precision, the update in float32 and cast, and that of the matrix before, whose name is not given up until then.
    """
    shape = max(matrices_in_blocks(c), key=prod)
    w, r, size = prod(shape), min(shape), BYTES[p.dtype]
    return max(size * (3 * w + 2 * r**2), (2 * size + 4) * w if p.autocast else 0)


def shared_by_gpus(c, p):
    """What working together takes on each GPU besides its share.

    DDP copies all gradients into buckets to send them. FSDP has whole for a moment, in float32, the weights and
    gradients of the block at work, the weights of the next, and those outside the blocks. Both as PyTorch does it by
    default; not measured.
    """
    n = count_parameters(c)
    in_blocks = sum(row.count for row in parameter_table(c) if row.blocks)
    return 4 * n if p.strategy == "ddp" else 4 * (3 * in_blocks // c.n_blocks + n - in_blocks)


class Step(Ledger):
    """A training step by a `Plan`, from the second on, when all is there that stays from step to step."""

    def __init__(self, c, p):
        super().__init__()
        self.c, self.p, self.s = c, p, Sizes(c, p)
        self.block = attention_ops(c, self.s, p) + feed_forward_ops(c, self.s, p)
        self.block_keeps = sum(op.keeps for op in self.block)
        self.n, self.shards = count_parameters(c), p.gpus if p.strategy == "fsdp" else 1
        self.in_matrices = c.n_blocks * sum(map(prod, matrices_in_blocks(c)))
        self.in_head = c.vocab_size * c.n_embd
        self.half = 2 if p.autocast else 0  # bytes of an autocast copy

    def standing(self):
        """What stays from step to step, and in every step from its start to its end."""
        c, p = self.c, self.p
        self.phase = "forward"
        self.add("weights", 4 * self.n // self.shards + rotation_bytes(c))
        muon = self.in_matrices if p.optimizer == "muon" else 0
        self.add("optimizer state", (4 * muon + 8 * (self.n - muon)) // self.shards)  # momentum; AdamW's two averages
        if p.gpus > 1:
            self.add("other GPUs", shared_by_gpus(c, p))
        if p.device == "cuda":
            self.add("workspaces", 2 * p.workspace)  # the threads of the forward and the backward pass have one each
        if p.accumulation > 1:
            self.add("gradients", 4 * self.n // self.shards)  # of the micro-batches before

    def forward(self):
        c, p, s = self.c, self.p, self.s
        self.add("activations", s.ids + (s.embedding_mask if c.dropout else 0))
        self.add("activations", c.n_blocks * (s.stream if p.activation_checkpointing else self.block_keeps))
        self.add("autocast copies", self.half * (self.in_matrices + self.in_head))  # alive until autocast ends
        self.add("activations", norm_op(c, s, p).keeps + s.wide)  # the head keeps its input, too
        if p.autocast:
            self.add("logits and loss", s.half_logits)
        self.add("logits and loss", s.logits)
        if p.autocast:
            self.drop("logits and loss", s.half_logits)
        self.add("logits and loss", s.logits)  # log_softmax keeps its result, and the loss the same
        self.drop("logits and loss", s.logits)  # the loop gives the logits themselves no name
        if p.activation_checkpointing:  # nothing keeps the blocks' copies
            self.drop("autocast copies", self.half * self.in_matrices)

    def gradient(self, count):
        """The gradient of so many weights, in float32; after the first micro-batch it is added to those before."""
        self.add("gradients", 4 * count // self.shards)
        if self.p.accumulation > 1:
            self.drop("gradients", 4 * count // self.shards)

    def backward_of(self, op, under_way):
        """Play the gradient of an op that `under_way` bytes of gradients reach; return those that it passes on."""
        halves = self.half * op.weights if op.casts else 0
        self.add("backward buffers", op.makes + halves)
        if not halves:
            self.gradient(op.weights)
        self.drop("activations", op.keeps)
        self.drop("backward buffers", under_way + op.makes - op.passes)
        if halves:  # the copy of the weights goes, and their gradient is cast to float32
            self.drop("autocast copies", halves)
            self.gradient(op.weights)
            self.drop("backward buffers", halves)
        return op.passes

    def backward(self):
        c, p, s = self.c, self.p, self.s
        self.phase = "backward"
        # Through the loss and through log_softmax: a tensor of logits each, then what log_softmax kept can go.
        self.add("logits and loss", 2 * s.logits)
        self.drop("logits and loss", 2 * s.logits)
        if p.autocast:
            self.add("logits and loss", s.half_logits)
            self.drop("logits and loss", s.logits)
        head = Op(keeps=s.wide, makes=s.input_grad, passes=s.stream, weights=self.in_head, casts=True)
        under_way = self.backward_of(head, 0)
        self.drop("logits and loss", s.half_logits)
        self.gradient(c.vocab_size if c.head_bias else 0)
        if c.tied and p.accumulation > 1:  # waits for the embedding's, beside the sum of the micro-batches before
            self.add("gradients", 4 * self.in_head // self.shards)

        norm = norm_op(c, s, p)  # what it passes on is from now on the gradient along the residual path
        beside = s.stream if c.norm == "rms" and p.device == "cpu" else 0  # in a block that is added to what is there
        self.backward_of(replace(norm, makes=norm.makes + beside, passes=s.stream), under_way)
        others = sum(row.count for row in parameter_table(c) if row.blocks) // c.n_blocks
        others -= sum(op.weights for op in self.block)  # biases
        for _ in range(c.n_blocks):
            if p.activation_checkpointing:
                self.add("activations", self.block_keeps - s.stream)
                self.add("autocast copies", self.half * self.in_matrices // c.n_blocks)
            under_way = 0
            for op in reversed(self.block):
                under_way = self.backward_of(op, under_way)
            self.gradient(others)

        if c.dropout:
            self.add("backward buffers", s.stream)
            self.drop("backward buffers", s.stream)
            self.drop("activations", s.embedding_mask)
        if c.position == "learned":
            self.gradient(c.block_size * c.n_embd)
        if c.tied:  # the embedding's, and its sum with the head's, which is in place only where that came from a cast
            made = 4 * self.in_head * (1 if p.autocast else 2)
            self.add("backward buffers", made)
            self.drop("backward buffers", made)
            if p.accumulation > 1:
                self.drop("gradients", 4 * self.in_head // self.shards)
        else:
            self.gradient(self.in_head)
        self.drop("backward buffers", s.stream)
        self.drop("activations", s.ids)

    def update(self):
        """The optimizers: AdamW works in place, Muon does not."""
        self.phase = "optimizer step"
        self.add("backward buffers", muon_buffers(self.c, self.p) if self.p.optimizer == "muon" else 0)


def training_memory(c, plan):
    """The `Memory` that training takes at its peak, per GPU, for a model of configuration c by a `Plan`."""
    step = Step(c, plan)
    step.standing()
    step.forward()
    step.backward()
    step.update()
    slack = int(CUDA_SLACK * step.peak) if plan.device == "cuda" else 0
    parts = step.parts | {"context and allocator": CONTEXT[plan.device] + slack}
    return Memory({part: parts[part] for part in PARTS if parts.get(part)}, dict(step.phases))


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
    whole = replace(plan, batch_size=windows, accumulation=1)
    if training_memory(c, whole).total <= memory:
        return whole
    accumulating = replace(plan, accumulation=2)  # takes what any number of micro-batches above one takes
    for batch_size in range(min(largest_batch(c, accumulating, memory), windows // 2), 0, -1):
        if windows % batch_size == 0:
            return replace(plan, batch_size=batch_size, accumulation=windows // batch_size)
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


def cache_dtype(dtype, device):
    """What keys and values are kept in, for a model in `dtype`."""
    return "float32" if device == "cpu" else dtype


def rotation_bytes(c, dtype="float32"):
    """The cosines and sines of rotary positions: a table of each for the model."""
    return 2 * BYTES[dtype] * c.block_size * c.head_size if c.position == "rotary" else 0


def inference_memory(c, prompt_tokens, dtype="float32", device="cpu", workspace=Plan.workspace):
    """The `Memory` that writing takes at its peak, one text at a time: when it has just read so many tokens at once.

    As models/generate.py does it. The cache is allocated whole, for block_size tokens. With int8 weights all else is
    bfloat16. `workspace` is that of `Plan`.
    """
    weights, dtype = weight_bytes(c, dtype), "bfloat16" if dtype == "int8" else dtype
    attends_in = cache_dtype(dtype, device)
    a, S = BYTES[dtype], min(prompt_tokens, c.block_size)
    wide, keys, hidden = (a * S * width for width in (c.n_embd, c.kv_heads * c.head_size, c.hidden_size))
    # At the feed-forward: what came into the block, the same after attention, its norm; and the way up with what the
    # activation makes of it.
    feed_forward = 3 * wide + (3 if c.feed_forward == "swiglu" else 2) * hidden
    # At the attention: what came in, its norm, queries with keys and values, these or what is made of queries and keys;
    # and, where it attends in another dtype, queries and results in both, else the results, and these projected.
    qk, other = wide + keys, BYTES[attends_in] * S * c.n_embd
    new = qk if c.qk_norm or c.position == "rotary" else 0
    attention = 3 * wide + 2 * keys + new + (wide + 2 * other if attends_in != dtype else 2 * wide)
    if c.num_heads > c.kv_heads:  # keys and values, repeated
        attention += 2 * other
    if new:  # on the way there
        made = (3 if c.position == "rotary" else 1) + c.qk_norm
        attention = max(attention, 3 * wide + 2 * keys + made * qk)
    gathered = rotation_bytes(c, dtype) * S // c.block_size
    parts = {
        "weights": weights + rotation_bytes(c, dtype),
        "KV cache": cache_bytes(c, c.block_size, attends_in),
        "activations": max(attention, feed_forward) + gathered,
        "workspaces": workspace if device == "cuda" else 0,
        "context and allocator": CONTEXT[device],
    }
    return Memory({part: size for part, size in parts.items() if size}, {})
