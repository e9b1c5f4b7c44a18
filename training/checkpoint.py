"""Checkpoints: the only code that saves and loads models."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from formats.hub import hub_name
from formats.open_model import open_foreign
from models.config import ModelConfig, ReplyConfig
from models.lora import add_lora, fingerprint, load_lora_weights, lora_weights, merge_lora, merged_weights
from models.weights import SkipInitialization, file_weights, load_file_weights
from models.zoo import ZOO
from tasks.kinds import answers_class
from tokenization.base import Tokenizer
from training.checks import check_lora_entry, check_model, check_task
from training.preflight import free_memory
from training.settings import Settings
from utils.archive import read_archive
from utils.errors import UserError
from utils.files import PROJECT, replacing
from utils.forecast.inference import inference_memory
from utils.forecast.units import format_bytes

FORMAT_VERSION = 1
SHIPPED = PROJECT / "checkpoints" / "shakespeare" / "best.pt"
CHECKPOINT_HELP = ("a checkpoint of train.py, transformer_4d.py or nanoGPT (before June 2023: ckpt.pt:tanh), a .bin of "
                   "llama2.c, the folder of a Hugging Face model or of OpenAI's GPT-2, or the name of a model on the "
                   "hub, such as gpt2 or OWNER/NAME (%(default)s)")


class Loaded(NamedTuple):
    """The content of a checkpoint."""

    model: nn.Module
    """In float32 and evaluation mode."""
    tokenizer: Tokenizer
    task: dict
    """`kind`, a name in tasks.kinds.TASKS, and what else the task has recorded."""
    reply: ReplyConfig
    """Default sampling settings of replies."""


def save_checkpoint(path: str | Path, model: nn.Module, tokenizer: Tokenizer, half: bool = False,
                    weights: dict[str, Tensor] | None = None, **more: Any) -> None:
    """Save a model and its tokenizer to one file, atomically; `half` converts the weights to float16.

    `weights` are by default the `file_weights` of the model. `more` is saved unchanged, such as the optimizer states.
    Raises UserError if the file cannot be written.
    """
    if weights is None:
        weights = file_weights(model)
    if half:
        weights = to_half(weights)
    with replacing(Path(path)) as file:
        torch.save({"format_version": FORMAT_VERSION, "model_class": type(model).__name__, "config": vars(model.config),
                    "tokenizer": tokenizer.to_dict(), "weights": weights, **more}, file)


def to_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to float16. Tied weights, which are one tensor under two names, stay one."""
    halves = {weight.data_ptr(): weight.half() for weight in weights.values()}
    return {name: halves[weight.data_ptr()] for name, weight in weights.items()}


def save_best(path: str | Path, model: nn.Module, tokenizer: Tokenizer, settings: Settings, base: list[str] | None,
              **more: Any) -> None:
    """Save a trained model in the form that its settings ask for.

    LoRA adapters are merged into its weights, or saved alone, with `base`, the places of the model that they belong to.
    Raises UserError if the file cannot be written.
    """
    half, lora = settings.output.half, settings.lora
    if lora.rank is None or lora.merge:
        save_checkpoint(path, model, tokenizer, half, merged_weights(model), **more)
        return
    trained = lora_weights(model)
    entry = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets),
             "base": base, "fingerprint": fingerprint(model), "weights": to_half(trained) if half else trained}
    save_checkpoint(path, model, tokenizer, weights={}, lora=entry, **more)


def places_of_base(init: str, path: str | Path) -> list[str]:
    """Return where the checkpoint file `path` finds the model `init` that its LoRA adapters belong to.

    That is a path relative to its own folder, in case both are moved together, and an absolute one; or a name on the
    Hugging Face hub.
    """
    if hub_name(init):
        return [init]
    base, folder = os.path.realpath(init), os.path.realpath(os.path.dirname(path))
    try:
        return [os.path.relpath(base, folder).replace(os.sep, "/"), base]
    except ValueError:  # another drive of Windows
        return [base]


def read_checkpoint(path: str | Path) -> dict:
    """Return the content of a checkpoint file, with its tensors on the CPU, without running code from it.

    Only its format version and the types of its entries are checked. Raises UserError if they are wrong.
    """
    checkpoint = read_archive(path)
    types = {"format_version": int, "model_class": str, "config": dict, "tokenizer": dict, "weights": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), types[key]) for key in types):
        raise UserError(f"{path} is not a checkpoint of this project: use one from train.py or transformer_4d.py")
    if checkpoint["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path} has checkpoint format {checkpoint['format_version']}, but this version of the project "
                        f"reads format {FORMAT_VERSION}: update the project")
    return checkpoint


def checkpoint_file(path: str | Path) -> Path:
    """Return the path of a checkpoint: for a folder, the best.pt in it."""
    return Path(path) / "best.pt" if os.path.isdir(path) else Path(path)


def load_model(path: str | Path, device: str = "cpu") -> tuple[nn.Module, Tokenizer]:
    """Return the model (in float32 and evaluation mode) and the tokenizer of a checkpoint: see `load_checkpoint`."""
    return load_checkpoint(path, device)[:2]


def load_checkpoint(path: str | Path, device: str = "cpu") -> Loaded:
    """Load a checkpoint: a file, the best.pt in a folder, or a model of another project that `open_foreign` reads.

    Raises UserError if it is not valid, or if the model does not fit in memory.
    """
    foreign = open_foreign(path)
    if foreign:
        model = build_to_load(path, foreign.model_class, foreign.config)
        load_file_weights(model, foreign.weights)
        task = {"kind": "language", "template": foreign.template, "stop_tokens": foreign.stop_tokens}
        reply = answers_class(task).with_max_tokens(ReplyConfig(**foreign.sampling))
        return Loaded(model.to(device).eval(), foreign.tokenizer, task, reply)
    path = checkpoint_file(path)
    checkpoint = read_checkpoint(path)
    config, tokenizer = check_model(checkpoint, path)
    task, reply = check_task(checkpoint, path)
    model = build_to_load(path, checkpoint["model_class"], config)
    if "lora" in checkpoint:
        load_with_adapters(model, checkpoint["lora"], path)
    else:
        load_file_weights(model, checkpoint["weights"].items())
    return Loaded(model.to(device).eval(), tokenizer, task, reply)


def build_to_load(path: str | Path, model_class: str, config: ModelConfig) -> nn.Module:
    """Return a model with uninitialized weights, which are loaded from `path` next.

    Raises UserError if the model does not fit in memory.
    """
    # The context length sizes the KV cache and the rotary tables, but with rotary positions no weight.
    needed, free = inference_memory(config, prompt_tokens=1).allocated, free_memory()
    if needed > free:
        raise UserError(f"the model in {path} needs {format_bytes(needed)} of memory, and {format_bytes(free)} is "
                        "free: use a smaller model, or a machine with more memory")
    with SkipInitialization():
        return ZOO[model_class](**vars(config))


def load_with_adapters(model: nn.Module, entry: dict, path: str | Path) -> None:
    """Load the weights of a base model into a model, and merge LoRA adapters into them.

    `entry` has the adapters and is read from `path`. Raises UserError if it is not valid, or if the base model is
    missing or another one.
    """
    check_lora_entry(entry, path)
    base = find_base(entry["base"], path)
    try:
        start = read_start(base)
    except UserError as error:
        raise UserError(f"{path} has only the weights that LoRA trained, and the model that they belong to cannot be "
                        f"loaded ({error}); --lora.merge true saves a complete one") from None
    free = ("vocab_size", "block_size", "n_labels", "auxiliary_lm", "dropout", "qkv_bias")  # may differ from --init
    architecture = {name: value for name, value in vars(model.config).items() if name not in free}
    enough_tokens = start["config"]["vocab_size"] <= model.config.vocab_size
    long_enough = start["config"]["block_size"] >= model.config.block_size
    if enough_tokens and long_enough and architecture.items() <= start["config"].items():
        load_start(model, start)
    if fingerprint(model) != entry["fingerprint"]:
        raise UserError(f"{path} has only the weights that LoRA trained, and {base} is not the model that they belong "
                        "to: put that model there")
    try:
        add_lora(model, entry["rank"], entry["alpha"], entry["targets"])
        load_lora_weights(model, entry["weights"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    merge_lora(model)


def find_base(places: list[str] | str, path: str | Path) -> str:
    """Return the first of the `places` of a base model, as the checkpoint file `path` names them, that exists.

    If there is none, return the last of them.
    """
    if isinstance(places, str):  # in older files: relative to the working directory
        places = [places]
    for place in places:
        base = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(path)), place))
        if os.path.exists(base):
            return base
    return places[-1]


def read_start(path: str | Path) -> dict:
    """Return the content of a checkpoint, or of a model that `open_foreign` reads, for a model that starts from it.

    Its weights are an iterable of (name, tensor) that can be read once. Raises UserError if it is not valid.
    """
    foreign = open_foreign(path)
    if foreign:
        return {"model_class": foreign.model_class, "config": vars(foreign.config),
                "tokenizer": foreign.tokenizer.to_dict(), "weights": foreign.weights}
    path = checkpoint_file(path)
    checkpoint = read_checkpoint(path)
    if "lora" in checkpoint:
        raise UserError(f"{path} has only the weights that LoRA trained: start from a complete model, which is trained "
                        "with --lora.merge true")
    checkpoint["config"] = vars(check_model(checkpoint, path)[0])
    check_task(checkpoint, path)
    checkpoint["weights"] = checkpoint["weights"].items()
    return checkpoint


def load_start(model: nn.Module, start: dict) -> None:
    """Load the weights of `start`, a result of `read_start`, into a model of the same architecture.

    If the model has more tokens, a new one starts as the mean of all others (Hewitt, 2021). If its context is shorter,
    it gets the first of the learned positions. If only one of the two has biases of query, key and value, they are left
    out or start at zero. The head of a classifier starts at zero, unless the checkpoint is a classifier with as many
    labels; its second head starts as that of a language model.
    """
    load_file_weights(model, adapted_weights(model, start))


def adapted_weights(model: nn.Module, start: dict) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for all weights of a model, adapted from those of `start`."""
    own_weights, loaded = file_weights(model), set()
    n_labels, new_names = start["config"]["n_labels"], {}
    if model.config.n_labels != n_labels:
        new_names = {"head.weight": "token_head.weight" if n_labels is None else None, "head.bias": None}
    for name, weight in start["weights"]:
        name = new_names.get(name, name)
        if name not in own_weights:
            continue
        own = own_weights[name]
        if name == "position_embedding.weight":
            weight = weight[: len(own)]
        elif len(own) > len(weight):
            mean = weight.mean(dim=0, keepdim=True)  # (1, C), or (1) for a bias
            weight = torch.cat([weight, *[mean] * (len(own) - len(weight))])
        loaded.add(name)
        yield name, weight
    for name in own_weights.keys() - loaded:  # a new head
        yield name, own_weights[name].zero_()
