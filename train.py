"""Train a model of the zoo.

    python train.py config/bard_gpt_cpu.yaml
    python train.py config/bard_gpt_cpu.yaml --training.max_iters 100 --model.n_blocks 4 --run small
    python train.py --run small --resume

First a YAML file, which may be left out, then settings that override it, as --name value or --name=value.
"""

import sys

from training.arguments import help_text, parse_settings
from utils.errors import command
from utils.streams import optional_output


@command
def main():
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(f"{__doc__}\n{help_text()}")
        return
    settings = parse_settings(arguments)
    from training.run import train  # imports torch, which --help and mistakes need not wait for

    with optional_output():
        train(settings)


if __name__ == "__main__":
    main()
