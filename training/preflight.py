"""Whether a run fits in memory, before anything of its size is built."""

import contextlib
from dataclasses import replace

import psutil
import torch

from training.distributed import ALONE, started_by_torchrun
from training.shares import divide
from utils.errors import UserError
from utils.forecast.context import CONTEXT
from utils.forecast.fit import advice, fitting_plan
from utils.forecast.plan import Plan, cublas_workspace
from utils.forecast.step import training_memory
from utils.forecast.units import format_bytes

# In the messages of CUDA and MPS, of Linux, and of Windows.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def free_memory():
    """Bytes of main memory that a program can allocate without swapping."""
    return psutil.virtual_memory().available


def make_plan(training, settings, device, dtype, world=ALONE):
    """The Plan of one rank, by TrainingSettings with a given batch size and the other sections of Settings.

    MPS shares the CPU's memory, and its plan is that of a CPU. Raises UserError if the ranks cannot divide a step.
    """
    optim, lora = settings.optim, settings.lora
    parts = divide(training.batch_size, training.accumulation, world.size)
    plan = Plan(batch_size=training.batch_size // parts, accumulation=training.accumulation * parts // world.size,
                dtype=str(dtype).removeprefix("torch."), optimizer=optim.name, ema=optim.ema is not None,
                activation_checkpointing=training.activation_checkpointing, lora_rank=lora.rank,
                lora_targets=lora.targets, trainable_blocks=training.trainable_blocks, gpus=world.size)
    if device != "cuda":
        return plan
    return replace(plan, device="cuda", workspace=cublas_workspace(torch.cuda.get_device_capability()[0]))


def strategies(parallel, dtype):
    """The strategies of `Plan` that a run may use, the first that fits. Raises UserError."""
    if not started_by_torchrun():
        return ("ddp",)
    if dtype == torch.float16 and parallel == "fsdp":
        raise UserError("--training.parallel fsdp has no gradient scaler for float16: use --training.dtype bfloat16 or "
                        "float32, or ddp")
    if parallel == "auto":
        return ("ddp",) if dtype == torch.float16 else ("ddp", "fsdp")
    return (parallel,)


def fit_to_memory(settings, model_config, device, dtype, world=ALONE):
    """Return the TrainingSettings of a run, with a batch size that fits in free memory if it is `auto`, and the Plan of
    one rank, with a strategy that fits if that is `auto`.

    Prints the memory that training needs. Raises UserError, with settings that fit, if that is more than is free.
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
    if auto:
        training = replace(training, batch_size=plan.batch_size, accumulation=plan.accumulation * world.size)

    if needed > free:
        raise UserError(f"training needs {format_bytes(needed)} of memory, and {format_bytes(free)} is free: "
                        f"{advice(model_config, plan, free)}")
    per_rank = " per rank" if world.size > 1 else ""
    print(f"memory: {format_bytes(needed)} of {format_bytes(free)}{per_rank} for batch size {plan.batch_size}")
    return training, plan


@contextlib.contextmanager
def memory_advice(model_config, plan):
    """Context in which running out of memory raises UserError, with settings that need a fifth less."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        less = int(0.8 * training_memory(model_config, plan).total)
        raise UserError(f"out of memory, although it should have fitted: {advice(model_config, plan, less)}") from None
