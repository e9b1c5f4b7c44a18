"""benchmarks/time_to_loss.py with scripts that print losses."""

import importlib.util
from pathlib import Path

import pytest

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("time_to_loss", ROOT / "benchmarks" / "time_to_loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("line", ["step {:5}  validation loss {}", "step {}: train loss 1.2000, val loss {}"])
def test_a_script_is_stopped_at_the_published_loss(benchmark, tmp_path, line):
    lines = [line.format(0, "4.1700"), "iter 1: loss 1.0000", line.format(250, "1.4697")]
    script = tmp_path / "train.py"
    script.write_text(f"import time\nfor line in {lines}:\n    print(line)\n    time.sleep(0.2)\ntime.sleep(60)\n")
    assert 0.4 < benchmark.seconds_to_loss(["train.py"], tmp_path) < 30


def test_a_script_that_does_not_reach_the_published_loss_is_a_user_error(benchmark, tmp_path):
    (tmp_path / "train.py").write_text("print('step   250  validation loss 1.5000')\n")
    with pytest.raises(UserError, match="exit code 0, and its lowest validation loss was 1.5"):
        benchmark.seconds_to_loss(["train.py"], tmp_path)
