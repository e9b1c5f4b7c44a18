"""GPT-2 with QK norm and a bias in the head.

Written by export.py of YourGPT, for models that no class of transformers computes. To load one:
AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D


class YourGPTConfig(GPT2Config):
    """A GPT2Config that also has `qk_norm` and `head_bias`: whether the model has them."""

    model_type = "your_gpt"


class NormalizedQKV(Conv1D):
    """The queries, keys and values of GPT-2, with a LayerNorm without weights on every query and key."""

    def __init__(self, config: YourGPTConfig):
        super().__init__(3 * config.n_embd, config.n_embd)
        self.head_size, self.eps = config.n_embd // config.n_head, config.layer_norm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = super().forward(x).chunk(3, dim=-1)  # (B, T, 3C) -> 3 times (B, T, C)
        return torch.cat((self.normalize(q), self.normalize(k), v), dim=-1)  # (B, T, 3C)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (-1, self.head_size))  # (B, T, nh, hs)
        return F.layer_norm(heads, (self.head_size,), eps=self.eps).flatten(-2)  # (B, T, C)


class YourGPTForCausalLM(GPT2LMHeadModel):
    """A language model with the weights of GPT2LMHeadModel, and `lm_head.bias` if there is one."""

    config_class = YourGPTConfig

    def __init__(self, config: YourGPTConfig):
        super().__init__(config)
        if config.qk_norm:
            for block in self.transformer.h:
                block.attn.c_attn = NormalizedQKV(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.post_init()
