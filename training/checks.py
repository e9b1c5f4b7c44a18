"""Validation of the content of a checkpoint file, before anything is built from it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.config import ModelConfig, ReplyConfig
from models.weights import is_finite
from models.zoo import ZOO
from tasks.kinds import TASKS, answers_class
from tokenization.base import Tokenizer
from tokenization.load import tokenizer_from_dict
from utils.errors import UserError
from utils.fields import has_type
from utils.forecast.parameters import count_parameters, weight_shapes

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LORA = {"rank": int, "alpha": float, "targets": list[str], "base": str | list[str], "fingerprint": str,
        "weights": dict}


def check_task(checkpoint: dict, path: Path) -> tuple[dict, ReplyConfig]:
    """Return the task of a checkpoint read from `path` and its ReplyConfig, after `check_model`.

    Raises UserError if the task or the sampling settings are not valid.
    """
    task = checkpoint.get("task", {"kind": "language"})  # of transformer_4d.py and of older versions
    kind = task.get("kind") if isinstance(task, dict) else None
    if not isinstance(kind, str) or kind not in TASKS or not TASKS[kind].is_valid(task):
        raise UserError(f"{path} is for a task that this version does not know: update the project")
    n_classes, labels = checkpoint["config"].get("n_labels") or 0, task.get("labels", [])
    if n_classes != len(labels):
        raise UserError(f"{path} is damaged: its model has {n_classes} classes, and its task {len(labels)} labels: use "
                        "another checkpoint")
    try:
        return task, answers_class(task).with_max_tokens(ReplyConfig(**checkpoint.get("sampling", {})))
    except (TypeError, UserError) as error:
        raise UserError(f"{path} has invalid sampling settings ({error}): use another checkpoint") from None


def check_model(checkpoint: dict, path: Path) -> tuple[ModelConfig, Tokenizer]:
    """Return the ModelConfig and the tokenizer of a checkpoint read from `path`.

    Raises UserError unless these and the weights are valid and match. The sizes in the configuration allocate no
    memory.
    """
    name = checkpoint["model_class"]
    if name not in ZOO:
        raise UserError(f"{path} has model class {name}, which models/zoo.py does not define: update the project")
    try:
        # Older checkpoints of transformer_4d.py lack this key: they were trained without QK norm.
        config = replace(ZOO[name].config, **{"qk_norm": False} | checkpoint["config"])
    except (TypeError, UserError) as error:
        raise UserError(f"{path} has a configuration that {name} rejects ({error}): use another checkpoint, or update "
                        "the project") from None
    if "lora" not in checkpoint:  # else the weights are in the file of its base model
        check_weights(checkpoint["weights"], config, path)

    kind = checkpoint["tokenizer"].get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{path} has a tokenizer of kind {kind}, which is not a name: use another checkpoint")
    try:
        tokenizer = tokenizer_from_dict(checkpoint["tokenizer"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not 0 < tokenizer.vocab_size <= config.vocab_size:
        raise UserError(f"{path} has a tokenizer of {tokenizer.vocab_size} tokens, but a model with vocab_size "
                        f"{config.vocab_size}: save the model with the tokenizer it was trained with")
    if "task" in checkpoint and checkpoint["task"] != {"kind": "language"}:
        if tokenizer.with_special_tokens().vocab_size > tokenizer.vocab_size:
            raise UserError(f"{path} has a tokenizer without the special tokens of its task: save the model with the "
                            "tokenizer it was trained with")
    return config, tokenizer


def check_lora_entry(entry: Any, path: Path) -> None:
    """Raise UserError unless the LoRA entry of a checkpoint read from `path` is valid."""
    if not isinstance(entry, dict) or entry.keys() != LORA.keys():
        raise UserError(f"{path} is damaged: its LoRA entry must have the keys {', '.join(LORA)}")
    for name, kind in LORA.items():
        if not has_type(entry[name], kind) or entry[name] == []:
            raise UserError(f"{path} is damaged: its LoRA entry has an invalid {name}")
    for name, weight in entry["weights"].items():
        problem = tensor_problem(weight, getattr(weight, "shape", ()), WEIGHT_DTYPES)
        if problem:
            raise UserError(f"{path} is damaged: its LoRA weight {name} {problem}")


def check_weights(weights: dict, config: ModelConfig, path: Path) -> None:
    """Raise UserError, naming the weight, if one read from `path` is missing, unexpected, misshapen or not finite."""
    size, n_params = os.path.getsize(path), count_parameters(config)
    if 2 * n_params > size:  # float16; with strides of 0, a weight of any shape takes no room in the file
        raise UserError(f"{path} has {size:,} bytes, too few for the {n_params:,} parameters of its configuration: use "
                        "another checkpoint, or train again")
    expected = set()
    for name, shape in weight_shapes(config):  # at most one name more than there are weights
        if name not in weights:
            raise UserError(f"{path} is missing the weight {name}: use another checkpoint, or train again")
        problem = tensor_problem(weights[name], shape, WEIGHT_DTYPES)
        if problem:
            raise UserError(f"{path}: the weight {name} {problem}: use another checkpoint, or train again")
        expected.add(name)
    for name in weights:
        if name not in expected:
            raise UserError(f"{path} has an unexpected weight {name}: use another checkpoint, or train again")


def tensor_problem(value: Any, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> str | None:
    """Return what is wrong with a value from a file, such as "has shape (2, 3), not (3, 2)", or None.

    It must be a dense, finite CPU tensor of this shape and one of these dtypes.
    """
    if not isinstance(value, torch.Tensor):
        return f"is of type {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        return "is not a dense tensor"
    if value.dtype not in dtypes:
        return f"has dtype {value.dtype}, not {' or '.join(map(str, dtypes))}"
    if value.shape != shape:
        return f"has shape {tuple(value.shape)}, not {tuple(shape)}"
    if not is_finite(value):
        return "has values that are not finite"
    return None
