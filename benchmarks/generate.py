"""Generation speed of models/generate.py, in tokens/s, against nanoGPT and transformers, in turns.

    python benchmarks/generate.py PATH/TO/nanoGPT
    python benchmarks/generate.py PATH/TO/nanoGPT --device cuda

All three continue the same short prompt, one sequence, at the same temperature, with models of the same width, depth,
heads and vocabulary. Ours computes in the dtype of terminal_demo.py; the others in float32 on a CPU, and in our dtype
on CUDA. nanoGPT recomputes the whole context for every token. transformers has a KV cache, like ours, but the learned
positions of its GPT-2 end at n_positions: it gets a context that holds all tokens, while nanoGPT and ours slide the
context of our model. None uses cuDNN's attention, which plans its kernels for half a second for each new length.
"""

import statistics
import sys
import timeit
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import (  # noqa: E402
    device_name,
    in_turns,
    nanogpt_model,
    print_header,
    print_row,
    synchronize,
)

from models.config import ModelConfig, SamplingConfig  # noqa: E402
from models.generate import generate, window_start  # noqa: E402
from models.gpt import GPT  # noqa: E402
from models.kv_cache import KVCache  # noqa: E402
from models.zoo import BardGPT  # noqa: E402
from training.checkpoint import SHIPPED, load_model  # noqa: E402
from training.precision import avoid_attention_plans, inference_dtype, pick_device  # noqa: E402
from utils.errors import Parser, UserError, check_numbers, command  # noqa: E402

PROMPT = [1, 2, 3, 4, 5, 6]
SAMPLING = SamplingConfig()


def generate_ours(model: GPT, n: int) -> None:
    for _ in generate(model, PROMPT, n, SAMPLING):
        pass


def generate_nanogpt(model: torch.nn.Module, n: int) -> None:
    model.generate(torch.tensor([PROMPT], device=model.lm_head.weight.device), n, SAMPLING.temperature)
    synchronize(model.lm_head.weight.device.type)


def generate_transformers(model: torch.nn.Module, n: int) -> None:
    ids = torch.tensor([PROMPT], device=model.device)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=True,
                   temperature=SAMPLING.temperature, top_k=0, use_cache=True)
    synchronize(model.device.type)


def transformers_model(config: ModelConfig, n_positions: int) -> torch.nn.Module:
    """Return transformers' GPT-2 with the sizes of `config`. Raises UserError if transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, logging
    except ImportError:
        raise UserError("transformers is not installed: pip install transformers") from None
    logging.set_verbosity_error()  # hides its advice to pass a mask, although nothing is padded
    return GPT2LMHeadModel(GPT2Config(n_embd=config.n_embd, n_positions=n_positions, n_layer=config.n_blocks,
                                      n_head=config.num_heads, vocab_size=config.vocab_size, bos_token_id=None,
                                      eos_token_id=None, pad_token_id=0))


def memory_bound(model: GPT, n: int) -> tuple[float, str]:
    """Return the tokens/s if reading weights and cache from memory took all the time, and the computation as text."""
    device = model.head.weight.device.type
    numbers = torch.ones(2**27, device=device)  # 512 MB, larger than the caches of CPUs and GPUs

    def read() -> None:
        numbers.sum()
        synchronize(device)

    bandwidth = numbers.nbytes / min(timeit.repeat(read, number=1, repeat=10))
    block_size = model.config.block_size
    read_parts = torch.nn.ModuleList([model.blocks, model.head])
    weights = sum(weight.nbytes for weight in read_parts.parameters())
    lengths = [end - window_start(end, block_size) for end in range(len(PROMPT), len(PROMPT) + n)]
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in KVCache(model).layers)  # of block_size tokens
    cache *= statistics.mean(lengths) / block_size
    computation = (f"{weights / 1e6:.1f} MB of weights and {cache / 1e6:.1f} MB of keys and values per token, at "
                   f"{bandwidth / 1e9:.1f} GB/s")
    return bandwidth / (weights + cache), computation


def print_speeds(checkout: Path, device: str, checkpoint: Path | str | None, n_tokens: int, turns: int) -> None:
    """Print the speeds as a Markdown table, and the bound that reading from memory sets."""
    model = load_model(checkpoint)[0] if checkpoint else BardGPT().eval()
    model = model.to(device, inference_dtype(device))
    config = model.config
    dtype = model.head.weight.dtype if device == "cuda" else torch.float32
    nanogpt = nanogpt_model(checkout, config).to(device, dtype).eval()
    transformers = transformers_model(config, len(PROMPT) + n_tokens).to(device, dtype).eval()
    runs = {"ours": partial(generate_ours, model),
            "nanoGPT": partial(generate_nanogpt, nanogpt),
            "transformers": partial(generate_transformers, transformers)}
    for run in runs.values():
        run(min(20, n_tokens))  # the first tokens of a process are slow
    speed = in_turns({name: partial(run, n_tokens) for name, run in runs.items()}, n_tokens, turns)
    bound, computation = memory_bound(model, n_tokens)
    dtype_name = str(model.head.weight.dtype).removeprefix("torch.")
    print(f"Generation, {device_name(device)}: {type(model).__name__}, n_embd {config.n_embd}, {config.n_blocks} "
          f"blocks, context {config.block_size}, {n_tokens} tokens, ours in {dtype_name}\n")
    print_header("", "tokens/s", "ours is faster by")
    for name, tokens_per_second in speed.items():
        print_row(name, f"{tokens_per_second:,.1f}", f"{speed['ours'] / tokens_per_second:.2f}")
    print(f"\nOurs reaches {speed['ours'] / bound:.0%} of the {bound:,.0f} tokens/s that memory allows: {computation}")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--checkpoint", default=SHIPPED if SHIPPED.exists() else None,
                        help="our model (the shipped one; without it, untrained weights of the same shape)")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns; medians are reported (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("tokens", "turns", "threads"))
    torch.set_num_threads(args.threads)
    avoid_attention_plans()
    print_speeds(args.nanogpt, pick_device(args.device), args.checkpoint, args.tokens, args.turns)


if __name__ == "__main__":
    main()
