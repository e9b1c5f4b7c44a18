"""The counts of parameters and of operations, against models and against PyTorch's counter."""

import math
from dataclasses import replace

import pytest
import torch
from small_configs import CLASSIFIERS, KINDS, SMALL, build, every, every_kind, every_model, small_config
from torch.utils.flop_counter import FlopCounterMode

from models.freeze import freeze_below
from models.lora import add_lora
from models.weights import file_weights
from models.zoo import ZOO
from utils.forecast.flops import flops_per_token
from utils.forecast.parameters import count_parameters, lora_targets, parameter_table, weight_shapes
from utils.forecast.plan import Plan


def weights_by_kind(model):
    """Return the shape and the total number of elements, over all blocks, of each kind of weight in a model."""
    found = {}
    for name, weight in file_weights(model).items():
        if model.config.tied_head and name == "head.weight":
            continue
        first, _, rest = name.partition(".")
        kind = f"blocks.{rest.partition('.')[2]}" if first == "blocks" else name
        shape, count = found.get(kind, (tuple(weight.shape), 0))
        assert shape == tuple(weight.shape)
        found[kind] = (shape, count + weight.numel())
    return found


@every_model
def test_the_table_matches_the_model(name):
    with torch.device("meta"):
        model = ZOO[name]()
    rows = parameter_table(model.config)
    assert {row.component: (row.shape, row.count) for row in rows} == weights_by_kind(model)
    assert count_parameters(model.config) == sum(weight.numel() for weight in model.parameters())


@every_kind
def test_the_table_matches_a_model_of_any_configuration(kind):
    with torch.device("meta"):
        model = ZOO["TransformerModel"](**SMALL | {"head_bias": False} | kind)
    assert {row.component: (row.shape, row.count) for row in parameter_table(model.config)} == weights_by_kind(model)


@every_model
def test_weight_shapes_match_a_checkpoint_file(name):
    with torch.device("meta"):
        model = ZOO[name]()
    expected = {name: tuple(weight.shape) for name, weight in file_weights(model).items()}
    shapes = list(weight_shapes(model.config))
    assert dict(shapes) == expected and len(shapes) == len(expected)


def test_weight_shapes_of_a_huge_number_of_blocks_are_generated_lazily():
    names = (name for name, _ in weight_shapes(replace(ZOO["BardGPT"].config, n_blocks=10**15)))
    assert [next(names) for _ in range(5)][-1] == "blocks.0.attention_norm.weight"


@every_model
def test_a_formula_gives_the_count_beside_it(name):
    for row in parameter_table(ZOO[name].config):
        letters, numbers = row.formula.split(" = ")
        assert len(letters.split()) == len(numbers.split(" x "))
        assert math.prod(int(number.replace(",", "")) for number in numbers.split(" x ")) == row.count


@every_kind
def test_flops_match_what_pytorch_counts(kind):
    config = small_config(**kind | {"dropout": 0.0})
    model = build(config).bfloat16()  # on a CPU: attention as plain matrix products
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, config.block_size, dtype=torch.long))
    forward_and_backward = 3 * counter.get_total_flops()  # the backward pass takes twice as many
    assert flops_per_token(config, Plan()) * 2 * config.block_size == forward_and_backward


TRAINED = [{"trainable_blocks": n} for n in (0, 1, 3)] + [
    {"lora_rank": 5, "lora_targets": targets}
    for targets in (("qkv",), ("out",), ("up",), ("gate",), ("down",), ("head",), ("qkv", "out"),
                    ("up", "down", "head"))]


def counted_flops(config, recompute, trainable_blocks=None, lora_rank=None, lora_targets=()):
    """Return the operations of matrix products in a training step on two sequences, counted by PyTorch."""
    model = build(config).bfloat16()  # on a CPU: attention as plain matrix products
    model.activation_checkpointing = recompute
    if lora_rank is not None:
        add_lora(model, lora_rank, 16, lora_targets)
    elif trainable_blocks is not None:
        freeze_below(model, trainable_blocks)
    x = torch.zeros(2, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(x, x[:, :1].expand_as(x))[1].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trained", [{}, *TRAINED], ids=lambda trained: "-".join(map(str, trained.values())) or "all")
@pytest.mark.parametrize("recompute, dropout", [(False, 0.0), (True, 0.0), (True, 0.1)])
@every([KINDS[0], KINDS[2], KINDS[3], CLASSIFIERS[1], {"n_labels": 3, "auxiliary_lm": True}])
def test_training_flops_match_what_pytorch_counts(kind, recompute, dropout, trained):
    config = small_config(**kind | {"dropout": dropout, "n_blocks": 3})
    targets = trained.get("lora_targets", ())
    if not set(targets) <= lora_targets(config).keys():
        pytest.skip("the model has no such matrix")
    expected = counted_flops(config, recompute, **trained)
    if "head" in targets:
        expected -= 6 * 5 * config.n_embd * config.vocab_size  # merging the adapter, once for all tokens
    if recompute and not dropout and targets == ("down",):  # the first block is repeated up to the product with B only
        expected += 2 * 5 * config.n_embd * 2 * config.block_size
    plan = Plan(**trained, activation_checkpointing=recompute)
    assert flops_per_token(config, plan) * 2 * config.block_size == expected
