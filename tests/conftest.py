"""Fixtures shared by the tests of several commands."""

import os
import sys

import pytest
import torch
from small_text import TEXT

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: one thread per worker, in subprocesses too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=1, metavar="N", help="N times as many mutated files (1)")


@pytest.fixture
def fuzz(request):
    """How many times more mutated files to try than usual."""
    return request.config.getoption("--fuzz")


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Return a function that calls `main` with command-line arguments and returns its standard output."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a working directory with a text to train on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path
