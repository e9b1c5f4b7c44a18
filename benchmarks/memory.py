"""Peak memory of training and generation: predicted by utils/forecast against what PyTorch allocates.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda
    torchrun --nproc_per_node=2 benchmarks/memory.py

A row of training is two steps of training/loop.py with the optimizers of train.py, not compiled; a row of generation is
models/generate.py after a prompt of the whole context. On a CPU, the peak is the highest "Total Allocated" that
torch.profiler reports: every block that PyTorch's allocator hands out or takes back is an event, those inside an op
included (the profiler prints its start and end to standard error). Models of more than 50 M parameters are reduced to
three blocks there, to finish within minutes. On CUDA, the peak is torch.cuda.max_memory_allocated, models are whole and
batches eight times as large.

With torchrun, the rows are of training on several ranks, with DDP and FSDP2, and a measured peak is that of the rank
with the highest. There, PyTorch also has to count what other threads free, which hold buffers of gloo.
"""

import ctypes
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
from training.distributed import ALONE, open_world, pick_rank_device  # noqa: E402
from training.loop import Progress, Trainer, fit  # noqa: E402
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
from utils.forecast.units import MIB, readable  # noqa: E402

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
RANKS = [
    *(("BardGPT", {}, {"batch_size": 2, "dtype": dtype, "optimizer": optimizer})
      for dtype, optimizer in itertools.product(HALF, ("muon", "adamw"))),
    ("BardGPT", {}, {"batch_size": 2, "accumulation": 2}),
    *(("GPT2", {"block_size": 256}, {"batch_size": 1, "dtype": dtype}) for dtype in HALF),
    ("GPT2", {"block_size": 256}, {"batch_size": 1, "optimizer": "adamw", "accumulation": 2}),
    *(("EasyGPT", {"block_size": 256, "vocab_size": 500}, {"batch_size": 1, "dtype": dtype}) for dtype in HALF),
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


def count_all_threads():
    """Let "Total Allocated" include what threads that the profiler does not follow allocate and free."""
    library = ctypes.CDLL(next(str(path) for path in (Path(torch.__file__).parent / "lib").glob("*c10.*")))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def train(model, plan, world=ALONE):
    """Two steps: the memory that stays from step to step is complete only in the second."""
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
    n_ids = min(model.config.vocab_size, model.config.n_outputs)  # valid as tokens and as classes
    tokens = np.random.default_rng(0).integers(n_ids, size=100_000)
    windows = RandomWindows(tokens, model.block_size, plan.batch_size, seed=0)
    shares = Shares(WindowBatches(windows, plan.accumulation * world.size), world=world)
    optimizers = make_optimizers(model, OptimSettings(name=plan.optimizer), dtype, world)
    scaler = torch.amp.GradScaler(plan.device, enabled=dtype == torch.float16)
    train_step = TrainStep(forward, optimizers, grad_clip=1.0, dtype=dtype, scaler=scaler, world=world)
    accelerate(train_step, shares, "no", micro_steps=0)  # on CUDA, captures the step as train.py does
    trainer = Trainer(train_step, shares, lambda step: 1.0, lambda *_: False, 2, eval_interval=1000, world=world)
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


def measure_generation(device, card):
    print_head("Generation")
    errors = []
    for name, dtype in itertools.product(GENERATION, HALF):
        c = ZOO[name].config
        measured = peak_bytes(lambda n=name, t=dtype: ZOO[n]().to(device, getattr(torch, t)),
                              lambda model, T=c.block_size: continue_prompt(model, T), device)
        predicted = inference_memory(c, c.block_size, dtype, device, **card).allocated
        errors.append(print_row(predicted, measured, name, c.block_size, 1, dtype, "", ""))
    print(f"\n{len(errors)} rows of generation, worst error {max(errors, key=abs):.2%}")


def measure_training(device, card, title, rows, world=ALONE):
    """`rows` are models, changes to them, and to the Plan."""
    print_head(title)
    errors = []
    for name, changes, planned in rows:
        times = 8 if device == "cuda" else 1
        plan = Plan(device=device, gpus=world.size, **card, **planned | {"batch_size": times * planned["batch_size"]})
        if device == "cpu" and count_parameters(ZOO[name].config) > 50e6:
            changes = changes | {"n_blocks": 3}
        with torch.device("meta"):
            c = ZOO[name](**changes).config
        predicted = training_memory(c, plan)
        if device == "cuda" and predicted.total > torch.cuda.mem_get_info()[1]:
            print(f"(left out: {name} with batch size {plan.batch_size} in {plan.dtype}, {readable(predicted.total)})")
            continue
        place = "cpu" if plan.strategy == "fsdp" else device  # `shard` moves it
        measured = peak_bytes(lambda n=name, c=changes, d=place: ZOO[n](**c).to(d),
                              lambda model, p=plan: train(model, p, world), device)
        errors.append(print_row(predicted.allocated, max(world.gather(measured)), name, c.block_size, plan.batch_size,
                                plan.dtype, plan.optimizer, describe(plan, changes)))
    print(f"\n{len(errors)} rows of training, worst error {max(errors, key=abs):.2%}")


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    with open_world() as world:
        device = pick_rank_device(args.device, world)
        card = {"workspace": cublas_workspace(torch.cuda.get_device_capability()[0])} if device == "cuda" else {}
        print(f"{device_name(device)}, torch {torch.__version__}")
        if world.size > 1:
            count_all_threads()
            rows = [(name, changes, plan | {"strategy": strategy})
                    for strategy, (name, changes, plan) in itertools.product(("ddp", "fsdp"), RANKS)]
            measure_training(device, card, f"Training on {world.size} ranks", rows, world)
        else:
            measure_generation(device, card)  # first: only the backward pass has a second workspace
            measure_training(device, card, "Training", TRAINING)


if __name__ == "__main__":
    main()
