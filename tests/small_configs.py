"""Small configurations, which together have every choice of a ModelConfig."""


import pytest

from models.config import ModelConfig
from models.zoo import ZOO

every_model = pytest.mark.parametrize("name", ZOO)
SMALL = {"n_embd": 96, "num_heads": 6, "block_size": 64, "n_blocks": 2, "n_hidden": 256, "vocab_size": 211}
KINDS = [  # every choice of a configuration at least once
    {"head_bias": True},
    {"feed_forward": "relu2", "dropout": 0.1},
    {"feed_forward": "gelu", "bias": True, "tied": True, "dropout": 0.1},
    {"feed_forward": "swiglu", "norm": "rms", "position": "rotary", "num_kv_heads": 2, "tied": True},
    {"feed_forward": "relu2", "norm": "rms", "position": "rotary", "qk_norm": True, "dropout": 0.2},
    {"feed_forward": "swiglu", "qk_norm": True, "num_kv_heads": 3, "bias": True},
    {"feed_forward": "gelu_exact", "norm": "rms", "position": "rotary", "head_dim": 48, "num_kv_heads": 2},
    {"head_dim": 6, "bias": True, "qkv_bias": False, "dropout": 0.1},
    {"head_dim": 40, "qkv_bias": True, "qk_norm": True},
]  # fmt: skip
CLASSIFIERS = [
    {"n_labels": 3, "feed_forward": "relu2", "tied": True},
    {"n_labels": 2, "feed_forward": "gelu", "head_bias": True, "dropout": 0.1},
]


def every(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: "-".join(map(str, kind.values())))


every_kind = every(KINDS + CLASSIFIERS)


def small_config(**changes):
    return ModelConfig(**SMALL | changes)


def build(config):
    return ZOO["TransformerModel"](**vars(config))
