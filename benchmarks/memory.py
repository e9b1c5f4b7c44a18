"""Peak memory of training and generation: predicted by utils/memory.py against what PyTorch allocates.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda

A row of training is two steps of training/loop.py with the optimizers of train.py, not compiled; a row of generation is
models/generate.py after a prompt of the whole context. On a CPU, the peak is the highest "Total Allocated" that
torch.profiler reports: every block that PyTorch's allocator hands out or takes back is an event, those inside an op
included (the profiler prints its start and end to standard error). Models of more than 50 M parameters are reduced to
three blocks there, to finish within minutes. On CUDA, the peak is torch.cuda.max_memory_allocated, models are whole and
batches eight times as large.
"""

import gc
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TQDM_DISABLE"] = "1"  # one line per row is enough; tqdm reads this when it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from side_by_side import device_name  # noqa: E402

from data.windows import RandomWindows, WindowBatches  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.freeze import freeze_below  # noqa: E402
from models.generate import generate  # noqa: E402
from models.lora import add_lora  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.loop import Progress, Trainer, fit  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.precision import pick_device  # noqa: E402
from training.settings import OptimSettings  # noqa: E402
from training.shares import Shares  # noqa: E402
from training.step import TrainStep, accelerate  # noqa: E402
from utils.errors import Parser, command  # noqa: E402
from utils.memory import MIB, Plan, cublas_workspace, inference_memory, readable, training_memory  # noqa: E402
from utils.parameters import count_parameters  # noqa: E402

HALF = ("float32", "bfloat16")
TRAINING = [  # model, changes to it, and to the plan
    *(("TransformerModel", {"block_size": T}, {"batch_size": B, "dtype": dtype, "optimizer": optimizer})
      for B, T, dtype, optimizer in itertools.product((2, 16), (64, 256), HALF, ("muon", "adamw"))),
    *((name, changes, {"batch_size": B, "dtype": dtype}) for (name, changes, B), dtype in itertools.product((
        ("RainbowGPT", {}, 4), ("UltimateModel", {}, 4), ("BardGPT", {}, 8), ("HugeModel", {}, 2), ("PoemGPT", {}, 2),
        ("SmallGPT90M", {}, 2), ("EasyGPT", {"block_size": 512}, 2), ("GPT2", {}, 1)), HALF)),
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
GENERATION = ["TransformerModel", "UltimateModel", "BardGPT", "PoemGPT", "SmallGPT90M", "GPT2"]


def peak_bytes(build, run, device):
    """The most memory that PyTorch's allocator has handed out at once, while `run(build())` runs."""
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


def train(model, plan):
    """Two steps: the memory that stays from step to step is complete only in the second."""
    model.activation_checkpointing = plan.activation_checkpointing
    if plan.lora_rank is not None:
        add_lora(model, plan.lora_rank, plan.lora_rank, plan.lora_targets)
    if plan.trainable_blocks is not None:
        freeze_below(model, plan.trainable_blocks)
    dtype = getattr(torch, plan.dtype)
    n_ids = min(model.config.vocab_size, model.config.n_outputs)  # valid as tokens and as classes
    tokens = np.random.default_rng(0).integers(n_ids, size=100_000)
    shares = Shares(WindowBatches(RandomWindows(tokens, model.block_size, plan.batch_size, seed=0), plan.accumulation))
    optimizers = make_optimizers(model, OptimSettings(name=plan.optimizer), dtype)
    scaler = torch.amp.GradScaler(plan.device, enabled=dtype == torch.float16)
    train_step = TrainStep(model, optimizers, 1.0, dtype, scaler)
    accelerate(train_step, shares, "no", micro_steps=0)  # on CUDA, captures the step as train.py does
    trainer = Trainer(train_step, shares, lambda step: 1.0, lambda *_: False, max_iters=2, eval_interval=1000)
    fit(trainer, Progress())


def continue_prompt(model, prompt_tokens):
    """Generate two tokens after a prompt."""
    list(generate(model.eval(), [1] * prompt_tokens, 2, SamplingConfig()))


def classify(model, n_tokens):
    """Classify one text."""
    with torch.inference_mode():
        model.eval()(torch.ones(1, n_tokens, dtype=torch.long))


def describe(plan, changes):
    """The settings of a row that have no column of their own."""
    words = []
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


def print_row(predicted, measured, *cells):
    """Print a row of the table; return the error of the prediction as a fraction of the measured peak."""
    error = predicted / measured - 1
    cells = (*cells, f"{predicted / MIB:,.1f}", f"{measured / MIB:,.1f}", f"{error:.2%}")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return error


def print_head(title):
    print(f"\n{title}, peaks in MiB\n")
    print("| model | context | batch | dtype | optimizer | settings | predicted | measured | error |")
    print("|---|---|---|---|---|---|---|---|---|")


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    device = pick_device(parser.parse_args().device)
    card = {"workspace": cublas_workspace(torch.cuda.get_device_capability()[0])} if device == "cuda" else {}
    print(f"{device_name(device)}, torch {torch.__version__}")

    print_head("Generation")
    errors = []
    for name, dtype in itertools.product(GENERATION, HALF):  # first: only the backward pass has a second workspace
        c = ZOO[name].config
        measured = peak_bytes(lambda n=name, t=dtype: ZOO[n]().to(device, getattr(torch, t)),
                              lambda model, T=c.block_size: continue_prompt(model, T), device)
        predicted = inference_memory(c, c.block_size, dtype, device, **card).allocated
        errors.append(print_row(predicted, measured, name, c.block_size, 1, dtype, "", ""))
    print(f"\n{len(errors)} rows of generation, worst error {max(errors, key=abs):.2%}")

    print_head("Training")
    errors = []
    for name, changes, planned in TRAINING:
        times = 8 if device == "cuda" else 1
        plan = Plan(device=device, **card, **planned | {"batch_size": times * planned["batch_size"]})
        if device == "cpu" and count_parameters(ZOO[name].config) > 50e6:
            changes = changes | {"n_blocks": 3}
        with torch.device("meta"):
            c = ZOO[name](**changes).config
        predicted = training_memory(c, plan)
        if device == "cuda" and predicted.total > torch.cuda.mem_get_info()[1]:
            print(f"(left out: {name} with batch size {plan.batch_size} in {plan.dtype}, {readable(predicted.total)})")
            continue
        measured = peak_bytes(lambda n=name, c=changes: ZOO[n](**c).to(device), lambda m, p=plan: train(m, p), device)
        errors.append(print_row(predicted.allocated, measured, name, c.block_size, plan.batch_size, plan.dtype,
                                plan.optimizer, describe(plan, changes)))
    print(f"\n{len(errors)} rows of training, worst error {max(errors, key=abs):.2%}")


if __name__ == "__main__":
    main()
