"""A check that a run fits in memory, before anything of its size is built."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import psutil
import torch

from models.config import ModelConfig
from training.distributed import ALONE, World, uses_torchrun
from training.settings import Settings, TrainingSettings
from training.shares import parts_per_micro_batch
from utils.errors import UserError
from utils.forecast.context import CONTEXT
from utils.forecast.fit import advice, fitting_plan
from utils.forecast.plan import Plan, cublas_workspace
from utils.forecast.step import training_memory
from utils.forecast.units import format_bytes

# In the messages of CUDA and MPS, of Linux, and of Windows.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def free_memory() -> int:
    """Return the bytes of main memory that can be allocated without swapping."""
    return psutil.virtual_memory().available


def make_plan(training: TrainingSettings, settings: Settings, device: str, dtype: torch.dtype,
              world: World = ALONE) -> Plan:
    """Return the Plan of one rank, by `training`, whose batch size is a number, and the other sections of `settings`.

    MPS shares the CPU's memory, and its plan is that of a CPU. Raises UserError if the ranks cannot divide a step.
    """
    optim, lora = settings.optim, settings.lora
    parts = parts_per_micro_batch(training.batch_size, training.accumulation, world.size)
    plan = Plan(batch_size=training.batch_size // parts, accumulation=training.accumulation * parts // world.size,
                dtype=str(dtype).removeprefix("torch."), optimizer=optim.name, ema=optim.ema is not None,
                activation_checkpointing=training.activation_checkpointing, lora_rank=lora.rank,
                lora_targets=lora.targets, trainable_blocks=training.trainable_blocks, gpus=world.size)
    if device != "cuda":
        return plan
    return replace(plan, device="cuda", workspace=cublas_workspace(torch.cuda.get_device_capability()[0]))


def strategies(parallel: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the strategies of `Plan` that a run may use, in order of preference.

    Raises UserError if FSDP2 is asked for with float16.
    """
    if not uses_torchrun():
        return ("ddp",)
    if dtype == torch.float16 and parallel == "fsdp":
        raise UserError("--training.parallel fsdp has no gradient scaler for float16: use --training.dtype bfloat16 or "
                        "float32, or ddp")
    if parallel == "auto":
        return ("ddp",) if dtype == torch.float16 else ("ddp", "fsdp")
    return (parallel,)


def fit_to_memory(settings: Settings, model_config: ModelConfig, device: str, dtype: torch.dtype,
                  world: World = ALONE) -> tuple[TrainingSettings, Plan]:
    """Return the TrainingSettings and the Plan of one rank, where `auto` batch size and strategy fit in free memory.

    Prints the memory that training needs. Raises UserError, which proposes settings that fit, if it is not free.
    """
    training = settings.training
    auto = training.batch_size == "auto"
    if auto:
        training = replace(training, batch_size=16)
    plan = make_plan(training, settings, device, dtype, world)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory() // world.local_size
    free = min(world.gather(free)) + CONTEXT[plan.device]  # the forecast includes it, and it is in use by now
    for strategy in strategies(training.parallel, dtype):
        plan = replace(plan, strategy=strategy)
        if auto:
            plan = fitting_plan(model_config, plan, free) or plan
        needed = training_memory(model_config, plan).total
        if needed <= free:
            break
    if auto and plan.accumulation == 1:  # the batches of one process, each divided among the ranks
        training = replace(training, batch_size=plan.batch_size * world.size, accumulation=1)
    elif auto:
        training = replace(training, batch_size=plan.batch_size, accumulation=plan.accumulation * world.size)

    if needed > free:
        raise UserError(f"training needs {format_bytes(needed)} of memory, and {format_bytes(free)} is free: "
                        f"{advice(model_config, plan, free)}")
    per_rank = " per rank" if world.size > 1 else ""
    print(f"memory: {format_bytes(needed)} of {format_bytes(free)}{per_rank} for batch size {plan.batch_size}")
    return training, plan


@contextlib.contextmanager
def memory_advice(model_config: ModelConfig, plan: Plan) -> Iterator[None]:
    """Context in which running out of memory raises UserError, which proposes settings that need a fifth less."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        less = int(0.8 * training_memory(model_config, plan).total)
        raise UserError(f"out of memory, although it should have fitted: {advice(model_config, plan, less)}") from None
