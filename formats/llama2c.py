"""Reading llama2.c's .bin files (https://github.com/karpathy/llama2.c): version 0, float32, with a tokenizer.bin."""

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from formats.foreign_model import ForeignModel, check_finite, read_tensor
from models.config import ModelConfig
from tokenization.base import Tokenizer
from tokenization.load import load_tokenizer
from utils.errors import UserError
from utils.forecast.parameters import block_weight_name, parameter_table

HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
MAGIC = b"24ka"  # of versions 1 and 2
FLOAT_BYTES = 4
NAMES = {  # {name in run.c: ours, without the number of the block}, in the order of a file
    "token_embedding_table": "token_embedding.weight",
    "rms_att_weight": "blocks.attention_norm.weight",
    "wq": "blocks.attention.query.weight",
    "wk": "blocks.attention.key.weight",
    "wv": "blocks.attention.value.weight",
    "wo": "blocks.attention.out.weight",
    "rms_ffn_weight": "blocks.feed_forward_norm.weight",
    "w1": "blocks.feed_forward.gate.weight",
    "w2": "blocks.feed_forward.down.weight",
    "w3": "blocks.feed_forward.up.weight",
    "rms_final_weight": "final_norm.weight",
    "freq_cis": None,  # cosines and sines of the rotary positions, which are not read
    "wcls": "head.weight",
}
ROTATED = ("blocks.attention.query.weight", "blocks.attention.key.weight")


class Stack(NamedTuple):
    """Consecutive tensors of the same kind in a file, usually one per block."""

    name: str
    """Name in run.c."""
    shape: tuple[int, ...]
    n_tensors: int


def open_llama2c(path: Path) -> ForeignModel:
    """Open the model in a file. Raises UserError."""
    config = read_config(path)
    tokenizer = find_tokenizer(path, config.vocab_size)
    stop_tokens = frozenset([tokenizer.text_start])  # as in run.c: the start of the next text
    return ForeignModel("Llama", config, tokenizer, read_weights(path, config), stop_tokens=stop_tokens)


def read_config(path: Path) -> ModelConfig:
    """Return the ModelConfig in the header of a file. Raises UserError unless the file has the size that it implies."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if header.startswith(MAGIC):
        raise UserError(f"{path} is a file of version 1 or 2 of llama2.c: export it with export.py --version 0")
    if len(header) < HEADER.size:
        raise UserError(f"{path} has {size} bytes, too few for a model of llama2.c: download it again")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = HEADER.unpack(header)
    try:
        config = ModelConfig(
            n_embd=dim,
            block_size=seq_len,
            n_blocks=n_layers,
            num_heads=n_heads,
            num_kv_heads=n_kv_heads,
            vocab_size=abs(vocab_size),
            n_hidden=hidden_dim,
            norm="rms",
            position="rotary",
            feed_forward="swiglu",
            tied=vocab_size > 0,
        )
    except UserError as error:
        raise UserError(f"{path} is not a model of llama2.c, or is damaged (by its header, {error}): download it "
                        "again") from None
    expected = HEADER.size + FLOAT_BYTES * sum(stack.n_tensors * prod(stack.shape) for stack in file_layout(config))
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes, but by its header {expected:,}: download it again, or use a model "
                        "of llama2.c")
    return config


def file_layout(config: ModelConfig) -> Iterator[Stack]:
    """Yield all tensors in a file, in order."""
    rows = {row.component: row for row in parameter_table(config)}
    for theirs, ours in NAMES.items():
        if ours is None:
            yield Stack(theirs, (config.block_size, config.head_size), 1)
        elif ours in rows:  # there is no tied head
            yield Stack(theirs, rows[ours].shape, rows[ours].blocks or 1)


def find_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a model, beside it or, as llama2.c keeps it, one folder above. Raises UserError."""
    above = path.absolute().parent.parent
    for folder in (path.parent, above, above / "data"):
        for name in (f"tok{vocab_size}.bin", "tokenizer.bin"):
            file = folder / name
            if file.is_file():
                tokenizer = load_tokenizer(file)
                if tokenizer.vocab_size != vocab_size:
                    raise UserError(f"{file} has {tokenizer.vocab_size:,} tokens, and the model in {path} "
                                    f"{vocab_size:,}: copy the tokenizer.bin of the model to {path.parent}")
                return tokenizer
    raise UserError(f"there is no tokenizer.bin for {path}: copy it to {path.parent}")


def read_weights(path: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in a checkpoint file, tensor) of all weights. Raises UserError for values that are not finite."""
    offset = HEADER.size
    for theirs, shape, n_tensors in file_layout(config):
        ours = NAMES[theirs]
        for i in range(n_tensors):
            if ours is not None:
                weight = read_tensor(path, offset, shape)
                check_finite(weight, theirs, path)
                if ours in ROTATED:
                    weight = pairs_to_halves(weight, config.head_size)
                yield block_weight_name(ours, i), weight
            if ours == "token_embedding.weight" and config.tied:
                yield "head.weight", weight
            offset += FLOAT_BYTES * prod(shape)


def pairs_to_halves(weight: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of queries or keys (nh hs, C) for our Rotary.

    llama2.c rotates channels 2i and 2i + 1 of a head together; Rotary, channels i and i + hs / 2.
    """
    pairs = weight.view(-1, head_size // 2, 2, weight.size(1))  # (nh, hs / 2, 2, C)
    return pairs.transpose(1, 2).reshape(weight.shape)  # (nh, 2, hs / 2, C) -> (nh hs, C)
