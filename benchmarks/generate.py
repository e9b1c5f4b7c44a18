"""Speed of generation on a CPU: models/generate.py against nanoGPT and transformers, in turns.

    python benchmarks/generate.py PATH/TO/nanoGPT

All three continue the same short prompt, one sequence, with models of the same width, depth, heads and vocabulary, at
the same temperature. nanoGPT computes its whole context again for each token. transformers has a cache, as ours has,
but the positions that its GPT-2 has learned end at n_positions: it gets enough of them for all tokens and never drops
any, while nanoGPT and ours go on for ever within the context of our model.
"""

import statistics
import sys
import timeit
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import in_turns, nanogpt_model  # noqa: E402

from models.cache import KVCache  # noqa: E402
from models.config import SamplingConfig  # noqa: E402
from models.generate import generate, window_start  # noqa: E402
from models.zoo import BardGPT  # noqa: E402
from training.checkpoint import SHIPPED, load_model  # noqa: E402
from training.precision import writing_dtype  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402

PROMPT = [1, 2, 3, 4, 5, 6]
SAMPLING = SamplingConfig()


def ours(model, n):
    return list(generate(model, PROMPT, n, SAMPLING))


def nanogpt(model, n):
    return model.generate(torch.tensor([PROMPT]), n, SAMPLING.temperature)


def transformers(model, n):
    ids = torch.tensor([PROMPT])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=True,
                          temperature=SAMPLING.temperature, top_k=0, use_cache=True)


def transformers_model(c, n_positions):
    """transformers' GPT-2 in the shape of the ModelConfig c. Raises UserError."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, logging
    except ImportError:
        raise UserError("transformers is not installed: pip install transformers") from None
    logging.set_verbosity_error()  # else it asks for a mask of padding, of which there is none
    return GPT2LMHeadModel(GPT2Config(n_embd=c.n_embd, n_positions=n_positions, n_layer=c.n_blocks, n_head=c.num_heads,
                                      vocab_size=c.vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=0))


def memory_bound(model, n):
    """Tokens per second if all that a token must read came from memory and nothing else took time; and in words."""
    numbers = torch.ones(2**27)  # 512 MB: no cache of a CPU holds them
    bandwidth = numbers.nbytes / min(timeit.repeat(numbers.sum, number=1, repeat=10))
    c = model.config
    weights = sum(weight.nbytes for part in (model.blocks, model.head) for weight in part.parameters())
    lengths = [end - window_start(end, c.block_size) for end in range(len(PROMPT), len(PROMPT) + n)]
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in KVCache(model).layers)  # of block_size tokens
    cache *= statistics.mean(lengths) / c.block_size
    return bandwidth / (weights + cache), (f"{weights / 1e6:.1f} MB of weights and {cache / 1e6:.1f} MB of keys and "
                                           f"values a token, at {bandwidth / 1e9:.1f} GB/s")


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--checkpoint", default=SHIPPED if SHIPPED.exists() else None,
                        help="a model of ours (the one that ships; without it, untrained weights of its shape)")
    parser.add_argument("--tokens", type=int, default=1000, help="to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each; the median counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = load_model(args.checkpoint)[0] if args.checkpoint else BardGPT().eval()
    model = model.to(writing_dtype("cpu"))
    c = model.config
    runs = {
        "ours": partial(ours, model),
        "nanoGPT": partial(nanogpt, nanogpt_model(args.nanogpt, c).eval()),
        "transformers": partial(transformers, transformers_model(c, len(PROMPT) + args.tokens).eval()),
    }
    print(f"{args.checkpoint or 'untrained weights'}: {type(model).__name__}, n_embd {c.n_embd}, {c.n_blocks} blocks, "
          f"context {c.block_size}\n{args.tokens} tokens, {args.threads} threads; ours computes in "
          f"{str(model.head.weight.dtype).removeprefix('torch.')}, the others in float32\n")
    for run in runs.values():
        run(20)  # the first tokens of a process are slow
    speed = in_turns({name: partial(run, args.tokens) for name, run in runs.items()}, args.tokens, args.turns)

    print(f"\nours: {speed['ours']:.0f} tokens/s")
    for name in ("nanoGPT", "transformers"):
        print(f"  {speed['ours'] / speed[name]:.2f} times {name}'s {speed[name]:.1f}")
    bound, why = memory_bound(model, args.tokens)
    print(f"  {speed['ours'] / bound:.0%} of the {bound:.0f} that memory allows: {why}\n"
          "  (weights that fit into the CPU's caches are read faster than that)")


if __name__ == "__main__":
    main()
