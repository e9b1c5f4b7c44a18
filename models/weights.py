"""The weights of a model under their names in a checkpoint file.

They differ from those of a state_dict in one way: a file holds queries, keys and values as three matrices `query`,
`key` and `value`, as transformer_4d.py does, where the model has one fused matrix `qkv`.
"""

import torch


def file_weights(model):
    """The weights of a GPT by their names in a checkpoint file. They share memory with the model.

    The adapters of LoRA are among them, under their own names: a file that `load_model` reads needs `merge_lora` first.
    """
    weights = dict(model.state_dict())
    for name, parts in fused_weights(model):
        views = weights.pop(name).split([*parts.values()])
        weights.update(zip(parts, views, strict=True))
    return weights


def load_file_weights(model, weights):
    """Load the result of `file_weights` into a GPT. Raises RuntimeError unless names and shapes match exactly."""
    weights = dict(weights)
    for name, parts in fused_weights(model):
        if parts.keys() <= weights.keys():  # else load_state_dict names the missing tensor
            weights[name] = torch.cat([weights.pop(part) for part in parts])
    model.load_state_dict(weights)


def fused_weights(model):
    """Yield the name of every fused tensor in a GPT's state_dict, and {name in a file: number of rows} of its parts."""
    for i, block in enumerate(model.blocks):
        prefix = f"blocks.{i}.attention"
        for kind in ("weight", "bias") if model.config.bias else ("weight",):
            yield f"{prefix}.qkv.{kind}", {f"{prefix}.{part}.{kind}": n for part, n in block.attention.parts.items()}
