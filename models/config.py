"""Configurations of the model and of sampling: frozen dataclasses that validate themselves, without torch."""

from dataclasses import dataclass
from typing import Literal

from utils.errors import UserError, check_numbers
from utils.fields import check_types


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a GPT. Raises UserError for values of the wrong type, or that do not fit together."""

    n_embd: int
    """Embedding width (C); must be a multiple of num_heads unless head_dim is given."""
    block_size: int
    """Context length (T): the maximum number of tokens that the model attends to."""
    n_blocks: int
    """Number of Transformer blocks (L)."""
    num_heads: int
    """Number of attention heads per block (nh); must be a multiple of num_kv_heads."""
    vocab_size: int = 65
    """Vocabulary size (V); default: the distinct characters of tiny Shakespeare."""
    num_kv_heads: int | None = None
    """Number of key-value heads (nkv), each shared by num_heads / num_kv_heads query heads; None: num_heads."""
    head_dim: int | None = None
    """Head size (hs), the channels of one query, key or value; None: n_embd / num_heads."""
    n_hidden: int | None = None
    """Hidden size of the feed-forward network (H); None: 4 * n_embd."""
    dropout: float = 0.0
    """Dropout probability, after the embeddings and after each attention and feed-forward network."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm with bias (Ba et al., 2016), or RMSNorm (Zhang and Sennrich, 2019)."""
    position: Literal["learned", "rotary"] = "learned"
    """Learned position embeddings, or rotary position embedding, RoPE (Su et al., 2021)."""
    feed_forward: Literal["relu", "relu2", "gelu", "gelu_exact", "swiglu"] = "relu"
    """Activation of the feed-forward network.

    ReLU, squared ReLU (So et al., 2021), GELU with GPT-2's tanh approximation, exact GELU (Hendrycks and Gimpel, 2016),
    or SwiGLU (Shazeer, 2020).
    """
    qk_norm: bool = False
    """QK norm: normalize queries and keys (Dehghani et al., 2023), with the norm above but without weights."""
    bias: bool = False
    """Biases in the linear layers of the blocks."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; None: same as `bias`."""
    head_bias: bool = False
    """Bias in the head."""
    tied: bool = False
    """Share the weight of the head with the token embedding (Press and Wolf, 2017), except in a classifier."""
    n_labels: int | None = None
    """Number of classes of a classifier, at least 2; None: a language model, which predicts the next token."""
    auxiliary_lm: bool = False
    """For a classifier: train a second head to predict the next token (Radford et al., 2018, section 3.2)."""
    norm_eps: float = 1e-5
    """Added to the variance (LayerNorm) or mean square (RMSNorm), for numerical stability."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies; at least 1."""

    def __post_init__(self):
        check_types(self)
        check_numbers(self, positive=("n_embd", "block_size", "n_blocks", "num_heads", "vocab_size", "num_kv_heads",
                                      "head_dim", "n_hidden", "norm_eps"))
        if self.head_dim is None and self.n_embd % self.num_heads:
            raise UserError(f"n_embd {self.n_embd} must be a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise UserError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}")
        if self.position == "rotary" and self.head_size % 2:
            raise UserError(f"rotary positions need an even head size, not {self.head_size}: choose another head_dim, "
                            "n_embd or num_heads")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout cannot be {self.dropout}: give a number >= 0 and < 1")
        if self.rope_theta < 1:
            raise UserError(f"rope_theta cannot be {self.rope_theta}: give a number >= 1")
        if self.n_labels is not None and self.n_labels < 2:
            raise UserError(f"n_labels cannot be {self.n_labels}: a classifier has at least 2 classes")
        if self.auxiliary_lm and self.n_labels is None:
            raise UserError("auxiliary_lm is for classifiers: a language model has one head")
        if self.tied and self.head_bias:
            raise UserError("a tied head has no bias: choose either tied or head_bias")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def has_qkv_bias(self) -> bool:
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def hidden_size(self) -> int:
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden

    @property
    def n_outputs(self) -> int:
        """Number of logits per position: one per token of the vocabulary, or one per class."""
        return self.vocab_size if self.n_labels is None else self.n_labels

    @property
    def head_rows(self) -> int:
        """Number of rows in the weights of all heads together."""
        return self.n_outputs + (self.vocab_size if self.auxiliary_lm else 0)

    @property
    def tied_head(self) -> bool:
        """Whether the head shares the weight of the token embedding."""
        return self.tied and self.n_labels is None


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling. Raises UserError for values outside their range."""

    temperature: float = 0.8
    """Divides the logits: below 1 makes likely tokens likelier; 0 is greedy, always the most likely token."""
    top_k: int | None = None
    """Sample only from the k most likely tokens (Fan et al., 2018)."""
    top_p: float | None = None
    """Nucleus sampling: only from the fewest tokens that reach this total probability (Holtzman et al., 2020)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens in the context less likely (Keskar et al., 2019, section 4.1)."""
    seed: int | None = None
    """Fixed seed: reproducible output, on the same machine with the same number of threads. None: random."""

    def __post_init__(self):
        check_types(self)
        if self.temperature != 0 and self.temperature < 1e-3:
            raise UserError(f"temperature cannot be {self.temperature}: give 0, or a number >= 0.001")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k cannot be {self.top_k}: give a number >= 1")
        if self.top_p is not None and not 1e-6 <= self.top_p <= 1:
            raise UserError(f"top_p cannot be {self.top_p}: give a number from 0.000001 to 1")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            raise UserError(f"repetition_penalty cannot be {self.repetition_penalty}: give a number from 0.001 to 1000")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed cannot be {self.seed}: give an integer >= 0")


@dataclass(frozen=True)
class ReplyConfig(SamplingConfig):
    """Settings of a reply: its sampling and its length. Raises UserError for values outside their range."""

    max_tokens: int | None = None
    """Maximum number of tokens to generate for a prompt; None: 100 for dialogue, 500 for other tasks."""
    candidates: int = 1
    """For dialogue: sample this many replies, and use the one that depends most on the messages."""

    def __post_init__(self):
        super().__post_init__()
        if self.candidates < 1:
            raise UserError(f"candidates cannot be {self.candidates}: give a number >= 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens cannot be {self.max_tokens}: give a number >= 1")
