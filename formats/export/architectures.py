"""The class of another project that computes a model, and the model as exported to that class."""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from formats.huggingface_config import ACTIVATIONS
from models.config import ModelConfig, ReplyConfig
from models.gpt import GPT
from models.weights import file_weights
from tokenization.base import Tokenizer
from utils.errors import UserError

Classes = dict[str, dict[str, set]]  # {name of a class: {feature: values that it computes}}

MULTI_HEAD = {"key and value heads": {"as many as heads"}, "head size": {"n_embd / num_heads"}}
GPT2 = {"norm": {"layer"}, "position": {"learned"}, "feed_forward": {*ACTIVATIONS.values()},
        "qk_norm": {False}, "head bias": {"none", "solvable"}, **MULTI_HEAD}
LLAMA = {"norm": {"rms"}, "position": {"rotary"}, "feed_forward": {"swiglu"}, "qk_norm": {False}, "head bias": {"none"},
         "biases": {"all", "none"}}

# The first class that computes all `features` of a model is used.
TRANSFORMERS = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "PersimmonForCausalLM": GPT2 | {"position": {"rotary"}, "qk_norm": {False, True}},
    "YourGPTForCausalLM": GPT2 | {"qk_norm": {False, True}, "head bias": {"none", "solvable", "not solvable"}},
}
LLAMA_CPP = {"gpt2": GPT2 | {"feed_forward": {"gelu"}}, "llama": LLAMA}


class Checkpoint(Protocol):
    """What is exported: `Loaded` of training/checkpoint.py."""

    model: GPT
    tokenizer: Tokenizer
    task: dict[str, Any]
    reply: ReplyConfig


class ExportedModel(NamedTuple):
    """A model as it is exported."""

    class_name: str
    """The class that computes it in the other project."""
    config: ModelConfig
    weights: dict[str, Tensor]
    """In float32 on the CPU, by their names in a checkpoint file."""


def prepare_export(model: GPT, tokenizer: Tokenizer, classes: Classes, project: str) -> ExportedModel:
    """Return a model as it is exported to the first of `classes` that computes it.

    It has only as many tokens as the tokenizer. If the class has no bias of the head, it is moved into the bias of the
    final norm. Raises UserError if no class computes the model.
    """
    config = replace(model.config, vocab_size=tokenizer.vocab_size)
    class_name = choose_class(config, classes, project)
    weights = {name: weight.float().cpu() for name, weight in file_weights(model).items()}
    for name in ("token_embedding.weight", "head.weight", "head.bias"):
        if name in weights:
            weights[name] = weights[name][: config.vocab_size]
    if config.head_bias and "not solvable" not in classes[class_name]["head bias"]:
        weights["final_norm.bias"] = weights["final_norm.bias"] + solve_head_bias(weights)
        del weights["head.bias"]
        config = replace(config, head_bias=False)
    return ExportedModel(class_name, config, weights)


def choose_class(config: ModelConfig, classes: Classes, project: str) -> str:
    """Return the name of the first class that computes a model. Raises UserError, which gives the reasons."""
    if config.n_labels is not None:
        raise UserError("the checkpoint is a classifier, and only language models can be exported: use another one")
    found, problems = features(config), []
    for name, computes in classes.items():
        lacking = [f"{feature} {found[feature]}" for feature in computes if found[feature] not in computes[feature]]
        if not lacking:
            return name
        problems.append(f"{name} has no {', '.join(lacking)}")
    raise UserError(f"{project} has no class that computes this model: {'; '.join(problems)}. Use a model with another "
                    "architecture")


def features(config: ModelConfig) -> dict[str, str | bool]:
    """Return the features of a model that decide which classes compute it."""
    head_bias = "none"
    if config.head_bias:
        head_bias = "solvable" if config.norm == "layer" and config.vocab_size <= config.n_embd else "not solvable"
    if config.has_qkv_bias == config.bias:
        biases = "all" if config.bias else "none"
    else:
        biases = "of queries, keys and values only" if config.has_qkv_bias else "all but of queries, keys and values"
    multi_head = config.kv_heads == config.num_heads
    usual_head_size = config.head_size * config.num_heads == config.n_embd
    return {
        "norm": config.norm,
        "position": config.position,
        "feed_forward": config.feed_forward,
        "qk_norm": config.qk_norm,
        "head bias": head_bias,
        "biases": biases,
        "key and value heads": "as many as heads" if multi_head else "fewer than heads",
        "head size": "n_embd / num_heads" if usual_head_size else "its own",
    }


def solve_head_bias(weights: dict[str, Tensor]) -> Tensor:
    """Return the vector (C) that the head (V, C) maps to its bias (V). Raises UserError if there is none."""
    head, bias = weights["head.weight"].double(), weights["head.bias"].double()
    solution = torch.linalg.lstsq(head, bias[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(head @ solution, bias, rtol=1e-6, atol=1e-6):
        raise UserError("the bias of the head cannot be moved into the final norm, as the rows of the head are "
                        "linearly dependent: train the model for longer, or without head_bias")
    return solution.float()
