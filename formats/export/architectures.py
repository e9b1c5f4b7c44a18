"""Which classes of other projects compute a model of this project."""

from dataclasses import replace

import torch

from formats.huggingface_config import ACTIVATIONS
from models.weights import file_weights
from utils.errors import UserError

MULTI_HEAD = {"key and value heads": {"as many as heads"}, "head size": {"n_embd / num_heads"}}
GPT2 = {"norm": {"layer"}, "position": {"learned"}, "feed_forward": {*ACTIVATIONS.values()},
        "qk_norm": {False}, "head bias": {"none", "solvable"}, **MULTI_HEAD}
LLAMA = {"norm": {"rms"}, "position": {"rotary"}, "feed_forward": {"swiglu"}, "qk_norm": {False}, "head bias": {"none"},
         "biases": {"all", "none"}}

# What each class computes, of the `features` of a model; the first that computes all of them is used.
TRANSFORMERS = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "PersimmonForCausalLM": GPT2 | {"position": {"rotary"}, "qk_norm": {False, True}},
    "YourGPTForCausalLM": GPT2 | {"qk_norm": {False, True}, "head bias": {"none", "solvable", "not solvable"}},
}
LLAMA_CPP = {"gpt2": GPT2 | {"feed_forward": {"gelu"}}, "llama": LLAMA}


def features(c):
    """What decides which classes compute a model with the ModelConfig c."""
    head_bias = "none"
    if c.head_bias:
        head_bias = "solvable" if c.norm == "layer" and c.vocab_size <= c.n_embd else "not solvable"
    biases = "of queries, keys and values only" if c.has_qkv_bias else "all but of queries, keys and values"
    if c.has_qkv_bias == c.bias:
        biases = "all" if c.bias else "none"
    return {
        "norm": c.norm, "position": c.position, "feed_forward": c.feed_forward, "qk_norm": c.qk_norm,
        "head bias": head_bias, "biases": biases,
        "key and value heads": "as many as heads" if c.kv_heads == c.num_heads else "fewer than heads",
        "head size": "n_embd / num_heads" if c.head_size * c.num_heads == c.n_embd else "its own",
    }


def choose_class(c, classes, project):
    """The name of the first class that computes a model with the ModelConfig c. Raises UserError with the reasons."""
    if c.n_labels is not None:
        raise UserError("the checkpoint is a classifier, and only language models can be exported: use another one")
    found, problems = features(c), []
    for name, computes in classes.items():
        lacking = [f"{feature} {found[feature]}" for feature in computes if found[feature] not in computes[feature]]
        if not lacking:
            return name
        problems.append(f"{name} has no {', '.join(lacking)}")
    raise UserError(f"{project} has no class that computes this model: {'; '.join(problems)}. Use a model with another "
                    "architecture")


def exported_model(model, tokenizer, classes, project):
    """(name of the class, ModelConfig, weights by their names in a checkpoint file) of a model as it is exported.

    There are only as many tokens as the tokenizer has. A bias of the head that the class lacks is in the bias of the
    final norm instead. Raises UserError.
    """
    config = replace(model.config, vocab_size=tokenizer.vocab_size)
    name = choose_class(config, classes, project)
    weights = {name: weight.float().cpu() for name, weight in file_weights(model).items()}
    for of_tokens in ("token_embedding.weight", "head.weight", "head.bias"):
        if of_tokens in weights:
            weights[of_tokens] = weights[of_tokens][: config.vocab_size]
    if config.head_bias and "not solvable" not in classes[name]["head bias"]:
        weights["final_norm.bias"] = weights["final_norm.bias"] + solve_head_bias(weights)
        del weights["head.bias"]
        config = replace(config, head_bias=False)
    return name, config, weights


def solve_head_bias(weights):
    """The vector (C) that the head (V, C) maps to its bias (V). Raises UserError if there is none."""
    head, bias = weights["head.weight"].double(), weights["head.bias"].double()
    solution = torch.linalg.lstsq(head, bias[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(head @ solution, bias, rtol=1e-6, atol=1e-6):
        raise UserError("the bias of the head cannot be moved into the final norm, as the rows of the head are "
                        "linearly dependent: train the model for longer, or without head_bias")
    return solution.float()
