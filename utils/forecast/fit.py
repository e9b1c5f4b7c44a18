"""What fits into memory: a batch size, and settings for a training step."""

from dataclasses import replace
from math import isqrt

from utils.forecast.architecture import Architecture
from utils.forecast.plan import Plan
from utils.forecast.step import training_memory
from utils.forecast.units import format_bytes


def advice(config: Architecture, plan: Plan, memory: int) -> str:
    """Return the options of train.py for the same number of sequences per step in `memory` bytes, as text."""
    fitting = fitting_plan(config, plan, memory)
    if fitting:
        accumulation = fitting.accumulation * fitting.gpus  # train.py divides the micro-batches among the GPUs
        return (f"--training.batch_size {fitting.batch_size} --training.accumulation {accumulation} takes "
                f"{format_bytes(training_memory(config, fitting).total)} for as many tokens per step")
    if not plan.activation_checkpointing:
        return "not even a batch of 1 fits: try --training.activation_checkpointing true or a smaller model"
    return "not even a batch of 1 fits: use a smaller model or a shorter context"


def fitting_plan(config: Architecture, plan: Plan, memory: int) -> Plan | None:
    """Return the plan with the same number of sequences per step in the fewest micro-batches that fit into `memory`.

    `memory` is in bytes. None: not even a batch size of 1 fits.
    """
    sequences = plan.batch_size * plan.accumulation
    whole = replace(plan, batch_size=sequences, accumulation=1)
    if training_memory(config, whole).total <= memory:
        return whole
    largest = largest_batch(config, replace(plan, batch_size=1, accumulation=2), memory)
    largest = min(largest, sequences // 2)
    if not largest:
        return None
    batch_size = largest_divisor(sequences, largest)
    return replace(plan, batch_size=batch_size, accumulation=sequences // batch_size)


def largest_batch(config: Architecture, plan: Plan, memory: int) -> int:
    """Return the largest batch size that fits into `memory` bytes with the plan's other settings; 0 if none fits."""
    accumulation = min(plan.accumulation, 2)  # any number of micro-batches above one takes the same

    def fits(batch_size: int) -> bool:
        changed = replace(plan, batch_size=batch_size, accumulation=accumulation)
        return training_memory(config, changed).total <= memory

    if not fits(1):
        return 0
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def largest_divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n up to `limit`; above 10^12, of the divisors that 10^6 trial divisions find.

    >>> largest_divisor(24, 7)
    6
    """
    divisors = [i for i in range(1, min(isqrt(n), 10**6) + 1) if n % i == 0]
    divisors += [n // i for i in divisors]
    return max(divisor for divisor in divisors if divisor <= limit)
