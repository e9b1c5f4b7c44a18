"""The peak of memory in training and in writing: predicted by utils/memory.py against what PyTorch hands out.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda

Each row of training is two steps of training/loop.py with the optimizers of train.py, nothing compiled; each row of
writing is models/generate.py after a prompt of the whole context. On a CPU the measure is the highest "Total Allocated"
that torch.profiler reports: every block that PyTorch's allocator hands out and takes back is an event there, those
within an op too (the profiler reports its start and end on standard error). To be done in minutes, models of more than
50 M parameters are cut there to three blocks. On CUDA it is torch.cuda.max_memory_allocated, models are whole and
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
os.environ["TQDM_DISABLE"] = "1"  # a line per row is enough; torch imports tqdm, which looks here only then

import numpy as np  # noqa: E402
import torch  # noqa: E402

from data.windows import RandomWindows  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.generate import generate  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.loop import Progress, Trainer, fit  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.precision import pick_device  # noqa: E402
from training.settings import OptimSettings  # noqa: E402
from training.step import TrainStep  # noqa: E402
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
]
WRITING = ["TransformerModel", "UltimateModel", "BardGPT", "PoemGPT", "SmallGPT90M", "GPT2"]


def peak_bytes(build, run, device):
    """The most that PyTorch's allocator has handed out at once while `run` ran with what `build` returned, that too."""
    gc.collect()
    if device == "cuda":
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
    """Two steps: only from the second on is all there that stays from step to step."""
    model.activation_checkpointing = plan.activation_checkpointing
    dtype = getattr(torch, plan.dtype)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=100_000)
    batch = RandomWindows(tokens, model.block_size, plan.batch_size, seed=0).batch
    optimizers = make_optimizers(model, OptimSettings(name=plan.optimizer), dtype)
    scaler = torch.amp.GradScaler(plan.device, enabled=dtype == torch.float16)
    train_step = TrainStep(model, optimizers, 1.0, dtype, scaler)
    trainer = Trainer(train_step, batch, lambda step: 1.0, lambda *_: False, plan.accumulation, max_iters=2,
                      eval_interval=1000, seed=0)
    fit(trainer, Progress())


def write(model, prompt_tokens):
    list(generate(model.eval(), [1] * prompt_tokens, 2, SamplingConfig()))


def show(predicted, measured, *words):
    """Print a row; return its error, as a share of what was measured."""
    error = predicted / measured - 1
    print("".join(f"{word:<{width}}" for word, width in zip(words, (17, 8, 6, 10, 7, 25), strict=False))
          + f"{predicted / MIB:10,.1f}{measured / MIB:10,.1f}{error:9.2%}", flush=True)
    return error


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    device = pick_device(args.device)
    card = {}
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; peaks in MiB\n")
        card["workspace"] = cublas_workspace(torch.cuda.get_device_capability()[0])
    else:
        print(f"CPU, torch {torch.__version__}, {torch.get_num_threads()} threads; peaks in MiB\n"
              "On CUDA the predictions have not been measured unless you do it: --device cuda\n")

    print(f"{'':17}{'context':8}{'batch':6}{'dtype':10}{'by':7}{'':25} predicted  measured    error")
    errors = []
    for name, dtype in itertools.product(WRITING, HALF):  # first, while only the forward pass has a workspace
        c = ZOO[name].config
        measured = peak_bytes(lambda n=name, t=dtype: ZOO[n]().to(device, getattr(torch, t)),
                              lambda m, T=c.block_size: write(m, T), device)
        errors.append(show(inference_memory(c, c.block_size, dtype, device, **card).allocated, measured, name,
                           c.block_size, 1, dtype, "", "writing"))
    print(f"\n{len(errors)} rows of writing, worst error {max(errors, key=abs):.2%}\n")

    errors = []
    for name, changes, planned in TRAINING:
        times = 8 if device == "cuda" else 1
        plan = Plan(device=device, **card, **planned | {"batch_size": times * planned["batch_size"]})
        if device == "cpu" and count_parameters(ZOO[name].config) > 50e6:
            changes = changes | {"n_blocks": 3}
        with torch.device("meta"):
            model = ZOO[name](**changes)
        assert count_parameters(model.config) == sum(weight.numel() for weight in model.parameters())
        how = ", ".join(["checkpointing"] * plan.activation_checkpointing + ["3 blocks"] * ("n_blocks" in changes)
                        + [f"accumulation {plan.accumulation}"] * (plan.accumulation > 1))
        predicted = training_memory(model.config, plan)
        if device == "cuda" and predicted.total > torch.cuda.mem_get_info()[1]:
            print(f"{name} at batch {plan.batch_size} in {plan.dtype} takes {readable(predicted.total)}: left out")
            continue
        measured = peak_bytes(lambda n=name, c=changes: ZOO[n](**c).to(device), lambda m, p=plan: train(m, p), device)
        errors.append(show(predicted.allocated, measured, name, model.block_size, plan.batch_size, plan.dtype,
                           plan.optimizer, how))
    print(f"\n{len(errors)} rows of training, worst error {max(errors, key=abs):.2%}")


if __name__ == "__main__":
    main()
