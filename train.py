"""Train a model of the zoo.

    python train.py config/bard_gpt.yaml
    python train.py config/bard_gpt.yaml --training.max_iters 100 --model.n_blocks 4 --run small
    python train.py config/bard_gpt.yaml --resume
"""

import argparse
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from training.settings import Settings
from utils.errors import command


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with the lines of the description as they are, and with the defaults."""


def parse(arguments):
    """Settings from the command line: a YAML file, if one comes first, and what is changed of it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config", action="config", help="a YAML file; may be given first, without --config")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_class_arguments(Settings, skip={"resume"})
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    found = parser.parse_args(arguments)
    config = found.pop("config")
    settings = Settings(**vars(parser.instantiate(found)))
    settings.run = settings.run or (Path(str(config[0])).stem if config else "run")
    return settings


@command
def main():
    settings = parse(sys.argv[1:])
    from training.run import train  # here, so that --help need not wait for torch

    train(settings)


if __name__ == "__main__":
    main()
