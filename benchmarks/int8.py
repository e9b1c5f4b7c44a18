"""Generation speed with int8 weights, against float32 and bfloat16, in turns.

    python benchmarks/int8.py                       the model that ships
    python benchmarks/int8.py --model GPT2          random weights in the shape of a model of the zoo
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generate import ours  # noqa: E402
from side_by_side import device_name, in_turns  # noqa: E402

from models.quantize import int8_summary, quantize_int8  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.checkpoint import SHIPPED, load_model  # noqa: E402
from training.precision import pick_device  # noqa: E402
from utils.errors import Parser, check_numbers, command  # noqa: E402


def random_model(name):
    """A model of the zoo with normally distributed weights: the zeros of a new one are no test of speed."""
    model = ZOO[name]().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model


def table(model, device, n_tokens, turns):
    """Yield the lines of a Markdown table."""
    int8 = copy.deepcopy(model)
    quantize_int8(int8)
    models = {"float32": model.to(device), "bfloat16": copy.deepcopy(model).to(device, torch.bfloat16),
              "int8": int8.to(device, torch.bfloat16)}
    for each in models.values():
        ours(each, 5)  # the first tokens of a process are slow
    speed = in_turns({name: partial(ours, each, n_tokens) for name, each in models.items()}, n_tokens, turns)
    yield f"Generation, {device_name(device)}: {type(model).__name__}, {n_tokens} tokens"
    yield f"{int8_summary(model.config)}\n"
    yield "| weights | tokens/s | int8 is faster by |"
    yield "|---|---|---|"
    for name, tokens_per_second in speed.items():
        yield f"| {name} | {tokens_per_second:,.1f} | {speed['int8'] / tokens_per_second:.2f} |"


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=ZOO, help="random weights instead of the model that ships")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each; the median counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("tokens", "turns", "threads"))
    torch.set_num_threads(args.threads)
    model = load_model(SHIPPED)[0] if args.model is None else random_model(args.model)
    for line in table(model, pick_device(args.device), args.tokens, args.turns):
        print(line, flush=True)


if __name__ == "__main__":
    main()
