"""The parameters of a model, counted from its configuration without building it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod

from utils.errors import UserError
from utils.forecast.architecture import Architecture
from utils.forecast.units import BYTES


@dataclass(frozen=True)
class Parameters:
    """One kind of weight: its name, its shape, and the number of blocks that have one."""

    component: str
    """Name in a checkpoint file, without the block number: `blocks.attention.query.weight`."""
    letters: str
    """The shape in the letters of `symbols`."""
    shape: tuple[int, ...]
    blocks: int | None = None
    """None: a weight outside the blocks, of which there is one."""

    @property
    def count(self) -> int:
        if self.blocks is None:
            return prod(self.shape)
        return self.blocks * prod(self.shape)

    @property
    def formula(self) -> str:
        """The count as a product: `L H C = 2 x 1,536 x 384`."""
        factors = self.shape if self.blocks is None else (self.blocks, *self.shape)
        letters = self.letters if self.blocks is None else f"L {self.letters}"
        return f"{letters} = {' x '.join(f'{factor:,}' for factor in factors)}"


def count_parameters(config: Architecture) -> int:
    """Return the number of parameters of a model; a tied head counts once."""
    return sum(row.count for row in parameter_table(config))


def parameter_table(config: Architecture) -> list[Parameters]:
    """Return the `Parameters` of a model in the order of its layers."""
    sizes = {letter: value for letter, (_, value) in symbols(config).items()}

    def row(component: str, letters: str, blocks: int | None = None) -> Parameters:
        return Parameters(component, letters, tuple(sizes[letter] for letter in letters.split()), blocks)

    def linear(name: str, outputs: str, inputs: str, bias: bool = config.bias) -> list[Parameters]:
        biases = [row(f"blocks.{name}.bias", outputs, config.n_blocks)] if bias else []
        return [row(f"blocks.{name}.weight", f"{outputs} {inputs}", config.n_blocks), *biases]

    def norm(name: str, blocks: int | None = None) -> list[Parameters]:
        bias = [row(f"{name}.bias", "C", blocks)] if config.norm == "layer" else []
        return [row(f"{name}.weight", "C", blocks), *bias]

    gate = linear("feed_forward.gate", "H", "C") if config.feed_forward == "swiglu" else []
    outputs = "V" if config.n_labels is None else "N"
    queries = "C" if config.head_dim is None else "Q"
    return [
        row("token_embedding.weight", "V C"),
        *([row("position_embedding.weight", "T C")] if config.position == "learned" else []),
        *norm("blocks.attention_norm", config.n_blocks),
        *linear("attention.query", queries, "C", config.has_qkv_bias),
        *linear("attention.key", "K", "C", config.has_qkv_bias),
        *linear("attention.value", "K", "C", config.has_qkv_bias),
        *linear("attention.out", "C", queries),
        *norm("blocks.feed_forward_norm", config.n_blocks),
        *linear("feed_forward.up", "H", "C"),
        *linear("feed_forward.down", "C", "H"),
        *gate,
        *norm("final_norm"),
        *([] if config.tied_head else [row("head.weight", f"{outputs} C")]),  # a tied head is the token embedding
        *([row("head.bias", outputs)] if config.head_bias else []),
        *([row("token_head.weight", "V C")] if config.auxiliary_lm else []),
    ]


def symbols(config: Architecture) -> dict[str, tuple[str, int]]:
    """Return the letters of the formulas, each with its meaning and its value."""
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    letters = {
        "V": ("vocabulary size, vocab_size", config.vocab_size),
        "C": ("embedding width, n_embd", config.n_embd),
        "T": ("context length, block_size", config.block_size),
        "L": ("number of blocks, n_blocks", config.n_blocks),
        "H": ("hidden size of the feed-forward network, n_hidden", config.hidden_size),
        "K": ("width of keys and of values, num_kv_heads x head size", keys),
    }
    if config.head_dim is not None:
        letters["Q"] = ("width of queries, num_heads x head size", queries)
    if config.n_labels is not None:
        letters["N"] = ("number of classes, n_labels", config.n_labels)
    return letters


def weight_shapes(config: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) for every weight in a checkpoint file, including a tied head.

    A generator, because a configuration from a file may ask for any number of blocks.
    """
    table = parameter_table(config)
    for row in table:
        if row.blocks is None:
            yield row.component, row.shape
    if config.tied_head:
        yield "head.weight", (config.vocab_size, config.n_embd)
    for i in range(config.n_blocks):
        for row in table:
            if row.blocks is not None:
                yield block_weight_name(row.component, i), row.shape


def block_weight_name(component: str, i: int) -> str:
    """Return the name of a weight of block i.

    >>> block_weight_name("blocks.attention.out.weight", 3)
    'blocks.3.attention.out.weight'
    """
    return component.replace("blocks", f"blocks.{i}", 1)


def matrices_in_blocks(config: Architecture) -> list[tuple[int, int]]:
    """Return the shapes of the weight matrices of one block, which Muon trains."""
    return [row.shape for row in parameter_table(config) if row.blocks and len(row.shape) == 2]


def linear_shapes(config: Architecture) -> dict[str, tuple[int, int]]:
    """Return the shapes (outputs, inputs) of the linear layers of a block, by name."""
    C, H = config.n_embd, config.hidden_size
    Q, K = config.num_heads * config.head_size, config.kv_heads * config.head_size
    gate = {"gate": (H, C)} if config.feed_forward == "swiglu" else {}
    return {"qkv": (Q + 2 * K, C), "out": (C, Q), "up": (H, C), "down": (C, H)} | gate


def lora_targets(config: Architecture) -> dict[str, tuple[int, int]]:
    """Return the shapes (outputs, inputs) of the matrices that LoRA can adapt, by name.

    These are the linear layers of a block, and the head. A tied head is the token embedding, and the head of a
    classifier is fully trained: neither has an adapter.
    """
    head = {"head": (config.vocab_size, config.n_embd)} if config.n_labels is None and not config.tied else {}
    return linear_shapes(config) | head


def check_lora(config: Architecture, rank: int, targets: Collection[str]) -> None:
    """Raise UserError unless LoRA of this rank can adapt these matrices of the model."""
    valid = lora_targets(config)
    if rank < 1:
        raise UserError(f"LoRA's rank cannot be {rank}: it must be >= 1")
    if not targets:
        raise UserError(f"LoRA needs at least one target: choose from {', '.join(valid)}")
    for target in targets:
        if target not in valid:
            reason = "is not a matrix of this model"
            if target == "head":
                reason = "is trained in full" if config.n_labels else "is tied to the token embedding"
            raise UserError(f"the LoRA target {target} {reason}: choose from {', '.join(valid)}")


def lora_parameters(config: Architecture, rank: int, targets: Collection[str]) -> int:
    """Return the number of weights in LoRA adapters: rank (outputs + inputs) for each matrix."""
    total = 0
    for name, shape in lora_targets(config).items():
        if name in targets:
            total += rank * sum(shape) * (1 if name == "head" else config.n_blocks)
    return total


def weight_bytes(config: Architecture, dtype: str) -> int:
    """Return the bytes of the weights in float32, bfloat16, float16 or int8.

    int8 takes one byte per element of a matrix and one bfloat16 scale per row; vectors are in bfloat16.
    """
    if dtype != "int8":
        return BYTES[dtype] * count_parameters(config)
    total = 0
    for row in parameter_table(config):
        if len(row.shape) == 2:
            total += row.count + 2 * row.count // row.shape[-1]
        else:
            total += 2 * row.count
    return total


def rotary_bytes(config: Architecture, dtype: str = "float32") -> int:
    """Return the bytes of the tables of cosines and sines for rotary positions."""
    return 2 * BYTES[dtype] * config.block_size * config.head_size if config.position == "rotary" else 0
