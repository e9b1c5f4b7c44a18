"""What the measurements against others have in common."""

import importlib.util
import statistics
import time

from utils.errors import UserError


def nanogpt_model(checkout, c):
    """nanoGPT's model, from its checkout, in the shape of the ModelConfig c. Raises UserError."""
    path = checkout / "model.py"
    if not path.is_file():
        raise UserError(f"{path} is not there: give the folder of a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    return nanogpt.GPT(nanogpt.GPTConfig(n_embd=c.n_embd, block_size=c.block_size, n_layer=c.n_blocks,
                                         n_head=c.num_heads, vocab_size=c.vocab_size, bias=False))


def in_turns(runs, n_tokens, turns):
    """The median speed in tokens per second of each of `runs`, functions by name that take `n_tokens` each."""
    speeds = {name: [] for name in runs}
    for turn in range(1, turns + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            speeds[name].append(n_tokens / (time.perf_counter() - started))
        latest = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in speeds.items())
        print(f"turn {turn}: {latest} tokens/s", flush=True)
    return {name: statistics.median(values) for name, values in speeds.items()}
