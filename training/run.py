"""A run: from settings to a folder with checkpoints, metrics and a plot of the losses."""

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record as report_errors

from models.config import ModelConfig
from models.freeze import freeze_below
from models.lora import add_lora, load_lora_weights
from models.weights import SkipInitialization, file_weights, load_file_weights
from models.zoo import ZOO
from tasks.task import Task
from training.arguments import PATHS, all_settings
from training.checkpoint import load_start
from training.distributed import World, check_ranks_agree, open_world, pick_rank_device, uses_torchrun
from training.inputs import open_inputs
from training.loop import Progress, Trainer, fit
from training.optim import WeightAverage, lr_factor, make_optimizers
from training.parallel import replicate, shard, shard_like
from training.precision import pick_dtype
from training.preflight import fit_to_memory, memory_advice
from training.record import Record
from training.run_state import check_averages, check_optimizer_states
from training.settings import Settings, TrainingSettings
from training.shares import Shares, parts_per_micro_batch
from training.step import TrainStep, accelerate
from utils.files import PROJECT, lock_run
from utils.forecast.plan import Plan
from utils.quantities import quantity


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
        saved, start, task, config = open_inputs(folder, settings, world.is_restart())
    with world.together():
        check_ranks_agree(inputs_by_name(saved, settings, task), world)
        device = pick_rank_device(settings.training.device, world)
    world.mark_started()
    torch.manual_seed(settings.training.seed)
    dtype = world.decide(pick_dtype, device, settings.training.dtype)
    with world.together():
        settings.training, plan = fit_to_memory(settings, config, device, dtype, world)
        batches = task.train_batches(settings.training)
        settings.training = training = resolve_epochs(settings.training, batches.steps_per_epoch)
        model = build_model(settings, config, saved, start)
    if world.size > 1:
        loaded = first_values(model) if saved or start else None  # random weights may differ between CPUs, by rounding
        with world.together():
            check_ranks_agree({"training text": digest(batches(0)), "weights": loaded}, world)
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
        world.decide(record.write_settings)
        fit(trainer, progress)
    print_end(progress, folder)


def inputs_by_name(saved: dict | None, settings: Settings, task: Task) -> dict[str, Any]:
    """Return what must be equal on all ranks, by the name that an error message has for it."""
    inputs = {"last.pt": saved and saved["progress"]}  # before the settings, which a resumed run changes
    for name in all_settings():
        if name not in PATHS:
            inputs[f"setting {name}"] = attrgetter(name)(settings)
    return inputs | {"validation text": task.digest()}


def digest(batches: list[tuple[Tensor, Tensor]]) -> str:
    """Return a fingerprint of the inputs x in a list of batches (x, y), (B, T) each."""
    sha = hashlib.sha256()
    for x, _ in batches:
        sha.update(x.numpy().tobytes())
    return sha.hexdigest()


def first_values(model: nn.Module) -> list[list[float]]:
    """Return the first values of each weight of a model, without adapters: enough to recognize another model."""
    return [weight.flatten()[:8].tolist() for weight in file_weights(model).values()]


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


def resume(record: Record, saved: dict) -> Progress:
    """Load the state in last.pt into a new run, and return its Progress. Raises UserError if it does not match."""
    with record.world.together():
        load_state(record, saved, record.folder / "last.pt")
    progress = Progress(**saved["progress"])
    record.write_results_again(progress)
    print(f"resuming at step {progress.step}")
    return progress


def load_state(record: Record, saved: dict, path: Path) -> None:
    """Load the training state in last.pt, read from `path`. Raises UserError if it does not match."""
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


def print_end(progress: Progress, folder: Path) -> None:
    """Print the result of a run, and the command that talks to its model."""
    duration = f"{progress.seconds / 60:.1f} minutes" if progress.seconds >= 60 else f"{progress.seconds:.0f} seconds"
    print(f"{quantity(progress.step, 'steps')} in {duration}, best validation loss {progress.best_loss:.4f}")
    demo = "terminal_demo.py" if Path.cwd() == PROJECT else PROJECT / "terminal_demo.py"
    print(f"talk to it: python {shlex.quote(str(demo))} {shlex.quote(str(folder / 'best.pt'))}")
