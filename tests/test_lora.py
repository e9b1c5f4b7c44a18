"""LoRA against brute-force formulas, merged adapters against separate ones, and what training changes."""

import copy

import pytest
import torch
from small_models import small_model
from test_freeze import changed_weights, copy_weights, train

from models.config import SamplingConfig
from models.generate import generate
from models.lora import LoRALinear, add_lora, base_weights, fingerprint, load_lora_weights, lora_weights, merge_lora
from models.weights import file_weights, load_file_weights
from utils.errors import UserError

CASES = [  # model, changes, targets: every target, tied and untied, with and without biases, a classifier
    ("BardGPT", {}, ["qkv", "head"]),
    ("TransformerModel", {}, ["up", "down", "head"]),
    ("GPT2", {}, ["qkv", "out", "up", "down"]),
    ("EasyGPT", {}, ["gate", "qkv"]),
    ("EasyGPT", {"n_labels": 3}, ["out"]),
]
every_case = pytest.mark.parametrize("name, changes, targets", CASES)


def adapted(name, changes, targets, random=False):
    """Return a small model with adapters of rank 2; `random`: both factors are random, and so change the output."""
    model = small_model(name, **changes)
    add_lora(model, 2, 3.0, targets)
    if random:
        for key, weight in lora_weights(model).items():
            weight.normal_(std=0.3 if "lora" in key else 1.0)
    return model.eval()


def ids():
    return torch.randint(11, (2, 12))


def test_the_scale_is_alpha_over_rank():
    linear = torch.nn.Linear(4, 4)
    lora = LoRALinear(linear, rank=8, alpha=16)
    torch.nn.init.ones_(lora.lora_a)
    torch.nn.init.ones_(lora.lora_b)
    x = torch.ones(3, 4)
    torch.testing.assert_close(lora(x) - linear(x), torch.full((3, 4), 64.0))


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_matches_the_formula(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 3, bias=bias)
    lora = LoRALinear(linear, rank=2, alpha=6)
    torch.nn.init.normal_(lora.lora_b)
    x, y = torch.randn(7, 5), torch.zeros(7, 3)
    for n in range(7):
        for i in range(3):
            y[n, i] = linear.bias[i] if bias else 0.0
            for j in range(5):
                change = sum(lora.lora_b[i, r] * lora.lora_a[r, j] for r in range(2))
                y[n, i] += (linear.weight[i, j] + 3 * change) * x[n, j]
    torch.testing.assert_close(lora(x), y)
    torch.testing.assert_close(torch.nn.functional.linear(x, lora.merged_weight(), lora.bias), y)


@every_case
def test_an_untrained_adapter_changes_nothing(name, changes, targets):
    model, base, x = adapted(name, changes, targets), small_model(name, **changes), ids()
    y = x % model.config.n_outputs
    assert torch.equal(model(x)[0], base(x)[0]) and torch.equal(model(x, y)[1], base(x, y)[1])


@every_case
def test_merging_gives_a_plain_model_with_the_same_output(name, changes, targets):
    model, base, x = adapted(name, changes, targets, random=True), small_model(name, **changes), ids()
    y = x % model.config.n_outputs
    logits, loss, before = model(x)[0], model(x, y)[1], copy_weights(model)
    assert not torch.allclose(logits, base(x)[0], atol=0.1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()))
    merged = copy.deepcopy(model)
    merge_lora(merged)
    torch.testing.assert_close(merged(x)[0], logits, atol=1e-5, rtol=1e-5)
    assert file_weights(merged).keys() == file_weights(base).keys()
    load_file_weights(base, file_weights(merged).items())
    assert torch.equal(base(x)[0], merged(x)[0])
    assert all(weight.requires_grad for weight in merged.parameters())
    assert changed_weights(model, before) == set()  # the copy does not share weights


@every_case
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_changes_only_the_adapters_and_the_head_of_a_classifier(name, changes, targets, optimizer):
    model = adapted(name, changes, targets)
    before, mark = copy_weights(model), fingerprint(model)
    train_step = train(model, optimizer, ema=0.5)
    expected = {key for key in before if "lora" in key or changes and key.startswith("head.")}
    assert changed_weights(model, before) == expected == lora_weights(model).keys()
    assert expected == train_step.average.averages.keys()
    assert [type(each) for each in train_step.optimizers] == [torch.optim.AdamW]
    assert fingerprint(model) == mark
    n_adapters = sum("lora_a" in key for key in before)
    assert n_adapters == sum(1 if target == "head" else 2 for target in targets)


@every_case
def test_the_lora_weights_restore_the_model(name, changes, targets, tmp_path):
    model, x = adapted(name, changes, targets), ids()
    train(model, steps=3)
    torch.save(lora_weights(model), tmp_path / "lora.pt")
    restored = adapted(name, changes, targets)
    load_lora_weights(restored, torch.load(tmp_path / "lora.pt", weights_only=True))
    assert torch.equal(restored.eval()(x)[0], model.eval()(x)[0])


@every_case
def test_base_weights_and_lora_weights_are_disjoint_and_complete(name, changes, targets):
    model, base = adapted(name, changes, targets), small_model(name, **changes)
    heads = {name for name in lora_weights(model) if name in ("head.weight", "head.bias")}
    assert base_weights(model).keys() | heads == file_weights(model).keys()
    assert not base_weights(model).keys() & lora_weights(model).keys()
    assert fingerprint(model) == fingerprint(base)
    base.token_embedding.weight.data[0, 0] += 1e-6
    assert fingerprint(model) != fingerprint(base)


def test_the_fingerprint_ignores_the_head_of_a_classifier():
    one, other = small_model("BardGPT", n_labels=3), small_model("BardGPT", n_labels=3)
    other.head.weight.data += 1
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("name, changes, targets, words", [
    ("BardGPT", {}, ["qkv", "wings"], "wings is not a matrix of this model: choose from qkv, out, up, down, head"),
    ("BardGPT", {}, ["gate"], "gate is not a matrix of this model: choose from qkv, out, up, down, head"),
    ("EasyGPT", {}, ["head"], "head is tied to the token embedding: choose from qkv, out, up, down, gate"),
    ("EasyGPT", {"n_labels": 3}, ["head"], "head is trained in full: choose from qkv, out, up, down, gate"),
    ("GPT2", {}, [], "at least one target: choose from qkv, out, up, down"),
])  # fmt: skip
def test_an_invalid_target_is_an_error_that_lists_the_valid_ones(name, changes, targets, words):
    model = small_model(name, **changes)
    before = copy_weights(model)
    with pytest.raises(UserError, match=words):
        add_lora(model, 2, 3.0, targets)
    assert changed_weights(model, before) == set() and all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("rank, alpha, words", [(0, 1.0, "rank cannot be 0"), (4, 0.0, "alpha cannot be 0.0")])
def test_rank_and_alpha_must_be_positive(rank, alpha, words):
    with pytest.raises(UserError, match=words):
        add_lora(small_model("BardGPT"), rank, alpha, ["qkv"])


def test_a_second_set_of_adapters_is_an_error():
    with pytest.raises(UserError, match="has LoRA adapters already"):
        add_lora(adapted("BardGPT", {}, ["qkv"]), 2, 3.0, ["out"])


@pytest.mark.parametrize("change, words", [
    (lambda weights: weights.pop("blocks.1.attention.qkv.lora_b"), "missing blocks.1.attention.qkv.lora_b"),
    (lambda weights: weights.pop("head.weight"), "missing head.weight"),
    (lambda weights: weights.update({"blocks.0.feed_forward.up.lora_a": torch.zeros(2, 32)}),
     "have blocks.0.feed_forward.up.lora_a"),
    (lambda weights: weights.update({"blocks.0.attention.qkv.lora_a": torch.zeros(3, 32)}),
     r"blocks.0.attention.qkv.lora_a does not have the shape \(2, 32\)"),
    (lambda weights: weights.update({"head.weight": None}), "head.weight does not have the shape"),
])  # fmt: skip
def test_lora_weights_that_do_not_match_are_an_error_that_names_the_tensor(change, words):
    model = adapted("BardGPT", {"n_labels": 3}, ["qkv"])
    weights = {name: weight + 1 for name, weight in lora_weights(model).items()}
    change(weights)
    before = copy_weights(model)
    with pytest.raises(UserError, match=words):
        load_lora_weights(model, weights)
    assert changed_weights(model, before) == set()


def test_an_adapter_computes_in_half_precision_under_autocast():
    model, x = adapted("BardGPT", {}, ["qkv", "down", "head"], random=True), ids()
    dtypes = []
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x)[0]
        loss = model(x, x)[1]
    assert set(dtypes) == {torch.bfloat16}
    exact = model(x)[0]
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()
    torch.testing.assert_close(loss, model(x, x)[1], atol=0.1, rtol=0.02)


@pytest.mark.parametrize("recompute", [True, False])
def test_the_gradients_of_adapters_follow_from_the_gradients_of_the_weights(recompute):
    """With y = (W + s B A) x and the gradient G of W, the gradient of B is s G A^T, and the gradient of A s B^T G."""
    model = adapted("TransformerModel", {}, ["qkv", "head"], random=True).train()
    merged, x = copy.deepcopy(model), ids()
    merge_lora(merged)
    model.activation_checkpointing = recompute
    model(x, x)[1].backward()
    merged(x, x)[1].backward()
    for lora, linear in ((model.head, merged.head), (model.blocks[0].attention.qkv, merged.blocks[0].attention.qkv)):
        torch.testing.assert_close(lora.lora_b.grad, 1.5 * linear.weight.grad @ lora.lora_a.T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(lora.lora_a.grad, 1.5 * lora.lora_b.T @ linear.weight.grad, atol=1e-5, rtol=1e-4)


def test_generation_is_the_same_after_merging():
    model = adapted("EasyGPT", {}, ["qkv", "out", "gate", "down"], random=True)
    greedy = SamplingConfig(temperature=0)
    applied = list(generate(model, [1, 2, 3], 30, greedy))
    merge_lora(model)
    assert applied == list(generate(model, [1, 2, 3], 30, greedy))
