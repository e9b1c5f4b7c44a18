"""Classifiers: sizes, loss against PyTorch's at the positions where a class is predicted, and padding."""

import pytest
import torch
import torch.nn.functional as F
from small_models import small_model

from models.config import ModelConfig
from models.weights import file_weights
from models.zoo import ZOO
from utils.errors import UserError
from utils.forecast.parameters import count_parameters, weight_shapes

every_model = pytest.mark.parametrize("name", ZOO)


@every_model
def test_the_head_has_one_zero_initialized_output_per_class_and_is_never_tied(name):
    model, language_model = ZOO[name](n_labels=3, n_embd=48, num_heads=12), ZOO[name](n_embd=48, num_heads=12)
    assert model.head.weight.shape == (3, 48) and not model.head.weight.any()
    head = 3 * 48 + (3 if model.config.head_bias else 0)
    theirs = 0 if model.config.tied else sum(weight.numel() for weight in language_model.head.parameters())
    n = sum(weight.numel() for weight in model.parameters())
    assert n == sum(weight.numel() for weight in language_model.parameters()) - theirs + head
    assert n == count_parameters(model.config)
    assert dict(weight_shapes(model.config)) == {key: tuple(w.shape) for key, w in file_weights(model).items()}


@every_model
def test_the_loss_is_the_cross_entropy_at_the_positions_with_a_class(name):
    model = small_model(name, n_labels=4)
    x, last, labels = torch.randint(11, (5, 12)), torch.tensor([0, 11, 4, 7, 11]), torch.tensor([3, 0, 1, 1, 2])
    y = torch.full((5, 12), -100)
    y[torch.arange(5), last] = labels
    loss, logits = model(x, y)[1], model(x)[0]
    assert logits.shape == (5, 12, 4)
    expected = sum(F.cross_entropy(logits[i, last[i]], labels[i]) for i in range(5)) / 5
    torch.testing.assert_close(loss, expected)


@every_model
def test_padding_to_the_right_changes_no_logit(name):
    model = small_model(name, n_labels=2, block_size=512)
    short, long = torch.randint(1, 11, (20,)), torch.randint(1, 11, (500,))
    padded = torch.stack((F.pad(short, (0, 480)), long))
    torch.testing.assert_close(model(padded)[0][0, :20], model(short[None])[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_labels", [1, 0, -3, 2.5])
def test_an_impossible_number_of_classes_is_an_error(n_labels):
    with pytest.raises(UserError, match=f"n_labels cannot be {n_labels}"):
        ModelConfig(n_embd=32, block_size=12, n_blocks=2, num_heads=8, n_labels=n_labels)
