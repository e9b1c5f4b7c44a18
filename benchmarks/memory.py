"""The peak of memory in training and in writing: predicted by utils/memory.py against what PyTorch hands out.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda

Each row of training is two steps of training/loop.py with the optimizers of train.py, nothing compiled; each row of
writing is models/generate.py after a prompt of the whole context. On a CPU the measure is the highest "Total Allocated"
that torch.profiler reports: every block that PyTorch's allocator hands out and takes back is an event there, those
within an op too. On CUDA it is torch.cuda.max_memory_allocated, and batches are eight times as large.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TQDM_DISABLE"] = "1"  # a line per row is enough

from data.windows import RandomWindows  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.generate import generate  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.loop import Progress, fit  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.precision import pick_device  # noqa: E402
from training.settings import OptimSettings, TrainingSettings  # noqa: E402
from utils.errors import command  # noqa: E402
from utils.memory import MIB, Plan, cublas_workspace, inference_memory, training_memory  # noqa: E402
from utils.parameters import count_parameters  # noqa: E402

HALF = ("float32", "bfloat16")
TRAINING = [  # model, changes to it, and to the plan
    *(("TransformerModel", {"block_size": T}, {"batch_size": B, "dtype": dtype, "optimizer": optimizer})
      for B, T, dtype, optimizer in itertools.product((2, 16), (64, 256), HALF, ("muon", "adamw"))),
    *((name, changes, {"batch_size": B, "dtype": dtype}) for (name, changes, B), dtype in itertools.product((
        ("RainbowGPT", {}, 4), ("UltimateModel", {}, 4), ("BardGPT", {}, 8), ("HugeModel", {}, 2), ("PoemGPT", {}, 2),
        ("SmallGPT90M", {}, 1), ("EasyGPT", {"n_blocks": 6, "block_size": 512}, 1), ("GPT2", {}, 1)), HALF)),
    ("TransformerModel", {}, {"batch_size": 8, "dtype": "float16"}),
    ("BardGPT", {}, {"batch_size": 4, "accumulation": 4}),
    ("BardGPT", {}, {"batch_size": 8, "dtype": "bfloat16", "activation_checkpointing": True}),
    ("GPT2", {"block_size": 512}, {"batch_size": 1, "dtype": "bfloat16", "accumulation": 2, "optimizer": "adamw"}),
    ("GPT2", {"block_size": 512}, {"batch_size": 2, "dtype": "bfloat16", "activation_checkpointing": True}),
]
WRITING = ["TransformerModel", "UltimateModel", "BardGPT", "PoemGPT", "SmallGPT90M", "GPT2"]


def peak_bytes(run, device):
    """The most that PyTorch's allocator has handed out at once, and not taken back, while `run` ran."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


def train(model_class, changes, plan):
    """Two steps: only from the second on is all there that stays from step to step."""
    model = model_class(**changes).to(plan.device)
    model.activation_checkpointing = plan.activation_checkpointing
    dtype = getattr(torch, plan.dtype)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=100_000)
    batch = RandomWindows(tokens, model.block_size, plan.batch_size, seed=0).batch
    settings = TrainingSettings(batch_size=plan.batch_size, accumulation=plan.accumulation, max_iters=2)
    fit(model, make_optimizers(model, OptimSettings(name=plan.optimizer), dtype), lambda step: 1.0, batch,
        lambda *_: False, settings, Progress(), dtype, torch.amp.GradScaler(plan.device, dtype == torch.float16))


def write(model_class, device):
    model = model_class().to(device).eval()
    list(generate(model, [1] * model.block_size, 2, SamplingConfig()))


def show(predicted, measured, *words):
    """Print a row; return its error, as a share of what was measured."""
    error = predicted / measured - 1
    print("".join(f"{word:<{width}}" for word, width in zip(words, (17, 8, 6, 10, 7, 22), strict=False))
          + f"{predicted / MIB:10,.1f}{measured / MIB:10,.1f}{error:9.2%}", flush=True)
    return error


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    device = pick_device(args.device)
    known = {"device": device}
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; peaks in MiB\n")
        known["workspace"] = cublas_workspace(torch.cuda.get_device_capability()[0])
    else:
        print(f"CPU, torch {torch.__version__}, {torch.get_num_threads()} threads; peaks in MiB\n"
              "On CUDA the predictions have not been measured unless you do it: --device cuda\n")

    print(f"{'training':17}{'context':8}{'batch':6}{'dtype':10}{'by':7}{'':22} predicted  measured    error")
    errors = []
    for name, changes, planned in TRAINING:
        plan = Plan(**known | planned)
        if device == "cuda":
            plan = Plan(**vars(plan) | {"batch_size": 8 * plan.batch_size})
        with torch.device("meta"):
            model = ZOO[name](**changes)
        assert count_parameters(model.config) == sum(weight.numel() for weight in model.parameters())
        how = ("checkpointing" * plan.activation_checkpointing
               or f"accumulation {plan.accumulation}" * (plan.accumulation > 1))
        measured = peak_bytes(lambda c=changes, n=name, p=plan: train(ZOO[n], c, p), device)
        errors.append(show(training_memory(model.config, plan).allocated, measured, name, model.block_size,
                           plan.batch_size, plan.dtype, plan.optimizer, how))
    print(f"\n{len(errors)} rows, worst error {max(errors, key=abs):.2%}\n")

    errors = []
    for name in WRITING:
        c = ZOO[name].config
        measured = peak_bytes(lambda n=name: write(ZOO[n], device), device)
        errors.append(show(inference_memory(c, c.block_size, device=device).allocated, measured, name, c.block_size, 1,
                           "float32", "", "writing"))
    print(f"\n{len(errors)} rows, worst error {max(errors, key=abs):.2%}")


if __name__ == "__main__":
    main()
