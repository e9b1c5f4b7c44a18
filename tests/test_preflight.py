"""The memory check before a run starts, and the advice when it runs out of memory."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch

from models.zoo import ZOO
from training import preflight
from training.optim import WeightAverage
from training.preflight import fit_to_memory, memory_advice
from training.settings import OptimSettings, Settings, TrainingSettings
from utils.errors import UserError
from utils.forecast.context import CONTEXT
from utils.forecast.plan import Plan
from utils.forecast.step import training_memory
from utils.forecast.units import GIB, MIB, format_bytes

CONFIG = ZOO["DevModel"].config
HUGE = dataclasses.replace(ZOO["HugeModel"].config, block_size=8)


@pytest.fixture
def free(monkeypatch):
    """Return a function that sets how much memory is free."""
    return lambda size: monkeypatch.setattr(preflight, "free_memory", lambda: size)


def fit(ema=None, **changes):
    return fit_to_memory(Settings(training=TrainingSettings(**changes), optim=OptimSettings(ema=ema)), CONFIG, "cpu",
                         torch.float32)


def test_a_run_that_fits_is_unchanged_and_says_what_it_needs(free, capsys):
    free(100 * GIB)
    training, plan = fit(batch_size=8, accumulation=3)
    assert training == TrainingSettings(batch_size=8, accumulation=3)
    assert plan == Plan(batch_size=8, accumulation=3)
    needed = format_bytes(training_memory(CONFIG, plan).total)
    assert capsys.readouterr().out == f"memory: {needed} of 100.25 GiB for batch size 8\n"


def test_a_run_that_cannot_fit_stops_with_settings_that_run(free):
    free(600 * MIB)
    with pytest.raises(UserError, match="of memory, and 856.00 MiB is free: ") as error:
        fit(batch_size=64)
    batch_size, accumulation = map(int, re.findall(r"--training\.\w+ (\d+)", str(error.value)))
    assert batch_size * accumulation == 64 > batch_size
    training, plan = fit(batch_size=batch_size, accumulation=accumulation)
    assert training_memory(CONFIG, plan).total <= 600 * MIB + CONTEXT["cpu"]


def test_an_auto_batch_size_fits_and_keeps_the_sequences_per_step(free):
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


def test_the_memory_of_a_run_includes_an_average_of_the_weights(free):
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
                               "tried to allocate 8 bytes")):  # the last one on Windows
        with pytest.raises(UserError, match="^out of memory, "), memory_advice(CONFIG, Plan()):
            raise error
    with pytest.raises(RuntimeError, match="another"), memory_advice(CONFIG, Plan()):
        raise RuntimeError("another error")


def fit_on(n, config=HUGE, **changes):
    """Return `fit_to_memory` of a model, HugeModel with a short context, seen from one of n ranks of a machine."""
    world = SimpleNamespace(size=n, local_size=n, gather=lambda value: [value] * n)
    dtype = changes.pop("dtype", torch.float32)
    return fit_to_memory(Settings(training=TrainingSettings(**changes)), config, "cpu", dtype, world)


@pytest.fixture
def torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")


def test_ranks_of_a_machine_share_its_memory_and_shard_a_model_that_does_not_fit(free, torchrun):
    needed = {strategy: training_memory(HUGE, Plan(batch_size=1, strategy=strategy, gpus=2)).total
              for strategy in ("ddp", "fsdp")}
    assert needed["fsdp"] < 0.8 * needed["ddp"]
    for strategy in needed:
        free(2 * (needed[strategy] - CONTEXT["cpu"]))
        _, plan = fit_on(2, batch_size=2)
        assert plan == Plan(batch_size=1, strategy=strategy, gpus=2)
    free(needed["fsdp"])
    with pytest.raises(UserError, match="training needs .* batch of 1"):
        fit_on(2, batch_size=2)


def test_sharded_training_in_float16_is_refused_and_not_chosen(free, torchrun):
    with pytest.raises(UserError, match="no gradient scaler for float16"):
        fit_on(2, batch_size=2, parallel="fsdp", dtype=torch.float16)
    free(GIB)
    with pytest.raises(UserError, match="training needs"):
        fit_on(2, batch_size=2, dtype=torch.float16)


def test_an_automatic_batch_size_is_that_of_one_process_if_the_share_of_a_rank_fits(free, torchrun):
    free(2**40)
    training, plan = fit_on(4, batch_size="auto", accumulation=2)
    assert (training.batch_size, training.accumulation) == (32, 1)
    assert (plan.batch_size, plan.accumulation) == (8, 1)
    halves = Plan(batch_size=4, accumulation=2, gpus=4)
    free(4 * (training_memory(CONFIG, halves).total - CONTEXT["cpu"]))
    training, plan = fit_on(4, CONFIG, batch_size="auto", accumulation=2, parallel="ddp")
    assert plan == halves and (training.batch_size, training.accumulation) == (4, 8)
