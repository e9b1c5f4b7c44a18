"""The named models: a class each, which is a configuration and what it is for.

Each takes changes as keyword arguments: `GPT2(n_blocks=6)`, `UltimateModel(vocab_size=5000)`.
"""

from models.config import ModelConfig
from models.gpt import GPT

CLASSIC = {"head_bias": True}  # LayerNorm, learned positions, ReLU, an untied head with a bias
GPT_2 = {"vocab_size": 50257, "block_size": 1024, "dropout": 0.1, "feed_forward": "gelu", "bias": True, "tied": True}


class TransformerModel(GPT):
    """The model of transformer_4d.py: its checkpoints load here. Squared ReLU instead of ReLU."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=2, num_heads=4, feed_forward="relu2", qk_norm=True,
                         **CLASSIC)


class RainbowGPT(GPT):
    """Six blocks of the classic kind: the size that nanoGPT trains on Shakespeare."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class DevModel(RainbowGPT):
    """RainbowGPT without dropout: its loss falls from the first step, so a change to the code shows at once."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, **CLASSIC)


class UltimateModel(GPT):
    """RainbowGPT with twice the context."""

    config = ModelConfig(n_embd=384, block_size=512, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class HugeModel(GPT):
    """RainbowGPT of twice the width: for a text of many megabytes and a GPU."""

    config = ModelConfig(n_embd=768, block_size=256, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class BardGPT(GPT):
    """Our best of about 10.8 M parameters for characters: rotary positions, normalised queries and keys, squared
    ReLU."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, dropout=0.2,
                         position="rotary", qk_norm=True, feed_forward="relu2")


class GPT2(GPT):
    """GPT-2 of 124 M parameters (Radford et al., 2019)."""

    config = ModelConfig(n_embd=768, n_blocks=12, num_heads=12, **GPT_2)


class GPT2Medium(GPT):
    """GPT-2 of 355 M parameters."""

    config = ModelConfig(n_embd=1024, n_blocks=24, num_heads=16, **GPT_2)


class GPT2Large(GPT):
    """GPT-2 of 774 M parameters."""

    config = ModelConfig(n_embd=1280, n_blocks=36, num_heads=20, **GPT_2)


class GPT2XL(GPT):
    """GPT-2 of 1,558 M parameters."""

    config = ModelConfig(n_embd=1600, n_blocks=48, num_heads=25, **GPT_2)


class EasyGPT(GPT):
    """A model of the Llama kind, 303 M parameters: RMSNorm, rotary positions, SwiGLU, four heads of keys and values."""

    config = ModelConfig(n_embd=1024, block_size=1024, n_blocks=24, num_heads=16, num_kv_heads=4, n_hidden=2560,
                         vocab_size=50304, norm="rms", position="rotary", feed_forward="swiglu", tied=True)


class SmallGPT90M(GPT):
    """The depth and width of GPT-2 for a small vocabulary, such as that of Chinese chat."""

    config = ModelConfig(n_embd=768, n_blocks=12, num_heads=12, **GPT_2 | {"vocab_size": 7587, "block_size": 256})


class SmallGPT300M(GPT):
    """SmallGPT90M, wider and deeper."""

    config = ModelConfig(n_embd=960, n_blocks=26, num_heads=15, **GPT_2 | {"vocab_size": 7587, "block_size": 256})


class PoemGPT(GPT):
    """Small, for Chinese poems in byte-level BPE."""

    config = ModelConfig(n_embd=256, block_size=512, n_blocks=6, num_heads=8, vocab_size=20000, dropout=0.1,
                         feed_forward="gelu", tied=True)


ZOO = {model.__name__: model for model in (
    TransformerModel, RainbowGPT, DevModel, UltimateModel, HugeModel, BardGPT, GPT2, GPT2Medium, GPT2Large, GPT2XL,
    EasyGPT, SmallGPT90M, SmallGPT300M, PoemGPT)}
