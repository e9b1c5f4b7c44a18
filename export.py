"""Export a checkpoint to the files of other projects, and verify them.

    python export.py checkpoints/my_run my_model        a folder for Hugging Face transformers

The folder opens with AutoModelForCausalLM and AutoTokenizer. Its logits and token ids are compared with those of the
checkpoint; if they differ, nothing is written. An earlier export is replaced as a whole.
"""

import json
from pathlib import Path

from formats.export import export_folder
from training.checkpoint import SHIPPED, checkpoint_file, load_checkpoint
from utils.errors import Parser, command
from utils.printable import one_line


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="a checkpoint of train.py or transformer_4d.py, or a folder with a best.pt")
    parser.add_argument("folder", type=Path, help="is created, or replaced if it is an earlier export")
    args = parser.parse_args()
    class_name = export_folder(args.folder, load_checkpoint(args.checkpoint), args.folder.resolve().name,
                               measured_loss(args.checkpoint))
    print(one_line(f"{args.folder}: {class_name}"))


def measured_loss(checkpoint):
    """The validation loss of the best.pt of a run, from the metrics.jsonl beside it; None without one."""
    path = checkpoint_file(checkpoint)
    metrics = path.with_name("metrics.jsonl")
    if path.name != "best.pt" or not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return min(loss for line in lines for loss in (line["val_loss"], line.get("ema_val_loss", line["val_loss"])))


if __name__ == "__main__":
    main()
