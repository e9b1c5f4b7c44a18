"""Train a model of the zoo.

    python train.py config/bard_gpt_cpu.yaml
    python train.py config/bard_gpt_cpu.yaml --training.max_iters 100 --model.n_blocks 4 --run small
    python train.py --run small --resume
    torchrun --nproc_per_node=4 train.py config/bard_gpt.yaml --run_name large

First a YAML file, which may be left out, then settings that override it, as --name value or --name=value. With
torchrun, --run is --run_name: it has an option of its own that starts with --run.
"""

import os
import sys

from training.arguments import help_text, parse_settings
from utils.errors import UserError, command
from utils.streams import optional_output


@command
def main():
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(f"{__doc__}\n{help_text()}")
        return
    try:
        settings = parse_settings(arguments)
    except UserError:
        if os.environ.get("RANK", "0") != "0":  # of torchrun: rank 0 says what is wrong
            sys.exit(2)
        raise
    from training.run import train  # imports torch, which --help and mistakes need not wait for

    with optional_output():
        train(settings)


if __name__ == "__main__":
    main()
