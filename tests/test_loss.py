"""Chunked cross-entropy against PyTorch's cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from models import loss
from models.loss import cross_entropy, head_loss

B, T, C, V = 2, 7, 5, 11


def inputs(bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V, bias=bias)
    h, y = torch.randn(B, T, C, requires_grad=True), torch.randint(V, (B, T))
    y[0, 2:5] = -100
    return h, head, y


def reference(h, head, y):
    return F.cross_entropy(head(h).float().flatten(0, 1), y.flatten(), ignore_index=-100)


@pytest.mark.parametrize("chunk", [1, V, 3 * V, 10**6], ids=["one token", "one token exactly", "three tokens", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_match_pytorch(monkeypatch, bias, chunk):
    monkeypatch.setattr(loss, "LOGITS_CHUNK", chunk)
    results = []
    for function in (head_loss, reference):
        h, head, y = inputs(bias)
        value = function(h, head, y)
        (value * 0.7).backward()
        (function(h, head, y) * 0.1).backward()  # gradients accumulate
        results.append([value.detach(), h.grad, *(weight.grad for weight in head.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("trained", [("h",), ("weight",), ("bias",), ("h", "bias"), ("h", "weight")])
def test_only_the_needed_gradients_are_computed(trained):
    results = []
    for function in (head_loss, reference):
        h, head, y = inputs(bias=True)
        tensors = {"h": h, "weight": head.weight, "bias": head.bias}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in trained)
        value = function(h, head, y)
        value.backward()
        results.append([value.detach(), *(tensor.grad for tensor in tensors.values() if tensor.grad is not None)])
        assert len(results[-1]) == 1 + len(trained)
    torch.testing.assert_close(*results)


def test_without_trained_weights_the_loss_has_no_gradient():
    h, head, y = inputs(bias=True)
    value = head_loss(h.detach(), head.requires_grad_(False), y)
    assert not value.requires_grad
    torch.testing.assert_close(value, reference(h, head, y).detach())


def test_bfloat16_gradients_differ_only_by_rounding():
    h, head, y = inputs(bias=True)
    exact = torch.autograd.grad(reference(h, head, y), [h, *head.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(head_loss(h, head, y), [h, *head.parameters()])
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.float32 and (one - other).abs().max() < 0.02 * other.abs().max()


def test_without_targets_the_loss_and_its_gradients_are_zero():
    h, head, y = inputs(bias=True)
    value = head_loss(h, head, torch.full_like(y, -100))
    value.backward()
    assert value == 0 and not h.grad.any() and not head.weight.grad.any() and not head.bias.grad.any()


def test_the_loss_is_the_same_without_gradients():
    h, head, y = inputs(bias=True)
    with torch.no_grad():
        value = head_loss(h, head, y)
    assert not value.requires_grad and value == head_loss(h, head, y).detach()


def test_no_tensor_is_larger_than_one_chunk_of_logits(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_CHUNK", 3 * V)
    sizes = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *inputs: sizes.append(len(inputs[0])) or linear(*inputs))
    h, head, y = inputs(bias=True)
    head_loss(h, head, y)
    assert sizes == [3, 3, 3, 3, 2]


def test_the_backward_pass_hands_over_the_gradients_without_a_copy():
    h, head, y = inputs(bias=True)
    value = head_loss(h, head, y)
    address = value.grad_fn.saved_tensors[1].data_ptr()
    value.backward()
    assert head.weight.grad.data_ptr() == address


def test_the_loss_compiles_without_a_graph_break(monkeypatch):
    """A graph break would leave the loss, the largest tensors of a step, uncompiled."""
    monkeypatch.setattr(loss, "LOGITS_CHUNK", 3 * V)
    results = []
    for function in (torch.compile(head_loss, backend="aot_eager", fullgraph=True), head_loss):
        h, head, y = inputs(bias=True)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            value = function(h, head, y)
        value.backward()
        results.append([value.detach(), h.grad, *(weight.grad for weight in head.parameters())])
    torch.testing.assert_close(*results)


def test_each_target_belongs_to_one_of_two_heads():
    torch.manual_seed(0)
    h, heads = torch.randn(2, 5, 8), [torch.nn.Linear(8, 3), torch.nn.Linear(8, 7, bias=False)]
    y = torch.tensor([[2, -100, 3, 9, 0], [4, 4, -100, 1, 2]])
    labels, tokens = heads[0](h).log_softmax(-1), heads[1](h).log_softmax(-1)
    expected = 0.0
    for b in range(2):
        for t in range(5):
            if 0 <= y[b, t] < 3:
                expected -= labels[b, t, y[b, t]].item()
            elif y[b, t] >= 3:
                expected -= tokens[b, t, y[b, t] - 3].item()
    assert cross_entropy(h, heads, y).item() == pytest.approx(expected / 8, rel=1e-6)
    assert cross_entropy(h, heads, torch.full((2, 5), -100)).item() == 0.0
