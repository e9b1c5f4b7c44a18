"""What fits: the largest batch, and settings of a training step, within given memory."""

from dataclasses import replace
from math import isqrt

from utils.forecast.step import training_memory
from utils.forecast.units import readable


def largest_batch(config, plan, memory):
    """The largest batch size that fits into `memory` bytes, with all else as planned; 0 if none does."""
    accumulation = min(plan.accumulation, 2)  # any number of micro-batches above one takes the same

    def fits(batch_size):
        return training_memory(config, replace(plan, batch_size=batch_size, accumulation=accumulation)).total <= memory

    if not fits(1):
        return 0
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fitting_plan(config, plan, memory):
    """The plan with the same number of sequences per step and the fewest micro-batches that fits into `memory` bytes.

    None if not even a batch size of 1 fits.
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


def largest_divisor(n, limit):
    """The largest divisor of n up to `limit`; for n above 10^12, only of divisors that a search of 10^6 steps finds.

    >>> largest_divisor(24, 7)
    6
    """
    divisors = [i for i in range(1, min(isqrt(n), 10**6) + 1) if n % i == 0]
    divisors += [n // i for i in divisors]
    return max(divisor for divisor in divisors if divisor <= limit)


def advice(config, plan, memory):
    """The options of train.py for a step with as many sequences that fits into `memory` bytes, in words."""
    fitting = fitting_plan(config, plan, memory)
    if fitting:
        accumulation = fitting.accumulation * fitting.gpus  # train.py divides the micro-batches among the GPUs
        return (f"--training.batch_size {fitting.batch_size} --training.accumulation {accumulation} takes "
                f"{readable(training_memory(config, fitting).total)} for as many tokens per step")
    if not plan.activation_checkpointing:
        return "not even a batch of 1 fits: try --training.activation_checkpointing true or a smaller model"
    return "not even a batch of 1 fits: use a smaller model or a shorter context"
