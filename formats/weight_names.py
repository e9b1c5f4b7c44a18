"""The names of a GPT's weights in other projects: one table per architecture, for import and export."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from formats.foreign_model import check_finite
from models.config import ModelConfig
from utils.errors import UserError
from utils.forecast.parameters import block_weight_name, parameter_table


class Layer(NamedTuple):
    """The name of a layer in another project and in a checkpoint file, where weights end in `.weight` and `.bias`."""

    theirs: str
    """With {i} for the number of the block."""
    ours: tuple[str, ...]
    """Without the number of the block. If there are several, theirs is their concatenation."""
    transposed: bool = False
    """Whether their weight is (inputs, outputs)."""
    weight: str = ".weight"
    """The end of the name of their weight."""
    bias: str = ".bias"
    """The end of the name of their bias."""
    by_head: bool = False
    """Whether the rows of ours are interleaved by head in theirs: the first head of each, the second of each, ..."""


class NameTable(NamedTuple):
    """The layers of an architecture."""

    layers: tuple[Layer, ...]
    buffers: str = "(?!)"
    """A regular expression for the names of tensors that are not weights; the default matches nothing."""
    biases: bool = False
    """Whether all linear layers in the blocks have biases, which are zeros for a model of ours without biases."""
    qk_norm: dict[str, float] = {}
    """Their weights of QK norm, which are constants for a model of ours: {name: value}."""


class TheirWeight(NamedTuple):
    """A weight of another project."""

    name: str
    shape: tuple[int, ...]
    ours: dict[str, int]
    """The weights of ours that it consists of: {name: number of rows}."""
    transposed: bool
    heads: int | None
    """Number of heads by which the rows of ours are interleaved; None: ours are concatenated."""


class Constant(NamedTuple):
    """A tensor of another project that our models do not have: all of its values are the same."""

    name: str
    shape: tuple[int, ...]
    value: float


QKV = ("blocks.attention.query", "blocks.attention.key", "blocks.attention.value")

GPT2 = NameTable((
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

OPENAI = NameTable((
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

LLAMA = NameTable((
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

PERSIMMON = NameTable((
    Layer("model.embed_tokens", ("token_embedding",)),
    Layer("model.layers.{i}.input_layernorm", ("blocks.attention_norm",)),
    Layer("model.layers.{i}.self_attn.query_key_value", QKV, by_head=True),
    Layer("model.layers.{i}.self_attn.dense", ("blocks.attention.out",)),
    Layer("model.layers.{i}.post_attention_layernorm", ("blocks.feed_forward_norm",)),
    Layer("model.layers.{i}.mlp.dense_h_to_4h", ("blocks.feed_forward.up",)),
    Layer("model.layers.{i}.mlp.dense_4h_to_h", ("blocks.feed_forward.down",)),
    Layer("model.final_layernorm", ("final_norm",)),
    Layer("lm_head", ("head",)),
), biases=True, qk_norm={
    "model.layers.{i}.self_attn.q_layernorm.weight": 1.0,
    "model.layers.{i}.self_attn.q_layernorm.bias": 0.0,
    "model.layers.{i}.self_attn.k_layernorm.weight": 1.0,
    "model.layers.{i}.self_attn.k_layernorm.bias": 0.0,
})  # fmt: skip


def check_weights(table: NameTable, config: ModelConfig, shapes: dict[str, tuple[int, ...]], where: Path) -> None:
    """Raise UserError for a missing, unexpected or misshapen weight in `shapes`, the shapes by name in `where`."""
    expected = set()
    # Generators: a configuration may ask for any number of blocks, but the first weight that is missing ends the loop.
    for weight in chain(their_weights(table, config), their_constants(table, config)):
        if weight.name not in shapes:
            raise UserError(f"{where} is missing the weight {weight.name}: download it again, or use another model")
        if tuple(shapes[weight.name]) != weight.shape:
            raise UserError(f"{where}: the weight {weight.name} has shape {tuple(shapes[weight.name])}, but by its "
                            f"configuration {weight.shape}: download it again, or use another model")
        expected.add(weight.name)
    for name in shapes:
        if name not in expected and not re.fullmatch(table.buffers, name):
            raise UserError(f"{where} has an unexpected weight {name}: this architecture has none of that name")


def import_weights(table: NameTable, config: ModelConfig, read: Callable[[str], Tensor],
                   where: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in a checkpoint file, tensor) of all weights; `read` returns the tensor with a name of theirs.

    Raises UserError for values that are not finite, and for constants with other values.
    """
    for constant in their_constants(table, config):
        if not (read(constant.name) == constant.value).all():
            raise UserError(f"{where}: the weight {constant.name} is not {constant.value:g} everywhere, as in a model "
                            "that this project computes: use another model")
    for weight in their_weights(table, config):
        tensor = read(weight.name)
        check_finite(tensor, weight.name, where)
        tensor = tensor.T if weight.transposed else tensor
        if weight.heads is None:
            parts = tensor.split([*weight.ours.values()])
        else:
            by_head = tensor.unflatten(0, (weight.heads, len(weight.ours), -1))  # (nh 3 hs, C) -> (nh, 3, hs, C)
            parts = [part.flatten(0, 1) for part in by_head.unbind(1)]  # 3 times (nh hs, C)
        for name, part in zip(weight.ours, parts, strict=True):
            yield name, part
            if name == "token_embedding.weight" and config.tied_head:
                yield "head.weight", part


def export_weights(table: NameTable, config: ModelConfig,
                   weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (their name, tensor) of all weights from {name in a checkpoint file: tensor}, without a tied head."""
    for weight in their_weights(table, config):
        parts = [weights[name] for name in weight.ours]
        if weight.heads is not None:  # the reverse of `import_weights`
            tensor = torch.stack([part.unflatten(0, (weight.heads, -1)) for part in parts], dim=1).flatten(0, 2)
        elif len(parts) > 1:
            tensor = torch.cat(parts)
        else:
            tensor = parts[0]  # without a copy
        yield weight.name, tensor.T.contiguous() if weight.transposed else tensor
    for constant in their_constants(table, config):
        yield constant.name, torch.full(constant.shape, constant.value)


def their_weights(table: NameTable, config: ModelConfig) -> Iterator[TheirWeight]:
    """Yield every `TheirWeight` of a model, without a tied head, which is the token embedding."""
    shapes = {row.component: row.shape for row in parameter_table(config)}
    for layer in table.layers:
        if "{i}" not in layer.theirs:
            yield from weights_of_layer(layer, shapes, config.num_heads)
    for i in range(config.n_blocks):
        for layer in table.layers:
            if "{i}" in layer.theirs:
                yield from weights_of_layer(layer, shapes, config.num_heads, i)


def weights_of_layer(layer: Layer, shapes: dict[str, tuple[int, ...]], num_heads: int,
                     i: int | None = None) -> Iterator[TheirWeight]:
    """Yield the weight and the bias of a layer, in block i, if the model has them; `shapes` are the shapes of ours."""
    for kind, ending in (("weight", layer.weight), ("bias", layer.bias)):
        names = [f"{name}.{kind}" for name in layer.ours]
        if names[0] not in shapes:
            continue
        rows = {block_weight_name(name, i): shapes[name][0] for name in names}
        shape = (sum(rows.values()), *shapes[names[0]][1:])
        transposed = layer.transposed and kind == "weight"
        yield TheirWeight(f"{layer.theirs}{ending}".format(i=i), shape[::-1] if transposed else shape, rows, transposed,
                          num_heads if layer.by_head else None)


def their_constants(table: NameTable, config: ModelConfig) -> Iterator[Constant]:
    """Yield every `Constant` of a model."""
    existing = {row.component for row in parameter_table(config)}
    with_biases = {row.component: row.shape for row in parameter_table(replace(config, bias=True, qkv_bias=None))}
    bias_sizes = {}  # of the biases that our model lacks
    for layer in table.layers if table.biases else ():
        biases = [f"{name}.bias" for name in layer.ours]
        if "{i}" in layer.theirs and biases[0] not in existing:
            bias_sizes[f"{layer.theirs}.bias"] = sum(with_biases[bias][0] for bias in biases)
    for i in range(config.n_blocks):
        for name, size in bias_sizes.items():
            yield Constant(name.format(i=i), (size,), 0.0)
        for name, value in table.qk_norm.items() if config.qk_norm else ():
            yield Constant(name.format(i=i), (config.head_size,), value)
