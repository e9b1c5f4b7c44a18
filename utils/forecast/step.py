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

from dataclasses import replace

from utils.forecast.activations import Sizes, attention_ops, block_activations, feed_forward_ops, norm_op
from utils.forecast.ledger import Ledger
from utils.forecast.muon import muon_buffers
from utils.forecast.parameters import count_parameters, parameter_table, rotary_bytes
from utils.forecast.plan import (
    CACHED_KERNELS,
    CONTEXT,
    CPU_SLACK,
    CUDA_SLACK,
    FRAGMENTED,
    KERNEL_SIZE,
    LOGITS_CHUNK,
    OPTIMIZER_CODE,
    PARTS,
    Memory,
)
from utils.forecast.sharding import Sharding
from utils.forecast.trained_weights import TrainedWeights
from utils.forecast.units import BYTES


def training_memory(config, plan):
    """The `Memory` of training at its peak, per GPU, for a ModelConfig and a `Plan`."""
    step = Step(config, plan)
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


class Step(Ledger):
    """A training step according to a `Plan`. Not the first one: optimizer state exists from the second step on."""

    def __init__(self, config, plan):
        super().__init__()
        self.config, self.plan, self.sizes = config, plan, Sizes(config, plan)
        self.block = attention_ops(config, self.sizes, plan) + feed_forward_ops(config, self.sizes, plan)
        self.trained = trained = TrainedWeights(config, plan)
        self.n = count_parameters(config) + trained.adapters
        self.shards, self.sharding = 1, None
        if plan.is_sharded:
            in_block = sum(row.count for row in parameter_table(config) if row.blocks) // config.n_blocks
            if trained.adapters:
                in_block += trained.per_block
            self.shards = plan.gpus
            self.sharding = Sharding(self, plan, block=4 * in_block, rest=4 * (self.n - config.n_blocks * in_block))
        # Of the first block with a backward pass, the operations that need one: those before its first trained weight
        # pass no gradients on, unless the embeddings need them.
        first = 0 if trained.embeddings or not trained.blocks else [op.trained > 0 for op in self.block].index(True)
        self.first_block = self.block[first:]
        self.in_head = config.head_rows * config.n_embd
        # The gradient of the head's weight; with an adapter, that of the weight with the adapter merged.
        self.head_gradient = 4 * self.in_head if trained.head or trained.embeddings else 0
        self.half = 2 if plan.autocast else 0  # bytes per element of an autocast copy
        captured = (plan.device == "cuda" and plan.gpus == 1 and plan.dtype != "float16"
                    and not plan.activation_checkpointing)  # the step, in a CUDA graph
        self.in_buckets = plan.gpus > 1 and not plan.is_sharded
        # Whether gradients exist before a backward pass: of earlier micro-batches, in a CUDA graph, in DDP's buckets.
        self.keeps_gradients = plan.accumulation > 1 or captured or self.in_buckets

    def allocate_persistent(self):
        """What is alive from the start of a step to its end."""
        plan, trained = self.plan, self.trained
        if self.sharding:  # each rank builds the whole model first
            self.phase = "building"
            self.add("weights", 4 * self.n)
            self.drop("weights", 4 * self.n)
        self.phase = "forward"
        self.add("weights", 4 * self.n // self.shards + rotary_bytes(self.config))
        muon = trained.matrices if plan.optimizer == "muon" else 0
        state = 4 * muon + 8 * (trained.total - muon)  # momentum; AdamW's two moments
        if plan.ema:
            state += 4 * trained.total
        self.add("optimizer state", state // self.shards)
        if plan.device == "cuda":
            self.add("workspaces", 2 * plan.workspace)  # one each for the threads of the forward and the backward pass
        if self.keeps_gradients:
            self.add("gradients", 4 * trained.total // self.shards)
        if self.in_buckets and plan.accumulation > 1:  # the buckets, which only the last micro-batch uses
            self.add("communication", 4 * trained.total)

    def forward(self):
        config, plan, sizes, n_blocks = self.config, self.plan, self.sizes, self.trained.blocks
        if self.sharding:
            self.sharding.gather_rest()
        self.add("activations", sizes.ids)
        if config.dropout and self.trained.embeddings:
            self.add("activations", sizes.embedding_mask)
        if n_blocks < config.n_blocks:  # frozen blocks keep nothing
            M = plan.batch_size * config.block_size
            self.add_temporary("activations", block_activations(config, M, "float32", "float32"))
        if plan.activation_checkpointing:
            self.add("activations", n_blocks * sizes.residual)
        elif n_blocks:
            for times, ops in ((1, self.first_block), (n_blocks - 1, self.block)):
                self.add("activations", times * sum(op.saved for op in ops))
                self.add("autocast copies", times * self.half * copied_weights(ops))
        if self.sharding:
            self.sharding.gather_last_block()
        self.add("activations", norm_op(config, sizes, plan).saved)
        self.cross_entropy()
        if self.sharding:
            self.sharding.free_last_block()

    def cross_entropy(self):
        """models/loss.py computes gradients in the forward pass; only those of its inputs stay alive after it."""
        config, plan, sizes = self.config, self.plan, self.sizes
        inputs = sizes.residual + (sizes.embd if plan.autocast else 0)  # the output of the last norm, and its cast
        self.add("activations", inputs)
        self.add("autocast copies", self.half * self.in_head)
        self.add("backward buffers", sizes.embd)  # gradient of the input
        self.add("gradients", self.head_gradient)
        merged = 4 * self.in_head if "head" in plan.lora_targets and plan.lora_rank else 0
        self.add("weights", merged)
        M, element = plan.batch_size * config.block_size, BYTES[plan.dtype]
        chunk = min(M, max(1, LOGITS_CHUNK // config.head_rows)) * config.head_rows
        in_loss = 8 * chunk  # logits, and log_softmax or softmax
        # The gradient of the logits, its product with the input and, under autocast on a CPU, a cast of that.
        product = (6 if plan.autocast and plan.device == "cpu" else element) * self.in_head
        in_products = element * chunk + (product if self.head_gradient else 0)
        self.add_temporary("logits and loss", max(in_loss, in_products))
        self.drop("autocast copies", self.half * self.in_head)
        self.drop("activations", inputs)
        self.drop("weights", merged)

    def backward(self):
        config, plan, sizes, trained = self.config, self.plan, self.sizes, self.trained
        self.phase = "backward"
        if plan.autocast:  # the gradient of the loss's input is cast
            self.add("backward buffers", sizes.residual)
            self.drop("backward buffers", sizes.embd)
        self.backward_head()
        norm = norm_op(config, sizes, plan)  # what it passes is from here on the gradient along the residual path
        in_place = config.norm == "layer" or plan.device == "cuda"  # within a block it always is
        buffers = norm.buffers if in_place else norm.buffers + sizes.residual
        self.backward_op(replace(norm, buffers=buffers, passed=sizes.residual), incoming=sizes.residual)
        if self.sharding and trained.blocks:
            self.sharding.prefetch()
        if trained.blocks > 1:  # after its own, each has the gradients of the block before to reduce
            self.backward_block(self.block)
        if trained.blocks > 2:
            self.repeat(trained.blocks - 2, lambda: self.backward_block(self.block))
        if trained.blocks:
            self.backward_block(self.first_block, last=True)
        if trained.embeddings:
            self.backward_embeddings()
        if self.sharding:
            self.sharding.reduce_rest(gradients=4 * (trained.total - trained.blocks * trained.per_block))
        self.drop("backward buffers", sizes.residual)
        self.drop("activations", sizes.ids)

    def backward_head(self):
        """What happens to the gradients that the loss has computed."""
        config, trained = self.config, self.trained
        bias = config.n_outputs if config.head_bias else 0
        if trained.adapters and self.head_gradient and config.n_labels is None:  # on to the two factors of the adapter
            self.drop("gradients", self.head_gradient)
            self.add_gradient(trained.head)
        elif self.head_gradient and self.sharding:
            self.drop("gradients", self.head_gradient)
            self.add_gradient(self.in_head + bias)
        elif self.head_gradient:
            self.add_gradient(bias)
            if self.keeps_gradients and not config.tied_head:  # a tied one is first added to the embedding's gradient
                self.drop("gradients", self.head_gradient)

    def backward_block(self, ops, last=False):
        if self.sharding:
            self.sharding.copy_block()
            if not last:
                self.sharding.prefetch()
        if self.plan.activation_checkpointing:
            self.add("activations", sum(op.saved for op in ops) - self.sizes.residual)
            self.add("autocast copies", self.half * copied_weights(ops))
        passed = 0
        for op in reversed(ops):
            passed = self.backward_op(op, passed)
        self.drop("backward buffers", passed)  # of the first trained operation, which nothing before it needs
        self.add_gradient(self.trained.per_block - sum(op.trained for op in ops))  # biases
        if self.sharding:
            self.sharding.reduce_block(gradients=4 * self.trained.per_block)

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

    def add_gradient(self, count):
        """The gradient of `count` weights in float32; from the second micro-batch on it is added to an existing one."""
        if self.sharding:
            self.add("communication", 4 * count)
            return
        self.add("gradients", 4 * count)
        if self.keeps_gradients:
            self.drop("gradients", 4 * count)

    def backward_embeddings(self):
        config, sizes = self.config, self.sizes
        if config.dropout:
            self.add_temporary("backward buffers", sizes.residual)
            self.drop("activations", sizes.embedding_mask)
        if config.position == "learned":
            self.add_gradient(config.block_size * config.n_embd)
        if config.tied_head:  # the embedding's gradient is added to the head's
            self.add_temporary("backward buffers", 4 * self.in_head)
            if self.keeps_gradients and not self.sharding:
                self.drop("gradients", 4 * self.in_head)
        else:
            self.add_gradient(config.vocab_size * config.n_embd)

    def update(self):
        """The optimizers: AdamW works in place, Muon does not."""
        self.phase = "optimizer step"
        if self.plan.optimizer == "muon" and self.trained.matrices:
            self.add("backward buffers", muon_buffers(self.config, self.plan, self.trained.blocks))


def copied_weights(ops):
    """Number of weights of which autocast makes copies."""
    return sum(op.weights for op in ops if op.casts)
