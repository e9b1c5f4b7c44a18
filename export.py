"""Export a checkpoint to the file formats of other projects.

    python export.py checkpoints/my_run my_model                      a folder for Hugging Face transformers
    python export.py checkpoints/my_run my_model.gguf --format gguf   a file for llama.cpp

AutoModelForCausalLM and AutoTokenizer load the folder. Its logits and token ids are compared with those of the
checkpoint; if they differ, nothing is written. An earlier export is replaced as a whole.
"""

import json
import math
from pathlib import Path

from formats.export.gguf import export_gguf
from formats.export.huggingface import export_folder
from training.checkpoint import checkpoint_file, load_checkpoint
from utils.errors import Parser, UserError, command
from utils.printable import one_line


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="a checkpoint, a folder with a best.pt, or a model of another project, as "
                                           "terminal_demo.py takes it")
    parser.add_argument("output", type=Path, help="the folder, or for gguf the file, that is written")
    parser.add_argument("--format", choices=("huggingface", "gguf"), default="huggingface", help="(%(default)s)")
    args = parser.parse_args()
    loaded = load_checkpoint(args.checkpoint)
    if args.format == "gguf":
        name = export_gguf(args.output, loaded)
    else:
        name = export_folder(args.output, loaded, measured_loss(args.checkpoint))
    print(one_line(f"{args.output}: {name}"))


def measured_loss(checkpoint: str) -> float | None:
    """Return the validation loss of the best.pt of a run, the lowest in its metrics.jsonl; None without that file.

    Raises UserError if that file is damaged.
    """
    path = checkpoint_file(checkpoint)
    metrics = path.with_name("metrics.jsonl")
    if path.name != "best.pt" or not metrics.is_file():
        return None
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        return float(min(min(line["val_loss"], line.get("ema_val_loss", math.inf)) for line in lines))
    except (ValueError, TypeError, LookupError):
        raise UserError(f"{metrics} is damaged: remove it, and the validation loss is left out") from None


if __name__ == "__main__":
    main()
