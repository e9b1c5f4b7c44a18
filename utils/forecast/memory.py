"""The memory that training and inference take, in bytes, computed before anything is built.

Nothing is measured or allocated here. A training step is simulated operation by operation, as models/layers.py,
training/loop.py and training/optim.py run it; each operation says what it saves for its backward pass and what that
allocates. The result is the maximum that is alive at once, split into parts. In comments and names, M is the number of
tokens in a micro-batch, B times T; the other letters are those of `utils.forecast.parameters.symbols`.

benchmarks/memory.py compares the result with what PyTorch allocates. On a CPU the errors are below 1%; on several ranks
with FSDP2, up to 5.5%, as threads of gloo happen to run. On an H100 they were at most 2.5% in training and 3.0% in
inference. Since then the training step has changed (CUDA graphs, batched Muon, chunked cross-entropy), and was not
measured there again. `torch.compile`, which fuses operations, takes less.
With LoRA or frozen blocks the errors on a CPU are below 2%; up to 6% if LoRA adapts only `down` of a ReLU network or is
combined with activation checkpointing, and up to 10% if no block is trained.
"""

from collections import Counter
from dataclasses import dataclass, replace
from math import isqrt, prod
from typing import Literal

from utils.errors import UserError, check_numbers
from utils.fields import check_types
from utils.forecast.activations import BYTES, Sizes, attention_ops, feed_forward_ops, norm_op
from utils.forecast.parameters import (
    check_lora,
    count_parameters,
    linear_shapes,
    lora_parameters,
    matrices_in_blocks,
    parameter_table,
)

KIB, MIB, GIB = 2**10, 2**20, 2**30

# Memory besides tensors: the code and data of Python and PyTorch. CPU: the resident memory of a process that has
# imported torch and matplotlib (0.25 GiB on Linux). CUDA: the context with its kernels, which is on the GPU but not in
# torch's statistics; 0.3 to 0.6 GiB is typical, depending on GPU and driver.
CONTEXT = {"cpu": 256 * MIB, "cuda": 512 * MIB}
# The same, after that: what torch imports to make an optimizer (as measured on Linux).
OPTIMIZER_CODE = 80 * MIB
# A CPU keeps kernels for matrix products in half precision: at most this many (training/precision.py), of this size.
CACHED_KERNELS, KERNEL_SIZE = 64, 540 * KIB
# Memory that PyTorch's CUDA allocator reserves but cannot use, as a fraction of what it allocates: an assumption.
CUDA_SLACK = 0.05
# Memory that the C library cannot reuse for the tensors of a step on a CPU, because what is free is in pieces: as a
# fraction of these parts, whose tensors are allocated and freed in every step and, unlike logits, are mostly too small
# to be mapped one by one. With it, the resident memory of 18 runs of five models on Linux was 0.98 to 1.25 times the
# forecast, and without it 1.07 to 1.43 times.
CPU_SLACK, FRAGMENTED = 0.25, ("autocast copies", "activations", "backward buffers")

MUON_STACK = 2**25  # elements of the matrices that training/optim.py orthogonalizes at once
LOGITS_CHUNK = 2**26  # elements of the logits that models/loss.py computes at once

PARTS = ("weights", "gradients", "optimizer state", "autocast copies", "activations", "logits and loss",
         "backward buffers", "communication", "workspaces", "context and allocator")


def cublas_workspace(major):
    """Bytes of one cuBLAS workspace on a GPU of compute capability `major`.x: PyTorch's getChosenWorkspaceSize."""
    return 32 * MIB if major >= 9 else 8320 * KIB


def readable(size):
    """Format a number of bytes.

    >>> readable(3 * 2**29)
    '1.50 GiB'
    """
    unit, name = next(((unit, name) for unit, name in ((GIB, "GiB"), (MIB, "MiB")) if size >= unit), (KIB, "KiB"))
    return f"{size / unit:,.2f} {name}"


@dataclass(frozen=True)
class Plan:
    """The training settings that affect memory. Raises UserError for values outside their range."""

    batch_size: int = 16
    """Sequences per micro-batch and GPU (B)."""
    accumulation: int = 1
    """Micro-batches per step."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype of matrix products. Weights are always kept in float32."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks and AdamW for the rest; adamw: AdamW for everything."""
    activation_checkpointing: bool = False
    """Save only the input of each block, and recompute the other activations in the backward pass."""
    device: Literal["cpu", "cuda"] = "cpu"
    gpus: int = 1
    """GPUs, or ranks on a CPU."""
    workspace: int = cublas_workspace(8)
    """CUDA: bytes of a cuBLAS workspace, which depends on the GPU (`cublas_workspace`)."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several GPUs, ddp: a full copy on each; fsdp: weights, gradients and optimizer state are sharded."""
    ema: bool = False
    """Keep an exponential moving average of the weights. It is counted as optimizer state."""
    lora_rank: int | None = None
    """Train only LoRA adapters of this rank, and the head of a classifier."""
    lora_targets: tuple = ("qkv", "out")
    """The matrices that have adapters: names from `utils.forecast.parameters.lora_targets`."""
    trainable_blocks: int | None = None
    """Train only this many of the last blocks, the final norm and an untied head."""

    def __post_init__(self):
        check_types(self)
        check_numbers(self, positive=("batch_size", "accumulation", "gpus", "lora_rank"),
                      not_negative=("trainable_blocks",))
        if self.lora_rank is not None and self.trainable_blocks is not None:
            raise UserError("give lora_rank or trainable_blocks, not both: LoRA freezes all blocks")
        if self.batch_size * self.accumulation >= 2**63:
            raise UserError(f"batch_size {self.batch_size} times accumulation {self.accumulation} must be below 2^63")

    @property
    def autocast(self):
        return self.dtype != "float32"


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the peak of a step, and the peak of each phase."""

    parts: dict
    phases: dict

    @property
    def allocated(self):
        """What PyTorch's allocator hands out at the peak: `torch.cuda.max_memory_allocated`, or the same on a CPU."""
        return self.total - self.parts.get("context and allocator", 0)

    @property
    def total(self):
        """What the machine or the GPU needs."""
        return sum(self.parts.values())


class Ledger:
    """The bytes that are alive during a simulated step, by part, and their peak."""

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

    def repeat(self, times, simulate):
        """Call `simulate` `times` times, for a function that always adds and drops the same sizes.

        Each call changes what is alive by the same amounts, so the peak is in the first or in the last one. Those
        between are not simulated: their number comes from the user and may be anything.
        """
        before = Counter(self.live)
        simulate()
        for part, size in self.live.items():
            skipped = max(0, times - 2) * (size - before[part])
            self.live[part] += skipped
            self.total += skipped
        if times > 1:
            simulate()


class Trained:
    """Numbers of the weights that a `Plan` trains. Raises UserError if the model does not have them."""

    def __init__(self, c, p):
        table = parameter_table(c)
        self.blocks = c.n_blocks  # the last ones, which have a backward pass
        self.per_block = sum(row.count for row in table if row.blocks) // c.n_blocks
        self.matrices_per_block = sum(map(prod, matrices_in_blocks(c)))
        self.head = sum(row.count for row in table if row.component.startswith("head."))
        self.adapters = 0  # of all blocks and the head
        self.embeddings = False
        if p.lora_rank is not None:
            check_lora(c, p.lora_rank, p.lora_targets)
            self.adapters = lora_parameters(c, p.lora_rank, p.lora_targets)
            in_head = lora_parameters(c, p.lora_rank, ["head"]) if "head" in p.lora_targets else 0
            self.per_block, self.matrices_per_block = (self.adapters - in_head) // c.n_blocks, 0
            self.blocks = c.n_blocks if self.per_block else 0
            self.head = self.head if c.n_labels else in_head
            self.total = self.blocks * self.per_block + self.head
        elif p.trainable_blocks is not None:
            if p.trainable_blocks > c.n_blocks:
                raise UserError(f"trainable_blocks {p.trainable_blocks} is more than the {c.n_blocks} blocks of the "
                                "model")
            self.blocks = p.trainable_blocks
            norm = sum(row.count for row in table if row.component.startswith("final_norm."))
            self.total = self.blocks * self.per_block + norm + self.head
        else:
            self.embeddings = True
            self.total = count_parameters(c)

    @property
    def matrices(self):
        """Weights in the matrices that Muon trains."""
        return self.blocks * self.matrices_per_block


def muon_buffers(c, p, n_blocks):
    """What a step of Muon allocates for the largest stack of matrices of equal shape, n elements in total.

    First the updates in float32, one by one and stacked; FSDP gathers whole weights for them. Then three buffers of
    their size, the update, x and the next x, and a and b, which are square. With autocast, at last the result in half
    precision, its input and its cast. Several ranks orthogonalize a part each, in addition to the stack and its result.
    """
    size, peak = BYTES[p.dtype], 0
    for shape, per_block in Counter(matrices_in_blocks(c)).items():
        count = min(per_block * n_blocks, max(1, MUON_STACK // prod(shape)))
        own = -(-count // p.gpus)
        n, n_own, squares = count * prod(shape), own * prod(shape), own * min(shape) ** 2
        apart = gathered_for_muon(c, n_blocks, shape, count) if p.strategy == "fsdp" and p.gpus > 1 else n
        peak = max(peak, 4 * (apart + n), size * (3 * n_own + 2 * squares))
        if p.gpus > 1:
            cast = 4 * n if p.autocast else 0
            peak = max(peak, 2 * size * n + max(size * (2 * n_own + 2 * squares), cast))
    return peak


def gathered_for_muon(c, n_blocks, shape, count):
    """Elements of the weights that contain `count` matrices of a `shape`; queries, keys and values come first."""
    in_qkv = matrices_in_qkv(c, shape)
    from_qkv = min(count, in_qkv * n_blocks)
    n_weights = -(-from_qkv // in_qkv) if in_qkv else 0
    return n_weights * prod(linear_shapes(c)["qkv"]) + (count - from_qkv) * prod(shape)


def matrices_in_qkv(c, shape):
    """How many of the matrices of queries, keys and values, which are one weight, have a `shape`."""
    queries, keys = (heads * c.head_size for heads in (c.num_heads, c.kv_heads))
    return [(queries, c.n_embd), (keys, c.n_embd), (keys, c.n_embd)].count(shape)


def copied_weights(ops):
    """Number of weights of which autocast makes copies."""
    return sum(op.weights for op in ops if op.casts)


class Step(Ledger):
    """A training step according to a `Plan`. Not the first one: optimizer state exists from the second step on."""

    def __init__(self, c, p):
        super().__init__()
        self.c, self.p, self.s = c, p, Sizes(c, p)
        self.block = attention_ops(c, self.s, p) + feed_forward_ops(c, self.s, p)
        self.trained = trained = Trained(c, p)
        self.n = count_parameters(c) + trained.adapters
        self.sharded = p.strategy == "fsdp" and p.gpus > 1
        self.shards = p.gpus if self.sharded else 1
        in_block = sum(row.count for row in parameter_table(c) if row.blocks) // c.n_blocks
        if trained.adapters:
            in_block += trained.per_block
        self.whole_block, self.whole_rest = 4 * in_block, 4 * (self.n - c.n_blocks * in_block)  # FSDP gathers these
        self.reducing = 0  # size of the buffer with gradients that FSDP reduces
        # Of the first block with a backward pass, the operations that need one: those before its first trained weight
        # pass no gradients on, unless the embeddings need them.
        first = 0 if trained.embeddings or not trained.blocks else [op.trained > 0 for op in self.block].index(True)
        self.first_block = self.block[first:]
        self.in_head = c.head_rows * c.n_embd
        # The gradient of the head's weight; with an adapter, that of the weight with the adapter merged.
        self.head_gradient = 4 * self.in_head if trained.head or trained.embeddings else 0
        self.half = 2 if p.autocast else 0  # bytes per element of an autocast copy
        # Gradients that exist before a backward pass: those of earlier micro-batches, those that a CUDA graph uses, or
        # those in the buckets of DDP.
        captured = p.device == "cuda" and p.dtype != "float16" and not p.activation_checkpointing and p.gpus == 1
        self.keeps_gradients = p.accumulation > 1 or captured or (p.gpus > 1 and not self.sharded)

    def allocate_persistent(self):
        """What is alive from the start of a step to its end."""
        c, p = self.c, self.p
        if self.sharded and p.device == "cpu":  # each rank builds the whole model there first
            self.phase = "building"
            self.add("weights", 4 * self.n)
            self.drop("weights", 4 * self.n)
        self.phase = "forward"
        self.add("weights", 4 * self.n // self.shards + rotary_bytes(c))
        trained = self.trained
        muon = trained.matrices if p.optimizer == "muon" else 0
        state = 4 * muon + 8 * (trained.total - muon)  # momentum; AdamW's two moments
        if p.ema:
            state += 4 * trained.total
        self.add("optimizer state", state // self.shards)
        if p.device == "cuda":
            self.add("workspaces", 2 * p.workspace)  # one each for the threads of the forward and the backward pass
        if self.keeps_gradients:
            self.add("gradients", 4 * trained.total // self.shards)

    def forward(self):
        c, p, s, n_blocks = self.c, self.p, self.s, self.trained.blocks
        self.gather(self.whole_rest)
        self.add("activations", s.ids + (s.embedding_mask if c.dropout and self.trained.embeddings else 0))
        if n_blocks < c.n_blocks:  # frozen blocks keep nothing
            frozen = block_activations(c, p.batch_size * c.block_size, "float32", "float32")
            self.add("activations", frozen)
            self.drop("activations", frozen)
        if p.activation_checkpointing:
            self.add("activations", n_blocks * s.residual)
        elif n_blocks:
            for times, ops in ((1, self.first_block), (n_blocks - 1, self.block)):
                self.add("activations", times * sum(op.saved for op in ops))
                self.add("autocast copies", times * self.half * copied_weights(ops))
        if self.sharded:  # the last block, its buffer, and that of the block before; its own is freed after the loss
            self.add("communication", 3 * self.whole_block)
            self.drop("communication", 2 * self.whole_block)
        self.add("activations", norm_op(c, s, p).saved)
        self.cross_entropy()
        if self.sharded:
            self.drop("communication", self.whole_block)

    def cross_entropy(self):
        """models/loss.py computes gradients in the forward pass; only those of its inputs stay alive after it."""
        c, p, s = self.c, self.p, self.s
        inputs = s.residual + (s.embd if p.autocast else 0)  # the output of the last norm, and its cast
        self.add("activations", inputs)
        self.add("autocast copies", self.half * self.in_head)
        self.add("backward buffers", s.embd)  # gradient of the input
        self.add("gradients", self.head_gradient)
        merged = 4 * self.in_head if "head" in p.lora_targets and p.lora_rank else 0
        self.add("weights", merged)
        M, a = p.batch_size * c.block_size, BYTES[p.dtype]
        chunk = min(M, max(1, LOGITS_CHUNK // c.head_rows)) * c.head_rows
        in_loss = 8 * chunk  # logits, and log_softmax or softmax
        # The gradient of the logits, its product with the input and, under autocast on a CPU, a cast of that.
        product = (6 if p.autocast and p.device == "cpu" else a) * self.in_head
        in_products = a * chunk + (product if self.head_gradient else 0)
        self.add("logits and loss", max(in_loss, in_products))
        self.drop("logits and loss", max(in_loss, in_products))
        self.drop("autocast copies", self.half * self.in_head)
        self.drop("activations", inputs)
        self.drop("weights", merged)

    def add_gradient(self, count):
        """The gradient of `count` weights in float32; from the second micro-batch on it is added to an existing one."""
        if self.sharded:
            self.add("communication", 4 * count)
            return
        self.add("gradients", 4 * count)
        if self.keeps_gradients:
            self.drop("gradients", 4 * count)

    def gather(self, size):
        """FSDP: gather weights of `size` bytes in a buffer, and copy them from there."""
        if self.sharded:
            self.add("communication", 2 * size)
            self.drop("communication", size)

    def prefetch(self):
        """FSDP: gather the weights of the next block of a backward pass in a buffer; gloo has one of its own."""
        own = self.whole_block if self.p.device == "cpu" else 0
        self.add("communication", self.whole_block + own)
        self.drop("communication", own)

    def reduce_gradients(self, weights, gradients):
        """FSDP: free gathered weights, and replace their gradients, both in bytes, with the share of this rank of the
        sum over all ranks. The buffer for that is freed when the next one is needed; gloo clones it.

        The thread of gloo may be so late that it frees the clone only after the next prefetch, which is not included.
        """
        if not self.sharded:
            return
        self.drop("communication", weights + self.reducing)
        self.add("communication", gradients)
        self.drop("communication", gradients)
        self.reducing, share = gradients, gradients // self.shards
        clone = gradients if self.p.device == "cpu" else 0
        self.add("gradients", share)
        self.add("communication", clone)
        self.drop("communication", clone)
        if self.keeps_gradients:
            self.drop("gradients", share)

    def backward_op(self, op, incoming):
        """Simulate the backward pass of an operation for `incoming` bytes of gradients; return the bytes passed on."""
        half = self.half if op.casts else 0
        self.add("backward buffers", op.buffers + half * op.trained)
        if not half:
            self.add_gradient(op.trained)
        self.drop("activations", op.saved)
        self.drop("backward buffers", incoming + op.buffers - op.passed)
        if half:  # the copy of the weights is freed, and their gradient is cast to float32
            self.drop("autocast copies", half * op.weights)
            self.add_gradient(op.trained)
            self.drop("backward buffers", half * op.trained)
        return op.passed

    def backward(self):
        c, p, s = self.c, self.p, self.s
        self.phase = "backward"
        if p.autocast:  # the gradient of the loss's input is cast
            self.add("backward buffers", s.residual)
            self.drop("backward buffers", s.embd)
        self.backward_head()
        norm = norm_op(c, s, p)  # what it passes is from here on the gradient along the residual path
        extra = s.residual if c.norm == "rms" and p.device == "cpu" else 0  # within a block it is added in place
        self.backward_op(replace(norm, buffers=norm.buffers + extra, passed=s.residual), incoming=s.residual)
        if self.sharded and self.trained.blocks:
            self.prefetch()
        if self.trained.blocks > 1:  # after its own, each has the gradients of the block before to reduce
            self.backward_block(self.block)
        if self.trained.blocks > 2:
            self.repeat(self.trained.blocks - 2, lambda: self.backward_block(self.block))
        if self.trained.blocks:
            self.backward_block(self.first_block, last=True)
        if self.trained.embeddings:
            self.backward_embeddings()
        if self.sharded:
            in_rest = self.trained.total - self.trained.blocks * self.trained.per_block
            self.reduce_gradients(self.whole_rest, 4 * in_rest)
            self.drop("communication", self.reducing)
        self.drop("backward buffers", s.residual)
        self.drop("activations", s.ids)

    def backward_head(self):
        """What happens to the gradients that the loss has computed."""
        c, trained = self.c, self.trained
        if trained.adapters and self.head_gradient and c.n_labels is None:  # on to the two factors of the adapter
            self.drop("gradients", self.head_gradient)
            self.add_gradient(trained.head)
        elif self.head_gradient and self.sharded:
            self.drop("gradients", self.head_gradient)
            self.add_gradient(self.in_head + (c.n_outputs if c.head_bias else 0))
        elif self.head_gradient:
            self.add_gradient(c.n_outputs if c.head_bias else 0)
            if self.keeps_gradients and not c.tied_head:  # a tied one is first added to the embedding's gradient
                self.drop("gradients", self.head_gradient)

    def backward_block(self, ops, last=False):
        if self.sharded:
            self.add("communication", self.whole_block)
            self.drop("communication", self.whole_block)  # the buffer
            if not last:
                self.prefetch()
        if self.p.activation_checkpointing:
            self.add("activations", sum(op.saved for op in ops) - self.s.residual)
            self.add("autocast copies", self.half * copied_weights(ops))
        passed = 0
        for op in reversed(ops):
            passed = self.backward_op(op, passed)
        self.drop("backward buffers", passed)  # of the first trained operation, which nothing before it needs
        self.add_gradient(self.trained.per_block - sum(op.trained for op in ops))  # biases
        self.reduce_gradients(self.whole_block, 4 * self.trained.per_block)

    def backward_embeddings(self):
        c, s = self.c, self.s
        if c.dropout:
            self.add("backward buffers", s.residual)
            self.drop("backward buffers", s.residual)
            self.drop("activations", s.embedding_mask)
        if c.position == "learned":
            self.add_gradient(c.block_size * c.n_embd)
        if c.tied_head:  # the embedding's gradient is added to the head's
            buffers = 4 * self.in_head
            self.add("backward buffers", buffers)
            self.drop("backward buffers", buffers)
            if self.keeps_gradients and not self.sharded:
                self.drop("gradients", 4 * self.in_head)
        else:
            self.add_gradient(c.vocab_size * c.n_embd)

    def update(self):
        """The optimizers: AdamW works in place, Muon does not."""
        self.phase = "optimizer step"
        if self.p.optimizer == "muon" and self.trained.matrices:
            self.add("backward buffers", muon_buffers(self.c, self.p, self.trained.blocks))


def training_memory(c, plan):
    """The `Memory` of training at its peak, per GPU, for a ModelConfig c and a `Plan`."""
    step = Step(c, plan)
    step.allocate_persistent()
    step.forward()
    step.backward()
    step.update()
    if plan.device == "cuda":
        context = CONTEXT["cuda"] + int(CUDA_SLACK * step.peak)
    else:
        kernels = CACHED_KERNELS * KERNEL_SIZE if plan.autocast else 0
        slack = int(CPU_SLACK * sum(step.parts.get(part, 0) for part in FRAGMENTED))
        context = CONTEXT["cpu"] + OPTIMIZER_CODE + kernels + slack
    parts = step.parts | {"context and allocator": context}
    return Memory({part: parts[part] for part in PARTS if parts.get(part)}, dict(step.phases))


def largest_batch(c, plan, memory):
    """The largest batch size that fits into `memory` bytes, with all else as planned; 0 if none does."""
    accumulation = min(plan.accumulation, 2)  # any number of micro-batches above one takes the same

    def fits(batch_size):
        return training_memory(c, replace(plan, batch_size=batch_size, accumulation=accumulation)).total <= memory

    if not fits(1):
        return 0
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fitting_plan(c, plan, memory):
    """The plan with the same number of sequences per step and the fewest micro-batches that fits into `memory` bytes.

    None if not even a batch size of 1 fits.
    """
    sequences = plan.batch_size * plan.accumulation
    whole = replace(plan, batch_size=sequences, accumulation=1)
    if training_memory(c, whole).total <= memory:
        return whole
    largest = largest_batch(c, replace(plan, batch_size=1, accumulation=2), memory)
    largest = min(largest, sequences // 2)
    if not largest:
        return None
    batch_size = largest_divisor(sequences, largest)
    return replace(plan, batch_size=batch_size, accumulation=sequences // batch_size)


def largest_divisor(n, limit):
    """The largest divisor of n up to `limit`; for n above 10^12, only of divisors that a search of 10^6 steps finds.

    >>> largest_divisor(24, 7)
    6
    """
    divisors = [i for i in range(1, min(isqrt(n), 10**6) + 1) if n % i == 0]
    divisors += [n // i for i in divisors]
    return max(divisor for divisor in divisors if divisor <= limit)


def advice(c, plan, memory):
    """The options of train.py for a step with as many sequences that fits into `memory` bytes, in words."""
    fitting = fitting_plan(c, plan, memory)
    if fitting:
        accumulation = fitting.accumulation * fitting.gpus  # train.py divides the micro-batches among the GPUs
        return (f"--training.batch_size {fitting.batch_size} --training.accumulation {accumulation} takes "
                f"{readable(training_memory(c, fitting).total)} for as many tokens per step")
    if not plan.activation_checkpointing:
        return "not even a batch of 1 fits: try --training.activation_checkpointing true or a smaller model"
    return "not even a batch of 1 fits: use a smaller model or a shorter context"


def weight_bytes(c, dtype):
    """Bytes of the weights in float32, bfloat16, float16 or int8.

    int8 takes one byte per element of a matrix and a bfloat16 scale per row; vectors are in bfloat16.
    """
    if dtype != "int8":
        return BYTES[dtype] * count_parameters(c)
    rows = parameter_table(c)
    return sum(row.count + 2 * row.count // row.shape[-1] if len(row.shape) == 2 else 2 * row.count for row in rows)


def cache_bytes(c, tokens, dtype, batch_size=1):
    """Bytes of the KV cache for `tokens` tokens."""
    return 2 * c.n_blocks * batch_size * tokens * c.kv_heads * c.head_size * BYTES[dtype]


def cache_dtype(dtype, device):
    """The dtype of the KV cache of a model in `dtype`."""
    return "float32" if device == "cpu" else dtype


def rotary_bytes(c, dtype="float32"):
    """Bytes of the model's tables of cosines and sines for rotary positions."""
    return 2 * BYTES[dtype] * c.block_size * c.head_size if c.position == "rotary" else 0


def block_activations(c, tokens, dtype, kv_dtype):
    """Bytes of a block's activations at the peak of its forward pass, if nothing is saved for a backward pass.

    `kv_dtype` is that of the KV cache, if there is one, or the same as `dtype`.
    """
    sizes = (c.n_embd, c.num_heads * c.head_size, c.kv_heads * c.head_size, c.hidden_size)
    embd, queries, keys, hidden = (BYTES[dtype] * tokens * n for n in sizes)
    # In the feed-forward: the input of the block, the same after attention, its norm; and the up projection with the
    # result of the activation function.
    feed_forward = 3 * embd + (3 if c.feed_forward == "swiglu" else 2) * hidden
    # In the attention: the input, its norm, queries, keys and values, and new queries and keys where they are
    # normalized or rotated; then the result and its projection, and where the KV cache has another dtype, queries and
    # result in both dtypes.
    qk, attended = queries + keys, BYTES[kv_dtype] * queries // BYTES[dtype]
    new_qk = qk if c.qk_norm or c.position == "rotary" else 0
    inputs = 2 * embd + queries + 2 * keys
    attention = inputs + new_qk + embd + (2 * attended if kv_dtype != dtype else queries)
    if c.num_heads > c.kv_heads:  # repeated keys and values
        attention += 2 * attended
    if new_qk:  # while they are computed
        buffers = (3 if c.position == "rotary" else 1) + c.qk_norm
        attention = max(attention, inputs + buffers * qk)
    return max(attention, feed_forward)


def inference_memory(c, prompt_tokens, dtype="float32", device="cpu", workspace=Plan.workspace):
    """The `Memory` of generating one text at its peak, the forward pass of the prompt; or of classifying the prompt.

    As models/generate.py does it. The KV cache is allocated at once, for block_size tokens; a classifier has none. With
    int8 weights all else is bfloat16. `workspace` is that of `Plan`.
    """
    weights, dtype = weight_bytes(c, dtype), "bfloat16" if dtype == "int8" else dtype
    generates = c.n_labels is None
    kv_dtype = cache_dtype(dtype, device) if generates else dtype
    S = min(prompt_tokens, c.block_size)
    activations = block_activations(c, S, dtype, kv_dtype)
    if not generates and device == "cpu" and dtype == "bfloat16":  # scores (nh, S, S), and their softmax
        activations += 2 * BYTES[dtype] * c.num_heads * S**2
    gathered = rotary_bytes(c, dtype) * S // c.block_size
    parts = {
        "weights": weights + rotary_bytes(c, dtype),
        "KV cache": cache_bytes(c, c.block_size, kv_dtype) if generates else 0,
        "activations": activations + gathered,
        "workspaces": workspace if device == "cuda" else 0,
        "context and allocator": CONTEXT[device],
    }
    return Memory({part: size for part, size in parts.items() if size}, {})
