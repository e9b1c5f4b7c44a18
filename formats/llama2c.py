"""llama2.c's .bin files (https://github.com/karpathy/llama2.c): version 0, in float32, with a tokenizer.bin."""

import struct
from math import prod

from data.tokenizer import load_tokenizer
from formats.foreign import Foreign, read_tensor
from models.config import ModelConfig
from models.weights import is_finite
from utils.errors import UserError
from utils.forecast.parameters import block_weight_name, parameter_table

HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
MAGIC = b"24ka"  # of versions 1 and 2
FLOAT = 4  # bytes
ORDER = {  # of the tensors in a file, by their names in run.c: one for all blocks each, or outside the blocks
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
    "freq_cis": None,  # cosines and sines of rotary positions, which are computed instead
    "wcls": "head.weight",
}
ROTATED = ("blocks.attention.query.weight", "blocks.attention.key.weight")


def open_llama2c(path):
    """The model in a file as `Foreign`. Raises UserError."""
    config = read_config(path)
    tokenizer = find_tokenizer(path, config.vocab_size)
    stop_tokens = frozenset([tokenizer.text_start])  # the start of the next text: run.c stops there, too
    return Foreign("Llama", config, tokenizer, read_weights(path, config), stop_tokens=stop_tokens)


def read_config(path):
    """The ModelConfig in the header of a file. Raises UserError unless the file has the size that follows from it."""
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
    expected = HEADER.size + FLOAT * sum(copies * prod(shape) for _, shape, copies in layout(config))
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes, but by its header {expected:,}: download it again, or use a model "
                        "of llama2.c")
    return config


def layout(config):
    """Yield (name in run.c, shape of one, number of them) of all tensors in a file, in order."""
    rows = {row.component: row for row in parameter_table(config)}
    for theirs, ours in ORDER.items():
        if ours is None:
            yield theirs, (config.block_size, config.head_size), 1
        elif ours in rows:  # a tied head is not
            yield theirs, rows[ours].shape, rows[ours].blocks or 1


def read_weights(path, config):
    """Yield (name in a checkpoint file, tensor) of all weights. Raises UserError for values that are not finite."""
    offset = HEADER.size
    for theirs, shape, copies in layout(config):
        ours = ORDER[theirs]
        for i in range(copies):
            if ours is not None:
                weight = read_tensor(path, offset, shape)
                if not is_finite(weight):
                    raise UserError(f"{path}: {theirs} has values that are not finite: use another model")
                yield block_weight_name(ours, i), half_split(weight, config.head_size) if ours in ROTATED else weight
            if ours == "token_embedding.weight" and config.tied:
                yield "head.weight", weight
            offset += FLOAT * prod(shape)


def half_split(weight, head_size):
    """Reorder the rows of queries or keys (nh hs, C) for our Rotary: llama2.c rotates channels 2i and 2i + 1 of a head
    together, and Rotary i and i + hs / 2."""
    pairs = weight.view(-1, head_size // 2, 2, weight.size(1))  # (nh, hs / 2, 2, C)
    return pairs.transpose(1, 2).reshape(weight.shape)


def find_tokenizer(path, vocab_size):
    """The tokenizer of a model: beside it, or where llama2.c keeps it, one folder above. Raises UserError."""
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
