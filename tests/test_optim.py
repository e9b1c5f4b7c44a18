"""Batched Muon against one matrix at a time, and the moving average of the weights against its formula."""

import pytest
import torch
from small_models import small_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import optim
from training.distributed import World
from training.optim import Muon, WeightAverage, orthogonalize

SHAPES = [(12, 5), (5, 12), (12, 5), (8, 8), (3, 3), (12, 5)]


def newton_schulz(matrix):
    """Orthogonalize one matrix (r, c), written from the polynomial."""
    x = matrix / matrix.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


def muon_reference(weight, gradients, lr, weight_decay, momentum):
    """Return a matrix after Muon steps with these gradients, in float64."""
    weight, average = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient.double()
        update = newton_schulz(momentum * average + (1 - momentum) * gradient.double())
        scale = max(1, weight.size(0) / weight.size(1)) ** 0.5
        weight = weight * (1 - lr * weight_decay) - lr * scale * update
    return weight


@pytest.mark.parametrize("limit", [2**25, 130, 1], ids=["one stack per shape", "two matrices at once", "one at a time"])
def test_batched_muon_equals_one_matrix_at_a_time(monkeypatch, limit):
    monkeypatch.setattr(optim, "MUON_STACK", limit)
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in SHAPES]
    gradients = [[torch.randn(shape) for shape in SHAPES] for _ in range(3)]
    expected = [muon_reference(weight, [step[i] for step in gradients], 0.02, 0.1, 0.9)
                for i, weight in enumerate(weights)]
    muon = Muon(weights, 0.02, weight_decay=0.1, momentum=0.9, dtype=torch.float32)
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        muon.step()
    for weight, reference in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.double(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ranks, n_stacks", [(1, [1, 1, 1, 1, 1, 1]), (2, [2, 1, 2, 1]), (8, [5, 5])])
def test_stacks_contain_every_row_once_are_bounded_and_as_equal_as_possible(monkeypatch, ranks, n_stacks):
    monkeypatch.setattr(optim, "MUON_STACK", 200)
    weights = [torch.zeros(32, 6) for _ in range(5)]
    muon = Muon(weights, 0.02, weight_decay=0.1, momentum=0.9, dtype=torch.float32,
                rows={weight: [16, 8, 8] for weight in weights}, world=World(0, ranks))
    rounds = list(muon.rounds(weights))
    assert [len(stacks) for stacks in rounds] == n_stacks
    stacks = [stack for stacks in rounds for stack in stacks]
    found = [(id(weight), row) for stack in stacks for weight, rows in stack for row in range(rows.start, rows.stop)]
    assert sorted(found) == sorted((id(weight), row) for weight in weights for row in range(32))
    sizes = [sum((rows.stop - rows.start) * 6 for _, rows in stack) for stack in stacks]
    assert max(sizes) <= 200  # two matrices of 16 x 6 at once, and four of 8 x 6


def test_orthogonalize_brings_singular_values_close_to_one():
    torch.manual_seed(0)
    for shape in ((3, 20, 7), (3, 7, 20)):
        x = torch.randn(shape)
        values = torch.linalg.svdvals(orthogonalize(x / x.norm(dim=(1, 2), keepdim=True)))
        assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonalize(torch.zeros(2, 4, 4)).any()  # no gradient, no update


def test_the_average_follows_its_formula_and_pytorchs_own():
    model = small_model("DevModel")
    average = WeightAverage(model, decay=0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = model.head.weight.detach().clone()
    theirs.update_parameters(model)  # its first call copies
    torch.manual_seed(0)
    for step in (0, 3, 80, 200):
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight))
        average.set_step(step)
        average.update()
        rate = max(0.1, 9 / (step + 10))
        expected = (1 - rate) * expected + rate * model.head.weight.detach()
        if step == 3:  # from here on the rate is constant, as in PyTorch: continue from the same averages
            for other, mine in zip(theirs.module.parameters(), average.averages.values(), strict=True):
                other.data.copy_(mine)
        if step > 3:
            theirs.update_parameters(model)
        torch.testing.assert_close(average.averages["head.weight"], expected)
    torch.testing.assert_close(average.averages["head.weight"], theirs.module.head.weight.detach())


def test_the_average_is_in_the_model_only_inside_the_context():
    model = small_model("SmallGPT90M")  # its head is tied to the embedding: one average for both
    average = WeightAverage(model, decay=0.5)
    start = model.head.weight.detach().clone()
    model.head.weight.data.add_(1.0)
    average.set_step(1000)
    average.update()
    with average.in_model():
        torch.testing.assert_close(model.head.weight, start + 0.5)
        assert model.head.weight is model.token_embedding.weight
    torch.testing.assert_close(model.head.weight, start + 1.0)
    torch.testing.assert_close(average.averages["token_embedding.weight"], start + 0.5)
