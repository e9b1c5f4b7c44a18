"""What a run says of memory before it starts, and when memory runs out all the same."""

import dataclasses
import re

import pytest
import torch

from models.zoo import ZOO
from training import preflight
from training.preflight import memory_advice, settle
from training.settings import TrainingSettings
from utils.errors import UserError
from utils.memory import CONTEXT, GIB, MIB, Plan, training_memory

CONFIG = ZOO["DevModel"].config


@pytest.fixture
def free(monkeypatch):
    """A function that sets how much memory is free."""
    return lambda size: monkeypatch.setattr(preflight, "free_memory", lambda: size)


def settled(**changes):
    return settle(TrainingSettings(**changes), "muon", CONFIG, "cpu", torch.float32)


def test_a_run_that_fits_says_so_and_is_as_it_was(free, capsys):
    free(100 * GIB)
    s, plan = settled(batch_size=8, accumulation=3)
    assert s == TrainingSettings(batch_size=8, accumulation=3)
    assert plan == Plan(batch_size=8, accumulation=3)
    assert "batch size 8" in capsys.readouterr().out


def test_a_run_that_cannot_fit_stops_with_settings_that_run(free):
    free(600 * MIB)
    with pytest.raises(UserError, match="there are") as error:
        settled(batch_size=64)
    batch_size, accumulation = map(int, re.findall(r"--training\.\w+ (\d+)", str(error.value)))
    assert batch_size * accumulation == 64 > batch_size
    s, plan = settled(batch_size=batch_size, accumulation=accumulation)
    assert training_memory(CONFIG, plan).total <= 600 * MIB + CONTEXT["cpu"]


def test_auto_takes_what_fits_and_keeps_the_windows_of_a_step(free):
    free(100 * GIB)
    s, _ = settled(batch_size="auto", accumulation=2)
    assert (s.batch_size, s.accumulation) == (32, 1)
    free(600 * MIB)
    s, plan = settled(batch_size="auto", accumulation=2)
    assert s.batch_size * s.accumulation == 32 > s.batch_size
    assert training_memory(CONFIG, plan).total <= 600 * MIB + CONTEXT["cpu"]
    assert dataclasses.replace(s, batch_size=16, accumulation=1) == TrainingSettings()
    free(MIB)
    with pytest.raises(UserError, match="not even a batch of 1"):
        settled(batch_size="auto")


def test_memory_that_runs_out_ends_with_advice():
    with pytest.raises(UserError, match="--training.batch_size 8 --training.accumulation 2"), \
            memory_advice(CONFIG, Plan(batch_size=16)):
        torch.empty(2**50)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory"),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you "
                               "tried to allocate 8 bytes")):  # the last is that of Windows
        with pytest.raises(UserError, match="memory ran out"), memory_advice(CONFIG, Plan()):
            raise error
    with pytest.raises(RuntimeError, match="another"), memory_advice(CONFIG, Plan()):
        raise RuntimeError("another mistake")
