"""The peak memory of a training step, computed before anything is built.

Nothing is measured or allocated here. The step is simulated operation by operation, as models/layers.py,
training/step.py and training/optim.py run it: each operation states the bytes that it saves for its backward pass and
the bytes that its backward pass allocates. M is the number of tokens in a micro-batch, B times T; the other letters are
those of `utils.forecast.parameters.symbols`.

benchmarks/memory.py compares the forecast with what PyTorch allocates. On a CPU, the error is below 1%; with FSDP2 on
several ranks up to 5.5%, depending on the timing of gloo's threads. On an H100 it was at most 2.5% in training and 3.0%
in inference; the training step has changed since then (CUDA graphs, batched Muon, chunked cross-entropy) and was not
measured there again. `torch.compile` fuses operations and needs less. With LoRA or frozen blocks on a CPU, the error is
below 2%; up to 6% if LoRA adapts only `down` of a ReLU network or is combined with activation checkpointing, and up to
10% if no block is trained.
"""

from collections.abc import Sequence
from dataclasses import replace

from utils.forecast.activations import Op, Sizes, attention_ops, block_activations, feed_forward_ops, norm_op
from utils.forecast.architecture import Architecture
from utils.forecast.context import context_and_allocator
from utils.forecast.ledger import Ledger
from utils.forecast.muon import muon_buffers
from utils.forecast.parameters import count_parameters, rotary_bytes
from utils.forecast.plan import LOGITS_CHUNK, PARTS, Memory, Plan
from utils.forecast.sharding import Sharding
from utils.forecast.trained_weights import TrainedWeights
from utils.forecast.units import BYTES


def training_memory(config: Architecture, plan: Plan) -> Memory:
    """Return the `Memory` of a training step at its peak, per GPU.

    Raises UserError if the plan trains weights that the model does not have.
    """
    step = Step(config, plan)
    step.allocate_persistent()
    step.forward()
    step.backward()
    step.update()
    parts = step.parts | {"context and allocator": context_and_allocator(plan, step.parts)}
    return Memory({part: parts[part] for part in PARTS if parts.get(part)}, dict(step.phases))


class Step(Ledger):
    """A simulated training step. It is not the first one: the optimizer state already exists."""

    def __init__(self, config: Architecture, plan: Plan):
        super().__init__()
        self.config, self.plan, self.sizes = config, plan, Sizes(config, plan)
        self.block = attention_ops(config, self.sizes, plan) + feed_forward_ops(config, self.sizes, plan)
        self.trained = trained = TrainedWeights(config, plan)
        self.n_weights = count_parameters(config) + trained.adapters
        self.shards, self.sharding = 1, None
        if plan.is_sharded:
            self.shards = plan.gpus
            rest = self.n_weights - config.n_blocks * trained.in_each_block
            self.sharding = Sharding(self, plan, block=4 * trained.in_each_block, rest=4 * rest)
        # In the lowest trained block, backward ends at the first trained weight if the embeddings are frozen.
        self.lowest_block = self.block
        if trained.n_blocks and not trained.has_embeddings:
            first = next(i for i, op in enumerate(self.block) if op.trained)
            self.lowest_block = self.block[first:]
        self.in_head = config.head_rows * config.n_embd
        # The gradient of the head's weight, with its adapter merged if it has one.
        self.head_gradient = 4 * self.in_head if trained.head or trained.has_embeddings else 0
        self.half = 2 if plan.autocast else 0  # bytes per element of an autocast copy
        # Gradients exist before the backward pass: of earlier micro-batches, in a CUDA graph, or in DDP's buckets.
        has_cuda_graph = (plan.device == "cuda" and plan.gpus == 1 and plan.dtype != "float16"
                          and not plan.activation_checkpointing)
        has_buckets = plan.gpus > 1 and not plan.is_sharded
        self.keeps_gradients = plan.accumulation > 1 or has_cuda_graph or has_buckets

    def allocate_persistent(self) -> None:
        """Add the memory that exists before the step starts and after it ends."""
        plan, trained = self.plan, self.trained
        if self.sharding and plan.device == "cpu":  # each rank builds the whole model there first
            self.phase = "building"
            self.add("weights", 4 * self.n_weights)
            self.drop("weights", 4 * self.n_weights)
        self.phase = "forward"
        self.add("weights", 4 * self.n_weights // self.shards + rotary_bytes(self.config))
        muon = trained.matrices if plan.optimizer == "muon" else 0
        state = 4 * muon + 8 * (trained.total - muon)  # momentum; AdamW's two moments
        if plan.ema:
            state += 4 * trained.total
        self.add("optimizer state", state // self.shards)
        if plan.device == "cuda":
            self.add("workspaces", 2 * plan.workspace)  # one for the forward thread, one for the backward thread
        if self.keeps_gradients:
            self.add("gradients", 4 * trained.total // self.shards)

    def forward(self) -> None:
        config, plan, sizes, n_blocks = self.config, self.plan, self.sizes, self.trained.n_blocks
        if self.sharding:
            self.sharding.gather_rest()
        self.add("activations", sizes.ids)
        if config.dropout and self.trained.has_embeddings:
            self.add("activations", sizes.embedding_mask)
        if n_blocks < config.n_blocks:  # frozen blocks save nothing
            M = plan.batch_size * config.block_size
            self.add_temporary("activations", block_activations(config, M, "float32", "float32"))
        if plan.activation_checkpointing:
            self.add("activations", n_blocks * sizes.residual)
        elif n_blocks:
            for times, ops in ((1, self.lowest_block), (n_blocks - 1, self.block)):
                self.add("activations", times * sum(op.saved for op in ops))
                self.add("autocast copies", times * self.half * copied_weights(ops))
        if self.sharding:
            self.sharding.gather_last_block()
        self.add("activations", norm_op(config, sizes, plan).saved)
        self.cross_entropy()
        if self.sharding:
            self.sharding.free_last_block()

    def cross_entropy(self) -> None:
        """Add the loss of models/loss.py, which computes the gradients of its inputs in the forward pass."""
        config, plan, sizes = self.config, self.plan, self.sizes
        inputs = sizes.residual + (sizes.embd if plan.autocast else 0)  # the output of the last norm, and its cast
        self.add("activations", inputs)
        self.add("autocast copies", self.half * self.in_head)
        self.add("backward buffers", sizes.embd)  # gradient of the input
        self.add("gradients", self.head_gradient)
        merged = 4 * self.in_head if "head" in plan.lora_targets and plan.lora_rank else 0
        self.add("weights", merged)
        M, element = plan.batch_size * config.block_size, BYTES[plan.dtype]
        chunk = min(M, max(1, LOGITS_CHUNK // config.head_rows)) * config.head_rows  # logits of a chunk of tokens
        in_loss = 8 * chunk  # logits, and log_softmax or softmax
        # The gradient of the logits, its product with the input and, with autocast on a CPU, the cast product.
        product = (6 if plan.autocast and plan.device == "cpu" else element) * self.in_head
        in_products = element * chunk + (product if self.head_gradient else 0)
        self.add_temporary("logits and loss", max(in_loss, in_products))
        self.drop("autocast copies", self.half * self.in_head)
        self.drop("activations", inputs)
        self.drop("weights", merged)

    def backward(self) -> None:
        config, plan, sizes, trained = self.config, self.plan, self.sizes, self.trained
        self.phase = "backward"
        if plan.autocast:  # the gradient of the loss's input is cast
            self.add("backward buffers", sizes.residual)
            self.drop("backward buffers", sizes.embd)
        self.backward_head()
        norm = norm_op(config, sizes, plan)  # passes on the gradient along the residual path
        in_place = config.norm == "layer" or plan.device == "cuda"  # inside a block, the addition always is
        buffers = norm.buffers if in_place else norm.buffers + sizes.residual
        self.backward_op(replace(norm, buffers=buffers, passed=sizes.residual), incoming=sizes.residual)
        if self.sharding and trained.n_blocks:
            self.sharding.prefetch_block()
        if trained.n_blocks > 1:  # not in `repeat`: no gradients of a previous block are being reduced yet
            self.backward_block(self.block)
        if trained.n_blocks > 2:
            self.repeat(trained.n_blocks - 2, lambda: self.backward_block(self.block))
        if trained.n_blocks:
            self.backward_block(self.lowest_block, last=True)
        if trained.has_embeddings:
            self.backward_embeddings()
        if self.sharding:
            self.sharding.reduce_rest(gradients=4 * (trained.total - trained.n_blocks * trained.per_block))
        self.drop("backward buffers", sizes.residual)
        self.drop("activations", sizes.ids)

    def backward_head(self) -> None:
        """Hand the gradients that the loss has computed to the weights of the head."""
        config, trained = self.config, self.trained
        bias = config.n_outputs if config.head_bias else 0
        if trained.adapters and self.head_gradient and config.n_labels is None:  # to the two factors of the adapter
            self.drop("gradients", self.head_gradient)
            self.add_gradient(trained.head)
        elif self.head_gradient and self.sharding:
            self.drop("gradients", self.head_gradient)
            self.add_gradient(self.in_head + bias)
        elif self.head_gradient:
            self.add_gradient(bias)
            if self.keeps_gradients and not config.tied_head:  # if tied, it is added to the embedding's later
                self.drop("gradients", self.head_gradient)

    def backward_block(self, ops: Sequence[Op], last: bool = False) -> None:
        """Simulate the backward pass of a block; `last`: no other block follows."""
        if self.sharding:
            self.sharding.copy_out_block()
            if not last:
                self.sharding.prefetch_block()
        if self.plan.activation_checkpointing:
            self.add("activations", sum(op.saved for op in ops) - self.sizes.residual)
            self.add("autocast copies", self.half * copied_weights(ops))
        passed = 0
        for op in reversed(ops):
            passed = self.backward_op(op, passed)
        self.drop("backward buffers", passed)  # of the lowest trained operation: nothing below it needs a gradient
        self.add_gradient(self.trained.per_block - sum(op.trained for op in ops))  # biases
        if self.sharding:
            self.sharding.reduce_block(gradients=4 * self.trained.per_block)

    def backward_op(self, op: Op, incoming: int) -> int:
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

    def add_gradient(self, count: int) -> None:
        """Add the gradient of `count` weights in float32, or accumulate it into an existing gradient."""
        if self.sharding:
            self.add("communication", 4 * count)
            return
        self.add("gradients", 4 * count)
        if self.keeps_gradients:
            self.drop("gradients", 4 * count)

    def backward_embeddings(self) -> None:
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

    def update(self) -> None:
        """Add what the optimizers allocate: AdamW works in place, Muon does not."""
        self.phase = "optimizer step"
        if self.plan.optimizer == "muon" and self.trained.matrices:
            self.add("backward buffers", muon_buffers(self.config, self.plan, self.trained.n_blocks))


def copied_weights(ops: Sequence[Op]) -> int:
    """Return the number of weights of which autocast makes copies."""
    return sum(op.weights for op in ops if op.casts)
