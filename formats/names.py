"""How other projects name the weights of a GPT: one table per architecture, for import and export.

In the functions, c is a ModelConfig.
"""

import re
from typing import NamedTuple

import torch

from models.weights import is_finite
from utils.errors import UserError
from utils.parameters import numbered, parameter_table


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


class Table(NamedTuple):
    """The layers of an architecture, and a regular expression for the names of tensors that are no weights."""

    layers: tuple
    buffers: str


class TheirWeight(NamedTuple):
    """A weight of another project: its name, its shape, and the names of ours that it consists of, with their rows."""

    name: str
    shape: tuple
    ours: dict
    transposed: bool


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
), buffers=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # fmt: skip

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
), buffers="")  # fmt: skip

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


def their_weights(table, c):
    """Yield every `TheirWeight` of a model, without a tied head, which is the token embedding.

    A generator, because a configuration from a file may ask for any number of blocks.
    """
    shapes = {row.component: row.shape for row in parameter_table(c)}
    for layer in table.layers:
        if "{i}" not in layer.theirs:
            yield from weights_of_layer(layer, shapes)
    for i in range(c.n_blocks):
        for layer in table.layers:
            if "{i}" in layer.theirs:
                yield from weights_of_layer(layer, shapes, i)


def weights_of_layer(layer, shapes, i=None):
    """Yield the weight and the bias of a layer, in block i, as far as the model has them: `shapes` are those of ours.
    """
    for kind, ending in (("weight", layer.weight), ("bias", layer.bias)):
        names = [f"{name}.{kind}" for name in layer.ours]
        if names[0] not in shapes:
            continue
        rows = {numbered(name, i): shapes[name][0] for name in names}
        shape = (sum(rows.values()), *shapes[names[0]][1:])
        transposed = layer.transposed and kind == "weight"
        yield TheirWeight(f"{layer.theirs}{ending}".format(i=i), shape[::-1] if transposed else shape, rows, transposed)


def check_weights(table, c, shapes, where):
    """Raise UserError, with the name that another project gives it, for a weight that is missing, unexpected or
    misshapen in `shapes`, the shapes by name of all tensors in `where`."""
    expected = set()
    for weight in their_weights(table, c):  # at most one more than there are tensors
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

    Raises UserError for values that are not finite.
    """
    for weight in their_weights(table, c):
        tensor = read(weight.name)
        if not is_finite(tensor):
            raise UserError(f"{where}: the weight {weight.name} has values that are not finite: use another model")
        tensor = tensor.T if weight.transposed else tensor
        for name, part in zip(weight.ours, tensor.split([*weight.ours.values()]), strict=True):
            yield name, part
            if name == "token_embedding.weight" and c.tied_head:
                yield "head.weight", part


def to_theirs(table, c, weights):
    """Yield (their name, tensor) of all weights of a model from those of a checkpoint file, without a tied head."""
    for weight in their_weights(table, c):
        tensor = torch.cat([weights[name] for name in weight.ours])
        yield weight.name, tensor.T.contiguous() if weight.transposed else tensor
