"""A run: settings in; a folder with checkpoints, metrics and a plot of the losses out."""

import contextlib
import dataclasses
import shlex
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record as report_errors

from data.readers import ReadOptions
from data.tokenizer import tokenizer_from_dict
from models.freeze import freeze_below
from models.lora import add_lora, load_lora_weights
from models.weights import SkipInitialization, load_file_weights
from models.zoo import ZOO
from tasks.kinds import TASKS
from training.arguments import all_settings, parse_settings
from training.checkpoint import checkpoint_file, load_start, read_checkpoint, read_start
from training.distributed import check_ranks_agree, open_world, pick_rank_device, restart_count, uses_torchrun
from training.loop import Progress, Trainer, fit
from training.optim import WeightAverage, lr_factor, make_optimizers
from training.parallel import replicate, shard, shard_like
from training.precision import pick_device, pick_dtype
from training.preflight import fit_to_memory, memory_advice
from training.record import Record, trained_part
from training.run_state import check_averages, check_optimizer_states, read_run
from training.settings import DataSettings, ModelSettings
from training.shares import Shares, parts_per_micro_batch
from training.step import TrainStep, accelerate
from utils.errors import UserError
from utils.files import PROJECT, lock_run
from utils.printable import one_line


def train(settings):
    """Train the model that `settings` describe, or resume its training. Raises UserError."""
    train_here = report_errors(train_rank) if uses_torchrun() else train_rank  # into torchrun's report
    train_here(settings)


def train_rank(settings):
    """Train as one of several ranks, or as the only one."""
    folder = Path(settings.output.folder) / settings.run
    with open_world() as world, contextlib.ExitStack() as stack:
        world.decide(stack.enter_context, lock_run(folder))
        train_in(folder, settings, world)


def train_in(folder, settings, world):
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
    record = Record(folder=folder, settings=settings, model=model, task=task, optimizers=optimizers, scaler=scaler,
                    average=average, dtype=dtype, batch_size=plan.batch_size, world=world)
    progress = Progress()
    if saved:
        with world.together():
            load_state(record, progress, saved, folder / "last.pt")
        record.complete(progress)
        print(f"resuming at step {progress.step}")
        if progress.step >= training.max_iters:
            print(f"nothing is left to do: to continue, use a --training.max_iters above {progress.step}")
            return
    saved = start = None  # as large as the model and its optimizers

    forward = replicate(model) if world.size > 1 and plan.strategy == "ddp" else model
    train_step = TrainStep(forward, optimizers, grad_clip=training.grad_clip, dtype=dtype, scaler=scaler,
                           average=average, seed=training.seed, world=world)
    shares = Shares(batches, parts_per_micro_batch(training.batch_size, training.accumulation, world.size), world)
    trainer = Trainer(train_step=train_step, shares=shares,
                      lr_factor=partial(lr_factor, settings=settings.optim, max_iters=training.max_iters),
                      evaluate=record.evaluate_and_save, max_iters=training.max_iters,
                      eval_interval=training.eval_interval, world=world)
    micro_steps = (training.max_iters - progress.step) * plan.accumulation
    with memory_advice(config, plan):
        record.compiled = accelerate(train_step, shares, training.compile, micro_steps)
        record.write_settings()
        fit(trainer, progress)
    print_end(progress, folder)


# ---- Before training -------------------------------------------------------------------------------------------------


def open_inputs(folder, settings):
    """What a run starts from, by Settings, which are completed: the contents of its last.pt and of the checkpoint of
    --init, or None; its task; and its ModelConfig. Raises UserError."""
    saved = open_run(folder, settings)
    start = None if saved else open_start(settings)
    task = open_task(settings, saved or start)
    settings.sampling = task.answers.with_max_tokens(settings.sampling)
    sizes = saved if settings.init else None  # those of --init, which may be gone by now
    config = model_config(settings.model, task.tokenizer.vocab_size, task.head, start or sizes)
    task.prepare(config.block_size)
    if saved:
        check_same_run(saved, settings, config, task, folder / "last.pt")
        print_changes(folder / "settings.yaml", settings)
        settings.training = resolve_as_before(settings.training, saved["run_config"])
    return saved, start, task, config


def open_run(folder, settings):
    """The contents of last.pt, which decides whether a run exists; None for a new run. Raises UserError."""
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


def open_start(settings):
    """The checkpoint that a new run starts from; None if there is none. Raises UserError if the task cannot use it."""
    if settings.init is None:
        return None
    start = read_start(settings.init)
    if start["config"]["n_labels"] is not None and settings.task != "classification":
        raise UserError(f"{checkpoint_file(settings.init)} is a classifier, and its head predicts labels: for the task "
                        f"{settings.task}, start from the model that it was trained from")
    return start


def open_task(settings, checkpoint):
    """The task of a run, with its data and its tokenizer: that of a checkpoint, if there is one. Raises UserError."""
    data = settings.data
    tokenizer, entry = data.tokenizer, None
    if checkpoint:
        if tokenizer != DataSettings().tokenizer:
            print(f"the tokenizer is that of the checkpoint, not {one_line(tokenizer)}")
        tokenizer = tokenizer_from_dict(checkpoint["tokenizer"], "the checkpoint")
        if checkpoint.get("task", {}).get("kind") == settings.task:
            entry = checkpoint["task"]
    else:
        file = checkpoint_file(tokenizer)
        if file.suffix == ".pt" and (file.is_file() or file == Path(tokenizer)):
            tokenizer = tokenizer_from_dict(read_checkpoint(file)["tokenizer"], "the checkpoint")
    options = ReadOptions(data.column, data.encoding, data.delimiter, data.document_separator)
    return TASKS[settings.task](settings, options, tokenizer, entry)


def model_config(model, vocab_size, head=None, start=None):
    """The ModelConfig that ModelSettings describe, for a tokenizer of `vocab_size` tokens; `head` has the fields that a
    task sets. With a checkpoint `start` it is that of the checkpoint, and `model.name` is set to its class. Raises
    UserError."""
    head = head or {}
    given = {name: value for name, value in vars(model).items() if name != "name" and value is not None}
    if start:
        if model.name not in (ModelSettings().name, start["model_class"]):
            raise UserError(f"--init has a {start['model_class']}, not a {model.name}: leave out model.name")
        before = dataclasses.replace(ZOO[start["model_class"]].config, **start["config"])
        resolved = {"num_kv_heads": before.kv_heads, "n_hidden": before.hidden_size, "qkv_bias": before.has_qkv_bias}
        for name, value in given.items():
            same = value == resolved.get(name, start["config"][name])
            shorter = name == "block_size" and value < before.block_size
            if not same and not shorter and name != "dropout":
                raise UserError(f"--init has {name} {start['config'][name]}, not {value}: leave out model.{name}")
        model.name = start["model_class"]
        given = start["config"] | given | {"n_labels": None, "auxiliary_lm": False} | head
        given["vocab_size"] = max(vocab_size, given["vocab_size"])  # a task may need new special tokens
        return dataclasses.replace(ZOO[model.name].config, **given)
    if model.name not in ZOO:
        raise UserError(f"there is no model {model.name}: use one of {', '.join(ZOO)}")
    config = dataclasses.replace(ZOO[model.name].config, **{"vocab_size": vocab_size} | head | given)
    if config.vocab_size < vocab_size:
        raise UserError(f"--model.vocab_size {config.vocab_size:,} is too few for the {vocab_size:,} tokens of the "
                        "tokenizer: leave it out, or use a larger one")
    return config


def resolve_epochs(training, steps_per_epoch):
    """TrainingSettings in which `epochs`, if given, has set the number of steps and the evaluations."""
    if training.epochs is None:
        return training
    return dataclasses.replace(training, max_iters=training.epochs * steps_per_epoch, eval_interval=steps_per_epoch)


def build_model(settings, config, saved, start):
    """The model of a run, new, or with the weights of its last.pt or of the checkpoint that it starts from, and ready
    for LoRA or with frozen blocks, by Settings. Raises UserError."""
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


def print_model(model, settings, dtype, plan):
    """Print the size of a model and where it is trained."""
    n_params = sum(weight.numel() for weight in model.parameters())
    n_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    trained = "" if n_trained == n_params else f" ({n_trained:,} of them are trained)"
    ranks = f", {plan.strategy.upper()} on {plan.gpus} ranks" if plan.gpus > 1 else ""
    print(f"model: {settings.model.name}, {n_params:,} parameters{trained}, on {model.device.type} in "
          f"{str(dtype).removeprefix('torch.')}{ranks}")


# ---- Resuming --------------------------------------------------------------------------------------------------------


def check_same_run(saved, settings, config, task, path):
    """Raise UserError unless the run in the file `path` has this model, optimizer and text; dropout may change."""
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


def resolve_as_before(training, run_config):
    """TrainingSettings in which `auto` is what the run resolved it to when it started."""
    same_device = pick_device(training.device) == run_config["device"]
    if training.batch_size == "auto":
        training = dataclasses.replace(training, batch_size=run_config["batch_size"],
                                       accumulation=run_config["accumulation"])
    if training.dtype == "auto" and same_device:
        training = dataclasses.replace(training, dtype=run_config["dtype"])
    if training.compile == "auto" and same_device:
        training = dataclasses.replace(training, compile=run_config.get("compile", "auto"))  # not in older files
    return training


def load_state(record, progress, saved, path):
    """Load the state in last.pt, read from `path`, into a new run. Raises UserError."""
    check_optimizer_states(record.optimizers, saved["optimizer_states"], path)
    for optimizer, state in zip(record.optimizers, saved["optimizer_states"], strict=True):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = {i: {name: shard_like(value, weights[i]) for name, value in values.items()}
                 for i, values in state.items()}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})  # learning rates are those of today
    if saved["scaler"]:  # empty unless the run used float16
        record.scaler.load_state_dict(saved["scaler"])
    if record.average and saved.get("average"):
        check_averages(record.average, saved["average"], path)
        record.average.load(saved["average"])
    elif record.average:
        record.average.load(dict(record.model.named_parameters()))  # the run had none: it starts here
    record.metrics += saved["metrics"]
    record.base = saved["run_config"].get("base", record.base)  # the settings may have its path before a move
    for name, value in saved["progress"].items():
        setattr(progress, name, value)


def print_changes(path, settings):
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


def as_yaml(value):
    """A value as YAML has it: a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value


# ---- After training --------------------------------------------------------------------------------------------------


def print_end(progress, folder):
    """Print the result of a run, and the command that talks to its model."""
    minutes = progress.seconds / 60
    print(f"{progress.step} steps in {minutes:.1f} minutes, best validation loss {progress.best_loss:.4f}")
    demo = "terminal_demo.py" if Path.cwd() == PROJECT else PROJECT / "terminal_demo.py"
    print(f"talk to it: python {shlex.quote(str(demo))} {shlex.quote(str(folder / 'best.pt'))}")
