"""Generation speed with int8 weights, in tokens/s, against float32 and bfloat16, in turns.

    python benchmarks/int8.py                       the shipped model
    python benchmarks/int8.py --model GPT2          random weights in the shape of a model of the zoo
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generate import generate_ours  # noqa: E402
from side_by_side import device_name, in_turns, print_header, print_row  # noqa: E402

from models.gpt import GPT  # noqa: E402
from models.quantize import int8_summary, quantize_int8  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.checkpoint import SHIPPED, load_model  # noqa: E402
from training.precision import pick_device  # noqa: E402
from utils.errors import Parser, check_numbers, command  # noqa: E402


def random_model(name: str) -> GPT:
    """Return a model of the zoo with normally distributed weights: a new one has zeros, which may be faster."""
    model = ZOO[name]().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model


def print_speeds(model: GPT, device: str, n_tokens: int, turns: int) -> None:
    """Print the speeds as a Markdown table."""
    int8 = copy.deepcopy(model)
    quantize_int8(int8)
    models = {"float32": model.to(device), "bfloat16": copy.deepcopy(model).to(device, torch.bfloat16),
              "int8": int8.to(device, torch.bfloat16)}
    for each in models.values():
        generate_ours(each, 5)  # the first tokens of a process are slow
    runs = {name: partial(generate_ours, each, n_tokens) for name, each in models.items()}
    speed = in_turns(runs, n_tokens, turns)
    print(f"Generation, {device_name(device)}: {type(model).__name__}, {n_tokens} tokens")
    print(f"{int8_summary(model.config)}\n")
    print_header("weights", "tokens/s", "int8 is faster by")
    for name, tokens_per_second in speed.items():
        print_row(name, f"{tokens_per_second:,.1f}", f"{speed['int8'] / tokens_per_second:.2f}")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=ZOO, help="random weights instead of the shipped model")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns; medians are reported (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("tokens", "turns", "threads"))
    torch.set_num_threads(args.threads)
    model = load_model(SHIPPED)[0] if args.model is None else random_model(args.model)
    print_speeds(model, pick_device(args.device), args.tokens, args.turns)


if __name__ == "__main__":
    main()
