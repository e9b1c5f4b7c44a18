"""Time to the first token, and tokens/s after it, for a Hugging Face model: ours against transformers, in turns.

    python benchmarks/huggingface.py PATH/TO/FOLDER

Each turn is a new process, which loads the model and continues a short prompt greedily. The time to the first token
starts with the process, so it includes imports. Ours computes in the dtype of terminal_demo.py and in float32,
transformers in float32 and bfloat16.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import print_header, print_row  # noqa: E402

from utils.errors import Parser, UserError, check_numbers, command  # noqa: E402
from utils.files import PROJECT  # noqa: E402

PROMPT = "Once upon a time"
OURS = """
import sys, time
sys.path.insert(0, {project!r})
import torch
from models.config import SamplingConfig
from models.generate import generate
from training.checkpoint import load_model
from training.precision import inference_dtype, pick_device
torch.set_num_threads({threads})
model, tokenizer = load_model({folder!r}, pick_device("cpu"))
model = model.to(inference_dtype("cpu") if {fast} else torch.float32)
tokens = generate(model, tokenizer.encode({prompt!r}), 1 + {tokens}, SamplingConfig(temperature=0))
next(tokens)
first = time.time()
n = sum(1 for _ in tokens)
"""
THEIRS = """
import time
import torch, transformers
torch.set_num_threads({threads})
model = transformers.AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.{dtype}).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained({folder!r})
ids = tokenizer({prompt!r}, return_tensors="pt")
with torch.inference_mode():
    model.generate(**ids, max_new_tokens=1, do_sample=False)
    first = time.time()
    n = model.generate(**ids, min_new_tokens={tokens}, max_new_tokens={tokens}, do_sample=False).size(1)
    n -= ids["input_ids"].size(1)
"""
REPORT = "\nimport json\nprint(json.dumps([first, n / (time.time() - first)]))"


def measure(code: str, **values: Any) -> tuple[float, float]:
    """Run a program, and return the seconds from its start to its first token, and the tokens/s after it."""
    start = time.time()
    done = subprocess.run([sys.executable, "-c", code.format(**values) + REPORT], check=True, capture_output=True)
    first, speed = json.loads(done.stdout.splitlines()[-1])
    return first - start, speed


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="a folder with config.json, weights and a tokenizer")
    parser.add_argument("--tokens", type=int, default=100, help="tokens after the first (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns; medians are reported (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("tokens", "turns", "threads"))
    if not (args.folder / "config.json").is_file():
        raise UserError(f"{args.folder / 'config.json'} does not exist: give the folder of a Hugging Face model")
    values = {"folder": str(args.folder), "project": str(PROJECT), "prompt": PROMPT, "tokens": args.tokens,
              "threads": args.threads}
    programs = {"ours": (OURS, {"fast": True}), "ours, float32": (OURS, {"fast": False}),
                "transformers, float32": (THEIRS, {"dtype": "float32"}),
                "transformers, bfloat16": (THEIRS, {"dtype": "bfloat16"})}
    results = {name: [] for name in programs}
    for _ in range(1 + args.turns):  # the first turn, which reads the files from the disk, does not count
        for name, (code, more) in programs.items():
            results[name].append(measure(code, **values, **more))
    print_header("", "seconds to the first token", "tokens/s")
    for name, measured in results.items():
        seconds, speed = (statistics.median(column) for column in zip(*measured[1:], strict=True))
        print_row(name, f"{seconds:.2f}", f"{speed:.1f}")


if __name__ == "__main__":
    main()
