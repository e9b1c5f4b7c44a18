"""A run: from settings to a folder with checkpoints, metrics and a plot of the losses."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record as report_errors

from data.readers import ReadOptions
from data.tokenizer import tokenizer_from_dict
from models.config import ModelConfig
from models.freeze import freeze_below
from models.lora import add_lora, load_lora_weights
from models.weights import SkipInitialization, load_file_weights
from models.zoo import ZOO
from tasks.kinds import TASKS
from tasks.task import Task
from training.arguments import all_settings, parse_settings
from training.checkpoint import checkpoint_file, load_start, read_checkpoint, read_start
from training.distributed import (
    World,
    check_ranks_agree,
    open_world,
    pick_rank_device,
    restart_count,
    uses_torchrun,
)
from training.loop import Progress, Trainer, fit
from training.optim import WeightAverage, lr_factor, make_optimizers
from training.parallel import replicate, shard, shard_like
from training.precision import pick_device, pick_dtype
from training.preflight import fit_to_memory, memory_advice
from training.record import Record, trained_part
from training.run_state import check_averages, check_optimizer_states, read_run
from training.settings import DataSettings, ModelSettings, Settings, TrainingSettings
from training.shares import Shares, parts_per_micro_batch
from training.step import TrainStep, accelerate
from utils.errors import UserError
from utils.files import PROJECT, lock_run
from utils.forecast.plan import Plan
from utils.printable import one_line


def train(settings: Settings) -> None:
    """Train the model that the settings describe, or resume its training. Raises UserError."""
    if uses_torchrun():
        report_errors(train_rank)(settings)  # torchrun prints them
    else:
        train_rank(settings)


def train_rank(settings: Settings) -> None:
    """Train as one of several ranks, or as the only one."""
    folder = Path(settings.output.folder) / settings.run
    with open_world() as world, contextlib.ExitStack() as stack:
        world.decide(stack.enter_context, lock_run(folder))
        train_in(folder, settings, world)


def train_in(folder: Path, settings: Settings, world: World) -> None:
    """Train in a folder that no other process uses."""
    with world.in_turn():
        saved, start, task, config = open_inputs(folder, settings)
    inputs = {"last.pt": saved and saved["progress"], "validation text": task.digest()}
    with world.together():
        check_ranks_agree(inputs, world)
        device = pick_rank_device(settings.training.device, world)
    torch.manual_seed(settings.training.seed)
    dtype = world.decide(pick_dtype, device, settings.training.dtype)
    with world.together():
        settings.training, plan = fit_to_memory(settings, config, device, dtype, world)
        batches = task.train_batches(settings.training)
        settings.training = training = resolve_epochs(settings.training, batches.steps_per_epoch)
        model = build_model(settings, config, saved, start)
    if plan.strategy == "fsdp":
        shard(model, device)
    else:
        model.to(device)
    print_model(model, settings, dtype, plan)

    optimizers = make_optimizers(model, settings.optim, dtype, world)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    average = None if settings.optim.ema is None else WeightAverage(model, settings.optim.ema)
    with world.together():
        record = Record(folder=folder, settings=settings, model=model, task=task, optimizers=optimizers, scaler=scaler,
                        average=average, dtype=dtype, batch_size=plan.batch_size, world=world)
    progress = resume(record, saved) if saved else Progress()
    if progress.step >= training.max_iters:
        print(f"nothing is left to do: to continue, use a --training.max_iters above {progress.step}")
        return
    saved = start = None  # as large as the model and its optimizers

    forward = replicate(model) if world.size > 1 and plan.strategy == "ddp" else model
    trainer = make_trainer(record, forward, batches)
    micro_steps = (training.max_iters - progress.step) * plan.accumulation
    with memory_advice(config, plan):
        record.compiled = accelerate(trainer.train_step, trainer.shares, training.compile, micro_steps)
        record.write_settings()
        fit(trainer, progress)
    print_end(progress, folder)


# ---- Before training -------------------------------------------------------------------------------------------------


def open_inputs(folder: Path, settings: Settings) -> tuple[dict | None, dict | None, Task, ModelConfig]:
    """Return what a run starts from: (saved, start, task, config), and complete its settings.

    `saved` is the content of its last.pt, and `start` that of the checkpoint --init; each may be None. Raises UserError
    if a file is missing or does not match the settings.
    """
    saved = open_run(folder, settings)
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


def open_run(folder: Path, settings: Settings) -> dict | None:
    """Return the content of last.pt, which decides whether a run exists; None for a new run.

    Raises UserError if the settings ask for a new run where there is one, or to resume where there is none.
    """
    path = folder / "last.pt"
    if path.exists():
        if not settings.resume and not restart_count():
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


def resolve_epochs(training: TrainingSettings, steps_per_epoch: int) -> TrainingSettings:
    """Return the settings with `max_iters` and `eval_interval` by `epochs`, if that is given."""
    if training.epochs is None:
        return training
    return dataclasses.replace(training, max_iters=training.epochs * steps_per_epoch, eval_interval=steps_per_epoch)


def build_model(settings: Settings, config: ModelConfig, saved: dict | None, start: dict | None) -> nn.Module:
    """Return the model of a run, in main memory, with LoRA adapters or frozen blocks if the settings ask for them.

    Its weights come from `saved`, its last.pt, or from `start`, its --init; without these they are initialized. Raises
    UserError if the model has no such matrices or blocks.
    """
    lora = settings.lora
    with SkipInitialization() if saved or start else contextlib.nullcontext():
        model = ZOO[settings.model.name](**vars(config))
    model.activation_checkpointing = settings.training.activation_checkpointing
    if saved:
        load_file_weights(model, saved["weights"].items())
    elif start:
        load_start(model, start)
    if lora.rank is not None:
        add_lora(model, lora.rank, lora.alpha, lora.targets)
        if saved:
            load_lora_weights(model, saved["adapters"])
    elif settings.training.trainable_blocks is not None:
        freeze_below(model, settings.training.trainable_blocks)
    return model


def print_model(model: nn.Module, settings: Settings, dtype: torch.dtype, plan: Plan) -> None:
    """Print the size of a model, and the device and dtype that it is trained in."""
    n_params = sum(weight.numel() for weight in model.parameters())
    n_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    text = f"model: {settings.model.name}, {n_params:,} parameters"
    if n_trained < n_params:
        text += f" ({n_trained:,} of them are trained)"
    text += f", on {model.device.type} in {str(dtype).removeprefix('torch.')}"
    if plan.gpus > 1:
        text += f", {plan.strategy.upper()} on {plan.gpus} ranks"
    print(text)


def make_trainer(record: Record, forward: nn.Module, batches: Callable) -> Trainer:
    """Return the Trainer of a run; `forward` is its model, or the DistributedDataParallel of it."""
    training, optim, world = record.settings.training, record.settings.optim, record.world
    train_step = TrainStep(forward, record.optimizers, grad_clip=training.grad_clip, dtype=record.dtype,
                           scaler=record.scaler, average=record.average, seed=training.seed, world=world)
    parts = parts_per_micro_batch(training.batch_size, training.accumulation, world.size)
    return Trainer(train_step=train_step, shares=Shares(batches, parts, world),
                   lr_factor=partial(lr_factor, settings=optim, max_iters=training.max_iters),
                   evaluate=record.evaluate_and_save, max_iters=training.max_iters,
                   eval_interval=training.eval_interval, world=world)


# ---- Resuming --------------------------------------------------------------------------------------------------------


def check_same_run(saved: dict, settings: Settings, config: ModelConfig, task: Task, path: Path) -> None:
    """Raise UserError unless the run saved in `path` has this model, optimizer and text; dropout may change."""
    run_config = saved["run_config"]
    before = {"model": saved["model_class"], **saved["config"], **saved.get("task", {}), **run_config}
    now = {"model": settings.model.name, **vars(config), **task.info, "optimizer": settings.optim.name,
           **trained_part(settings)}
    for name, value in now.items():
        if name != "dropout" and value != before.get(name):
            raise UserError(f"{path} has {name} {before.get(name)}, not {value}: use the same, or start a new run with "
                            "--run NAME")
    if run_config["text"] != task.digest():
        raise UserError(f"{path} was trained on another text, {run_config['path']}: use that text, or start a new run "
                        "with --run NAME")


def resolve_as_before(training: TrainingSettings, run_config: dict) -> TrainingSettings:
    """Return the settings with each `auto` resolved as when the run started."""
    same_device = pick_device(training.device) == run_config["device"]
    if training.batch_size == "auto":
        training = dataclasses.replace(training, batch_size=run_config["batch_size"],
                                       accumulation=run_config["accumulation"])
    if training.dtype == "auto" and same_device:
        training = dataclasses.replace(training, dtype=run_config["dtype"])
    if training.compile == "auto" and same_device:
        training = dataclasses.replace(training, compile=run_config.get("compile", "auto"))  # not in older files
    return training


def resume(record: Record, saved: dict) -> Progress:
    """Load the state in last.pt into a new run, and return its Progress. Raises UserError if it does not match."""
    with record.world.together():
        load_state(record, saved, record.folder / "last.pt")
    progress = Progress(**saved["progress"])
    record.complete(progress)
    print(f"resuming at step {progress.step}")
    return progress


def load_state(record: Record, saved: dict, path: Path) -> None:
    """Load what last.pt, read from `path`, has besides the model. Raises UserError if it does not match."""
    check_optimizer_states(record.optimizers, saved["optimizer_states"], path)
    for optimizer, state in zip(record.optimizers, saved["optimizer_states"], strict=True):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        own = {}  # of this rank
        for i, values in state.items():
            own[i] = {name: shard_like(value, weights[i]) for name, value in values.items()}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": own})  # with the current learning rates
    if saved["scaler"]:  # empty unless the run used float16
        record.scaler.load_state_dict(saved["scaler"])
    if record.average and saved.get("average"):
        check_averages(record.average, saved["average"], path)
        record.average.load(saved["average"])
    elif record.average:
        record.average.load(dict(record.model.named_parameters()))  # the run had none: it starts here
    record.metrics += saved["metrics"]
    record.base = saved["run_config"].get("base", record.base)  # the settings may have its path before a move


def print_changes(path: Path, settings: Settings) -> None:
    """Print the settings of a resumed run that differ from those in its settings.yaml, if it can be read."""
    try:
        before = parse_settings([str(path)])
    except UserError:
        return
    changes = []
    for name in all_settings().keys() - {"resume"}:
        old, new = (attrgetter(name)(each) for each in (before, settings))
        if new not in (old, "auto"):
            changes.append(f"{name} {as_yaml(old)} -> {as_yaml(new)}")
    if changes:
        print(f"changed settings: {', '.join(sorted(changes))}")


def as_yaml(value: Any) -> Any:
    """Return a value as YAML has it: a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value


# ---- After training --------------------------------------------------------------------------------------------------


def print_end(progress: Progress, folder: Path) -> None:
    """Print the result of a run, and the command that talks to its model."""
    minutes = progress.seconds / 60
    print(f"{progress.step} steps in {minutes:.1f} minutes, best validation loss {progress.best_loss:.4f}")
    demo = "terminal_demo.py" if Path.cwd() == PROJECT else PROJECT / "terminal_demo.py"
    print(f"talk to it: python {shlex.quote(str(demo))} {shlex.quote(str(folder / 'best.pt'))}")
