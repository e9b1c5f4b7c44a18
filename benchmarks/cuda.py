"""The benchmarks against nanoGPT and the memory forecast on one CUDA GPU, as Markdown; about six minutes on an H100.

    python benchmarks/cuda.py PATH/TO/nanoGPT > results.md
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from utils.errors import Parser, command  # noqa: E402

TIME_TO_LOSS = ("--target", "1.4697", "--steps", "2500", "--nanogpt_steps", "2500", "--batch_size", "64")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    args = parser.parse_args()
    for script, arguments in (
        ("train.py", (args.nanogpt, "--steps", "20", "--turns", "3")),
        ("generate.py", (args.nanogpt, "--tokens", "300", "--turns", "2")),
        ("memory.py", ()),
        ("time_to_loss.py", (args.nanogpt, *TIME_TO_LOSS)),
    ):
        print(f"\n## {script}\n", flush=True)
        # Without check: if one fails, the others still run.
        subprocess.run([sys.executable, FOLDER / script, *arguments, "--device", "cuda"])


if __name__ == "__main__":
    main()
