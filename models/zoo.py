"""The named models: subclasses of GPT, each with its default ModelConfig.

Keyword arguments override fields of the configuration: `GPT2(n_blocks=6)`, `UltimateModel(vocab_size=5000)`.
"""

from models.config import ModelConfig
from models.gpt import GPT

CLASSIC = {"head_bias": True}  # with the defaults of ModelConfig: LayerNorm, learned positions, ReLU, untied head
GPT_2 = {"vocab_size": 50257, "block_size": 1024, "dropout": 0.1, "feed_forward": "gelu", "bias": True, "tied": True}


class TransformerModel(GPT):
    """The model of transformer_4d.py, whose checkpoints load here: squared ReLU and QK norm."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=2, num_heads=4, feed_forward="relu2", qk_norm=True,
                         **CLASSIC)


class RainbowGPT(GPT):
    """Six blocks: nanoGPT's character-level Shakespeare model in size."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class DevModel(RainbowGPT):
    """RainbowGPT without dropout, for development: its loss falls from the first step, so a code change shows early."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, **CLASSIC)


class UltimateModel(GPT):
    """RainbowGPT with twice the context length."""

    config = ModelConfig(n_embd=384, block_size=512, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class HugeModel(GPT):
    """RainbowGPT with twice the embedding width, for a GPU and many megabytes of text."""

    config = ModelConfig(n_embd=768, block_size=256, n_blocks=6, num_heads=6, dropout=0.2, **CLASSIC)


class BardGPT(GPT):
    """Our best character-level model of the size of RainbowGPT: rotary positions, QK norm, squared ReLU."""

    config = ModelConfig(n_embd=384, block_size=256, n_blocks=6, num_heads=6, dropout=0.2,
                         position="rotary", qk_norm=True, feed_forward="relu2")


class GPT2(GPT):
    """GPT-2 with 124M parameters (Radford et al., 2019)."""

    config = ModelConfig(n_embd=768, n_blocks=12, num_heads=12, **GPT_2)


class GPT2Medium(GPT):
    """GPT-2 with 355M parameters."""

    config = ModelConfig(n_embd=1024, n_blocks=24, num_heads=16, **GPT_2)


class GPT2Large(GPT):
    """GPT-2 with 774M parameters."""

    config = ModelConfig(n_embd=1280, n_blocks=36, num_heads=20, **GPT_2)


class GPT2XL(GPT):
    """GPT-2 with 1558M parameters."""

    config = ModelConfig(n_embd=1600, n_blocks=48, num_heads=25, **GPT_2)


class EasyGPT(GPT):
    """A Llama-style model with 303M parameters: RMSNorm, rotary positions, SwiGLU, grouped queries, tied head."""

    config = ModelConfig(n_embd=1024, block_size=1024, n_blocks=24, num_heads=16, num_kv_heads=4, n_hidden=2560,
                         vocab_size=50304, norm="rms", position="rotary", feed_forward="swiglu", tied=True)


class Llama(GPT):
    """Llama (Touvron et al., 2023); by default, SmolLM2-135M in size."""

    config = ModelConfig(n_embd=576, block_size=8192, n_blocks=30, num_heads=9, num_kv_heads=3, n_hidden=1536,
                         vocab_size=49152, norm="rms", position="rotary", feed_forward="swiglu", tied=True,
                         rope_theta=100_000.0)


class SmallGPT90M(GPT):
    """GPT-2 124M with a short context and a small vocabulary, for Chinese chat."""

    config = ModelConfig(n_embd=768, n_blocks=12, num_heads=12, **GPT_2 | {"vocab_size": 7587, "block_size": 256})


class SmallGPT300M(GPT):
    """SmallGPT90M, but wider and deeper."""

    config = ModelConfig(n_embd=960, n_blocks=26, num_heads=15, **GPT_2 | {"vocab_size": 7587, "block_size": 256})


class PoemGPT(GPT):
    """A small model for Chinese poems, with a byte-level BPE tokenizer."""

    config = ModelConfig(n_embd=256, block_size=512, n_blocks=6, num_heads=8, vocab_size=20000, dropout=0.1,
                         feed_forward="gelu", tied=True)


ZOO = {model.__name__: model for model in (
    TransformerModel, RainbowGPT, DevModel, UltimateModel, HugeModel, BardGPT, GPT2, GPT2Medium, GPT2Large, GPT2XL,
    EasyGPT, Llama, SmallGPT90M, SmallGPT300M, PoemGPT)}
