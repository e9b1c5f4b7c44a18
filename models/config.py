"""What a model is made of, and how it writes: two frozen dataclasses that check themselves. They need no torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from utils.errors import UserError, check_numbers


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a GPT. Sizes that don't fit together raise UserError."""

    n_embd: int
    """Width (C): the numbers that stand for one token. A multiple of num_heads."""
    block_size: int
    """Context (T): the most tokens that the model sees at once."""
    n_blocks: int
    """Depth: how often attention and feed-forward follow each other."""
    num_heads: int
    """Attention heads in a block (nh). A multiple of num_kv_heads."""
    vocab_size: int = 65
    """Different tokens (V); the default is that of tiny Shakespeare's characters."""
    num_kv_heads: int | None = None
    """Heads of keys and values, each shared by num_heads / num_kv_heads queries; None: as many as num_heads."""
    n_hidden: int | None = None
    """Width of the feed-forward's inside; None: four times n_embd."""
    dropout: float = 0.0
    """Share set to zero in training, against learning by heart, of the embeddings and of what a block's parts add."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, with bias (Ba et al., 2016), or RMSNorm (Zhang and Sennrich, 2019)."""
    position: Literal["learned", "rotary"] = "learned"
    """A learned vector per position, or rotated queries and keys (Su et al., 2021)."""
    feed_forward: Literal["relu", "relu2", "gelu", "swiglu"] = "relu"
    """ReLU, squared ReLU (So et al., 2021), GELU in its tanh form, or SwiGLU (Shazeer, 2020)."""
    qk_norm: bool = False
    """Queries and keys brought to length sqrt(hs) before they meet, by the same norm (Dehghani et al., 2023)."""
    bias: bool = False
    """Biases in attention and feed-forward."""
    head_bias: bool = False
    """A bias in the head."""
    tied: bool = False
    """The head shares its weight with the token embedding (Press and Wolf, 2017)."""
    norm_eps: float = 1e-5
    """Added to the variance, or the mean square, before its root is taken."""
    rope_theta: float = 10_000.0
    """Base of the rotation's wavelengths."""

    def __post_init__(self):
        check_numbers(self, positive=("n_embd", "block_size", "n_blocks", "num_heads", "vocab_size", "num_kv_heads",
                                      "n_hidden", "norm_eps", "rope_theta"))
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise UserError(f"{field.name} cannot be {value}: give one of {', '.join(choices)}")
        if self.n_embd % self.num_heads:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of num_heads {self.num_heads}: make it one")
        if self.num_heads % self.kv_heads:
            raise UserError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.kv_heads}: make it one")
        if self.position == "rotary" and self.head_size % 2:
            raise UserError(f"rotary positions need an even head size, n_embd / num_heads, not {self.head_size}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout cannot be {self.dropout}: give a share from 0 to below 1")
        if self.tied and self.head_bias:
            raise UserError("a tied head has no bias of its own: choose tied or head_bias")

    @property
    def head_size(self):
        return self.n_embd // self.num_heads

    @property
    def kv_heads(self):
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_size(self):
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. Values that make no sense raise UserError."""

    temperature: float = 0.8
    """Below 1 the likely tokens become likelier; 0 always takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens that have this much probability together (Holtzman et al., 2020)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are in the context become less likely (Keskar et al., 2019, section 4.1)."""
    seed: int | None = None
    """The same seed writes the same text; None draws anew each time."""

    def __post_init__(self):
        if not (self.temperature == 0 or 1e-3 <= self.temperature < math.inf):
            raise UserError(f"temperature cannot be {self.temperature}: give 0, or 0.001 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k cannot be {self.top_k}: give 1 or more")
        if self.top_p is not None and not 1e-6 <= self.top_p <= 1:
            raise UserError(f"top_p cannot be {self.top_p}: give a share from 0.000001 to 1")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            raise UserError(f"repetition_penalty cannot be {self.repetition_penalty}: give a number from 0.001 to 1000")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"seed cannot be {self.seed}: give a whole number from 0 to below 2^63")
