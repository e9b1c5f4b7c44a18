"""What the forecast reads of a model's configuration."""

from typing import Protocol


class Architecture(Protocol):
    """The fields and properties of `models.config.ModelConfig`, documented there, that the forecast reads."""

    n_embd: int
    block_size: int
    n_blocks: int
    num_heads: int
    vocab_size: int
    head_dim: int | None
    dropout: float
    norm: str
    position: str
    feed_forward: str
    qk_norm: bool
    bias: bool
    head_bias: bool
    tied: bool
    n_labels: int | None
    auxiliary_lm: bool
    head_size: int
    kv_heads: int
    has_qkv_bias: bool
    hidden_size: int
    n_outputs: int
    head_rows: int
    tied_head: bool
