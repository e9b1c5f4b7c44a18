"""The parameters of a model, counted from its configuration without building it.

`c` is a ModelConfig, or any object with its fields.
"""

from dataclasses import dataclass
from math import prod

from utils.errors import UserError


@dataclass(frozen=True)
class Parameters:
    """One kind of weight: its name, its shape, and the number of blocks that have one."""

    component: str
    """Name in a checkpoint file, without the block number: `blocks.attention.query.weight`."""
    letters: str
    """The shape in the letters of `symbols`."""
    shape: tuple
    blocks: int | None = None
    """None for a weight outside the blocks, of which there is one."""

    @property
    def count(self):
        return prod(self.shape) * (1 if self.blocks is None else self.blocks)

    @property
    def formula(self):
        """The count as a product: `L H C = 2 x 1,536 x 384`."""
        factors = self.shape if self.blocks is None else (self.blocks, *self.shape)
        letters = self.letters if self.blocks is None else f"L {self.letters}"
        return f"{letters} = {' x '.join(f'{factor:,}' for factor in factors)}"


def symbols(c):
    """The letters of the formulas, each with a name and a value."""
    labels = {} if c.n_labels is None else {"N": ("n_labels", c.n_labels)}
    queries = {} if c.head_dim is None else {"Q": ("num_heads x head size", c.num_heads * c.head_size)}
    return {"V": ("vocab_size", c.vocab_size), "C": ("n_embd", c.n_embd), "T": ("block_size", c.block_size),
            "L": ("n_blocks", c.n_blocks), "H": ("n_hidden", c.hidden_size),
            "K": ("num_kv_heads x head size", c.kv_heads * c.head_size)} | queries | labels


def parameter_table(c):
    """A list of `Parameters` in the order of the model, whose counts add up to the model's parameters."""
    sizes = {letter: value for letter, (_, value) in symbols(c).items()}

    def row(component, shape, blocks=None):
        return Parameters(component, shape, tuple(sizes[letter] for letter in shape.split()), blocks)

    def linear(name, outputs, inputs, bias=c.bias):
        biases = [row(f"blocks.{name}.bias", outputs, c.n_blocks)] if bias else []
        return [row(f"blocks.{name}.weight", f"{outputs} {inputs}", c.n_blocks), *biases]

    def norm(name, blocks=None):
        bias = [row(f"{name}.bias", "C", blocks)] if c.norm == "layer" else []
        return [row(f"{name}.weight", "C", blocks), *bias]

    gate = linear("feed_forward.gate", "H", "C") if c.feed_forward == "swiglu" else []
    outputs = "V" if c.n_labels is None else "N"
    queries = "C" if c.head_dim is None else "Q"
    return [
        row("token_embedding.weight", "V C"),
        *([row("position_embedding.weight", "T C")] if c.position == "learned" else []),
        *norm("blocks.attention_norm", c.n_blocks),
        *linear("attention.query", queries, "C", c.has_qkv_bias),
        *linear("attention.key", "K", "C", c.has_qkv_bias),
        *linear("attention.value", "K", "C", c.has_qkv_bias),
        *linear("attention.out", "C", queries),
        *norm("blocks.feed_forward_norm", c.n_blocks),
        *linear("feed_forward.up", "H", "C"),
        *linear("feed_forward.down", "C", "H"),
        *gate,
        *norm("final_norm"),
        *([] if c.tied_head else [row("head.weight", f"{outputs} C")]),  # a tied head is the token embedding
        *([row("head.bias", outputs)] if c.head_bias else []),
        *([row("token_head.weight", "V C")] if c.auxiliary_lm else []),
    ]


def weight_shapes(c):
    """Yield (name, shape) of every weight in a checkpoint file, a tied head included.

    A generator, because a configuration from a file may ask for any number of blocks.
    """
    table = parameter_table(c)
    for row in table:
        if row.blocks is None:
            yield row.component, row.shape
    if c.tied_head:
        yield "head.weight", (c.vocab_size, c.n_embd)
    for i in range(c.n_blocks):
        for row in table:
            if row.blocks is not None:
                yield numbered(row.component, i), row.shape


def numbered(component, i):
    """The name of a weight of block i, of its name without the number.

    >>> numbered("blocks.attention.out.weight", 3)
    'blocks.3.attention.out.weight'
    """
    return component.replace("blocks", f"blocks.{i}", 1)


def linear_shapes(c):
    """Shapes (outputs, inputs) of the linear layers of a block, by name."""
    C, H, Q, K = c.n_embd, c.hidden_size, c.num_heads * c.head_size, c.kv_heads * c.head_size
    gate = {"gate": (H, C)} if c.feed_forward == "swiglu" else {}
    return {"qkv": (Q + 2 * K, C), "out": (C, Q), "up": (H, C), "down": (C, H)} | gate


def lora_targets(c):
    """Shapes (outputs, inputs) of the matrices that LoRA can adapt, by name: those of a block, and the head.

    A tied head is the token embedding, and the head of a classifier is trained in full.
    """
    head = {"head": (c.vocab_size, c.n_embd)} if c.n_labels is None and not c.tied else {}
    return linear_shapes(c) | head


def check_lora(c, rank, targets):
    """Raise UserError unless LoRA of this rank can adapt these matrices of the model."""
    valid = lora_targets(c)
    if rank < 1:
        raise UserError(f"LoRA's rank cannot be {rank}: it must be >= 1")
    if not targets:
        raise UserError(f"LoRA needs at least one target: choose from {', '.join(valid)}")
    for target in targets:
        if target not in valid:
            reason = "is not a matrix of this model"
            if target == "head":
                reason = "is trained in full" if c.n_labels else "is tied to the token embedding"
            raise UserError(f"the LoRA target {target} {reason}: choose from {', '.join(valid)}")


def lora_parameters(c, rank, targets):
    """Number of weights in the adapters of LoRA: rank (outputs + inputs) for each matrix."""
    shapes = lora_targets(c)
    return sum(rank * sum(shapes[target]) * (1 if target == "head" else c.n_blocks) for target in set(targets))


def count_parameters(c):
    return sum(row.count for row in parameter_table(c))


def matrices_in_blocks(c):
    """Shapes of the matrices of one block: the matrix products of its linear layers, and what Muon trains."""
    return [row.shape for row in parameter_table(c) if row.blocks and len(row.shape) == 2]


def flops_per_token(c, trainable_blocks=None, lora_rank=None, lora_targets=(), activation_checkpointing=False):
    """Floating-point operations of training per token: the matrix products, forward and backward.

    A product with a matrix of N weights takes 2 N operations forward, 2 N for the gradient of its input and 2 N for
    that of the matrix; the two products of attention take 4 C T forward, as if each token attended to the whole
    context, and 8 C T backward. If everything is trained, the sum is 6 N + 12 L C T, where N counts the matrices of the
    blocks and the heads, tied or not (Chowdhery et al., 2022, appendix B). With frozen blocks or LoRA, only trained
    matrices need their gradient, and only what lies above the lowest trained weight needs that of its input. Activation
    checkpointing repeats the forward pass of each block with a trained weight.
    """
    names, L = linear_shapes(c).keys(), c.n_blocks
    adapted = names & set(lora_targets) if lora_rank is not None else set()
    if lora_rank is None:
        n_trained, reached = L if trainable_blocks is None else trainable_blocks, True  # norms are trained, too
        blocks = (L - n_trained) * block_flops(c, False) + n_trained * block_flops(c, reached, names)
        head_trained = trainable_blocks is None or not c.tied_head
    else:
        n_trained, reached = L if adapted else 0, bool(adapted)
        blocks = block_flops(c, False, adapted, lora_rank) + (L - 1) * block_flops(c, reached, adapted, lora_rank)
        head_trained = c.n_labels is not None or "head" in lora_targets  # for its loss, an adapter is merged into it
    heads = matrix_flops((c.n_outputs, c.n_embd), reached, head_trained)
    if c.auxiliary_lm:
        everything = lora_rank is None and trainable_blocks is None
        heads += matrix_flops((c.vocab_size, c.n_embd), reached, everything)
    recomputed = n_trained * recomputed_flops(c, adapted, lora_rank) if activation_checkpointing else 0
    return blocks + heads + recomputed


def recomputed_flops(c, adapted, lora_rank):
    """Operations per token of the forward pass that activation checkpointing repeats in one block, with the adapters of
    LoRA. It ends with the last tensor that is saved: the mask of the dropout, or else the input of the last product."""
    shapes = linear_shapes(c)
    flops = block_flops(c, False) + sum(2 * lora_rank * sum(shapes[name]) for name in adapted)
    return flops if c.dropout else flops - matrix_flops(shapes["down"], False, False)


def block_flops(c, reached, trained=(), lora_rank=None):
    """Operations of training per token in one block, of which the matrices `trained` are trained or, with `lora_rank`,
    their adapters. `reached`: whether the input of the block needs a gradient."""
    shapes, flops = linear_shapes(c), 0
    for names in (["qkv"], ["out"], ["up", "gate"], ["down"]):  # up and gate have the same input
        names = [name for name in names if name in shapes]
        flops += sum(matrix_flops(shapes[name], reached, name in trained, lora_rank) for name in names)
        reached = reached or any(name in trained for name in names)
        if names == ["qkv"]:
            flops += (12 if reached else 4) * c.num_heads * c.head_size * c.block_size
    return flops


def matrix_flops(shape, reached, trained, lora_rank=None):
    """Operations of training per token for a matrix of a `shape` (outputs, inputs), or for it and the adapter that is
    trained in its place, two matrices of `lora_rank`. `reached`: whether its input needs a gradient."""
    if trained and lora_rank is not None:
        outputs, inputs = shape
        adapter = matrix_flops((lora_rank, inputs), reached, True) + matrix_flops((outputs, lora_rank), True, True)
        return matrix_flops(shape, reached, False) + adapter
    return 2 * prod(shape) * (1 + reached + trained)
