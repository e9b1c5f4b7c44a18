"""Peak memory of training and generation, the forecast of utils/forecast against what PyTorch allocates.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda
    torchrun --nproc_per_node=2 benchmarks/memory.py

A row of training runs two steps of training/step.py with the optimizers of train.py, not compiled; a row of generation
runs models/generate.py after a prompt of the full context. On a CPU, the peak is the highest "Total Allocated" of
torch.profiler, which records every allocation and deallocation, also inside operations. Models of more than 50 M
parameters are reduced to three blocks, to finish within minutes. On CUDA, the peak is torch.cuda.max_memory_allocated,
with complete models and batches eight times as large.

With torchrun, the rows train on several ranks with DDP and FSDP2, and the measured peak is the maximum over the ranks.
PyTorch then also counts the memory of other threads, which own the buffers of gloo.
"""

import contextlib
import ctypes
import gc
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["KINETO_LOG_LEVEL"] = "6"  # else torch.profiler prints its start and end; read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from side_by_side import device_name, print_header, print_row  # noqa: E402

from data.windows import RandomWindows, WindowBatches  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.freeze import freeze_below  # noqa: E402
from models.generate import generate  # noqa: E402
from models.gpt import GPT  # noqa: E402
from models.lora import add_lora  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.distributed import ALONE, World, open_world, pick_rank_device  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.parallel import replicate, shard  # noqa: E402
from training.settings import OptimSettings  # noqa: E402
from training.shares import Shares  # noqa: E402
from training.step import TrainStep, accelerate  # noqa: E402
from utils.errors import Parser, command  # noqa: E402
from utils.forecast.inference import inference_memory  # noqa: E402
from utils.forecast.parameters import count_parameters  # noqa: E402
from utils.forecast.plan import Plan, cublas_workspace  # noqa: E402
from utils.forecast.step import training_memory  # noqa: E402
from utils.forecast.units import MIB, format_bytes  # noqa: E402

DTYPES = ("float32", "bfloat16")
MODELS = [  # with changes, and a batch size
    ("RainbowGPT", {}, 4), ("UltimateModel", {}, 4), ("BardGPT", {}, 8), ("HugeModel", {}, 2), ("PoemGPT", {}, 2),
    ("SmallGPT90M", {}, 2), ("EasyGPT", {"block_size": 512}, 2), ("GPT2", {}, 1),
]
Row = tuple[str, dict[str, Any], dict[str, Any]]  # a model of the zoo, changes to its configuration, a plan
TRAINING: list[Row] = [
    *(("TransformerModel", {"block_size": T}, {"batch_size": B, "dtype": dtype, "optimizer": optimizer})
      for B, T, dtype, optimizer in itertools.product((2, 16), (64, 256), DTYPES, ("muon", "adamw"))),
    *((name, changes, {"batch_size": B, "dtype": dtype}) for name, changes, B in MODELS for dtype in DTYPES),
    ("TransformerModel", {}, {"batch_size": 8, "dtype": "float16"}),
    ("BardGPT", {}, {"batch_size": 4, "accumulation": 4}),
    ("BardGPT", {}, {"batch_size": 8, "dtype": "bfloat16", "activation_checkpointing": True}),
    ("GPT2", {"block_size": 512}, {"batch_size": 1, "dtype": "bfloat16", "accumulation": 2, "optimizer": "adamw"}),
    ("GPT2", {"block_size": 512}, {"batch_size": 2, "dtype": "bfloat16", "activation_checkpointing": True}),
    ("GPT2", {"block_size": 512}, {"batch_size": 1, "dtype": "bfloat16", "lora_rank": 8}),
    ("EasyGPT", {"block_size": 512}, {"batch_size": 1, "lora_rank": 16,
                                      "lora_targets": ("qkv", "out", "gate", "up", "down")}),
    ("SmallGPT90M", {"n_labels": 2}, {"batch_size": 2}),
    ("SmallGPT90M", {"n_labels": 2}, {"batch_size": 2, "trainable_blocks": 1}),
]
RANKS: list[Row] = [
    *(("BardGPT", {}, {"batch_size": 2, "dtype": dtype, "optimizer": optimizer})
      for dtype, optimizer in itertools.product(DTYPES, ("muon", "adamw"))),
    ("BardGPT", {}, {"batch_size": 2, "accumulation": 2}),
    *(("GPT2", {"block_size": 256}, {"batch_size": 1, "dtype": dtype}) for dtype in DTYPES),
    ("GPT2", {"block_size": 256}, {"batch_size": 1, "optimizer": "adamw", "accumulation": 2}),
    *(("EasyGPT", {"block_size": 256, "vocab_size": 500}, {"batch_size": 1, "dtype": dtype}) for dtype in DTYPES),
]
GENERATION = ["TransformerModel", "UltimateModel", "BardGPT", "PoemGPT", "SmallGPT90M", "GPT2"]


def peak_bytes(build: Callable[[], GPT], run: Callable[[GPT], object], device: str) -> int:
    """Return the peak of the bytes that PyTorch has allocated, weights included, during `run(build())`."""
    gc.collect()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # of earlier rows
        built = build()
        torch.cuda.reset_peak_memory_stats()
        run(built)
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        built = build()
        with torch.profiler.record_function("run"):
            run(built)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    start = next(event["ts"] for event in events if event["name"] == "run")
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events if event["ts"] >= start) - before


def count_all_threads() -> None:
    """Let "Total Allocated" include threads that the profiler does not follow."""
    library = ctypes.CDLL(next(str(path) for path in (Path(torch.__file__).parent / "lib").glob("*c10.*")))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def train(model: GPT, plan: Plan, world: World = ALONE) -> None:
    """Train for two steps: the optimizer state exists from the second step on."""
    model.activation_checkpointing = plan.activation_checkpointing
    if plan.lora_rank is not None:
        add_lora(model, plan.lora_rank, plan.lora_rank, plan.lora_targets)
    if plan.trainable_blocks is not None:
        freeze_below(model, plan.trainable_blocks)
    forward = model
    if plan.strategy == "fsdp":
        shard(model, plan.device)
    elif world.size > 1:
        forward = replicate(model)
    dtype = getattr(torch, plan.dtype)
    n_ids = min(model.config.vocab_size, model.config.n_outputs)  # valid as token ids and as classes
    tokens = np.random.default_rng(0).integers(n_ids, size=100_000)
    windows = RandomWindows(tokens, model.block_size, plan.batch_size, seed=0)
    shares = Shares(WindowBatches(windows, plan.accumulation * world.size), world=world)
    optimizers = make_optimizers(model, OptimSettings(name=plan.optimizer), dtype, world)
    scaler = torch.amp.GradScaler(plan.device, enabled=dtype == torch.float16)
    train_step = TrainStep(forward, optimizers, grad_clip=1.0, dtype=dtype, scaler=scaler, world=world)
    with contextlib.redirect_stdout(sys.stderr):  # its line is not a row of the table
        accelerate(train_step, shares, "no", micro_steps=0)  # on CUDA, captures the step as train.py does
    for step in range(2):
        share = shares(step)
        train_step(step, share, 1.0)


def continue_prompt(model: GPT, prompt_tokens: int) -> None:
    """Generate two tokens after a prompt."""
    list(generate(model.eval(), [1] * prompt_tokens, 2, SamplingConfig()))


def classify(model: GPT, n_tokens: int) -> None:
    """Classify one text."""
    with torch.inference_mode():
        model.eval()(torch.ones(1, n_tokens, dtype=torch.long))


def other_settings(plan: Plan, changes: dict[str, Any]) -> str:
    """Return the settings of a row without a column of their own."""
    words = []
    if plan.gpus > 1:
        words.append(plan.strategy)
    if plan.activation_checkpointing:
        words.append("checkpointing")
    if plan.lora_rank is not None:
        words.append(f"LoRA {plan.lora_rank}: {' '.join(plan.lora_targets)}")
    if plan.trainable_blocks is not None:
        words.append(f"trainable_blocks {plan.trainable_blocks}")
    if "n_labels" in changes:
        words.append("classifier")
    if "n_blocks" in changes:
        words.append("3 blocks")
    if plan.accumulation > 1:
        words.append(f"accumulation {plan.accumulation}")
    return ", ".join(words)


def print_title(title: str) -> None:
    """Print the title and the header of a table."""
    print(f"\n{title}, peaks in MiB\n")
    print_header("model", "context", "batch", "dtype", "optimizer", "settings", "predicted", "measured", "error")


def print_comparison(predicted: int, measured: int, *cells: object) -> float:
    """Print a row of the table; return the error of the prediction as a fraction of the measured peak."""
    error = predicted / measured - 1
    print_row(*cells, f"{predicted / MIB:,.1f}", f"{measured / MIB:,.1f}", f"{error:.2%}")
    return error


def measure_generation(device: str, workspace: int) -> None:
    """Print the table of generation."""
    print_title("Generation")
    errors = []
    for name, dtype in itertools.product(GENERATION, DTYPES):
        config = ZOO[name].config
        measured = peak_bytes(lambda name=name, dtype=dtype: ZOO[name]().to(device, getattr(torch, dtype)),
                              lambda model, T=config.block_size: continue_prompt(model, T), device)
        predicted = inference_memory(config, config.block_size, dtype, device, workspace).allocated
        errors.append(print_comparison(predicted, measured, name, config.block_size, 1, dtype, "", ""))
    print(f"\n{len(errors)} rows of generation, worst error {max(errors, key=abs):.2%}")


def measure_training(device: str, workspace: int, title: str, rows: Iterable[Row], world: World = ALONE) -> None:
    """Print a table of training."""
    print_title(title)
    errors = []
    for name, changes, planned in rows:
        times = 8 if device == "cuda" else 1
        planned = planned | {"batch_size": times * planned["batch_size"]}
        plan = Plan(device=device, gpus=world.size, workspace=workspace, **planned)
        if device == "cpu" and count_parameters(ZOO[name].config) > 50e6:
            changes = changes | {"n_blocks": 3}
        with torch.device("meta"):
            config = ZOO[name](**changes).config
        predicted = training_memory(config, plan)
        if device == "cuda" and predicted.total > torch.cuda.mem_get_info()[1]:
            needed = format_bytes(predicted.total)
            print(f"(skipped: {name} with batch size {plan.batch_size} in {plan.dtype} needs {needed})")
            continue
        built_on = "cpu" if plan.strategy == "fsdp" else device  # `shard` moves it
        measured = peak_bytes(lambda name=name, changes=changes, place=built_on: ZOO[name](**changes).to(place),
                              lambda model, plan=plan: train(model, plan, world), device)
        errors.append(print_comparison(predicted.allocated, max(world.gather(measured)), name, config.block_size,
                                       plan.batch_size, plan.dtype, plan.optimizer, other_settings(plan, changes)))
    print(f"\n{len(errors)} rows of training, worst error {max(errors, key=abs):.2%}")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    with open_world() as world:
        device = pick_rank_device(args.device, world)
        workspace = cublas_workspace(torch.cuda.get_device_capability()[0]) if device == "cuda" else 0
        print(f"{device_name(device)}, torch {torch.__version__}")
        if world.size > 1:
            count_all_threads()
            rows = [(name, changes, plan | {"strategy": strategy})
                    for strategy, (name, changes, plan) in itertools.product(("ddp", "fsdp"), RANKS)]
            measure_training(device, workspace, f"Training on {world.size} ranks", rows, world)
        else:
            measure_generation(device, workspace)  # first, as the backward pass allocates a second workspace
            measure_training(device, workspace, "Training", TRAINING)


if __name__ == "__main__":
    main()
