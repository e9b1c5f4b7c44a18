"""Checkpoints: the only code that saves and loads models."""

import errno
import os
import pickle
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from data.tokenizer import tokenizer_from_dict
from models.config import ReplyConfig
from models.weights import file_weights, load_file_weights
from models.zoo import ZOO
from tasks.kinds import TASKS
from training.preflight import free_memory
from utils.archive import check_archive
from utils.errors import UserError
from utils.files import PROJECT, replacing
from utils.memory import inference_memory, readable
from utils.parameters import count_parameters, weight_shapes

FORMAT_VERSION = 1
SHIPPED = PROJECT / "checkpoints" / "shakespeare" / "best.pt"
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Loaded(NamedTuple):
    """The content of a checkpoint."""

    model: torch.nn.Module
    """In float32 and evaluation mode."""
    tokenizer: object
    task: dict
    """`kind`, a name in tasks.kinds.TASKS, and what else the task has recorded."""
    reply: ReplyConfig
    """How replies are sampled, unless the user wants something else."""


def save_checkpoint(path, model, tokenizer, half=False, **more):
    """Save a model and its tokenizer to one file, atomically; `half` converts the weights to float16.

    `more` is saved unchanged, such as the optimizer states. Raises UserError if the file cannot be written.
    """
    weights = file_weights(model)
    if half:  # tied weights are one tensor under two names: convert it once
        halves = {weight.data_ptr(): weight.half() for weight in weights.values()}
        weights = {name: halves[weight.data_ptr()] for name, weight in weights.items()}
    with replacing(Path(path)) as file:
        torch.save({"format_version": FORMAT_VERSION, "model_class": type(model).__name__, "config": vars(model.config),
                    "tokenizer": tokenizer.to_dict(), "weights": weights, **more}, file)


def read_checkpoint(path):
    """Return the dictionary in a checkpoint file, running no code from it, with its tensors on the CPU.

    Only its format version and the types of its entries are checked. Raises UserError if that fails.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a device or a pipe may never end
            raise OSError(errno.EINVAL, "not a regular file")
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about rare kinds of tensors, which are errors here
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: give the path of a checkpoint, or train a model first with "
                        "python train.py config/bard_gpt_cpu.yaml or python transformer_4d.py") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the path of a readable checkpoint") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is damaged, or contains code, which is not run: use a file from train.py or "
                        "transformer_4d.py") from None
    except Exception:  # zipfile and torch.load raise many exception types for invalid files
        raise UserError(f"{path} is damaged or not a checkpoint: download it again, or train again") from None
    types = {"format_version": int, "model_class": str, "config": dict, "tokenizer": dict, "weights": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), types[key]) for key in types):
        raise UserError(f"{path} is not a checkpoint of this project: use one from train.py or transformer_4d.py")
    if checkpoint["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path} has checkpoint format {checkpoint['format_version']}, but this version of the project "
                        f"reads format {FORMAT_VERSION}: update the project")
    return checkpoint


def checkpoint_file(path):
    """The path of a checkpoint: for a folder, that of the best.pt in it."""
    return Path(path) / "best.pt" if os.path.isdir(path) else Path(path)


def load_model(path, device="cpu"):
    """The model (float32, in evaluation mode) and the tokenizer of a checkpoint, as `load_checkpoint`."""
    return load_checkpoint(path, device)[:2]


def load_checkpoint(path, device="cpu"):
    """The content of a checkpoint as `Loaded`; a folder stands for the best.pt in it. Raises UserError."""
    path = checkpoint_file(path)
    checkpoint = read_checkpoint(path)
    config, tokenizer = check_model(checkpoint, path)
    task, reply = check_task(checkpoint, path)
    # The context length sizes the KV cache and the rotary tables, but with rotary positions no weight.
    needed, free = inference_memory(config, prompt_tokens=1).allocated, free_memory()
    if needed > free:
        raise UserError(f"the model in {path} needs {readable(needed)} of memory, and {readable(free)} is free: use a "
                        "smaller model, or a machine with more memory")
    model = ZOO[checkpoint["model_class"]](**vars(config))
    load_file_weights(model, checkpoint["weights"])
    return Loaded(model.to(device).eval(), tokenizer, task, reply)


def check_task(checkpoint, path):
    """Return the task of a checkpoint read from `path`, and its ReplyConfig. Raises UserError."""
    task = checkpoint.get("task", {"kind": "language"})  # of transformer_4d.py and of older versions
    kind = task.get("kind") if isinstance(task, dict) else None
    if not isinstance(kind, str) or kind not in TASKS or not TASKS[kind].is_valid(task):
        raise UserError(f"{path} is for a task that this version does not know: update the project")
    try:
        return task, ReplyConfig(**checkpoint.get("sampling", {}))
    except (TypeError, UserError) as error:
        raise UserError(f"{path} has invalid sampling settings ({error}): use another checkpoint") from None


def check_model(checkpoint, path):
    """Return the ModelConfig and the tokenizer of a checkpoint read from `path`.

    Raises UserError unless these and the weights are valid and match one another. No memory is allocated by the sizes
    in the configuration.
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
    return config, tokenizer


def check_weights(weights, config, path):
    """Raise UserError, naming the weight, unless the weights read from `path` are those of a model of this
    configuration: none is missing, unexpected, misshapen or not finite."""
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


def tensor_problem(value, shape, dtypes):
    """Return why a value from a file is not a dense, finite CPU tensor of this shape and one of these dtypes.

    The answer is a phrase such as "has shape (2, 3), not (3, 2)", or None for a valid tensor.
    """
    if not isinstance(value, torch.Tensor):
        return f"is of type {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        return "is not a dense tensor"
    if value.dtype not in dtypes:
        return f"has dtype {value.dtype}, not {' or '.join(map(str, dtypes))}"
    if value.shape != shape:
        return f"has shape {tuple(value.shape)}, not {tuple(shape)}"
    low, high = torch.aminmax(value)  # unlike isfinite, without a copy; NaN propagates to both
    if not (low.isfinite() and high.isfinite()):
        return "has values that are not finite"
    return None
