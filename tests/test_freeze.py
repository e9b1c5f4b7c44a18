"""Freezing: which weights are frozen, and that training leaves them bit-identical."""

import pytest
import torch
from small_models import small_model

from models.freeze import freeze_below
from training.optim import WeightAverage, make_optimizers
from training.settings import OptimSettings
from training.shares import Shares
from training.step import TrainStep
from utils.errors import UserError

DISABLED = torch.amp.GradScaler("cpu", enabled=False)


def train(model, name="muon", steps=20, ema=None):
    """Train for some steps of two micro-batches with weight decay; return the TrainStep."""
    settings = OptimSettings(name=name, weight_decay=0.3)
    average = None if ema is None else WeightAverage(model, ema)
    optimizers = make_optimizers(model, settings, torch.float32)
    train_step = TrainStep(model.train(), optimizers, grad_clip=1.0, dtype=torch.float32, scaler=DISABLED,
                           average=average)
    for step in range(steps):
        x = torch.randint(11, (2, 4, 12))
        batches = list(zip(x, x % model.config.n_outputs, strict=True))
        train_step(step, Shares(lambda _, batches=batches: batches)(step), 1.0)
    return train_step


def changed_weights(model, before):
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


def copy_weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("trainable_blocks", [0, 1, 2])
@pytest.mark.parametrize("name, changes", [("BardGPT", {}), ("GPT2", {}), ("EasyGPT", {"n_labels": 3})])
def test_training_changes_only_the_last_blocks_the_final_norm_and_the_head(name, changes, trainable_blocks, optimizer):
    model = small_model(name, **changes)
    freeze_below(model, trainable_blocks)
    before = copy_weights(model)
    train_step = train(model, optimizer, ema=0.5)
    prefixes = ("final_norm.", *(f"blocks.{i}." for i in range(2 - trainable_blocks, 2)))
    expected = {name for name in before if name.startswith(prefixes)}
    if name != "GPT2":  # its head is tied
        expected |= {name for name in before if name.startswith("head.")}
    assert changed_weights(model, before) == expected == train_step.average.averages.keys()
    assert len(train_step.optimizers) == (2 if optimizer == "muon" and trainable_blocks else 1)
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)


def test_freezing_does_not_change_the_gradients_of_trained_blocks():
    frozen, reference = small_model("BardGPT"), small_model("BardGPT")
    freeze_below(frozen, 1)
    x = torch.randint(11, (3, 12))
    gradients = []
    for model in (frozen, reference):
        model(x, x)[1].backward()
        gradients.append([model.blocks[1].attention.qkv.weight.grad, model.head.weight.grad])
    torch.testing.assert_close(*gradients)
    assert frozen.blocks[0].attention.qkv.weight.grad is None


def test_activation_checkpointing_works_with_frozen_blocks():
    x = torch.randint(11, (3, 12))
    gradients = []
    for recompute in (False, True):
        model = small_model("EasyGPT").train()
        model.activation_checkpointing = recompute
        freeze_below(model, 1)
        model(x, x)[1].backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("trainable_blocks", [-1, 3])
def test_a_number_of_blocks_out_of_range_is_an_error(trainable_blocks):
    model = small_model("BardGPT")
    with pytest.raises(UserError, match=f"{trainable_blocks}: give a number from 0 to 2"):
        freeze_below(model, trainable_blocks)
    assert all(weight.requires_grad for weight in model.parameters())
