"""The command utils/num_params_calculate.py."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_configs import every_model

from models.zoo import ZOO
from utils import num_params_calculate, quantities
from utils.forecast.flops import flops_per_token
from utils.forecast.parameters import count_parameters
from utils.forecast.plan import Plan
from utils.forecast.units import GIB, MIB, format_bytes

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "utils" / "num_params_calculate.py"


def calculate(monkeypatch, capsys, *arguments):
    """Run the command; return its standard output, standard error and exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    try:
        num_params_calculate.main()
        code = 0
    except SystemExit as end:
        code = end.code
    return *capsys.readouterr(), code


def test_the_command_runs_in_any_folder(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, text=True, encoding="utf-8", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3,691,073" in done.stdout.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


@every_model
def test_the_command_prints_tables_that_add_up(name, monkeypatch, capsys):
    out, err, code = calculate(monkeypatch, capsys, "--model", name, "--memory", "24GiB")
    assert (err, code) == ("", 0)
    table = out.split("Parameters")[1].split("Training")[0].splitlines()
    counts = [int(line.split()[-2].replace(",", "")) for line in table if line.endswith("%")]
    assert sum(counts[:-1]) == counts[-1] == count_parameters(ZOO[name].config)


def test_the_command_accepts_any_configuration(monkeypatch, capsys):
    out, _, _ = calculate(monkeypatch, capsys, "--n_embd", 64, "--n_blocks", 1, "--norm", "rms", "--no-head_bias",
                          "--feed_forward", "swiglu", "--num_kv_heads", 2, "--position", "rotary")
    expected = 2 * 65 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 256 * 64 + 3 * 64
    assert out.startswith(f"TransformerModel: {expected:,} parameters")


def test_the_command_covers_classifiers(monkeypatch, capsys):
    out, _, _ = calculate(monkeypatch, capsys, "--model", "PoemGPT", "--n_labels", 5)
    blocks_and_embeddings = count_parameters(ZOO["PoemGPT"].config)  # whose head is tied
    assert out.startswith(f"PoemGPT: {blocks_and_embeddings + 5 * 256:,} parameters")
    assert re.search(r"N = 5 +number of classes, n_labels\n", out) and "N C = 5 x 256" in out and "KV cache" not in out


def test_the_command_covers_lora_and_freezing(monkeypatch, capsys):
    out, _, _ = calculate(monkeypatch, capsys, "--model", "GPT2", "--lora_rank", 8, "--lora_targets", "qkv", "down")
    assert f"trained parameters: {12 * 8 * (4 * 768 + 5 * 768):,}\n" in out and "LoRA of rank 8 on qkv down" in out
    out, _, _ = calculate(monkeypatch, capsys, "--model", "SmallGPT90M", "--n_labels", 2, "--trainable_blocks", 1)
    block = 12 * 768**2 + 13 * 768  # with biases and two norms
    assert f"trained parameters: {block + 2 * 768 + 2 * 768:,}\n" in out and "trainable_blocks 1" in out


def test_the_command_prints_time_and_cost(monkeypatch, capsys):
    flops = flops_per_token(ZOO["GPT2"].config, Plan())
    out, _, _ = calculate(monkeypatch, capsys, "--model", "GPT2", "--flops", 1e14, "--gpus", 2, "--tokens",
                          3600 * 2e14 / flops * 10, "--price", 3)
    assert "10.00 hours" in out and "cost: 60.00" in out  # ten hours of two GPUs


def test_the_command_prints_communication(monkeypatch, capsys):
    flops, n = flops_per_token(ZOO["GPT2"].config, Plan()), count_parameters(ZOO["GPT2"].config)
    options = ["--model", "GPT2", "--optimizer", "adamw", "--gpus", 2, "--batch_size", 10]
    out, _, _ = calculate(monkeypatch, capsys, *options, "--flops", 10 * 1024 * flops, "--link", f"{8 * n / 1000}KB")
    assert f"each GPU sends {format_bytes(4 * n)} per step: gradients" in out
    assert "computation 1, communication 0.5\n" in out  # 4 n bytes, of which the link sends 8 n per second
    assert "without overlap: 13,653 tokens per second, 67%" in out and "with full overlap: 20,480 tokens" in out
    out, _, _ = calculate(monkeypatch, capsys, *options, "--device", "cpu", "--memory", "8GiB")
    assert "per rank with DDP on 2 ranks, on a CPU" in out and "With 8.00 GiB of memory per rank" in out
    assert "for seconds, give --flops and --link" in out


def test_the_hours_depend_on_what_is_trained_and_recomputed(monkeypatch, capsys):
    for options, plan, expected in (
            (["--lora_rank", 8], Plan(lora_rank=8), 0.7),
            (["--trainable_blocks", 2], Plan(trainable_blocks=2), 0.5),
            (["--activation_checkpointing"], Plan(activation_checkpointing=True), 1.25)):
        config = ZOO["GPT2"].config
        flops = flops_per_token(config, plan)
        assert flops / flops_per_token(config, Plan()) == pytest.approx(expected, abs=0.05)
        out, _, _ = calculate(monkeypatch, capsys, "--model", "GPT2", *options, "--flops", 1e14, "--tokens",
                              3600 * 1e14 / flops * 10)
        assert "10.00 hours" in out and f"forward and backward: {flops:.4g}\n" in out


@pytest.mark.parametrize("text, number", [
    ("1,000,000", 10**6), ("300B", 300 * 10**9), ("312T", 312 * 10**12), ("1.5k", 1500), ("2M", 2 * 10**6),
    ("2e14", 2 * 10**14), (" 12 ", 12), ("1,234.5K", 1_234_500),
])  # fmt: skip
def test_numbers_are_parsed_with_commas_and_suffixes(text, number):
    assert quantities.parse_int(text) == quantities.parse_positive(text) == number


@pytest.mark.parametrize("arguments", [
    ("--n_blocks", "1000000000"), ("--batch_size", "1000000007", "--memory", "80GiB", "--n_embd", "4"),
    ("--n_blocks", 2**63 - 1, "--vocab_size", 2**63 - 1, "--block_size", 2**63 - 1, "--memory", "8GiB"),
])  # fmt: skip
def test_the_command_is_fast_for_any_size(arguments, monkeypatch, capsys):
    start = time.perf_counter()
    assert calculate(monkeypatch, capsys, *arguments)[1:] == ("", 0)
    assert time.perf_counter() - start < 20


def test_the_command_plots(tmp_path, monkeypatch, capsys):
    path = tmp_path / "memory.png"
    out, _, code = calculate(monkeypatch, capsys, "--plot", path, "--memory", "1GiB")
    assert code == 0 and str(path) in out
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, words", [
    ("memory.txt", "name that ends in .png"), ("file/memory.png", "choose another folder"), ("a.png", "Is a directory"),
])  # fmt: skip
def test_a_plot_that_cannot_be_written_fails_before_the_computation(tmp_path, monkeypatch, capsys, name, words):
    (tmp_path / "file").touch()
    (tmp_path / "a.png").mkdir()
    out, err, code = calculate(monkeypatch, capsys, "--plot", tmp_path / name)
    assert (out, code) == ("", 2) and err.count("\n") == 1
    assert err.startswith(f"error: cannot write {tmp_path / name}: ") and words in err


def test_a_plot_creates_its_folder(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "memory.SVG"
    assert calculate(monkeypatch, capsys, "--plot", path)[2] == 0 and b"<svg" in path.read_bytes()


@pytest.mark.parametrize("arguments, words", [
    (("--model", "UltimatModel"), ("UltimatModel", "did you mean UltimateModel?")),
    (("--model", "gpt-2"), ("did you mean GPT2?",)),
    (("--n_embd", "385"), ("n_embd 385", "num_heads 4")), (("--n_labels", "1"), ("n_labels cannot be 1", "2 classes")),
    (("--num_kv_heads", "3"), ("num_heads 4", "num_kv_heads 3")),
    (("--batch_size", "0"), ("batch_size cannot be 0",)),
    (("--block_size", "-1"), ("block_size cannot be -1",)),
    (("--gpus", "-2"), ("gpus cannot be -2",)),
    (("--accumulation", "0"), ("accumulation cannot be 0",)),
    (("--memory", "8"), ("'8'", "a unit")),
    (("--memory", "8 stones"), ("8 stones", "a unit")),
    (("--memory", "0GiB"), ("0GiB", "> 0")),
    (("--memory", "-8GiB"), ("memory",)),
    (("--memory", "9" * 400 + "GiB"), ("memory", "999...999")), (("--memory", "GiB"), ("memory", "not a number")),
    (("--n_blocks", "two"), ("n_blocks", "two")), (("--n_blocks", "2.5"), ("n_blocks", "2.5")),
    (("--n_blocks", 2**63), ("n_blocks", str(2**63), "below 2^63")), (("--n_blocks", "9" * 400), ("999...999",)),
    (("--n_blocks", "9" * 5000), ("999...999",)), (("--n_embd", "1e999999999"), ("n_embd", "1e999999999")),
    (("--n_embd", "1,5"), ("n_embd", "1,5")), (("--n_embd", "٣"), ("n_embd", "٣")),
    (("--batch_size", 2**62, "--accumulation", 2), ("batch_size", "accumulation", "below 2^63")),
    (("--tokens", "1e400"), ("tokens", "out of range")), (("--price", "nan"), ("price", "nan")),
    (("--dtype", "fp8"), ("dtype", "fp8")),
    (("--flops", "0"), ("flops", "> 0")),
    (("--lora_rank", "0"), ("lora_rank cannot be 0",)),
    (("--lora_rank", "8", "--lora_targets", "gate"), ("gate", "choose from qkv, out, up, down, head")),
    (("--trainable_blocks", "3"), ("trainable_blocks 3", "2 blocks")),
    (("--trainable_blocks", "3", "--n_blocks", "1"), ("the 1 block of",)),
    (("--trainable_blocks", "-1"), ("trainable_blocks cannot be -1",)),
    (("--trainable_blocks", "1", "--lora_rank", "8"), ("lora_rank or trainable_blocks",)),
    (("--wings", "2"), ("--wings",)),
])  # fmt: skip
def test_bad_input_is_reported_in_one_line(arguments, words, monkeypatch, capsys):
    _, err, code = calculate(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize("n, text", [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1001, "1,001 steps")])
def test_a_count_has_its_noun_in_the_right_number(n, text):
    assert quantities.quantity(n, "steps") == text


@pytest.mark.parametrize("text, size", [("8GiB", 8 * GIB), ("24GB", 24 * 10**9), ("1.5 gib", 3 * GIB // 2),
                                        (".5MiB", MIB // 2)])
def test_memory_sizes_are_parsed_with_their_unit(text, size):
    assert quantities.parse_bytes(text) == size
