"""What a model is made of, counted without building it: any object with the fields of ModelConfig will do."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Parameters:
    """One kind of weight: its name in the model, the letters of its shape, and how many blocks have one."""

    component: str
    letters: str
    shape: tuple
    blocks: int | None = None
    """None: it is outside the blocks, and there is one."""

    @property
    def count(self):
        return prod(self.shape) * (1 if self.blocks is None else self.blocks)

    @property
    def formula(self):
        """How the count comes about: `L C H = 2 x 384 x 1,536`."""
        factors = self.shape if self.blocks is None else (self.blocks, *self.shape)
        letters = self.letters if self.blocks is None else f"L {self.letters}"
        return f"{letters} = {' x '.join(f'{factor:,}' for factor in factors)}"


def letters(c):
    """What the letters of the formulas stand for: name and value of each."""
    return {"V": ("vocab_size", c.vocab_size), "C": ("n_embd", c.n_embd), "T": ("block_size", c.block_size),
            "L": ("n_blocks", c.n_blocks), "H": ("n_hidden", c.hidden_size),
            "K": ("num_kv_heads x head size", c.kv_heads * c.head_size)}


def parameter_table(c):
    """The `Parameters` of a model of configuration c, in the order of the model. Their counts add up to its own."""
    sizes = {letter: value for letter, (_, value) in letters(c).items()}

    def row(component, shape, blocks=None):
        return Parameters(component, shape, tuple(sizes[letter] for letter in shape.split()), blocks)

    def linear(name, outputs, inputs):
        bias = [row(f"blocks.{name}.bias", outputs, c.n_blocks)] if c.bias else []
        return [row(f"blocks.{name}.weight", f"{outputs} {inputs}", c.n_blocks), *bias]

    def norm(name, blocks=None):
        bias = [row(f"{name}.bias", "C", blocks)] if c.norm == "layer" else []
        return [row(f"{name}.weight", "C", blocks), *bias]

    gate = linear("feed_forward.gate", "H", "C") if c.feed_forward == "swiglu" else []
    return [
        row("token_embedding.weight", "V C"),
        *([row("position_embedding.weight", "T C")] if c.position == "learned" else []),
        *norm("blocks.attention_norm", c.n_blocks),
        *linear("attention.query", "C", "C"),
        *linear("attention.key", "K", "C"),
        *linear("attention.value", "K", "C"),
        *linear("attention.out", "C", "C"),
        *norm("blocks.feed_forward_norm", c.n_blocks),
        *linear("feed_forward.up", "H", "C"),
        *linear("feed_forward.down", "C", "H"),
        *gate,
        *norm("final_norm"),
        *([] if c.tied else [row("head.weight", "V C")]),  # a tied head is the token embedding once more
        *([row("head.bias", "V")] if c.head_bias else []),
    ]


def count_parameters(c):
    return sum(row.count for row in parameter_table(c))


def matrices_in_blocks(c):
    """The shapes of the matrices of one block: what Muon trains, and what is multiplied."""
    return [row.shape for row in parameter_table(c) if row.blocks and len(row.shape) == 2]


def flops_per_token(c):
    """Operations that training takes for one token, 6 N + 12 L C T (Chowdhery et al., 2022, appendix B).

    N is the weights that are multiplied: those of the blocks' matrices and of the head, tied or not. Each is one
    multiplication and one addition forward and twice that backward. The second term is queries times keys and
    probabilities times values, counted as if each token saw the whole context.
    """
    multiplied = c.n_blocks * sum(map(prod, matrices_in_blocks(c))) + c.vocab_size * c.n_embd
    return 6 * multiplied + 12 * c.n_blocks * c.n_embd * c.block_size
