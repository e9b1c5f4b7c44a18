"""What a run starts from: its last.pt or its --init, its task with the data, and the configuration of its model."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from models.zoo import ZOO
from reading.options import ReadOptions
from tasks.kinds import TASKS
from tasks.task import Task
from tokenization.load import tokenizer_from_dict
from training.checkpoint import checkpoint_file, read_checkpoint, read_start
from training.resume import check_same_run, print_changes, resolve_as_before
from training.run_state import read_run
from training.settings import DataSettings, ModelSettings, Settings
from utils.errors import UserError
from utils.printable import one_line


def open_inputs(folder: Path, settings: Settings,
                restarted: bool = False) -> tuple[dict | None, dict | None, Task, ModelConfig]:
    """Return what a run starts from: (saved, start, task, config).

    `saved` is the content of its last.pt, and `start` that of the checkpoint --init; each may be None. With
    `restarted`, a run that exists is resumed even if the settings do not say so. Completes the settings: limits of
    sampling, the name of the model, and what `auto` meant when the run started. Raises UserError if a file is missing
    or does not match the settings.
    """
    saved = open_run(folder, settings, restarted)
    start = None if saved else open_start(settings)
    task = open_task(settings, saved or start)
    settings.sampling = task.answers.with_max_tokens(settings.sampling)
    if settings.init:  # the checkpoint of a resumed run may be gone, but last.pt has its configuration
        config = config_of_start(settings.model, task.tokenizer.vocab_size, task.head, saved or start)
    else:
        config = model_config(settings.model, task.tokenizer.vocab_size, task.head)
    task.prepare(config.block_size)
    if saved:
        check_same_run(saved, settings, config, task, folder / "last.pt")
        print_changes(folder / "settings.yaml", settings)
        settings.training = resolve_as_before(settings.training, saved["run_config"])
    return saved, start, task, config


def open_run(folder: Path, settings: Settings, restarted: bool) -> dict | None:
    """Return the content of last.pt, which decides whether a run exists; None for a new run.

    Raises UserError if the settings ask for a new run where there is one, or to resume where there is none.
    """
    path = folder / "last.pt"
    if path.exists():
        if not settings.resume and not restarted:
            raise UserError(f"{folder} already contains a run: add --resume to continue it, or pick another --run NAME")
        saved = read_run(path)
        kind = saved.get("task", {}).get("kind", "language")
        if kind != settings.task:
            raise UserError(f"{path} has the task {kind}, not {settings.task}: start a new run with --run NAME")
        return saved
    if (folder / "best.pt").exists():
        raise UserError(f"{folder} contains a model, but no last.pt to resume from: pick another --run NAME. To train "
                        f"this model on another text: --init {shlex.quote(str(folder))} --run NAME")
    if settings.resume:
        raise UserError(f"there is no {path} to resume from: leave out --resume to start a new run, or "
                        "check --run NAME")
    return None


def open_start(settings: Settings) -> dict | None:
    """Return the checkpoint that a new run starts from, or None. Raises UserError if the task cannot use it."""
    if settings.init is None:
        return None
    start = read_start(settings.init)
    if start["config"]["n_labels"] is not None and settings.task != "classification":
        raise UserError(f"{checkpoint_file(settings.init)} is a classifier, and its head predicts labels: for the task "
                        f"{settings.task}, start from the model that it was trained from")
    return start


def open_task(settings: Settings, checkpoint: dict | None) -> Task:
    """Return the task of a run, with its data. Its tokenizer is that of the checkpoint, if there is one.

    Raises UserError if the data cannot be read.
    """
    data = settings.data
    tokenizer, entry = data.tokenizer, None
    if checkpoint:
        if tokenizer != DataSettings().tokenizer:
            print(f"using the tokenizer of the checkpoint, not {one_line(tokenizer)}")
        tokenizer = tokenizer_from_dict(checkpoint["tokenizer"], "the checkpoint")
        if checkpoint.get("task", {}).get("kind") == settings.task:
            entry = checkpoint["task"]
    else:
        file = checkpoint_file(tokenizer)
        # A .pt file, or a folder with a best.pt. A .pt file that is missing is an error of read_checkpoint.
        if file.suffix == ".pt" and (file.is_file() or file == Path(tokenizer)):
            tokenizer = tokenizer_from_dict(read_checkpoint(file)["tokenizer"], "the checkpoint")
    options = ReadOptions(data.column, data.encoding, data.delimiter, data.document_separator)
    return TASKS[settings.task](settings, options, tokenizer, entry)


def model_config(model: ModelSettings, vocab_size: int, head: dict) -> ModelConfig:
    """Return the ModelConfig of a new model, for a tokenizer of `vocab_size` tokens; `head` is that of its Task.

    Raises UserError if the settings do not describe a model.
    """
    if model.name not in ZOO:
        raise UserError(f"there is no model {model.name}: use one of {', '.join(ZOO)}")
    fields = {"vocab_size": vocab_size} | head | given_fields(model)
    config = dataclasses.replace(ZOO[model.name].config, **fields)
    if config.vocab_size < vocab_size:
        raise UserError(f"--model.vocab_size {config.vocab_size:,} is too few for the {vocab_size:,} tokens of the "
                        "tokenizer: leave it out, or use a larger one")
    return config


def given_fields(model: ModelSettings) -> dict[str, Any]:
    """Return the fields of a ModelConfig that the settings set."""
    return {name: value for name, value in vars(model).items() if name != "name" and value is not None}


def config_of_start(model: ModelSettings, vocab_size: int, head: dict, start: dict) -> ModelConfig:
    """Return the ModelConfig of a model that starts from a checkpoint, and set `model.name` to its class.

    Raises UserError if the settings describe another architecture; dropout, qkv_bias and a shorter context may differ.
    """
    if model.name not in (ModelSettings().name, start["model_class"]):
        raise UserError(f"--init has a {start['model_class']}, not a {model.name}: leave out model.name")
    before = dataclasses.replace(ZOO[start["model_class"]].config, **start["config"])
    resolved = {"num_kv_heads": before.kv_heads, "n_hidden": before.hidden_size, "qkv_bias": before.has_qkv_bias}
    given = given_fields(model)
    for name, value in given.items():
        same = value == resolved.get(name, start["config"][name])
        shorter = name == "block_size" and value < before.block_size
        if name == "qkv_bias" and not same:
            print(f"the biases of query, key and value {'start at zero' if value else 'of --init are left out'}")
        elif not same and not shorter and name != "dropout":
            raise UserError(f"--init has {name} {start['config'][name]}, not {value}: leave out model.{name}")
    model.name = start["model_class"]
    fields = start["config"] | given | {"n_labels": None, "auxiliary_lm": False} | head
    fields["vocab_size"] = max(vocab_size, fields["vocab_size"])  # a task may need new special tokens
    return dataclasses.replace(ZOO[model.name].config, **fields)
