"""The benchmarks against nanoGPT and the memory forecast on one CUDA GPU, as Markdown.

    python benchmarks/cuda.py PATH/TO/nanoGPT > results.md
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from utils.errors import Parser, command  # noqa: E402


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    args = parser.parse_args()
    for script, arguments in (
        ("train.py", (args.nanogpt, "--steps", "20", "--turns", "3")),
        ("generate.py", (args.nanogpt, "--tokens", "600", "--turns", "2")),
        ("memory.py", ()),
        ("time_to_loss.py", (args.nanogpt, "--published")),
    ):
        print(f"\n## {script}\n", flush=True)
        # Without check: if one fails, the others still run.
        subprocess.run([sys.executable, FOLDER / script, *arguments, "--device", "cuda"])


if __name__ == "__main__":
    main()
