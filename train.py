"""Train a model of the zoo.

    python train.py config/bard_gpt_cpu.yaml
    python train.py config/bard_gpt_cpu.yaml --training.max_iters 100 --model.n_blocks 4 --run small
    python train.py --run small --resume
    torchrun --nproc_per_node=4 train.py config/bard_gpt.yaml --run_name large

The YAML file comes first, and may be left out; settings override it, as --name value or --name=value. With torchrun,
write --run_name instead of --run, which abbreviates an option of torchrun itself.
"""

import os
import sys

from training.arguments import help_text, parse_settings
from utils.errors import UserError, command
from utils.streams import optional_output


@command
def main() -> None:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(f"{__doc__}\n{help_text()}")
        return
    try:
        settings = parse_settings(arguments)
    except UserError:
        if os.environ.get("RANK", "0") != "0":  # with torchrun, rank 0 prints the error
            sys.exit(2)
        raise
    from training.run import train  # imports torch, which --help and errors in settings need not wait for

    with optional_output():
        train(settings)


if __name__ == "__main__":
    main()
