"""How other projects name the weights of a GPT: one table per architecture, for import and export.

In the functions, c is a ModelConfig.
"""

import re
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch

from models.weights import is_finite
from utils.errors import UserError
from utils.forecast.parameters import block_weight_name, parameter_table


class Layer(NamedTuple):
    """The names of a layer, whose weights in a checkpoint file end in `.weight` and `.bias`."""

    theirs: str
    """With {i} for the number of a block."""
    ours: tuple
    """Names in a checkpoint file, without the number of the block. If they are several, theirs is their concatenation.
    """
    transposed: bool = False
    """Whether their weight is (inputs, outputs)."""
    weight: str = ".weight"
    """How the name of their weight ends."""
    bias: str = ".bias"
    """How the name of their bias ends."""
    by_head: bool = False
    """Whether the rows of ours alternate in theirs: those of the first head of each, those of the second, ..."""


class Table(NamedTuple):
    """The layers of an architecture."""

    layers: tuple
    buffers: str = "(?!)"
    """A regular expression for the names of tensors that are no weights; by default it matches nothing."""
    biases: bool = False
    """Whether all linear layers in the blocks have biases. They are zeros in a model without biases."""
    qk_norm: dict = {}
    """The constants in the place of weights that our norms of queries and keys do not have, by name."""


class TheirWeight(NamedTuple):
    """A weight of another project: its name, its shape, and the names of ours that it consists of, with their rows."""

    name: str
    shape: tuple
    ours: dict
    transposed: bool
    heads: int | None
    """Number of heads whose rows alternate; None: the rows of ours follow one another."""


class Constant(NamedTuple):
    """A tensor of another project whose values are all the same in a model of this one, which does not have it."""

    name: str
    shape: tuple
    value: float


QKV = ("blocks.attention.query", "blocks.attention.key", "blocks.attention.value")

GPT2 = Table((
    Layer("transformer.wte", ("token_embedding",)),
    Layer("transformer.wpe", ("position_embedding",)),
    Layer("transformer.h.{i}.ln_1", ("blocks.attention_norm",)),
    Layer("transformer.h.{i}.attn.c_attn", QKV, transposed=True),
    Layer("transformer.h.{i}.attn.c_proj", ("blocks.attention.out",), transposed=True),
    Layer("transformer.h.{i}.ln_2", ("blocks.feed_forward_norm",)),
    Layer("transformer.h.{i}.mlp.c_fc", ("blocks.feed_forward.up",), transposed=True),
    Layer("transformer.h.{i}.mlp.c_proj", ("blocks.feed_forward.down",), transposed=True),
    Layer("transformer.ln_f", ("final_norm",)),
    Layer("lm_head", ("head",)),
), buffers=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", biases=True)  # fmt: skip

OPENAI = Table((
    Layer("model/wte", ("token_embedding",), weight=""),
    Layer("model/wpe", ("position_embedding",), weight=""),
    Layer("model/h{i}/ln_1", ("blocks.attention_norm",), weight="/g", bias="/b"),
    Layer("model/h{i}/attn/c_attn", QKV, True, "/w", "/b"),
    Layer("model/h{i}/attn/c_proj", ("blocks.attention.out",), True, "/w", "/b"),
    Layer("model/h{i}/ln_2", ("blocks.feed_forward_norm",), weight="/g", bias="/b"),
    Layer("model/h{i}/mlp/c_fc", ("blocks.feed_forward.up",), True, "/w", "/b"),
    Layer("model/h{i}/mlp/c_proj", ("blocks.feed_forward.down",), True, "/w", "/b"),
    Layer("model/ln_f", ("final_norm",), weight="/g", bias="/b"),
))  # fmt: skip

LLAMA = Table((
    Layer("model.embed_tokens", ("token_embedding",)),
    Layer("model.layers.{i}.input_layernorm", ("blocks.attention_norm",)),
    Layer("model.layers.{i}.self_attn.q_proj", ("blocks.attention.query",)),
    Layer("model.layers.{i}.self_attn.k_proj", ("blocks.attention.key",)),
    Layer("model.layers.{i}.self_attn.v_proj", ("blocks.attention.value",)),
    Layer("model.layers.{i}.self_attn.o_proj", ("blocks.attention.out",)),
    Layer("model.layers.{i}.post_attention_layernorm", ("blocks.feed_forward_norm",)),
    Layer("model.layers.{i}.mlp.gate_proj", ("blocks.feed_forward.gate",)),
    Layer("model.layers.{i}.mlp.up_proj", ("blocks.feed_forward.up",)),
    Layer("model.layers.{i}.mlp.down_proj", ("blocks.feed_forward.down",)),
    Layer("model.norm", ("final_norm",)),
    Layer("lm_head", ("head",)),
), buffers=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # fmt: skip

PERSIMMON = Table((
    Layer("model.embed_tokens", ("token_embedding",)),
    Layer("model.layers.{i}.input_layernorm", ("blocks.attention_norm",)),
    Layer("model.layers.{i}.self_attn.query_key_value", QKV, by_head=True),
    Layer("model.layers.{i}.self_attn.dense", ("blocks.attention.out",)),
    Layer("model.layers.{i}.post_attention_layernorm", ("blocks.feed_forward_norm",)),
    Layer("model.layers.{i}.mlp.dense_h_to_4h", ("blocks.feed_forward.up",)),
    Layer("model.layers.{i}.mlp.dense_4h_to_h", ("blocks.feed_forward.down",)),
    Layer("model.final_layernorm", ("final_norm",)),
    Layer("lm_head", ("head",)),
), biases=True, qk_norm={f"model.layers.{{i}}.self_attn.{part}_layernorm.{kind}": value
                         for part in "qk" for kind, value in (("weight", 1.0), ("bias", 0.0))})  # fmt: skip


def their_weights(table, c):
    """Yield every `TheirWeight` of a model, without a tied head, which is the token embedding.

    A generator, because a configuration from a file may ask for any number of blocks.
    """
    shapes = {row.component: row.shape for row in parameter_table(c)}
    for layer in table.layers:
        if "{i}" not in layer.theirs:
            yield from weights_of_layer(layer, shapes, c.num_heads)
    for i in range(c.n_blocks):
        for layer in table.layers:
            if "{i}" in layer.theirs:
                yield from weights_of_layer(layer, shapes, c.num_heads, i)


def their_constants(table, c):
    """Yield every `Constant` of a model."""
    own = {row.component for row in parameter_table(c)}
    with_biases = {row.component: row.shape for row in parameter_table(replace(c, bias=True, qkv_bias=None))}
    sizes = {}  # of the biases that the model lacks
    for layer in table.layers if table.biases else ():
        biases = [f"{name}.bias" for name in layer.ours]
        if "{i}" in layer.theirs and biases[0] not in own:
            sizes[f"{layer.theirs}.bias"] = sum(with_biases[bias][0] for bias in biases)
    for i in range(c.n_blocks):
        for name, size in sizes.items():
            yield Constant(name.format(i=i), (size,), 0.0)
        for name, value in table.qk_norm.items() if c.qk_norm else ():
            yield Constant(name.format(i=i), (c.head_size,), value)


def weights_of_layer(layer, shapes, num_heads, i=None):
    """Yield the weight and the bias of a layer, in block i, as far as the model has them: `shapes` are those of ours.
    """
    for kind, ending in (("weight", layer.weight), ("bias", layer.bias)):
        names = [f"{name}.{kind}" for name in layer.ours]
        if names[0] not in shapes:
            continue
        rows = {block_weight_name(name, i): shapes[name][0] for name in names}
        shape = (sum(rows.values()), *shapes[names[0]][1:])
        transposed = layer.transposed and kind == "weight"
        yield TheirWeight(f"{layer.theirs}{ending}".format(i=i), shape[::-1] if transposed else shape, rows, transposed,
                          num_heads if layer.by_head else None)


def check_weights(table, c, shapes, where):
    """Raise UserError, with the name that another project gives it, for a weight that is missing, unexpected or
    misshapen in `shapes`, the shapes by name of all tensors in `where`."""
    expected = set()
    for weight in chain(their_weights(table, c), their_constants(table, c)):  # at most one more than there are tensors
        if weight.name not in shapes:
            raise UserError(f"{where} is missing the weight {weight.name}: download it again, or use another model")
        if tuple(shapes[weight.name]) != weight.shape:
            raise UserError(f"{where}: the weight {weight.name} has shape {tuple(shapes[weight.name])}, but by its "
                            f"configuration {weight.shape}: download it again, or use another model")
        expected.add(weight.name)
    for name in shapes:
        if name not in expected and not re.fullmatch(table.buffers, name):
            raise UserError(f"{where} has an unexpected weight {name}: this architecture has none of that name")


def to_ours(table, c, read, where):
    """Yield (name in a checkpoint file, tensor) of all weights of a model. `read` returns the tensor of their name.

    Raises UserError for values that are not finite, and for constants with other values.
    """
    for constant in their_constants(table, c):
        if not (read(constant.name) == constant.value).all():
            raise UserError(f"{where}: the weight {constant.name} is not {constant.value:g} everywhere, as in a model "
                            "that this project computes: use another model")
    for weight in their_weights(table, c):
        tensor = read(weight.name)
        if not is_finite(tensor):
            raise UserError(f"{where}: the weight {weight.name} has values that are not finite: use another model")
        tensor = tensor.T if weight.transposed else tensor
        if weight.heads is None:
            parts = tensor.split([*weight.ours.values()])
        else:  # (nh x 3 x hs, C) -> (nh, 3, hs, C) -> 3 times (nh, hs, C) -> 3 times (nh x hs, C)
            by_head = tensor.unflatten(0, (weight.heads, len(weight.ours), -1)).unbind(1)
            parts = [part.flatten(0, 1) for part in by_head]
        for name, part in zip(weight.ours, parts, strict=True):
            yield name, part
            if name == "token_embedding.weight" and c.tied_head:
                yield "head.weight", part


def to_theirs(table, c, weights):
    """Yield (their name, tensor) of all weights of a model from those of a checkpoint file, without a tied head."""
    for weight in their_weights(table, c):
        parts = [weights[name] for name in weight.ours]
        if weight.heads is None:
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)  # a single one is not copied
        else:  # the reverse of `to_ours`
            tensor = torch.stack([part.unflatten(0, (weight.heads, -1)) for part in parts], dim=1).flatten(0, 2)
        yield weight.name, tensor.T.contiguous() if weight.transposed else tensor
    for constant in their_constants(table, c):
        yield constant.name, torch.full(constant.shape, constant.value)
