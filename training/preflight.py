"""Before the first step: what a run will take of memory, what there is, and settings that fit."""

import contextlib
import dataclasses

import psutil
import torch

from utils.errors import UserError
from utils.memory import CONTEXT, Plan, advice, cublas_workspace, fitting_plan, readable, training_memory

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS; Linux; Windows


def free_memory():
    """Bytes of the machine's memory that a program can still have without swapping."""
    return psutil.virtual_memory().available


def make_plan(s, optimizer, device, dtype):
    """The Plan of TrainingSettings. On MPS, which shares its memory with the CPU, it is as if on that."""
    card = {"workspace": cublas_workspace(torch.cuda.get_device_capability()[0])} if device == "cuda" else {}
    return Plan(s.batch_size, s.accumulation, str(dtype).removeprefix("torch."), optimizer, s.activation_checkpointing,
                "cuda" if device == "cuda" else "cpu", **card)


def settle(s, optimizer, c, device, dtype):
    """TrainingSettings that fit in the memory that there is, and their Plan, for a model of configuration c.

    It says what will be taken. Raises UserError, with settings that fit, if these don't.
    """
    plan = make_plan(dataclasses.replace(s, batch_size=16) if s.batch_size == "auto" else s, optimizer, device, dtype)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    free += CONTEXT[plan.device]  # that has been taken by now
    if s.batch_size == "auto":
        plan = fitting_plan(c, plan, free) or plan
        s = dataclasses.replace(s, batch_size=plan.batch_size, accumulation=plan.accumulation)
    needed = training_memory(c, plan).total
    if needed > free:
        raise UserError(f"training takes {readable(needed)} of memory, and there are {readable(free)}: "
                        f"{advice(c, plan, free)}")
    print(f"memory: batch size {s.batch_size} takes {readable(needed)} of the {readable(free)} that there are")
    return s, plan


@contextlib.contextmanager
def memory_advice(c, plan):
    """Within it, an error of memory becomes a UserError with settings that take a fifth less."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        less = int(0.8 * training_memory(c, plan).total)
        raise UserError(f"memory ran out, though this should have fitted: {advice(c, plan, less)}") from None
