"""Small models of the zoo, for tests."""

import torch

from models.zoo import ZOO

SIZES = {"n_embd": 32, "block_size": 12, "n_blocks": 2, "num_heads": 8, "n_hidden": 48, "vocab_size": 11,
         "dropout": 0.0}


def sizes(name):
    """Return SIZES for a model of the zoo; the three key-value heads of Llama do not divide eight heads."""
    return SIZES | {"num_kv_heads": 2} if name == "Llama" else SIZES


def small_model(name, **changes):
    """Return a small model with random weights, as the initial zeros could hide mistakes."""
    torch.manual_seed(0)
    model = ZOO[name](**sizes(name) | changes).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model
