"""Generation speed: models/generate.py against nanoGPT and transformers, in turns.

    python benchmarks/generate.py PATH/TO/nanoGPT
    python benchmarks/generate.py PATH/TO/nanoGPT --device cuda

All three continue the same short prompt, one sequence, at the same temperature, with models of the same width, depth,
heads and vocabulary: ours in the dtype of terminal_demo.py, the others on a CPU in float32 and on CUDA in ours. nanoGPT
computes the whole context again for every token. transformers has a cache, as ours has, but the learned positions of
its GPT-2 end at n_positions: it gets enough for all tokens and never drops any, while nanoGPT and ours continue for
ever within the context of our model.
"""

import statistics
import sys
import timeit
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import device_name, in_turns, nanogpt_model, synchronize  # noqa: E402

from models.cache import KVCache  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.generate import generate, window_start  # noqa: E402
from models.zoo import BardGPT  # noqa: E402
from training.checkpoint import SHIPPED, load_model  # noqa: E402
from training.precision import inference_dtype, pick_device  # noqa: E402
from utils.errors import Parser, UserError, check_numbers, command  # noqa: E402

PROMPT = [1, 2, 3, 4, 5, 6]
SAMPLING = SamplingConfig()


def ours(model, n):
    return list(generate(model, PROMPT, n, SAMPLING))


def nanogpt(model, n):
    model.generate(torch.tensor([PROMPT], device=model.lm_head.weight.device), n, SAMPLING.temperature)
    synchronize(model.lm_head.weight.device.type)


def transformers(model, n):
    ids = torch.tensor([PROMPT], device=model.device)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=True,
                   temperature=SAMPLING.temperature, top_k=0, use_cache=True)
    synchronize(model.device.type)


def transformers_model(c, n_positions):
    """transformers' GPT-2 in the shape of the ModelConfig c. Raises UserError."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, logging
    except ImportError:
        raise UserError("transformers is not installed: pip install transformers") from None
    logging.set_verbosity_error()  # hides its advice to pass a mask, although nothing is padded
    return GPT2LMHeadModel(GPT2Config(n_embd=c.n_embd, n_positions=n_positions, n_layer=c.n_blocks, n_head=c.num_heads,
                                      vocab_size=c.vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=0))


def memory_bound(model, n):
    """Tokens/s if reading weights and cache from memory took all the time; and how that is computed, in words."""
    device = model.head.weight.device.type
    numbers = torch.ones(2**27, device=device)  # 512 MB: more than the caches of CPUs and GPUs hold

    def read():
        numbers.sum()
        synchronize(device)

    bandwidth = numbers.nbytes / min(timeit.repeat(read, number=1, repeat=10))
    c = model.config
    weights = sum(weight.nbytes for part in (model.blocks, model.head) for weight in part.parameters())
    lengths = [end - window_start(end, c.block_size) for end in range(len(PROMPT), len(PROMPT) + n)]
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in KVCache(model).layers)  # of block_size tokens
    cache *= statistics.mean(lengths) / c.block_size
    return bandwidth / (weights + cache), (f"{weights / 1e6:.1f} MB of weights and {cache / 1e6:.1f} MB of keys and "
                                           f"values per token, at {bandwidth / 1e9:.1f} GB/s")


def table(checkout, device, checkpoint, n_tokens, turns):
    """Yield the lines of a Markdown table, and of what memory allows."""
    model = (load_model(checkpoint)[0] if checkpoint else BardGPT().eval()).to(device, inference_dtype(device))
    c = model.config
    dtype = model.head.weight.dtype if device == "cuda" else torch.float32
    runs = {"ours": partial(ours, model),
            "nanoGPT": partial(nanogpt, nanogpt_model(checkout, c).to(device, dtype).eval()),
            "transformers": partial(transformers,
                                    transformers_model(c, len(PROMPT) + n_tokens).to(device, dtype).eval())}
    for run in runs.values():
        run(20)  # the first tokens of a process are slow
    speed = in_turns({name: partial(run, n_tokens) for name, run in runs.items()}, n_tokens, turns)
    bound, how = memory_bound(model, n_tokens)
    dtype_name = str(model.head.weight.dtype).removeprefix("torch.")
    yield (f"Generation, {device_name(device)}: {type(model).__name__}, n_embd {c.n_embd}, {c.n_blocks} blocks, "
           f"context {c.block_size}, {n_tokens} tokens, ours in {dtype_name}\n")
    yield "| | tokens/s | ours is faster by |"
    yield "|---|---|---|"
    for name, tokens_per_second in speed.items():
        yield f"| {name} | {tokens_per_second:,.1f} | {speed['ours'] / tokens_per_second:.2f} |"
    yield f"\nOurs reaches {speed['ours'] / bound:.0%} of the {bound:,.0f} tokens/s that memory allows: {how}"


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--checkpoint", default=SHIPPED if SHIPPED.exists() else None,
                        help="our model (the one that ships; without it, untrained weights of its shape)")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each; the median counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("tokens", "turns", "threads"))
    torch.set_num_threads(args.threads)
    for line in table(args.nanogpt, pick_device(args.device), args.checkpoint, args.tokens, args.turns):
        print(line, flush=True)


if __name__ == "__main__":
    main()
