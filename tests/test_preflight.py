"""What a run says about memory before it starts, and when it runs out of memory all the same."""

import dataclasses
import re

import pytest
import torch

from models.zoo import ZOO
from training import preflight
from training.optim import WeightAverage
from training.preflight import fit_to_memory, memory_advice
from training.settings import OptimSettings, Settings, TrainingSettings
from utils.errors import UserError
from utils.memory import CONTEXT, GIB, MIB, Plan, readable, training_memory

CONFIG = ZOO["DevModel"].config


@pytest.fixture
def free(monkeypatch):
    """A function that sets how much memory is free."""
    return lambda size: monkeypatch.setattr(preflight, "free_memory", lambda: size)


def fit(ema=None, **changes):
    return fit_to_memory(Settings(training=TrainingSettings(**changes), optim=OptimSettings(ema=ema)), CONFIG, "cpu",
                         torch.float32)


def test_a_run_that_fits_is_unchanged_and_says_what_it_needs(free, capsys):
    free(100 * GIB)
    training, plan = fit(batch_size=8, accumulation=3)
    assert training == TrainingSettings(batch_size=8, accumulation=3)
    assert plan == Plan(batch_size=8, accumulation=3)
    needed = readable(training_memory(CONFIG, plan).total)
    assert capsys.readouterr().out == f"memory: {needed} of 100.25 GiB for batch size 8\n"


def test_a_run_that_cannot_fit_stops_with_settings_that_run(free):
    free(600 * MIB)
    with pytest.raises(UserError, match="of memory, and 856.00 MiB is free: ") as error:
        fit(batch_size=64)
    batch_size, accumulation = map(int, re.findall(r"--training\.\w+ (\d+)", str(error.value)))
    assert batch_size * accumulation == 64 > batch_size
    training, plan = fit(batch_size=batch_size, accumulation=accumulation)
    assert training_memory(CONFIG, plan).total <= 600 * MIB + CONTEXT["cpu"]


def test_auto_takes_what_fits_and_keeps_the_sequences_per_step(free):
    free(100 * GIB)
    training, _ = fit(batch_size="auto", accumulation=2)
    assert (training.batch_size, training.accumulation) == (32, 1)
    free(600 * MIB)
    training, plan = fit(batch_size="auto", accumulation=2)
    assert training.batch_size * training.accumulation == 32 > training.batch_size
    assert training_memory(CONFIG, plan).total <= 600 * MIB + CONTEXT["cpu"]
    assert dataclasses.replace(training, batch_size=16, accumulation=1) == TrainingSettings()
    free(MIB)
    with pytest.raises(UserError, match="not even a batch of 1"):
        fit(batch_size="auto")


def test_an_average_of_the_weights_is_part_of_what_a_run_needs(free):
    free(100 * GIB)
    _, plan = fit(ema=0.998)
    _, without = fit()
    average = WeightAverage(ZOO["DevModel"](), 0.998)
    size = sum(tensor.nbytes for tensor in average.averages.values())
    assert training_memory(CONFIG, plan).total - training_memory(CONFIG, without).total == size
    free(training_memory(CONFIG, without).total - CONTEXT["cpu"])
    fit()
    with pytest.raises(UserError, match="is free"):
        fit(ema=0.998)


def test_running_out_of_memory_ends_with_advice():
    with pytest.raises(UserError, match="--training.batch_size 8 --training.accumulation 2"), \
            memory_advice(CONFIG, Plan(batch_size=16)):
        torch.empty(2**50)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory"),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you "
                               "tried to allocate 8 bytes")):  # the last is that of Windows
        with pytest.raises(UserError, match="^out of memory, "), memory_advice(CONFIG, Plan()):
            raise error
    with pytest.raises(RuntimeError, match="another"), memory_advice(CONFIG, Plan()):
        raise RuntimeError("another error")
